//! Counters of the kernel and, where the machine gives them, of the processor, by `perf stat`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::descriptors;
use super::process::Tree;
use crate::process::{Process, failed};
use crate::results::Samples;
use crate::tools::PERF;

/// How long perf may take to attach, and to write its counts.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is counted. Events the machine lacks are reported as not supported.
const EVENTS: &str = "task-clock,context-switches,cpu-migrations,page-faults,cycles,instructions,cache-misses";

/// A running `perf stat`.
#[derive(Debug)]
pub struct Counters {
    perf: Process,
    file: PathBuf,
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counted {
    /// By event; task-clock in ms.
    pub counts: BTreeMap<String, f64>,
    /// Events that this machine, or this user, cannot count.
    pub unsupported: Vec<String>,
}

impl Counters {
    /// Begins to count for the processes a tree has now. The counts go to `directory/perf-stat.csv`.
    ///
    /// # Errors
    /// When perf is missing (with how to get it) or may not count.
    pub fn attach(tree: &Tree, directory: &Path) -> io::Result<Self> {
        let file = directory.join("perf-stat.csv");
        let mut command = Command::new(PERF.require()?);
        command.args(["stat", "-x", ",", "-e", EVENTS, "-o"]).arg(&file).args(["-p", &joined(&tree.pids())]);
        let mut perf = Process::start("perf stat", command, &directory.join("perf-stat.log"))?;
        let pid = perf.pid();
        perf.wait_until("counting", PATIENCE, || opened_events(pid))?;
        Ok(Self { perf, file })
    }

    /// Ends counting.
    ///
    /// # Errors
    /// When perf ended before, or its counts cannot be read.
    pub fn detach(mut self) -> io::Result<Counted> {
        self.perf.stop(Signal::SIGINT, PATIENCE)?;
        let read = fs::read_to_string(&self.file);
        Ok(Counted::parse(&read.map_err(|error| failed(&error, &format!("cannot read {}", self.file.display())))?))
    }
}

impl Counted {
    /// Lines of `perf stat -x,`: value, unit, event, and more that is not used.
    #[must_use]
    pub fn parse(csv: &str) -> Self {
        let mut counted = Self::default();
        for line in csv.lines() {
            let mut fields = line.split(',');
            let (Some(value), Some(_unit), Some(event)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            // An ordinary user's events carry a modifier, as `cycles:u`: without the kernel they would mislead.
            let name = event.split(':').next().unwrap_or(event);
            match value.parse() {
                Ok(count) if event == name => {
                    counted.counts.insert(name.to_owned(), count);
                }
                Ok(_) => counted.unsupported.push(format!("{name} (only in user mode; see perf_event_paranoid)")),
                Err(_) if value.starts_with('<') => counted.unsupported.push(name.to_owned()),
                Err(_) => {}
            }
        }
        counted
    }

    /// Adds `cycles_per_byte` and `instructions_per_byte` where they were counted.
    pub fn samples(&self, bytes: u64, samples: &mut Samples) {
        for (event, name) in [("cycles", "cycles_per_byte"), ("instructions", "instructions_per_byte")] {
            if let Some(count) = self.counts.get(event).filter(|_| bytes > 0) {
                samples.insert(name.to_owned(), count / bytes as f64);
            }
        }
    }

    /// One line that says what this machine cannot count; `None` when it counts everything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let list = self.unsupported.join(", ");
        (!list.is_empty()).then(|| format!("not supported by this machine (often so in virtual machines): {list}"))
    }
}

/// Whether perf has opened its events; it enables them at once then.
pub(crate) fn opened_events(perf: u32) -> bool {
    descriptors::links(perf).iter().any(|link| link == "anon_inode:[perf_event]")
}

/// Ids as perf takes them.
pub(crate) fn joined(pids: &[u32]) -> String {
    Vec::from_iter(pids.iter().map(ToString::to_string)).join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "\
# started on Sat Nov 21 02:20:00 2026

1.20,msec,task-clock,1198539,100.00,0.613,CPUs utilized
4,,context-switches,1198539,100.00,0.000,/sec
103,,page-faults,1198539,100.00,85.938,K/sec
<not supported>,,cycles,0,100.00,,
<not counted>,,instructions,0,100.00,,
5000,,cache-misses:u,1198539,100.00,,
";

    #[test]
    fn counts_are_told_from_what_is_not_supported() {
        let counted = Counted::parse(CSV);
        let expected = [("task-clock", 1.2), ("context-switches", 4.0), ("page-faults", 103.0)];
        assert_eq!(counted.counts, expected.map(|(name, n)| (name.to_owned(), n)).into());
        let note = counted.note().unwrap();
        for part in ["cycles", "instructions", "cache-misses (only in user mode"] {
            assert!(note.contains(part), "{note}");
        }
        let mut samples = Samples::new();
        counted.samples(1000, &mut samples);
        assert_eq!(samples, Samples::new());
    }

    #[test]
    fn cycles_and_instructions_are_given_by_the_byte() {
        let counted = Counted::parse("3000,,cycles,1,100.00,,\n6000,,instructions,1,100.00,2.0,insn per cycle\n");
        let mut samples = Samples::new();
        counted.samples(1000, &mut samples);
        assert_eq!(samples, [("cycles_per_byte".to_owned(), 3.0), ("instructions_per_byte".to_owned(), 6.0)].into());
        assert_eq!(counted.note(), None);
        let mut none = Samples::new();
        counted.samples(0, &mut none);
        assert_eq!(none, Samples::new());
    }
}
