//! One address of a target as all workers see it: who uses it, and how it is.
//!
//! Nothing here is locked. Numbers are read while others change them: a choice may be one session late, a limit is exact.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::balance;
use crate::address::Place;
use crate::names::Entry;
use crate::plan::{Health, Ports};

/// How long the faster family of a name goes first.
const LOST_MS: u64 = 60_000;

/// How an address stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Takes sessions.
    Up,
    /// Checks have found that it does not work.
    Down,
    /// Connecting failed too often: left out for a while.
    Ejected,
    /// Takes no new sessions, by command.
    Drain,
    /// Takes no new sessions and is not checked, by command.
    Disabled,
}

impl State {
    /// The name it has everywhere.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::Ejected => "EJECTED",
            Self::Drain => "DRAIN",
            Self::Disabled => "DISABLED",
        }
    }
}

/// What a command has made of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Admin {
    /// Nothing.
    #[default]
    Enabled,
    /// No new sessions.
    Drain,
    /// No new sessions, no checks.
    Disabled,
}

/// One address of a target.
#[derive(Debug)]
#[repr(align(64))]
pub struct Endpoint {
    /// Sessions that hold it, those that are connecting included.
    open: AtomicU64,
    /// Attempts to connect.
    connects: AtomicU64,
    /// Attempts that failed, in all and since the last one that did not.
    failures: AtomicU64,
    failures_in_row: AtomicU32,
    admin: AtomicU8,
    /// Checks have found it down.
    down: AtomicBool,
    /// By command; 0 leaves the configured one.
    weight: AtomicU16,
    /// Until then it is left out, in milliseconds of the workers' clock.
    ejected_until_ms: AtomicU64,
    ejections_in_row: AtomicU32,
    ejections: AtomicU64,
    /// Since when it is there again; 0 from the start on.
    back_ms: AtomicU64,
    checks: AtomicU64,
    checks_failed: AtomicU64,
    /// Until then the other family of its name goes first, in milliseconds of the workers' clock.
    lost_until_ms: AtomicU64,
    /// Whether the target has this address still, or a name has another one now.
    pub(super) current: AtomicBool,
    /// What the record of a service says: its weight, 0 for none, and whether there are better priorities.
    own_weight: AtomicU16,
    backup: AtomicBool,
    id: u32,
    key: u64,
    place: Place,
    ports: Ports,
    /// For people: forward and address.
    forward: Arc<str>,
    label: String,
}

/// A session's hold of an address, given back when dropped.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Endpoint {
    pub(super) fn new(id: u32, forward: &Arc<str>, target: &str, place: Place, ports: Ports) -> Self {
        let address = place.with_port(ports.first).to_string();
        let label = match target {
            literal if literal.starts_with(&address) => literal.to_owned(),
            service if service.starts_with("srv:") => format!("{service} ({address})"),
            name => format!("{name} ({place})"),
        };
        Self {
            open: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            failures_in_row: AtomicU32::new(0),
            admin: AtomicU8::new(Admin::Enabled as u8),
            down: AtomicBool::new(false),
            weight: AtomicU16::new(0),
            ejected_until_ms: AtomicU64::new(0),
            ejections_in_row: AtomicU32::new(0),
            ejections: AtomicU64::new(0),
            back_ms: AtomicU64::new(0),
            checks: AtomicU64::new(0),
            checks_failed: AtomicU64::new(0),
            lost_until_ms: AtomicU64::new(0),
            current: AtomicBool::new(true),
            own_weight: AtomicU16::new(0),
            backup: AtomicBool::new(false),
            id,
            key: balance::hash(address.as_bytes()),
            place,
            ports,
            forward: Arc::clone(forward),
            label,
        }
    }

    /// Tells it from every other one of its forward.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What hashing knows it by: the same in every process that has this address as a target.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The address, or the unix socket.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Of which family the address is; `None` for a unix socket.
    #[must_use]
    pub fn is_ipv4(&self) -> Option<bool> {
        match self.place {
            Place::Ip(ip) => Some(ip.is_ipv4()),
            Place::Unix(_) => None,
        }
    }

    /// The address with its port or ports.
    #[must_use]
    pub fn address(&self) -> String {
        match self.place {
            Place::Ip(IpAddr::V4(ip)) => format!("{ip}:{}", self.ports),
            Place::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.ports),
            Place::Unix(name) => name.to_string(),
        }
    }

    /// The ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The port of sessions whose listener's port has that place in its range.
    #[must_use]
    pub fn port(&self, offset: u16) -> u16 {
        if self.ports.len() > 1 { self.ports.first + offset } else { self.ports.first }
    }

    /// The address and, where a name led to it, that name.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The name of its forward.
    #[must_use]
    pub fn forward(&self) -> &str {
        &self.forward
    }

    /// Sessions that hold it now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Attempts to connect so far, and how many failed.
    #[must_use]
    pub fn connects(&self) -> (u64, u64) {
        (self.connects.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// How often it was left out for failing.
    #[must_use]
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Checks so far, and how many failed.
    #[must_use]
    pub fn checks(&self) -> (u64, u64) {
        (self.checks.load(Ordering::Relaxed), self.checks_failed.load(Ordering::Relaxed))
    }

    /// The weight a command gave it.
    #[must_use]
    pub fn weight(&self) -> Option<u16> {
        Some(self.weight.load(Ordering::Relaxed)).filter(|weight| *weight > 0)
    }

    /// The weight the record of a service gives it.
    #[must_use]
    pub fn own_weight(&self) -> Option<u16> {
        Some(self.own_weight.load(Ordering::Relaxed)).filter(|weight| *weight > 0)
    }

    /// Whether the records of a service have others of a better priority.
    #[must_use]
    pub fn is_backup(&self) -> bool {
        self.backup.load(Ordering::Relaxed)
    }

    /// What the record of a service says, for those who look.
    pub(super) fn set_entry(&self, entry: Entry) {
        self.own_weight.store(entry.weight, Ordering::Relaxed);
        self.backup.store(entry.level > 0, Ordering::Relaxed);
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self, now_ms: u64) -> State {
        match self.admin.load(Ordering::Relaxed) {
            a if a == Admin::Drain as u8 => State::Drain,
            a if a == Admin::Disabled as u8 => State::Disabled,
            _ if self.down.load(Ordering::Relaxed) => State::Down,
            _ if self.ejected_until_ms.load(Ordering::Relaxed) > now_ms => State::Ejected,
            _ => State::Up,
        }
    }

    /// The other family of its name has answered first, though it was asked later.
    pub fn lost(&self, now_ms: u64) {
        self.lost_until_ms.store(now_ms + LOST_MS, Ordering::Relaxed);
    }

    /// Whether the other family of its name goes first for now.
    #[must_use]
    pub fn is_slow(&self, now_ms: u64) -> bool {
        self.lost_until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// Whether checks have found it down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Whether the target has this address still.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Relaxed)
    }

    /// Since when it is there again, in milliseconds; 0 from the start on.
    pub(super) fn back_ms(&self) -> u64 {
        self.back_ms.load(Ordering::Relaxed)
    }

    /// It is there again, or for the first time while others are already.
    pub(super) fn is_back(&self, now_ms: u64) {
        self.back_ms.store(now_ms.max(1), Ordering::Relaxed);
    }

    /// What a command says of it.
    pub(super) fn command(&self, admin: Admin, weight: Option<u16>, now_ms: u64) {
        let before = self.admin.swap(admin as u8, Ordering::SeqCst);
        self.weight.store(weight.unwrap_or(0), Ordering::Relaxed);
        if before != Admin::Enabled as u8 && admin == Admin::Enabled {
            self.is_back(now_ms);
        }
    }

    /// Takes hold of it, unless it has as many sessions as it may have.
    pub(super) fn hold(self: &Arc<Self>, most: Option<u64>) -> Option<Lease> {
        match most {
            None => _ = self.open.fetch_add(1, Ordering::Relaxed),
            Some(most) => {
                let more = |open| (open < most).then_some(open + 1);
                self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
            }
        }
        self.connects.fetch_add(1, Ordering::Relaxed);
        Some(Lease(Arc::clone(self)))
    }

    /// Counts a failure to connect; true when there have been so many in a row that it is to be ejected.
    pub(super) fn fail(&self, health: Option<&Health>) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let in_row = self.failures_in_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        health.is_some_and(|health| in_row >= health.fails)
    }

    /// Leaves it out for a while; how long, or `None` when it is left out already.
    pub(super) fn eject(&self, health: &Health, now_ms: u64) -> Option<Duration> {
        let before = self.ejected_until_ms.load(Ordering::Relaxed);
        if before > now_ms {
            return None;
        }
        let in_row = self.ejections_in_row.load(Ordering::Relaxed);
        let time = health.eject.saturating_mul(1 << in_row.min(30)).min(health.eject_max);
        let until = now_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        // Of several workers that come to this at once one ejects it.
        self.ejected_until_ms.compare_exchange(before, until, Ordering::SeqCst, Ordering::Relaxed).ok()?;
        self.ejections_in_row.store(in_row.saturating_add(1), Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        self.is_back(until);
        Some(time)
    }

    /// It has answered; true when it had been left out before.
    pub fn answers(&self) -> bool {
        // Read first: a target that works keeps its line of cache shared.
        if self.failures_in_row.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.failures_in_row.store(0, Ordering::Relaxed);
        let was_out = self.ejections_in_row.swap(0, Ordering::Relaxed) > 0;
        if was_out {
            self.ejected_until_ms.store(0, Ordering::Relaxed);
        }
        was_out
    }

    /// Counts a check.
    pub(super) fn checked(&self, good: bool) {
        self.checks.fetch_add(1, Ordering::Relaxed);
        self.checks_failed.fetch_add(u64::from(!good), Ordering::Relaxed);
    }

    /// Checks have found it down, or up again.
    pub(super) fn set_down(&self, down: bool, now_ms: u64) {
        if self.down.swap(down, Ordering::SeqCst) && !down {
            self.failures_in_row.store(0, Ordering::Relaxed);
            self.ejections_in_row.store(0, Ordering::Relaxed);
            self.ejected_until_ms.store(0, Ordering::Relaxed);
            self.is_back(now_ms);
        }
    }
}

impl Lease {
    /// What is held.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // In one order with the marks of workers that wait for it: see `Targets`.
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
