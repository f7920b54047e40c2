//! The plan that runs, as text for another process: with what tells its lists of networks from those on disk now.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ConfigError, Format, Lookup, Overrides, parse_as, render};
use crate::plan::{NetFile, NetSet, Plan, Summary};

/// In front of each line about a list; to a reader of YAML a comment.
const LIST: &str = "# networks ";

/// The plan as YAML, with a comment about each list of networks.
#[must_use]
pub fn render_running(plan: &Plan) -> String {
    let mut text = render(plan);
    let lists: BTreeMap<&Path, Summary> = plan
        .forwards
        .iter()
        .flat_map(|forward| forward.access.files.iter())
        .map(|file| (file.path.as_path(), file.nets.summary()))
        .collect();
    for (path, Summary { written, fingerprint }) in lists {
        let _ = writeln!(text, "{LIST}{written} {fingerprint} {}", path.display());
    }
    text
}

/// The plan behind such a text. Its lists of networks can be compared with others, but contain nothing.
///
/// # Errors
/// It is no valid configuration, as one of a newer version may be.
pub fn parse_running(name: &str, text: &str) -> Result<Plan, ConfigError> {
    let lookup = Lookup { lists: |_| Ok(String::new()), ..Lookup::running() };
    let mut plan = parse_as(Format::Yaml, name, text, &Overrides::default(), &lookup)?;
    let lists: BTreeMap<PathBuf, Arc<NetSet>> =
        text.lines().filter_map(list).map(|(path, summary)| (path, Arc::new(NetSet::of(summary)))).collect();
    let known = |file: &NetFile| {
        let nets = lists.get(&file.path).unwrap_or(&file.nets);
        NetFile { path: file.path.clone(), nets: Arc::clone(nets) }
    };
    for forward in &mut plan.forwards {
        let files = &mut forward.access.files;
        for list in [&mut files.global_allow, &mut files.global_deny] {
            *list = list.iter().map(known).collect();
        }
        for list in [&mut files.allow, &mut files.deny] {
            *list = list.iter().map(known).collect();
        }
    }
    Ok(plan)
}

fn list(line: &str) -> Option<(PathBuf, Summary)> {
    let mut words = line.strip_prefix(LIST)?.splitn(3, ' ');
    let summary = Summary { written: words.next()?.parse().ok()?, fingerprint: words.next()?.parse().ok()? };
    Some((words.next()?.into(), summary))
}
