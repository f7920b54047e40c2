//! Forwarders the user names: another build of a known one, or any command line.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Running, Setup};
use crate::place::Forward;
use crate::tools;

/// `--peer NAME=COMMAND`. For a known name, COMMAND is its program, with words of the user's in front where wanted
/// (`haproxy=taskset -c 0 /opt/haproxy`); the lab adds the arguments. With placeholders it is the whole command line
/// of any forwarder that stays in the foreground: `{listen}` and `{target}` (or `{to}`) are `ADDRESS:PORT`, `{listen_ip}`,
/// `{listen_port}`, `{target_ip}`, `{target_port}` their parts, `{cores}` the number of CPUs, `{dir}` a directory for
/// files. One process is started for each forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The name of the arm.
    pub name: String,
    /// The words of the command; never empty.
    pub words: Vec<String>,
}

/// Whether the lab writes a file of that name where each forwarder has a directory.
pub(crate) fn is_taken(name: &str) -> bool {
    // Reports are written beside and renamed.
    let files = ["results.json", "report.md", "report.html", "trace.jsonl", "plan.yaml", "results.new", "report.new"];
    files.contains(&name)
}

impl FromStr for Given {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "such as haproxy=/opt/haproxy or mine='/opt/mine {listen} {target}'";
        let (name, command) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=COMMAND, {shape}"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("{name:?} is no name: letters, digits, - _ and . are allowed, {shape}"));
        }
        if is_taken(name) {
            return Err(format!("{name:?} is the name of a file of the results"));
        }
        let words = shlex::split(command).ok_or_else(|| format!("{command:?} has a quote that is not closed"))?;
        if words.is_empty() {
            return Err(format!("the command of {name:?} is empty, {shape}"));
        }
        let given = Self { name: name.to_owned(), words };
        let known = super::definition(name);
        if known.is_some_and(|known| known.program.is_none()) {
            return Err(format!("{name} is done by the kernel and has no command"));
        }
        if known.is_none() && !(given.holds("{listen") && given.holds_target()) {
            return Err(format!(
                "the lab does not know {name:?}: its command must hold {{listen}} and {{target}}, {shape}"
            ));
        }
        Ok(given)
    }
}

impl Given {
    fn holds(&self, part: &str) -> bool {
        self.words.iter().any(|word| word.contains(part))
    }

    fn holds_target(&self) -> bool {
        self.holds("{target") || self.holds("{to}")
    }

    /// Whether this is a whole command line.
    pub(super) fn is_template(&self) -> bool {
        self.holds("{listen") || self.holds_target()
    }

    /// Where the program is.
    pub(super) fn program(&self) -> Result<PathBuf, String> {
        let word = &self.words[0];
        tools::on_path(word).ok_or_else(|| format!("{word} of --peer {}=… is no program that can be run", self.name))
    }
}

/// Starts a command line once for each forward.
pub(super) fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let mut running = Running::new(setup);
    for forward in &setup.forwards {
        let words: Vec<String> = setup.command.iter().map(|word| fill(word, forward, setup)).collect();
        running.start(&words, &[])?;
    }
    running.ready()
}

fn fill(word: &str, forward: &Forward, setup: &Setup<'_>) -> String {
    [
        ("{listen}", forward.listen.to_string()),
        ("{listen_ip}", forward.listen.ip().to_string()),
        ("{listen_port}", forward.listen.port().to_string()),
        ("{target}", forward.to.to_string()),
        ("{to}", forward.to.to_string()),
        ("{target_ip}", forward.to.ip().to_string()),
        ("{target_port}", forward.to.port().to_string()),
        ("{cores}", setup.cores.to_string()),
        ("{dir}", setup.directory.to_string_lossy().into_owned()),
    ]
    .iter()
    .fold(word.to_owned(), |word, (name, value)| word.replace(name, value))
}
