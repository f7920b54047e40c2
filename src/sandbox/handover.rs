//! What a process tells the newer executable it starts, so that an upgrade does not pile up the same filter and the
//! same Landlock domain each time: both are inherited, and the kernel allows 16 domains and 32768 instructions.
//!
//! A note that lies confines nobody less than leaving the confinement off would, and who writes our environment may do
//! that. Another plan or another version has other marks, and then confines itself once more.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::files::Rules;

/// The environment variable.
pub(super) const NAME: &str = "SPLICED_CONFINED";
const WITHOUT: &str = "-";

/// What a process is in, by marks that are equal for equal confinement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Marks {
    pub(super) filter: Option<String>,
    pub(super) domain: Option<String>,
}

/// The mark of a main thread's filter.
pub(super) fn of_filter(program: &seccompiler::BpfProgram) -> String {
    mark(&format!("{program:?}"))
}

/// The mark of a Landlock domain.
pub(super) fn of_rules(rules: &Rules) -> String {
    mark(&format!("{rules:?}"))
}

fn mark(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Marks {
    /// What the process that started this one said. Nothing where this one runs without a filter, whatever was said.
    pub(super) fn inherited() -> Self {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let filtered = status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
        match std::env::var(NAME) {
            Ok(text) if filtered => Self::parse(&text),
            _ => Self::default(),
        }
    }

    fn parse(text: &str) -> Self {
        let mut marks = text.split(',').map(|mark| Some(mark.to_owned()).filter(|mark| mark != WITHOUT));
        Self { filter: marks.next().flatten(), domain: marks.next().flatten() }
    }

    pub(super) fn text(&self) -> String {
        let mark = |mark: &Option<String>| mark.clone().unwrap_or_else(|| WITHOUT.to_owned());
        format!("{},{}", mark(&self.filter), mark(&self.domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_back() {
        for marks in [
            Marks::default(),
            Marks { filter: Some("a".into()), domain: None },
            Marks { filter: None, domain: Some("b".into()) },
            Marks { filter: Some("a".into()), domain: Some("b".into()) },
        ] {
            assert_eq!(Marks::parse(&marks.text()), marks);
        }
        assert_eq!(Marks::parse("x").domain, None);
        assert_ne!(mark("a"), mark("b"));
    }
}
