//! From an accepted client to a connected backend: one address of its targets after the other, within one time limit.
//!
//! What the client sends meanwhile waits in the kernel.

use std::io;
use std::time::Duration;

use mio::Registry;

use super::attempt::{begin, connect_end, give_up, is_exhausted};
use super::early::{EARLY, look_ahead};
use super::race::Earlier;
use super::{End, Phase, Ready, Session, Side, Step, millis};
use crate::address::Address;
use crate::plan::{Forward, WhenFull};
use crate::stats::{EndReason, ForwardStats};
use crate::upstream::{Ask, Ejected, Hop, Lease, Pick, Rival, SourcePool, Trace, Upstreams};

/// How often a session that waits for room at a target looks for itself; it is told when there is some.
const LOOK_MS: u64 = 1000;
/// How soon a unix socket whose queue was full is asked again.
const QUEUE_MS: u64 = 5;
/// As long as it takes: there is no other target, or no time limit.
const WITHOUT_END: u32 = u32::MAX;

/// How far connecting has got.
#[derive(Debug)]
pub struct Connecting {
    /// Addresses that did not answer, by number.
    pub(super) tried: Vec<u32>,
    /// Attempts so far, the present one included.
    pub(super) attempts: u32,
    /// Place of the listener's port in its range.
    pub(super) port_offset: u16,
    /// How the client came to us.
    pub(super) hop: Hop,
    /// When to give up altogether, and when to try the next address; 0 is never.
    give_up_ms: u64,
    pub(super) next_ms: u64,
    /// When an address of the other family is tried beside the present one; 0 is never.
    pub(super) race_ms: u64,
    /// The rivals of the present address, or of the one that failed last: they are tried first.
    pub(super) rival: Option<Rival>,
    /// The attempt the present one was begun beside.
    pub(super) earlier: Option<Earlier>,
    /// What the last address said.
    pub(super) last: Option<End>,
    wait: Wait,
    /// When to give up on a unix socket whose queue is full, in milliseconds from the beginning; 0 while there is none.
    queue_until: u32,
    /// Bytes of the client's that went with the present SYN.
    pub(super) early: u16,
    began_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// For the handshake.
    Backend,
    /// For a descriptor.
    Descriptor,
    /// For a name to be resolved.
    Name,
    /// For room at a target.
    Room,
}

/// What connecting needs of the worker.
#[derive(Debug)]
pub struct Connector<'a> {
    /// Where the backend's socket is registered.
    pub registry: &'a Registry,
    /// The session's slab key.
    pub key: usize,
    /// Options of the forward.
    pub forward: &'a Forward,
    /// Its targets.
    pub upstreams: &'a mut Upstreams,
    /// Where its connections come from.
    pub sources: &'a SourcePool,
    /// Its counters.
    pub stats: &'a ForwardStats,
    /// Our own connections.
    pub trace: &'a Trace,
    /// The worker's number.
    pub worker: usize,
    /// The turn's clock reading, in microseconds.
    pub now_us: u64,
}

impl Connecting {
    /// Nothing tried yet.
    #[must_use]
    pub fn new(port_offset: u16, hop: Hop, timeout: Option<Duration>, now_us: u64) -> Self {
        let give_up_ms = timeout.map_or(0, |timeout| now_us / 1000 + millis(timeout));
        Self {
            tried: Vec::new(),
            attempts: 0,
            port_offset,
            hop,
            give_up_ms,
            next_ms: 0,
            race_ms: 0,
            rival: None,
            earlier: None,
            last: None,
            wait: Wait::Backend,
            queue_until: 0,
            early: 0,
            began_us: now_us,
        }
    }

    pub(super) fn deadline_ms(&self) -> Option<u64> {
        [self.give_up_ms, self.next_ms, self.race_ms].into_iter().filter(|ms| *ms > 0).min()
    }

    pub(super) fn overdue(&self) -> EndReason {
        match self.wait {
            Wait::Backend => EndReason::ConnectTimeout,
            Wait::Descriptor => EndReason::NoDescriptors,
            Wait::Name => EndReason::Unresolved,
            Wait::Room => EndReason::Limit,
        }
    }

    /// Gives an attempt its time, or a share of what is left with those that are left.
    pub(super) fn set_next(&mut self, left: u32, forward: &Forward, now_ms: u64) {
        let left = forward.balancing.retries.map_or(left, |most| left.min((most + 1).saturating_sub(self.attempts)));
        self.next_ms = match forward.balancing.attempt_timeout {
            Some(timeout) => now_ms + millis(timeout),
            None if left > 0 && self.give_up_ms > 0 => {
                now_ms + (self.give_up_ms.saturating_sub(now_ms) / u64::from(left + 1)).max(1)
            }
            None => 0,
        };
    }

    /// Asks for a target again a little later, as a unix socket's queue was full, unless its time is over.
    fn wait_for_queue(&mut self, left: u32, forward: &Forward, now_ms: u64) -> bool {
        let began_ms = self.began_us / 1000;
        if self.queue_until == 0 {
            self.set_next(left, forward, now_ms);
            let until = u32::try_from(self.next_ms.saturating_sub(began_ms)).unwrap_or(WITHOUT_END);
            self.queue_until = if self.next_ms == 0 { WITHOUT_END } else { until.max(1) };
        }
        if self.queue_until != WITHOUT_END && now_ms >= began_ms + u64::from(self.queue_until) {
            (self.queue_until, self.next_ms) = (0, 0);
            return false;
        }
        self.next_ms = now_ms + QUEUE_MS;
        true
    }

    /// Whether no other address may be tried.
    pub(super) fn is_spent(&self, forward: &Forward) -> bool {
        forward.balancing.retries.is_some_and(|most| self.attempts > most)
    }
}

impl Session {
    /// Whether it still looks for a target.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        matches!(self.phase, Phase::Connecting(_))
    }

    /// Whether it is connected.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Attempts to connect so far; 0 once it is connected.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        if let Phase::Connecting(connecting) = &self.phase { connecting.attempts } else { 0 }
    }

    /// Whether it waits for a descriptor, a name or room rather than for the network.
    #[must_use]
    pub fn wants_retry(&self) -> bool {
        matches!(&self.phase, Phase::Connecting(connecting) if connecting.wait != Wait::Backend)
    }

    /// Whether it waits for a descriptor.
    #[must_use]
    pub fn wants_descriptor(&self) -> bool {
        matches!(&self.phase, Phase::Connecting(connecting) if connecting.wait == Wait::Descriptor)
    }

    /// Whether it waits for room at a target.
    #[must_use]
    pub fn wants_room(&self) -> bool {
        matches!(&self.phase, Phase::Connecting(connecting) if connecting.wait == Wait::Room)
    }

    /// Whether the deadline that has passed is only that of one address, or of a look for room.
    #[must_use]
    pub fn may_try_next(&self, now_ms: u64) -> bool {
        matches!(&self.phase, Phase::Connecting(c) if c.next_ms.max(c.race_ms) > 0 && (c.give_up_ms == 0 || c.give_up_ms > now_ms))
    }

    /// Begins to connect to the next address that accepts the attempt at all. It waits then for the handshake or, as
    /// [`wants_retry`](Self::wants_retry) says, to be asked again.
    pub fn connect(&mut self, by: &mut Connector<'_>) -> Step {
        loop {
            if let Some(late) = self.backend.take() {
                give_up(&late);
            }
            self.lease = None;
            let Phase::Connecting(connecting) = &mut self.phase else { return Step::Wait };
            // What it has waited for until now decides nothing any more.
            (connecting.wait, connecting.race_ms) = (Wait::Backend, 0);
            let last = connecting.last;
            if let Some(last) = last.filter(|_| connecting.is_spent(by.forward)) {
                return Step::End(last);
            }
            let (lease, address, left) = match connecting.ask(self.origin.client, by) {
                Pick::To { lease, address, left, rival } => {
                    connecting.rival = rival;
                    (lease, address, left)
                }
                Pick::Full if by.forward.limits.when_full == WhenFull::Refuse => {
                    return Step::End(last.unwrap_or(End::of(EndReason::Limit)));
                }
                Pick::Full => {
                    (connecting.wait, connecting.next_ms) = (Wait::Room, by.now_us / 1000 + LOOK_MS);
                    return Step::Wait;
                }
                Pick::Unresolved => {
                    (connecting.wait, connecting.next_ms) = (Wait::Name, 0);
                    return Step::Wait;
                }
                Pick::Nothing => return Step::End(last.unwrap_or(End::of(EndReason::NoTarget))),
            };
            if self.try_address(lease, address, left, by) {
                return Step::Wait;
            }
        }
    }

    /// Begins to connect to an address; whether there is something to wait for, and not the next one to be tried at once.
    fn try_address(&mut self, lease: Lease, address: Address, left: u32, by: &mut Connector<'_>) -> bool {
        let Phase::Connecting(connecting) = &mut self.phase else { return true };
        let now_ms = by.now_us / 1000;
        // Written only where it is needed.
        let mut buffer;
        let mut early: &[u8] = &[];
        // A header for the target goes before anything of the client's.
        if by.forward.tcp.fast_open.is_some() && by.forward.egress.send_proxy.is_none() && !address.is_unix() {
            buffer = [0; EARLY];
            early = look_ahead(&self.client, &mut buffer);
        }
        let error = match begin(address, self.origin.client, by, connecting.attempts, early) {
            Ok(begun) => {
                (connecting.early, connecting.queue_until) = (begun.early as u16, 0);
                by.stats.retries.add(u64::from(connecting.attempts > 0));
                self.attempt = connecting.attempts;
                connecting.attempts += 1;
                connecting.set_next(left, by.forward, now_ms);
                connecting.set_race(by);
                by.trace.forget(self.trace);
                self.trace = begun.remember(address, connecting.hop, self.origin.forward, by);
                self.target = Some(address);
                (self.backend_ready, self.backend_failed) = (Ready::default(), false);
                (self.backend, self.lease) = (Some(begun.socket), Some(lease));
                return true;
            }
            Err(e) if is_exhausted(&e) => {
                (connecting.wait, connecting.next_ms) = (Wait::Descriptor, 0);
                return true;
            }
            Err(e) => e,
        };
        self.target = Some(address);
        // The listener's queue is full, and no event tells when it has room (connect(2)).
        let is_queued = address.is_unix() && error.kind() == io::ErrorKind::WouldBlock;
        if is_queued && connecting.wait_for_queue(left, by.forward, now_ms) {
            return true;
        }
        by.stats.retries.add(u64::from(!is_queued && connecting.attempts > 0));
        connecting.attempts += 1;
        self.lease = Some(lease);
        self.fail(if is_queued { End::of(EndReason::ConnectTimeout) } else { connect_end(&error) }, by);
        false
    }

    /// Notes that the present address has failed.
    fn fail(&mut self, why: End, by: &mut Connector<'_>) {
        let (Phase::Connecting(connecting), Some(lease)) = (&mut self.phase, self.lease.take()) else { return };
        connecting.failed(&lease, why, by);
    }
}

impl Connecting {
    /// Notes that an address has failed.
    pub(super) fn failed(&mut self, lease: &Lease, why: End, by: &mut Connector<'_>) {
        self.last = Some(why);
        self.tried.push(lease.endpoint().id());
        // That this host has no port, device or right for it, or checks have spoken already, is no news of the target.
        let is_no_news = matches!(why.reason, EndReason::NoPorts | EndReason::TargetDown)
            || matches!(why.errno, Some(libc::EAFNOSUPPORT | libc::ENODEV | libc::EPERM))
            // One of `source` that this host has not: see `begin_from`.
            || matches!(why, End { reason: EndReason::ConnectFailed, errno: None });
        let ejected = if is_no_news { None } else { by.upstreams.failed(lease, by.now_us / 1000) };
        if let Some(Ejected(time)) = ejected {
            let (forward, label, reason) = (lease.endpoint().forward(), lease.endpoint().label(), why.reason.name());
            let fails = by.forward.balancing.health.map_or(0, |health| health.fails);
            log::warn!(
                "forward {forward:?}: target {label} is ejected for {time:?}: {fails} failures to connect or more in a row, \
                 the last one: {reason}"
            );
        }
    }
}

impl Session {
    /// Looks at what the poller said while connecting.
    pub fn check_connect(&mut self, by: &mut Connector<'_>) -> Step {
        if let Some(e) = self.failed(Side::Client) {
            return Step::End(End { reason: super::blame(Side::Client, &e), errno: e.raw_os_error() });
        }
        if matches!(self.phase, Phase::Announcing(_)) {
            return self.go_on_announcing(by);
        }
        self.check_earlier(by);
        if !self.backend_ready.writable || self.backend.is_none() {
            return Step::Wait;
        }
        if let Some(e) = self.failed(Side::Backend) {
            return self.next_address(Some(connect_end(&e)), by);
        }
        let Phase::Connecting(connecting) = &self.phase else { return Step::Again };
        let (early, give_up_ms) = (usize::from(connecting.early), connecting.give_up_ms);
        by.stats.connect_time.record(Duration::from_micros(by.now_us - connecting.began_us));
        if let Some(lease) = self.lease.as_ref().filter(|lease| lease.endpoint().answers()) {
            log::info!("forward {:?}: target {} answers again", lease.endpoint().forward(), lease.endpoint().label());
        }
        self.end_race(by);
        self.phase = Phase::Open;
        self.active_us = by.now_us;
        // Whatever was said before the handshake ended is stale, and the first write needs no event.
        (self.client_ready.writable, self.backend_ready.writable) = (true, true);
        if early > 0
            && let Err(e) = self.take_early(early, by)
        {
            return Step::End(End { reason: super::blame(Side::Client, &e), errno: e.raw_os_error() });
        }
        match by.forward.egress.send_proxy {
            Some(version) => self.announce(version, give_up_ms, by),
            None => Step::Again,
        }
    }

    /// The time for all attempts is over: the present one has failed too.
    pub fn run_out(&mut self, by: &mut Connector<'_>) -> Step {
        // A target that is connected and does not take so much as a header.
        let Phase::Connecting(connecting) = &self.phase else { return Step::End(End::of(EndReason::ConnectTimeout)) };
        let end = End::of(connecting.overdue());
        if end.reason == EndReason::ConnectTimeout {
            self.fail_earlier(end, by);
            self.fail(end, by);
        }
        Step::End(end)
    }

    /// Gives up on the present address; on none where it only waits for room.
    pub fn next_address(&mut self, why: Option<End>, by: &mut Connector<'_>) -> Step {
        self.fail(why.unwrap_or(End::of(EndReason::ConnectTimeout)), by);
        if self.fall_back(by) { Step::Wait } else { self.connect(by) }
    }
}

impl Connecting {
    /// The next target, once more where there is no room, as a slot given back before the mark was set has told nobody.
    fn ask(&self, client: Address, by: &mut Connector<'_>) -> Pick {
        let rival_of = self.rival.filter(|_| !self.tried.is_empty());
        let now_ms = by.now_us / 1000;
        let mut ask = Ask { client, port_offset: self.port_offset, tried: &self.tried, rival_of, now_ms };
        // After a failure the other family of the same name first.
        if rival_of.is_some() {
            match by.upstreams.choose(&ask) {
                Pick::Nothing => ask.rival_of = None,
                pick => return pick,
            }
        }
        match by.upstreams.choose(&ask) {
            Pick::Full if by.forward.limits.when_full == WhenFull::Queue => {
                by.upstreams.shared().wait(by.worker);
                by.upstreams.choose(&ask)
            }
            pick => pick,
        }
    }
}
