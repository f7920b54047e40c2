//! Forwarders that run.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Setup;
use crate::place::Place;
use crate::process::{self, Process, line};
use crate::sample::{Tree, listens};

/// How long one may take until it listens.
const START: Duration = Duration::from_secs(10);
/// How long one may take to end before it is killed.
const STOP: Duration = Duration::from_secs(3);

/// A forwarder that takes connections; stopped when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    place: Place,
    directory: PathBuf,
    listening: Vec<SocketAddr>,
    processes: Vec<Process>,
    /// Commands that undo what was changed in the forwarder's namespace, the last change first.
    undo: Vec<Command>,
}

impl Running {
    pub(super) fn new(setup: &Setup<'_>) -> Self {
        Self {
            name: setup.name.to_owned(),
            place: setup.wiring.forwarder.clone(),
            directory: setup.directory.clone(),
            listening: setup.forwards.iter().map(|forward| forward.listen).collect(),
            processes: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Starts a process of it; its command line is kept beside its configuration.
    pub(super) fn start(&mut self, command: &[String], arguments: &[String]) -> io::Result<()> {
        let words: Vec<&String> = command.iter().chain(arguments).collect();
        let Some((program, rest)) = words.split_first() else {
            return Err(io::Error::other(format!("{} has no command", self.name)));
        };
        let mut command = self.place.command(program);
        command.args(rest).current_dir(&self.directory);
        self.keep_line(&command)?;
        let process = Process::start(&self.name, command, &self.directory.join("output.txt"))?;
        self.processes.push(process);
        Ok(())
    }

    /// Runs a command in the forwarder's place to its end.
    pub(super) fn step(&self, mut command: Command) -> io::Result<()> {
        self.keep_line(&command)?;
        process::run(&self.name, &mut command)
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Has `command` run when this is stopped, before what was pushed earlier.
    pub(super) fn push_undo(&mut self, command: Command) {
        self.undo.push(command);
    }

    /// Waits until its processes hold a listening socket for every forward.
    ///
    /// Nothing is connected to for that: a connection would reach the server, which may serve one test at a time, and
    /// make warm a forwarder whose first connection is to be measured cold.
    pub(super) fn ready(mut self) -> io::Result<Self> {
        let tree = self.tree();
        let wanted = self.listening.clone();
        for number in 0..self.processes.len() {
            let last = number + 1 == self.processes.len();
            // Each must be alive; the last one waits for all sockets.
            let holds = || !last || listens(&tree, &wanted);
            self.processes[number].wait_until("listening", START, holds)?;
        }
        Ok(self)
    }

    /// Its processes, for what they use.
    #[must_use]
    pub fn tree(&self) -> Tree {
        Tree::new(self.processes.iter().map(Process::pid))
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// How it ended, with its last output.
    pub fn check(&mut self) -> io::Result<()> {
        self.processes.iter_mut().find_map(Process::exited).map_or(Ok(()), |end| Err(io::Error::other(end)))
    }

    /// Ends it, by SIGTERM and after three seconds by SIGKILL, and undoes what it changed.
    ///
    /// # Errors
    /// When it had ended before, had to be killed, or something could not be undone; whatever it says, nothing of it
    /// runs afterwards.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for mut process in self.processes.drain(..) {
            result = result.and(process.stop(Signal::SIGTERM, STOP).map(|_| ()));
        }
        while let Some(mut command) = self.undo.pop() {
            result = result.and(process::run(&self.name, &mut command));
        }
        result
    }

    fn keep_line(&self, command: &Command) -> io::Result<()> {
        use std::io::Write;
        let path = self.directory.join("command.txt");
        let kept = fs::File::options().create(true).append(true).open(&path);
        kept.and_then(|mut file| writeln!(file, "{}", line(command)))
            .map_err(|error| process::failed(&error, &format!("cannot write {}", path.display())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Told by `stop`; here there is nobody to tell.
        let _ = self.end();
    }
}
