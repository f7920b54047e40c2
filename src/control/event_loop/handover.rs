//! The upgrade as the control thread sees it: from the request to the last session of the process that was replaced.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use mio::Token;
use serde_json::{Value, json};

use super::{EventLoop, Phase, limit, sessions};
use crate::control::socket;
use crate::upgrade::{Estate, Former, Program, Progress, Ready, Successor};

const CHANNEL: Token = Token(2);
const STDERR: Token = Token(3);

/// Why there is no reload while there is an upgrade: it would change what was passed on.
pub(in crate::control) const UNDER_WAY: &str = "an upgrade is under way; the new process reads the file";
/// Between two lines about sessions that outlive an upgrade, perhaps by days.
const PROGRESS: Duration = Duration::from_secs(60);

/// How far an upgrade is.
#[derive(Debug)]
pub(super) struct Handover {
    program: Result<Program, String>,
    successor: Option<Successor>,
    former: Option<Former>,
}

impl Handover {
    /// Notes how this process was started, which does not change any more.
    pub(super) fn new() -> Self {
        Self { program: Program::of_this_process().map_err(|e| e.to_string()), successor: None, former: None }
    }

    /// Whether an event is for an upgrade.
    pub(super) fn owns(token: Token) -> bool {
        token == CHANNEL || token == STDERR
    }

    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        self.successor.as_ref().map(|successor| successor.next_look(now))
    }
}

impl EventLoop {
    /// Why there can be no upgrade now.
    fn cannot_upgrade(&self) -> Option<String> {
        match (&self.handover.successor, self.phase) {
            (Some(successor), _) => Some(format!("an upgrade to process {} is under way", successor.pid())),
            (None, Phase::Serving) if self.reloader.is_loading() => Some("a reload is under way; try again".to_owned()),
            (None, Phase::Serving) => None,
            (None, _) => Some("this process is on its way out".to_owned()),
        }
    }

    /// Why there can be no reload now.
    pub(in crate::control) fn cannot_reload(&self) -> Option<String> {
        self.handover.successor.as_ref().map(|_| UNDER_WAY.to_owned())
    }

    /// Brings what the control socket answers at once up to date.
    pub(super) fn note_what_cannot_be(&mut self) {
        self.process.cannot_upgrade = self.cannot_upgrade();
        self.process.cannot_reload = self.cannot_reload();
    }

    /// Starts the program again, to take over from this process.
    pub(super) fn upgrade(&mut self, now: Instant) {
        if let Some(why) = self.cannot_upgrade() {
            warn!("no upgrade: {why}");
            return;
        }
        let registry = self.poll.registry();
        let started = self.handover.program.as_ref().map_err(Clone::clone).and_then(|program| {
            info!("upgrade: starting {}", program.path().display());
            Successor::start(program, self.estate()?, registry, [CHANNEL, STDERR], now)
        });
        match started {
            Ok(successor) => {
                self.handover.successor = Some(successor);
                self.advance_upgrade(now);
            }
            Err(why) => self.upgrade_failed(&why),
        }
    }

    /// Everything a successor gets. Descriptors are copied where they are few; listeners are shared.
    fn estate(&self) -> Result<Estate, String> {
        let copy = |what: &str, descriptor: &dyn AsFd| -> Result<OwnedFd, String> {
            descriptor.as_fd().try_clone_to_owned().map_err(|error| format!("cannot pass on the {what}: {error}"))
        };
        let control = self.control.as_ref().and_then(|service| service.listener());
        let control = match (control, &self.control_file) {
            (Some(listener), Some(file)) => {
                let (device, inode) = file.place();
                Some((copy("control socket", listener)?, device, inode))
            }
            _ => None,
        };
        let metrics = self.metrics.as_ref().and_then(|service| service.listener());
        let fleet = &self.process.fleet;
        let datagrams = fleet.datagram_sockets().map(|socket| (socket, false));
        let listeners = fleet.doors().sockets().chain(datagrams);
        Ok(Estate {
            listeners: listeners.map(|(socket, lent)| (Arc::clone(socket), lent)).collect(),
            control,
            metrics: metrics.map(|listener| copy("metrics listener", listener)).transpose()?,
            pid_file: self.pid_file.as_ref().map(|file| copy("pid file", file.file())).transpose()?,
        })
    }

    /// Goes on with an upgrade, as far as there is one.
    pub(super) fn advance_upgrade(&mut self, now: Instant) {
        if let Some(former) = &mut self.handover.former {
            let pid = former.pid();
            match former.reap() {
                Some((true, _)) => info!("process {pid}, which took over from this one, has ended too"),
                Some((false, how)) => {
                    warn!(
                        "process {pid}, which took over from this one, is gone: {how}; unless another has taken over \
                         from it, nobody accepts until spliced is started again"
                    );
                }
                None => {}
            }
        }
        let Some(successor) = &mut self.handover.successor else { return };
        match successor.advance(now) {
            Progress::Waiting => {}
            Progress::Failed(why) => {
                self.handover.successor = None;
                self.upgrade_failed(&why);
            }
            Progress::Begun(ready) => {
                let Some(former) = self.handover.successor.take().map(Successor::leave) else { return };
                self.process.fleet.let_go(former.given_up(), now);
                self.handover.former = Some(former);
                self.give_way(&ready, now);
            }
        }
    }

    /// Ends an upgrade that is under way, because this process is to stop.
    pub(super) fn abandon_upgrade(&mut self) {
        if self.handover.successor.take().is_some() {
            self.upgrade_failed("this process was told to stop");
        }
    }

    fn upgrade_failed(&mut self, why: &str) {
        error!("no upgrade: {why}. This process goes on");
        // One that failed at the very last may have written its own number there.
        self.take_files_over();
        self.tell_askers(&json!({ "error": format!("no upgrade: {why}") }));
    }

    fn tell_askers(&mut self, answer: &Value) {
        if let Some(control) = &mut self.control {
            control.resolve(&socket::line(answer), self.poll.registry());
        }
    }

    /// The other process accepts: this one stops to, and stays until its sessions have ended.
    fn give_way(&mut self, ready: &Ready, now: Instant) {
        self.notifier.replaced_by(ready.pid);
        let registry = self.poll.registry();
        if let Some(control) = &mut self.control {
            control.stop_listening(registry);
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.stop_listening(registry);
        }
        // What the other one keeps is left to it; otherwise it goes with its owner.
        match self.control_file.take() {
            Some(file) if ready.control => file.leave(),
            _ => {}
        }
        match self.pid_file.take() {
            Some(file) if ready.pid_file => file.leave(),
            _ => {}
        }
        let until = self.process.fleet.plan().upgrade_drain.and_then(|time| now.checked_add(time));
        let (open, limit) = (self.process.fleet.open_sessions(), limit(until, now));
        info!(
            "process {} (version {}) has taken over; {} to finish here, {limit}",
            ready.pid,
            ready.version,
            sessions(open)
        );
        self.process.draining = true;
        self.phase = Phase::Draining { until, next_line: now + PROGRESS, every: PROGRESS, replaced: true };
        self.tell_askers(&json!({ "upgraded": true, "pid": ready.pid, "version": ready.version }));
    }
}
