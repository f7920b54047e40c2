//! What is measured against each other.

use std::fs;
use std::io;
use std::path::Path;

use super::engine::{self, Engine, EngineOptions};
use crate::peers::{self, Given, Peer, Running};
use crate::place::{Place, User, Wiring};
use crate::plan::about;
use crate::results::{Kind, Missing};
use crate::sample::{Accounting, Tree};

/// The engines of the founding ladder, cheapest last.
pub const ENGINES: [&str; 5] = ["copy-8K", "copy-16K", "copy-64K", "splice", "auto"];
/// What no forwarder in user space can reach.
pub const LIMITS: [&str; 2] = ["direct", "dnat"];

/// One of them.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Its name, such as `copy-8K`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What is started for it.
    pub what: What,
    /// Whom it runs as, where it is not the user of the lab.
    pub user: Option<User>,
}

/// What is started for an arm.
#[derive(Debug, Clone)]
pub enum What {
    /// spliced.
    Engine(EngineOptions),
    /// Another forwarder, or the kernel.
    Peer(Peer),
}

/// An arm that takes connections; ended when dropped.
#[derive(Debug)]
pub enum Started {
    /// spliced.
    Engine(Engine),
    /// Another forwarder, or the kernel.
    Peer(Running),
}

impl Arm {
    /// An engine by the name of its arm: `splice`, `auto`, `copy-16K`; `None` for another name.
    #[must_use]
    pub fn engine(name: &str) -> Option<Self> {
        let options = EngineOptions::named(name)?;
        Some(Self { name: name.to_owned(), kind: Kind::Engine, what: What::Engine(options), user: None })
    }

    /// A peer or a limit.
    #[must_use]
    pub fn peer(peer: Peer) -> Self {
        Self { name: peer.name.clone(), kind: peer.kind, what: What::Peer(peer), user: None }
    }

    /// Gives it another name, so that one forwarder can be several arms.
    pub fn rename(&mut self, name: &str) {
        name.clone_into(&mut self.name);
        if let What::Peer(peer) = &mut self.what {
            name.clone_into(&mut peer.name);
        }
    }

    /// Where load has to connect.
    #[must_use]
    pub fn wiring(&self, wiring: &Wiring) -> Wiring {
        match &self.what {
            What::Engine(_) => wiring.clone(),
            What::Peer(peer) => peer.wiring(wiring),
        }
    }

    /// What its trace says was tried.
    #[must_use]
    pub fn tried(&self) -> String {
        let what = match &self.what {
            What::Engine(options) => format!("spliced run --config {}/spliced.yaml ({options})", self.name),
            What::Peer(_) => format!("start {}; its command and configuration are in {}/", self.name, self.name),
        };
        [what].into_iter().chain(self.user.iter().map(|user| format!(", as user {}", user.name))).collect()
    }

    /// What a peer says of its version, asked where and as whom it runs.
    #[must_use]
    pub fn version(&self, wiring: &Wiring) -> Option<String> {
        match &self.what {
            What::Engine(_) => None,
            What::Peer(peer) => peer.version(&self.place(wiring)),
        }
    }

    /// Where it runs, and as whom.
    fn place(&self, wiring: &Wiring) -> Place {
        self.user.as_ref().map_or_else(|| wiring.forwarder.clone(), |user| wiring.forwarder.as_user(user))
    }

    /// Starts it and waits until it takes connections.
    ///
    /// # Errors
    /// What kept it, with its own last words; nothing of it is left.
    pub fn start(&self, spliced: &Path, wiring: &Wiring, out: &Path) -> io::Result<Started> {
        self.make_directories(out)?;
        let wiring = &Wiring { forwarder: self.place(wiring), ..wiring.clone() };
        match &self.what {
            What::Engine(options) => Engine::start(&self.name, options, spliced, wiring, out).map(Started::Engine),
            What::Peer(peer) => peer.start(wiring, out).map(Started::Peer),
        }
    }

    /// Its directories, which belong to whom it runs as.
    fn make_directories(&self, out: &Path) -> io::Result<()> {
        for directory in [out.join(&self.name), engine::home(&self.name)] {
            fs::create_dir_all(&directory).map_err(about("make the directory", &directory))?;
            if let Some(user) = &self.user {
                std::os::unix::fs::chown(&directory, Some(user.uid), Some(user.gid))
                    .map_err(about("give to its user the directory", &directory))?;
            }
        }
        Ok(())
    }

    /// How the time of its children is found.
    #[must_use]
    pub fn accounting(&self) -> Accounting {
        match &self.what {
            What::Engine(_) => Accounting::Waited,
            What::Peer(peer) => peer.accounting,
        }
    }
}

impl Started {
    /// Its processes.
    #[must_use]
    pub fn tree(&self) -> Tree {
        match self {
            Self::Engine(engine) => engine.tree(),
            Self::Peer(running) => running.tree(),
        }
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// How it ended, with its last output.
    pub fn check(&mut self) -> io::Result<()> {
        match self {
            Self::Engine(engine) => engine.check(),
            Self::Peer(running) => running.check(),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it had ended before or had to be killed; nothing of it is left either way.
    pub fn stop(self) -> io::Result<()> {
        match self {
            Self::Engine(engine) => engine.stop(),
            Self::Peer(running) => running.stop(),
        }
    }
}

/// The arms asked for, in the order they are measured, and what is missing of them.
///
/// `only` names arms (all when empty), `wanted` the peers that take part: `all`, `none` or names.
///
/// # Errors
/// A name that is no arm.
pub fn choose(only: &[String], wanted: &[String], given: &[Given]) -> Result<(Vec<Arm>, Vec<Missing>), String> {
    let peers = peers_wanted(only, wanted, given)?;
    let has = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
    let mut arms: Vec<Arm> = ENGINES.iter().filter(|name| has(name)).filter_map(|name| Arm::engine(name)).collect();
    let more = only.iter().filter(|name| !ENGINES.contains(&name.as_str())).filter_map(|name| Arm::engine(name));
    arms.extend(more);
    let mut missing = Vec::new();
    for name in peers {
        match peers::find(&name, given) {
            Ok(peer) => arms.push(Arm::peer(peer)),
            Err(miss) => missing.push(miss),
        }
    }
    if arms.is_empty() {
        let why: Vec<String> = missing.iter().map(|miss| format!("{}: {}", miss.name, miss.how)).collect();
        return Err(format!("nothing is left to measure ({})", why.join("; ")));
    }
    Ok((arms, missing))
}

/// Names of peers and limits that take part, in the order they are measured.
fn peers_wanted(only: &[String], wanted: &[String], given: &[Given]) -> Result<Vec<String>, String> {
    let mut known: Vec<String> = peers::names().into_iter().map(str::to_owned).collect();
    for given in given {
        if !known.contains(&given.name) {
            known.push(given.name.clone());
        }
    }
    let is = |name: &String, word: &str| name == word;
    for name in only.iter().filter(|name| Arm::engine(name).is_none()).chain(wanted) {
        if !known.contains(name) && !is(name, "all") && !is(name, "none") {
            return Err(format!(
                "found {name:?}; allowed: {}, copy-SIZE, {}, and others by --peer NAME=COMMAND",
                ENGINES.join(", "),
                known.join(", ")
            ));
        }
    }
    let wants = |name: &String| match wanted {
        _ if LIMITS.contains(&name.as_str()) => true,
        [one] if is(one, "all") => true,
        [one] if is(one, "none") => false,
        some => some.contains(name),
    };
    let chosen = known.into_iter().filter(|name| if only.is_empty() { wants(name) } else { only.contains(name) });
    Ok(chosen.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn arms_are_chosen_by_name() {
        let names = |only: &[&str], wanted: &[&str]| {
            let (arms, _) = choose(&words(only), &words(wanted), &[]).unwrap();
            Vec::from_iter(arms.into_iter().map(|arm| arm.name))
        };
        assert_eq!(names(&["splice", "copy-8K", "direct"], &["all"]), ["copy-8K", "splice", "direct"]);
        assert_eq!(names(&["copy-32K"], &["all"]), ["copy-32K"], "any size of buffer");
        assert_eq!(names(&[], &["none"])[..5], ENGINES);
        let error = choose(&words(&["slice"]), &words(&["all"]), &[]).unwrap_err();
        assert!(error.contains("\"slice\"") && error.contains("haproxy"), "{error}");
        assert!(choose(&[], &words(&["nginks"]), &[]).is_err());
    }
}
