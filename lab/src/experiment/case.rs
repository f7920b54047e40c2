//! One load of an experiment, with what is particular to it.

use serde_json::json;

use super::arm::Arm;
use super::load;
use crate::load::Load;
use crate::results::Settings;
use crate::topology::links::Links;

/// A load, and for which arms, over which links and how often it is run where that is not as for the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// What goals and `--only` call it; without one it goes by its kind.
    pub name: Option<String>,
    /// The load.
    pub load: Load,
    /// Links of its own.
    pub links: Option<Links>,
    /// Names of the arms that take part; all when empty.
    pub arms: Vec<String>,
    /// Rounds of its own.
    pub rounds: Option<u32>,
}

impl From<Load> for Case {
    fn from(load: Load) -> Self {
        Self { name: None, load, links: None, arms: Vec::new(), rounds: None }
    }
}

impl Case {
    /// Its name, or the name of its kind.
    #[must_use]
    pub fn id(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| load::name(&self.load))
    }

    /// Whether an arm is measured under it.
    #[must_use]
    pub fn takes(&self, arm: &Arm) -> bool {
        self.arms.is_empty() || self.arms.contains(&arm.name)
    }

    /// What its rounds have as settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let mut settings = load::settings(&self.load);
        settings.extend(self.name.iter().map(|name| ("name".to_owned(), json!(name))));
        settings.extend(self.links.iter().map(|links| ("links".to_owned(), json!(links.to_string()))));
        settings
    }

    /// In one line, for headings.
    #[must_use]
    pub fn describe(&self) -> String {
        let name = self.name.iter().map(|name| format!("{name}: "));
        let links = self.links.iter().map(|links| format!("; {links}"));
        name.chain([load::describe(&self.load)]).chain(links).collect()
    }
}
