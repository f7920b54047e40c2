//! System calls by name, counted by strace.
//!
//! strace stops a process twice for every call and so slows it several times: a pass with it is separate, is labelled,
//! and says nothing of speed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::{Tree, threads};
use crate::process::Process;
use crate::tools::STRACE;

/// How long strace may take to attach, and to write its table.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running strace.
#[derive(Debug)]
pub struct Syscalls {
    strace: Process,
    table: PathBuf,
}

/// Calls by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    /// How often each was made.
    pub calls: BTreeMap<String, u64>,
    /// How often each failed, most often with EAGAIN; only those that did.
    pub errors: BTreeMap<String, u64>,
}

impl Syscalls {
    /// Attaches to every thread of a tree, and to those it will start. The table goes to `directory/strace.txt`.
    ///
    /// # Errors
    /// When strace is missing (with how to get it) or may not attach.
    pub fn attach(tree: &Tree, directory: &Path) -> io::Result<Self> {
        let table = directory.join("strace.txt");
        let pids = tree.pids();
        let mut command = Command::new(STRACE.require()?);
        command.args(["-c", "-f", "-o"]).arg(&table);
        for pid in &pids {
            command.args(["-p", &pid.to_string()]);
        }
        let mut strace = Process::start("strace", command, &directory.join("strace.log"))?;
        let tracer = strace.pid();
        let attached = || pids.iter().flat_map(|pid| threads(*pid)).all(|thread| traced_by(thread, tracer));
        strace.wait_until("attached", PATIENCE, attached)?;
        Ok(Self { strace, table })
    }

    /// Detaches and reads the table.
    ///
    /// # Errors
    /// When strace ended before, or its table cannot be read.
    pub fn detach(mut self) -> io::Result<Calls> {
        self.strace.stop(Signal::SIGINT, PATIENCE)?;
        let text = fs::read_to_string(&self.table)
            .map_err(|error| crate::process::failed(&error, &format!("cannot read {}", self.table.display())))?;
        Ok(Calls::parse(&text))
    }
}

impl Calls {
    /// Reads the table of `strace -c`: `% time seconds usecs/call calls errors syscall`, where errors may be empty.
    #[must_use]
    pub fn parse(table: &str) -> Self {
        let mut counted = Self::default();
        for line in table.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (calls, errors, name) = match words[..] {
                [_, _, _, calls, name] => (calls.parse(), Ok(0), name),
                [_, _, _, calls, errors, name] => (calls.parse(), errors.parse(), name),
                _ => continue,
            };
            let (Ok(calls), Ok(errors)) = (calls, errors) else { continue };
            if name != "total" {
                counted.calls.insert(name.to_owned(), calls);
                if errors > 0 {
                    counted.errors.insert(name.to_owned(), errors);
                }
            }
        }
        counted
    }

    /// All calls together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }
}

fn traced_by(thread: u32, tracer: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    // A thread that has ended is not waited for.
    line.is_none_or(|pid| pid.trim().parse() == Ok(tracer))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.12    1.204567           9    131072         7 splice
 38.87    0.766001          12     65536           epoll_wait
  0.01    0.000100           0         2         2 accept4
------ ----------- ----------- --------- --------- ----------------
100.00    1.970668          10    196610         9 total
";

    #[test]
    fn tables_are_read_with_and_without_errors() {
        let calls = Calls::parse(TABLE);
        let expected = [("accept4", 2), ("epoll_wait", 65_536), ("splice", 131_072)];
        assert_eq!(calls.calls, expected.map(|(name, n)| (name.to_owned(), n)).into());
        assert_eq!(calls.errors, [("accept4".to_owned(), 2), ("splice".to_owned(), 7)].into());
        assert_eq!(calls.total(), 196_610);
        assert_eq!(Calls::parse("strace: nothing to count\n"), Calls::default());
    }
}
