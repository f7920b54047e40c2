//! The running process, as the control socket, the metrics endpoint and a service manager see it.

use std::cell::Cell;
use std::time::Instant;

use log::{error, info};

use super::handover;
use crate::config;
use crate::control::service::Answer;
use crate::control::snapshot::{Reloads, Snapshot, Sources};
use crate::control::targets::{self, Request, TargetSnapshot};
use crate::control::{metrics, prometheus, socket};
use crate::fleet::{Fleet, WorkerEnd};
use crate::panics::{self, Panicked};
use crate::session_log::SessionLog;
use crate::systemd::Facts;

/// What the process does, and what it was asked for.
#[derive(Debug)]
pub(in crate::control) struct Process {
    pub(in crate::control) fleet: Fleet,
    pub(in crate::control) log: SessionLog,
    pub(super) reloads: Reloads,
    /// The control socket was asked for a reload.
    pub(super) wants_reload: Cell<bool>,
    /// The same for an upgrade.
    pub(super) wants_upgrade: Cell<bool>,
    /// Why there can be no upgrade now, and no reload.
    pub(super) cannot_upgrade: Option<String>,
    pub(super) cannot_reload: Option<String>,
    started: Instant,
    /// Not ready any more.
    pub(super) draining: bool,
    /// It still accepts, though it is not ready any more.
    pub(super) delaying: bool,
}

impl Process {
    pub(super) fn new(fleet: Fleet, log: SessionLog) -> Self {
        Self {
            fleet,
            log,
            reloads: Reloads::default(),
            wants_reload: Cell::new(false),
            wants_upgrade: Cell::new(false),
            cannot_upgrade: None,
            cannot_reload: None,
            started: Instant::now(),
            draining: false,
            delaying: false,
        }
    }

    fn snapshot(&self) -> Snapshot {
        let sources = Sources {
            workers: self.fleet.workers().collect(),
            forwards: self.fleet.forwards().collect(),
            past: self.fleet.past(),
            reloads: self.reloads,
            worker_panics: self.fleet.panics(),
            helper_panics: self.fleet.helper_panics(),
            started: self.started,
            draining: self.draining,
            splices: self.fleet.splices(),
            log_lost: self.log.lost(),
            sources: self.fleet.sources_known(),
            names: self.fleet.names(),
        };
        self.fleet.while_nothing_moves(|| Snapshot::take(&sources))
    }

    /// What a service manager shows of us.
    pub(super) fn facts(&self) -> Facts {
        let mut total = self.fleet.past().clone();
        for forward in self.fleet.forwards() {
            forward.stats.iter().for_each(|stats| total.add(stats));
            forward.past.into_iter().for_each(|past| total.merge(past));
        }
        Facts { sessions: self.fleet.open_sessions(), bytes: total.bytes.total(), draining: self.draining }
    }

    pub(super) fn answer_control(&self, request: &[u8]) -> Answer {
        socket::answer(request, self)
    }

    /// Says how workers ended. One that panicked takes its own sessions with it and nobody else's; a thread beside them
    /// that panicked goes on, however often.
    pub(super) fn reap(&mut self, now: Instant) {
        for (id, end) in self.fleet.reap(now) {
            if let WorkerEnd::Panicked(why) = end {
                let ending = self.draining && !self.delaying;
                let then = if ending || self.fleet.has_given_up() {
                    "its sessions were reset"
                } else {
                    "its sessions were reset, and another worker has taken its place and its listeners"
                };
                error!("worker {id} panicked: {why}; {then}. Please report this");
            }
        }
        for Panicked { thread, why, then } in panics::take() {
            self.fleet.note_helper_panic();
            error!("thread {thread:?} panicked: {why}; {then}. Please report this");
        }
    }
}

impl socket::Instance for Process {
    fn stats(&self) -> Snapshot {
        self.snapshot()
    }

    fn plan(&self) -> String {
        config::render_running(self.fleet.plan())
    }

    fn reload(&self) -> Result<(), String> {
        if self.wants_upgrade.get() {
            return Err(handover::UNDER_WAY.to_owned());
        }
        self.cannot_reload.clone().map_or_else(
            || {
                self.wants_reload.set(true);
                Ok(())
            },
            Err,
        )
    }

    fn target(&self, request: &Request) -> Result<Vec<TargetSnapshot>, String> {
        let Request { forward, target, action } = request;
        let (targets, on_down) = self.fleet.command_target(forward, target, action.command())?;
        info!("forward {forward:?}: target {target} {}", action.describe(on_down));
        Ok(targets::snapshots(targets))
    }

    fn upgrade(&self) -> Result<(), String> {
        if let Some(why) = &self.cannot_upgrade {
            return Err(why.clone());
        }
        if self.wants_reload.get() || self.wants_upgrade.replace(true) {
            return Err("a reload or another upgrade was asked for at the same moment; try again".to_owned());
        }
        Ok(())
    }
}

impl metrics::Facts for Process {
    fn metrics(&self) -> String {
        prometheus::render(&self.snapshot())
    }

    fn is_ready(&self) -> bool {
        !self.draining
    }
}
