//! Child processes of the same program: started, asked by lines, and never left behind.
//!
//! A child reads commands from its standard input and leaves when that closes, which the kernel does for us however
//! the parent ends. Each child has a process group of its own: Ctrl-C reaches the parent alone, and the children
//! follow in that way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::spawn_small;

/// Lines of a child's standard error that are kept for a message.
const LAST_WORDS: usize = 8;
/// How long to wait for them once the child has ended.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(500);
/// How soon a wait notices that it is interrupted.
const NOTICE: Duration = Duration::from_millis(20);
/// Longest line kept, in bytes.
const LONGEST_WORDS: usize = 400;

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: process::Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    /// Closed once standard error has been read to its end.
    all_said: Receiver<Infallible>,
    /// Says that nobody wants the answer any more.
    interrupted: fn() -> bool,
}

impl Child {
    /// Starts `program` with `args`; `name` is for messages.
    ///
    /// # Errors
    /// When the program or one of the two threads that read its output cannot be started.
    pub fn spawn<S: AsRef<OsStr>>(name: &str, program: &Path, args: impl IntoIterator<Item = S>) -> io::Result<Self> {
        let mut process = Command::new(program)
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot start {name} ({}): {error}", program.display()))
            })?;
        let stdin = process.stdin.take();
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        let (send, lines) = sync_channel(16);
        let last_words = Arc::default();
        let (saying, all_said) = sync_channel(0);
        // From here on dropping `child` ends the process.
        let child = Self {
            name: name.to_owned(),
            process,
            stdin,
            lines,
            last_words: Arc::clone(&last_words),
            all_said,
            interrupted: || false,
        };
        if let Some(stdout) = stdout {
            spawn_small("child stdout", move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            })?;
        }
        if let Some(stderr) = stderr {
            spawn_small("child stderr", move || {
                keep_last_words(BufReader::new(stderr), &last_words);
                drop(saying);
            })?;
        }
        Ok(child)
    }

    /// From now on every wait for an answer ends with an error of the kind `Interrupted` soon after `interrupted` says
    /// so.
    pub fn interrupt_by(&mut self, interrupted: fn() -> bool) {
        self.interrupted = interrupted;
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The next line of its standard output.
    ///
    /// # Errors
    /// When it ended instead (with its status and last words), said nothing within `patience`, or see
    /// [`Child::interrupt_by`].
    pub fn line(&mut self, patience: Duration) -> io::Result<String> {
        let begun = Instant::now();
        let result = loop {
            let left = patience.saturating_sub(begun.elapsed());
            match self.lines.recv_timeout(left.min(NOTICE)) {
                Err(RecvTimeoutError::Timeout) if (self.interrupted)() => {
                    let what = format!("{} was not waited for any longer", self.name);
                    return Err(io::Error::new(io::ErrorKind::Interrupted, what));
                }
                Err(RecvTimeoutError::Timeout) if left > NOTICE => {}
                result => break result,
            }
        };
        match result {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => Err(self.died()),
            Err(RecvTimeoutError::Timeout) => {
                let what =
                    format!("{} did not answer within {:.1} s{}", self.name, patience.as_secs_f64(), self.said());
                Err(io::Error::new(io::ErrorKind::TimedOut, what))
            }
        }
    }

    /// Sends a command line and reads the answer, one line of JSON.
    ///
    /// # Errors
    /// Those of [`Child::line`], and an answer of another shape.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &str, patience: Duration) -> io::Result<T> {
        if let Some(stdin) = &mut self.stdin
            && writeln!(stdin, "{command}").and_then(|()| stdin.flush()).is_err()
        {
            return Err(self.died());
        }
        let line = self.line(patience)?;
        serde_json::from_str(&line)
            .map_err(|error| io::Error::other(format!("{} answered {command:?} with {line:?}: {error}", self.name)))
    }

    /// Why it is no longer running; `None` while it is.
    pub fn exited(&mut self) -> Option<String> {
        match self.process.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                // What it wrote last may still be on its way; this returns as soon as all has been read.
                let _ = self.all_said.recv_timeout(LAST_WORDS_WAIT);
                Some(format!("{} ended ({status}){}", self.name, self.said()))
            }
            Err(error) => Some(format!("{} cannot be waited for: {error}", self.name)),
        }
    }

    /// The last lines of its standard error as the tail of a message, or nothing.
    #[must_use]
    pub fn said(&self) -> String {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.is_empty() {
            String::new()
        } else {
            format!("; it said: {}", Vec::from_iter(words.iter().map(String::as_str)).join(" | "))
        }
    }

    /// The error for a closed pipe. Pipes are closed a moment before the status can be had, so wait for that.
    fn died(&mut self) -> io::Error {
        self.stdin = None;
        let begun = Instant::now();
        let mut what = self.exited();
        while what.is_none() && begun.elapsed() < LAST_WORDS_WAIT {
            std::thread::sleep(Duration::from_millis(5));
            what = self.exited();
        }
        let what = what.unwrap_or_else(|| format!("{} closed its output{}", self.name, self.said()));
        io::Error::other(what)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn keep_last_words(stderr: impl BufRead, words: &Mutex<VecDeque<String>>) {
    for line in stderr.split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST_WORDS)]);
        let text: String = text.trim().chars().filter(|c| !c.is_control()).collect();
        if text.is_empty() {
            continue;
        }
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn sh(script: &str) -> Child {
        Child::spawn("the shell", Path::new("/bin/sh"), ["-c", script]).expect("sh starts")
    }

    #[test]
    fn answers_and_ends_are_told_apart() {
        let mut child = sh("echo ready; read x; echo \"[\\\"$x\\\"]\"; echo 'no more' >&2; exit 7");
        assert_eq!(child.line(PATIENCE).expect("a line"), "ready");
        assert_eq!(child.ask::<Vec<String>>("ping", PATIENCE).expect("an answer"), ["ping"]);
        let error = child.line(PATIENCE).expect_err("it ended").to_string();
        assert!(error.contains("the shell ended") && error.contains('7') && error.contains("no more"), "{error}");
        let error = child.ask::<u64>("again", PATIENCE).expect_err("it has ended").to_string();
        assert!(error.contains("the shell ended"), "{error}");
    }

    #[test]
    fn silence_is_an_error() {
        let mut child = sh("exec sleep 60");
        let error = child.line(Duration::from_millis(20)).expect_err("nothing is said");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(child.exited().is_none());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Child::spawn("the forwarder", Path::new("/no/such/spliced"), ["x"]).expect_err("is not there");
        assert!(error.to_string().contains("/no/such/spliced"), "{error}");
    }
}
