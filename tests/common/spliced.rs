//! The program under test: started with options or a file, watched from the outside, ended by its process number.

mod launcher;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::deadline::{LONG, eventually};
use super::process::{CLOSE_WAIT, Descriptors, Process};
use super::stats::Stats;

pub(crate) use self::launcher::{Launcher, Outcome, can_inject, copy_for, ordinary_user};

/// A running process. Dropping it kills it and, in a failing test, shows what it wrote.
#[derive(Debug)]
pub(crate) struct Spliced {
    child: Child,
    control: PathBuf,
    directory: TempDir,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    start: Option<Rest>,
    group: bool,
}

/// What a process holds when it has nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rest {
    descriptors_without_pool: usize,
    pipe_ends_without_pool: usize,
    sockets: usize,
}

impl Spliced {
    fn bare(mut child: Child, control: PathBuf, directory: TempDir) -> Self {
        let (lines, reader) = collect(&mut child);
        Self { child, control, directory, lines, reader: Some(reader), start: None, group: false }
    }

    /// The process.
    pub(crate) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Where it answers.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    /// Its counters now.
    pub(crate) fn stats(&self) -> Stats {
        eventually("the control socket answers", LONG, || Stats::ask(&self.control).map_err(|e| e.to_string()))
    }

    /// Waits until its counters are as `condition` wants them.
    pub(crate) fn stats_until(&self, what: &str, condition: impl Fn(&Stats) -> bool) -> Stats {
        eventually(what, LONG, || {
            let stats = self.stats();
            if condition(&stats) { Ok(stats) } else { Err(format!("the counters are {}", stats.0)) }
        })
    }

    /// Waits until exactly that many sessions have ended for a reason.
    pub(crate) fn ended(&self, reason: &str, count: u64) {
        self.stats_until(&format!("{count} ended with {reason}"), |stats| stats.ends(reason) == count);
    }

    /// Lines of standard error that contain a text.
    pub(crate) fn logged(&self, text: &str) -> Vec<String> {
        let lines = self.lines.lock().expect("no panic while held");
        lines.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// The same, once there is one: what is done may be seen before what is said of it has been read.
    pub(crate) fn says(&self, text: &str) -> Vec<String> {
        eventually("it is logged", LONG, || match self.logged(text) {
            lines if lines.is_empty() => Err(format!("no {text:?} in\n{}", self.text())),
            lines => Ok(lines),
        })
    }

    /// Standard error so far.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().expect("no panic while held").join("\n")
    }

    /// The trace of a start with [`Launcher::inject`].
    pub(crate) fn trace(&self) -> String {
        fs::read_to_string(self.directory.path().join("strace")).unwrap_or_default()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        kill(Pid::from_raw(pid), signal).expect("our own child, not waited for yet");
    }

    /// True while it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }

    /// Waits for its end, though another process may still write to its standard error.
    pub(crate) fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually("spliced ends", within, || {
            child.try_wait().expect("our own child").ok_or_else(|| "it runs".to_owned())
        })
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let status = self.wait_for_exit(within);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of standard error does not panic");
        }
        status
    }

    /// The file it was started with.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("spliced.yaml")
    }

    /// Puts another text in the place of its file at once; the control socket is added to it.
    pub(crate) fn replace_config(&self, text: &str) {
        let new = self.directory.path().join("new.yaml");
        let text = format!("{text}\ncontrol: {}\n", self.control.display());
        fs::write(&new, text).expect("the temporary directory takes a file");
        fs::rename(new, self.config()).expect("a file takes the place of another");
    }

    /// `spliced reload`: its exit code and what it wrote.
    pub(crate) fn reload(&self) -> (Option<i32>, String) {
        self.ask("reload", &[])
    }

    /// Replaces the file and reloads it, which must take effect; what was changed.
    pub(crate) fn reload_with(&self, text: &str) -> String {
        self.replace_config(text);
        let (code, said) = self.reload();
        assert_eq!(code, Some(0), "reload of {text}: {said}");
        said
    }

    /// A command about this instance, with its control socket.
    pub(crate) fn ask(&self, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let mut ask = Command::new(env!("CARGO_BIN_EXE_spliced"));
        ask.arg(command).args(arguments).arg("--control").arg(&self.control);
        let output = ask.stdin(Stdio::null()).output().expect("the program runs");
        (
            output.status.code(),
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat(),
        )
    }

    /// What it holds now is what it is to hold at the end: for tests that change what it listens on.
    pub(crate) fn note_rest(&mut self) {
        self.start = Some(eventually("it is at rest", LONG, || self.rest()));
    }

    /// Ends of pipes beyond those it was started with.
    pub(crate) fn pipe_ends(&self) -> usize {
        let start = self.start.as_ref().expect("it was started");
        self.process().descriptors().pipe_ends - start.pipe_ends_without_pool
    }

    /// Whether the process behind the control socket holds what the first one held at its start.
    pub(crate) fn holds_what_the_first_did(&self) -> Result<(), String> {
        let start = self.start.as_ref().expect("it was started");
        let rest = self.rest()?;
        if rest == *start { Ok(()) } else { Err(format!("{rest:?} is held, at the start it was {start:?}")) }
    }

    /// What it holds beside pooled pipes, and that its own counts agree with the kernel's.
    fn rest(&self) -> Result<Rest, String> {
        let stats = Stats::ask(&self.control).map_err(|e| e.to_string())?;
        // Not the process we started, once another has taken over.
        let process = Process(u32::try_from(stats.number("/pid")).expect("a process number"));
        let Descriptors { all, pipe_ends, sockets } = process.descriptors();
        let states = process.tcp_states();
        let counted = usize::try_from(2 * (stats.pipes_pooled() + stats.pipes_in_use())).expect("a small number");
        let ended: u64 = stats.0["total"]["ends"]
            .as_object()
            .ok_or("no ends in the counters")?
            .values()
            .map(|count| count.as_u64().unwrap_or(0))
            .sum();
        let at_rest = stats.open() == 0
            && stats.pipes_in_use() == 0
            && counted <= pipe_ends
            && !states.contains_key(&CLOSE_WAIT)
            && ended == stats.number("/total/sessions_accepted")
            && stats.0["workers"]
                .as_array()
                .is_some_and(|w| !w.is_empty() && w.iter().all(|w| w["state"] == "running"));
        if !at_rest {
            return Err(format!("{all} descriptors, {pipe_ends} ends of pipes, TCP states {states:?}, {}", stats.0));
        }
        Ok(Rest {
            descriptors_without_pool: all - counted,
            pipe_ends_without_pool: pipe_ends - counted,
            sockets: sockets.len(),
        })
    }

    /// Waits until descriptors, pipes, sessions and sockets are back at what they were at the start.
    pub(crate) fn back_at_start(&self) {
        eventually("everything is given back", LONG, || self.holds_what_the_first_did());
    }

    /// The end of every test: everything given back, and a clean exit when asked.
    pub(crate) fn finish(mut self) {
        self.back_at_start();
        self.signal(Signal::SIGTERM);
        let status = self.wait(LONG);
        assert_eq!(status.code(), Some(0), "exit code after SIGTERM with nothing open");
        assert!(self.logged("panicked").is_empty(), "a panic was logged");
    }
}

impl Drop for Spliced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.group {
            end_group(Pid::from_raw(i32::try_from(self.child.id()).expect("a process number")));
        }
        if thread::panicking() {
            let lines = self.lines.lock().map_or_else(|held| held.into_inner().clone(), |lines| lines.clone());
            // The start says how it was set up, the end what went wrong; a thousand sessions in between do not help.
            let shown = lines.iter().enumerate().filter(|(at, _)| *at < 8 || at + 20 >= lines.len());
            let shown: Vec<_> = shown.map(|(_, line)| line.as_str()).collect();
            eprintln!("--- standard error of spliced ({}) ---\n{}\n---", self.child.id(), shown.join("\n"));
        }
    }
}

/// Ends every process of a group that is left and waits for those that are our children by now.
fn end_group(group: Pid) {
    let all = Pid::from_raw(-group.as_raw());
    if killpg(group, Signal::SIGKILL).is_ok() {
        while waitpid(all, None).is_ok() {}
    }
}

/// Reads standard error on a thread until it closes.
fn collect(child: &mut Child) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let reader = thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("no panic while held").push(line);
            }
        }
    });
    (lines, reader)
}
