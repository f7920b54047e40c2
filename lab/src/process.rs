//! A program of others that runs for a while: its output is kept in a file within bounds, and nothing of it is left
//! behind.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::output::Output;
use crate::plan::stop;
use crate::sample::Tree;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long the rest of a killed group may take to be gone.
const GROUP: Duration = Duration::from_secs(2);
/// Lines of its output that stand in a message.
const LAST_LINES: usize = 8;
/// Bytes of its output that are searched for them.
const LAST_BYTES: usize = 4096;

/// A running program and its process group; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in `log` its own output begins: behind that of an earlier start.
    log_start: u64,
    /// What takes its output to files.
    outputs: Vec<Output>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts it without input. What it writes to standard output and error is appended to `log`: the first and the
    /// last mebibyte of it.
    ///
    /// # Errors
    /// When the file cannot be written or the program cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> io::Result<Self> {
        let (output, writer, log_start) = Output::to(log).map_err(|error| unwritable(name, log, &error))?;
        command.stdout(writer.try_clone()?).stderr(writer);
        Self::spawn(name, command, log, log_start, vec![output])
    }

    /// As [`Self::start`], with standard output in a file of its own, all of it: for programs whose output is a result.
    ///
    /// # Errors
    /// As there.
    pub fn start_split(name: &str, mut command: Command, out: &Path, log: &Path) -> io::Result<Self> {
        let stdout = File::options().create(true).append(true).open(out);
        let stdout = stdout.map_err(|error| unwritable(name, out, &error))?;
        let (output, writer, log_start) = Output::to(log).map_err(|error| unwritable(name, log, &error))?;
        command.stdout(stdout).stderr(writer);
        Self::spawn(name, command, log, log_start, vec![output])
    }

    /// As [`Self::start_split`], with no more of standard output than of standard error: for programs nothing is known
    /// of.
    ///
    /// # Errors
    /// As there.
    pub fn start_bounded(name: &str, mut command: Command, out: &Path, log: &Path) -> io::Result<Self> {
        let (first, stdout, _) = Output::to(out).map_err(|error| unwritable(name, out, &error))?;
        let (second, stderr, log_start) = Output::to(log).map_err(|error| unwritable(name, log, &error))?;
        command.stdout(stdout).stderr(stderr);
        Self::spawn(name, command, log, log_start, vec![first, second])
    }

    fn spawn(name: &str, mut command: Command, log: &Path, log_start: u64, outputs: Vec<Output>) -> io::Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let line = line(&command);
        let child = command.spawn().map_err(|error| failed(&error, &format!("cannot start {name} ({line})")))?;
        // With the command go our ends of its pipes: output is over when the program's own are closed.
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), log_start, outputs, status: None })
    }

    /// Its process id, which is that of its process group too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended and what it said last; `None` while it runs.
    pub fn exited(&mut self) -> Option<String> {
        let status = self.try_status()?;
        Some(format!("{} ended ({status}){}", self.name, self.said()))
    }

    /// The last lines of its output as the tail of a message, or nothing.
    #[must_use]
    pub fn said(&self) -> String {
        let mut last = tail(&self.log, self.log_start).unwrap_or_default();
        last.extend(self.outputs.last().map(|output| output.last(LAST_BYTES)).unwrap_or_default());
        let tail = last_lines(&last[last.len().saturating_sub(LAST_BYTES)..]);
        if tail.is_empty() {
            format!("; it said nothing ({})", self.log.display())
        } else {
            format!("; it said: {tail}")
        }
    }

    /// Waits until `ready` says so; `what` completes "not …" in the message.
    ///
    /// # Errors
    /// When the lab was asked to stop, it ends before, or is not ready within `patience`; both with its last output.
    pub fn wait_until(&mut self, what: &str, patience: Duration, mut ready: impl FnMut() -> bool) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(end) = self.exited() {
                return Err(io::Error::other(end));
            }
            if ready() {
                return Ok(());
            }
            stop::check()?;
            if begun.elapsed() > patience {
                let what = format!("{} was not {what} within {} s{}", self.name, patience.as_secs(), self.said());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it is not over within `patience`; it is then killed.
    pub fn wait_for_end(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        if let Some(status) = self.status_within(patience, stop::requested) {
            return Ok(status);
        }
        Err(self.give_up(patience))
    }

    fn give_up(&mut self, patience: Duration) -> io::Error {
        self.kill();
        let what = || format!("{} was not done within {} s{}", self.name, patience.as_secs(), self.said());
        stop::check().err().unwrap_or_else(|| io::Error::new(io::ErrorKind::TimedOut, what()))
    }

    /// Waits for it to end by itself, or for `done` and then a little longer; whether it ended. One that did not is
    /// killed.
    ///
    /// # Errors
    /// As [`Self::wait_for_end`], when it is neither done nor over within `patience`.
    pub fn wait_for_end_or(
        &mut self,
        patience: Duration,
        mut done: impl FnMut() -> bool,
        longer: Duration,
    ) -> io::Result<bool> {
        let begun = Instant::now();
        while begun.elapsed() < patience && !stop::requested() {
            // Done is looked at seldom: it may read a file.
            if self.status_within(INTERVAL * 10, stop::requested).is_some() {
                return Ok(true);
            }
            if done() {
                let ended = self.status_within(longer, stop::requested).is_some();
                self.kill();
                return Ok(ended);
            }
        }
        Err(self.give_up(patience))
    }

    /// Asks it to end with `signal`; after `patience` it is killed. Its whole group is gone afterwards.
    ///
    /// # Errors
    /// When it had ended before, with its last output, or did not heed the signal.
    pub fn stop(&mut self, signal: Signal, patience: Duration) -> io::Result<ExitStatus> {
        if let Some(end) = self.exited() {
            return Err(io::Error::other(format!("{end} before it was told to")));
        }
        // Fails only when it has just ended.
        let _ = kill(self.id(), signal);
        // Ending goes on also when the lab was asked to stop.
        if let Some(status) = self.status_within(patience, || false) {
            return Ok(status);
        }
        self.kill();
        let what = format!("{} had to be killed: it was there {} s after {signal}", self.name, patience.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }

    fn status_within(&mut self, patience: Duration, interrupted: fn() -> bool) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            let status = self.try_status();
            if status.is_some() || begun.elapsed() > patience || interrupted() {
                return status;
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Takes the status once it has ended, and kills what it left in its group: as long as the status is not taken,
    /// nobody else can be given the group's number.
    fn try_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            match waitid(Id::Pid(self.id()), look) {
                Ok(WaitStatus::StillAlive) => return None,
                _ => self.kill(),
            }
        }
        self.status
    }

    fn kill(&mut self) {
        if self.status.is_none() {
            // Both fail only when there is nobody left.
            let _ = killpg(self.id(), Signal::SIGKILL);
            self.status = self.child.wait().ok();
            // The others take a moment to die, and may still hold a port until then.
            let begun = Instant::now();
            while self.group_lives() && begun.elapsed() < GROUP {
                thread::sleep(INTERVAL);
            }
            self.reap_orphans();
            for output in &self.outputs {
                output.settle();
            }
        }
    }

    /// Where the lab is the first process of a namespace, it is the parent of what others left behind.
    fn reap_orphans(&self) {
        let orphans = Tree::new([self.pid()]).members();
        for orphan in orphans.iter().filter(|stat| stat.zombie && stat.parent == std::process::id()) {
            let pid = i32::try_from(orphan.pid).map(Pid::from_raw);
            // Fails only when it has just been waited for.
            let _ = pid.map(|pid| waitpid(pid, Some(WaitPidFlag::WNOHANG)));
        }
    }

    /// Whether any of its group has not ended. Those that nobody waits for do not count: they hold nothing.
    fn group_lives(&self) -> bool {
        killpg(self.id(), None).is_ok() && !Tree::new([self.pid()]).pids().is_empty()
    }

    fn id(&self) -> Pid {
        // Process ids of Linux fit: at most 2^22.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command as one would type it, for messages and traces.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    Vec::from_iter(words.map(|word| word.to_string_lossy().into_owned())).join(" ")
}

/// The last bytes of a file behind `start`.
fn tail(path: &Path, start: u64) -> io::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES as u64).max(start)))?;
    let mut bytes = Vec::new();
    file.take(LAST_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last lines that say something, joined.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean = |line: &str| line.trim().chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join(" | ")
}

fn unwritable(name: &str, path: &Path, error: &io::Error) -> io::Error {
    failed(error, &format!("{name}: cannot write its output to {}", path.display()))
}

/// An error of the same kind that says what was tried.
pub(crate) fn failed(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Runs a command to its end, on behalf of `name`.
///
/// # Errors
/// When it cannot be run or fails: what it was and what it said.
pub fn run(name: &str, command: &mut Command) -> io::Result<()> {
    let what = line(command);
    let output = command.output().map_err(|error| failed(&error, &format!("{name}: cannot run {what}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(io::Error::other(format!("{name}: {what} failed ({}): {said}", output.status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn sh(script: &str, directory: &tempfile::TempDir) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start("the shell", command, &directory.path().join("log")).unwrap()
    }

    #[test]
    fn one_that_dies_at_start_tells_why() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = sh("echo first; echo 'no such port' >&2; exit 3", &directory);
        let error = process.wait_until("ready", PATIENCE, || false).unwrap_err().to_string();
        for part in ["the shell ended", "3", "first | no such port"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(process.stop(Signal::SIGTERM, PATIENCE).is_err(), "it was gone before");
    }

    #[test]
    fn what_an_earlier_one_said_is_not_its_own() {
        let directory = tempfile::tempdir().unwrap();
        for (script, said) in [("echo first; exit 1", "it said: first"), ("exit 1", "it said nothing")] {
            let error = sh(script, &directory).wait_until("ready", PATIENCE, || false).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn one_that_floods_is_kept_within_bounds_with_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let mut process =
            sh("head -c 8000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo 'out of luck' >&2; exit 1", &directory);
        let error = process.wait_until("ready", PATIENCE, || false).unwrap_err().to_string();
        assert!(error.ends_with("out of luck"), "{error}");
        let kept = fs::metadata(directory.path().join("log")).unwrap().len();
        assert!(kept < 2_200_000, "{kept} bytes of 8 MB were kept");
    }

    #[test]
    fn stopping_takes_the_whole_group() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = sh("trap 'exit 0' TERM; sleep 60 & echo $! ; while :; do wait; done", &directory);
        let log = directory.path().join("log");
        let mut child = 0;
        let started = || {
            child = fs::read_to_string(&log).unwrap().trim().parse().unwrap_or(0);
            child > 0
        };
        process.wait_until("started", PATIENCE, started).unwrap();
        assert!(process.stop(Signal::SIGTERM, PATIENCE).unwrap().success());
        assert_eq!(Tree::new([process.pid()]).pids(), [0; 0], "the child of the shell is gone too");
    }

    #[test]
    fn one_that_does_not_listen_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = sh("trap '' TERM; echo deaf; while :; do sleep 60; done", &directory);
        let log = directory.path().join("log");
        process.wait_until("deaf", PATIENCE, || fs::read_to_string(&log).is_ok_and(|text| text == "deaf\n")).unwrap();
        let error = process.stop(Signal::SIGTERM, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert!(process.exited().is_some());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let command = Command::new("/no/such/peer");
        let error = Process::start("haproxy", command, &directory.path().join("log")).unwrap_err().to_string();
        assert!(error.contains("haproxy") && error.contains("/no/such/peer"), "{error}");
    }
}
