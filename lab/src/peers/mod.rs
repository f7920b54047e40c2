//! Other forwarders: found, configured as their users would for speed, started, and stopped without a trace.
//!
//! Each has a file of its own that says how it is found, what it is told and how to get it. `direct` and `dnat`
//! are limits: nothing in user space forwards there.

mod custom;
mod direct;
mod dnat;
mod haproxy;
mod nginx;
mod oi;
mod realm;
mod redir;
mod rinetd;
mod running;
mod socat;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use self::custom::Given;
pub(crate) use self::custom::is_taken;
pub use self::running::Running;

use crate::place::{Forward, Place, Wiring};
use crate::process::failed;
use crate::results::{Kind, Missing};
use crate::sample::Accounting;
use crate::tools;

/// How one forwarder is found, configured and started.
#[derive(Debug)]
pub(crate) struct Definition {
    /// Name of its arm.
    name: &'static str,
    kind: Kind,
    /// File name of its program; none for what the kernel does alone.
    program: Option<&'static str>,
    /// Arguments that make it say its version.
    version: &'static [&'static str],
    /// How to get it.
    how: &'static str,
    /// Whether it waits for its children.
    accounting: Accounting,
    /// Why it cannot be used although its program is there, by its path.
    unusable: fn(&[String]) -> Option<String>,
    start: fn(&Setup<'_>) -> io::Result<Running>,
}

/// What a forwarder is started with.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    name: &'a str,
    /// Words in front of the arguments: the program, and what the user put around it. Empty for the kernel's own.
    command: &'a [String],
    wiring: &'a Wiring,
    forwards: Vec<Forward>,
    cores: usize,
    /// Where its files go; an absolute path.
    directory: PathBuf,
}

const DEFINITIONS: [&Definition; 9] = [
    &haproxy::DEFINITION,
    &nginx::DEFINITION,
    &realm::DEFINITION,
    &oi::DEFINITION,
    &socat::DEFINITION,
    &rinetd::DEFINITION,
    &redir::DEFINITION,
    &direct::DEFINITION,
    &dnat::DEFINITION,
];

/// A forwarder that can be started.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Name of its arm, such as `haproxy`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// How the time of its children is found.
    pub accounting: Accounting,
    command: Vec<String>,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Known(&'static Definition),
    /// A command line of the user's with placeholders.
    Template,
}

/// Names of all that are known, in the order they are shown; limits last.
#[must_use]
pub fn names() -> Vec<&'static str> {
    DEFINITIONS.iter().map(|definition| definition.name).collect()
}

/// Everything known and everything named by the user: what can be started, and what is missing.
#[must_use]
pub fn find_all(given: &[Given]) -> (Vec<Peer>, Vec<Missing>) {
    let own = given.iter().map(|given| given.name.as_str()).filter(|name| definition(name).is_none());
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names().into_iter().chain(own) {
        match find(name, given) {
            Ok(peer) => found.push(peer),
            Err(miss) => missing.push(miss),
        }
    }
    (found, missing)
}

/// One forwarder by name, by the user's command where one was given.
///
/// # Errors
/// Why it cannot be started, and how to get it.
pub fn find(name: &str, given: &[Given]) -> Result<Peer, Missing> {
    let missing = |how: String| Missing { name: name.to_owned(), how };
    // The last word counts, as with every option that is given twice.
    let given = given.iter().rev().find(|given| given.name == name);
    if let Some(given) = given.filter(|given| given.is_template()) {
        given.program().map_err(missing)?;
        let (kind, accounting) = (Kind::Peer, Accounting::Waited);
        let (name, command) = (name.to_owned(), given.words.clone());
        return Ok(Peer { name, kind, accounting, command, how: How::Template });
    }
    let Some(definition) = definition(name) else {
        let known = names().join(", ");
        return Err(missing(format!(
            "not a forwarder the lab knows ({known}); name another with --peer NAME=COMMAND, where COMMAND holds \
             {{listen}} and {{target}}"
        )));
    };
    let command = match (given, definition.program) {
        (Some(given), _) => {
            given.program().map_err(missing)?;
            given.words.clone()
        }
        (None, Some(program)) => {
            let found = tools::on_path(program);
            let found = found.ok_or_else(|| missing(format!("{program} is not on PATH; {}", definition.how)))?;
            vec![found.to_string_lossy().into_owned()]
        }
        (None, None) => Vec::new(),
    };
    // A command of the user's is run where the forwarder runs, and nowhere else: what it lacks is told at its start.
    if let Some(why) = given.is_none().then(|| (definition.unusable)(&command)).flatten() {
        return Err(missing(why));
    }
    let Definition { kind, accounting, .. } = *definition;
    Ok(Peer { name: name.to_owned(), kind, accounting, command, how: How::Known(definition) })
}

fn definition(name: &str) -> Option<&'static Definition> {
    DEFINITIONS.into_iter().find(|definition| definition.name == name)
}

impl Peer {
    /// Where load has to connect: past the forwarder's place where nothing forwards.
    #[must_use]
    pub fn wiring(&self, wiring: &Wiring) -> Wiring {
        let direct = matches!(self.how, How::Known(definition) if definition.name == direct::DEFINITION.name);
        if direct { wiring.direct() } else { wiring.clone() }
    }

    /// What it says of its version, asked in `place`, where it runs; `None` when it does not say within a few seconds.
    #[must_use]
    pub fn version(&self, place: &Place) -> Option<String> {
        // The rest of a whole command line would forward.
        let (definition, words) = match self.how {
            How::Known(definition) => (definition, self.command.as_slice()),
            How::Template => (definition(&self.name)?, self.command.get(..1)?),
        };
        definition.program?;
        tools::first_line(&tools::output_in(place, words, definition.version)?)
    }

    /// Starts it in `wiring.forwarder` with every forward of the wiring and waits until it listens. Its configuration
    /// and what it says are kept in `out/NAME`.
    ///
    /// # Errors
    /// What kept it from starting, with its last output; nothing of it is left then.
    pub fn start(&self, wiring: &Wiring, out: &Path) -> io::Result<Running> {
        let directory = out.join(&self.name);
        let made = fs::create_dir_all(&directory).and_then(|()| directory.canonicalize());
        let directory = made.map_err(|error| {
            failed(&error, &format!("{}: cannot make a directory for its files, {}", self.name, directory.display()))
        })?;
        for file in ["command.txt", "output.txt"] {
            // What an earlier start left; that there is none is as good.
            let _ = fs::remove_file(directory.join(file));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let forwards = wiring.forwards();
        let setup = Setup { name: &self.name, command: &self.command, wiring, forwards, cores, directory };
        match self.how {
            How::Known(definition) => (definition.start)(&setup),
            How::Template => custom::start(&setup),
        }
    }
}

impl Setup<'_> {
    /// Writes a file of its configuration and returns its path.
    fn write(&self, name: &str, text: &str) -> io::Result<String> {
        let path = self.directory.join(name);
        fs::write(&path, text)
            .map_err(|error| failed(&error, &format!("{}: cannot write {}", self.name, path.display())))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// For a program that is all it needs.
fn usable(_: &[String]) -> Option<String> {
    None
}

#[cfg(test)]
mod tests;
