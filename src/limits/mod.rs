//! Limits: how many sessions, how often new ones, how many bytes in a second; of the process, of a forward, of a source.
//!
//! In reading order: `slots` counts sessions, `bucket` is a token bucket in one word, `sources` knows who has what,
//! `pace` caps bytes, `descriptors` says whether the system allows as many sessions as the configuration.
//!
//! Everything is shared by all workers, exact over all of them, and can be changed in place while sessions run: see
//! [`Limits::update`] and [`ForwardLimits::update`]. Where no limit is set, accepting costs two additions on shared words, and moving bytes the
//! question whether there is one.

pub mod bucket;
mod descriptors;
mod pace;
mod slots;
mod sources;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use self::bucket::{BEGIN_NS, Bucket, Meter};
pub use self::descriptors::{check_room, for_sessions, shortfall};
pub use self::pace::{Pace, Passes, Ticket};
pub use self::slots::Slots;
pub use self::sources::{Source, SourceKey, Sources};
use crate::plan::{self, Plan, WhenFull};
use crate::stats::EndReason;

/// The limits of the process.
#[derive(Debug)]
pub struct Limits {
    begun: Instant,
    /// `max_connections` of the process.
    pub slots: Slots,
    /// `max_connections_per_source` of the process.
    pub sources: Sources,
}

/// The limits of one forward.
#[derive(Debug)]
pub struct ForwardLimits {
    slots: Slots,
    refuses: AtomicBool,
    /// Whether bytes are limited, of the forward or of each source.
    has_byte_rate: AtomicBool,
    connections: Meter,
    connection_bucket: Bucket,
    bytes: Meter,
    up: Bucket,
    down: Bucket,
    sources: Sources,
}

/// Whether a worker may take a connection from a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may: a slot and a token are taken for it.
    Enter,
    /// It is to be accepted and reset.
    Refuse(EndReason),
    /// It stays in the queue; the worker will be told when there is a slot.
    Wait,
    /// It stays in the queue until then, in microseconds of the workers' clock.
    WaitUntil(u64),
}

/// Workers that wait for what has just been given back, at most one for each kind of slot.
pub type Told = [Option<usize>; 2];

/// How long a worker waits at most, if not for the first token, then for more of them.
const REST_NS: u64 = 10_000_000;

/// The workers' clock as buckets count.
fn clock_ns(now_us: u64) -> u64 {
    BEGIN_NS + now_us * 1000
}

impl Limits {
    /// The limits of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            begun: Instant::now(),
            slots: Slots::new(plan.max_connections),
            sources: Sources::new(plan.max_connections_per_source, None, None),
        }
    }

    /// Changes every limit of the process in place to what another plan says. Sessions stay; where there are more than
    /// the new limit none is added until enough have ended. Afterwards every worker is to be told, so that what waits
    /// looks again.
    pub fn update(&self, plan: &Plan) {
        self.slots.update(plan.max_connections);
        self.sources.update(plan.max_connections_per_source, None, None);
    }

    /// When the clock of all workers began: buckets are shared, so their time must be.
    #[must_use]
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// Whether a connection of that forward may be taken; asked before it is, as only that leaves it in the queue. The
    /// second value is for workers to be told.
    #[must_use]
    pub fn admit(&self, limits: &ForwardLimits, worker: usize, now_us: u64) -> (Admission, Told) {
        self.admit_or(limits, worker, limits.refuses(), now_us)
    }

    /// As [`admit`](Self::admit) for what cannot wait.
    ///
    /// # Errors
    /// Which limit it would break.
    pub fn admit_at_once(&self, limits: &ForwardLimits, now_us: u64) -> (Result<(), EndReason>, Told) {
        match self.admit_or(limits, 0, true, now_us) {
            (Admission::Enter, told) => (Ok(()), told),
            (Admission::Refuse(reason), told) => (Err(reason), told),
            (Admission::Wait | Admission::WaitUntil(_), told) => (Err(EndReason::Limit), told),
        }
    }

    fn admit_or(&self, limits: &ForwardLimits, worker: usize, refuses: bool, now_us: u64) -> (Admission, Told) {
        let take = |slots: &Slots| if refuses { slots.take() } else { slots.take_or_wait(worker) };
        let full = if refuses { Admission::Refuse(EndReason::Limit) } else { Admission::Wait };
        if !take(&limits.slots) {
            return (full, [None; 2]);
        }
        if !take(&self.slots) {
            return (full, [limits.slots.give(), None]);
        }
        let Some(speed) = limits.connections.speed() else { return (Admission::Enter, [None; 2]) };
        match limits.connection_bucket.take(speed, clock_ns(now_us)) {
            Ok(()) => (Admission::Enter, [None; 2]),
            Err(_) if refuses => (Admission::Refuse(EndReason::Rate), self.give(limits)),
            Err(at_ns) => {
                // A bucket that holds several is looked at less often: a hundred times a second is often enough.
                let rest_ns = (speed.burst_ns() / 2).min(REST_NS);
                let at_ns = at_ns.max(clock_ns(now_us) + rest_ns);
                (Admission::WaitUntil((at_ns - BEGIN_NS).div_ceil(1000)), self.give(limits))
            }
        }
    }

    /// There was no connection after all: gives back what [`admit`](Self::admit) has taken for it.
    #[must_use]
    pub fn withdraw(&self, limits: &ForwardLimits) -> Told {
        if let Some(speed) = limits.connections.speed() {
            limits.connection_bucket.refund(speed, 1);
        }
        self.give(limits)
    }

    /// Counts an accepted connection for its source.
    ///
    /// # Errors
    /// Which limit of its source it would break; its slot is still to be given back.
    pub fn enter(
        &self,
        limits: &ForwardLimits,
        client: SourceKey,
        now_us: u64,
    ) -> Result<Option<Box<Ticket>>, EndReason> {
        let limited = [self.sources.are_limited(), limits.sources.are_limited()];
        if limited == [false; 2] {
            return Ok(None);
        }
        let (key, now_ns) = (client, clock_ns(now_us));
        if limited[0] {
            self.sources.enter(key, now_ns)?;
        }
        let of_forward = if limited[1] { limits.sources.enter(key, now_ns).map(Some) } else { Ok(None) };
        let of_forward = of_forward.inspect_err(|_| {
            if limited[0] {
                self.sources.leave(key, now_ns);
            }
        })?;
        Ok(Some(Box::new(Ticket { key, of_process: limited[0], of_forward })))
    }

    /// Gives back a session's slots and its ticket.
    #[must_use]
    pub fn leave(&self, limits: &ForwardLimits, ticket: Option<Box<Ticket>>, now_us: u64) -> Told {
        if let Some(ticket) = ticket {
            if ticket.of_process {
                self.sources.leave(ticket.key, clock_ns(now_us));
            }
            if ticket.of_forward.is_some() {
                limits.sources.leave(ticket.key, clock_ns(now_us));
            }
        }
        self.give(limits)
    }

    /// The worker does not wait for a slot of that forward any more, because it asks again by itself.
    pub fn forget(&self, limits: &ForwardLimits, worker: usize) {
        self.slots.forget(worker);
        limits.slots.forget(worker);
    }

    /// Sources known now, over the tables of the process and of these forwards, after those that nothing is known of any
    /// more have been forgotten.
    #[must_use]
    pub fn sources_known<'a>(&'a self, forwards: impl Iterator<Item = &'a ForwardLimits>) -> usize {
        let now_ns = clock_ns(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(0));
        let tables = std::iter::once(&self.sources).chain(forwards.map(|forward| &forward.sources));
        tables
            .map(|sources| {
                sources.sweep(now_ns);
                sources.len()
            })
            .sum()
    }

    fn give(&self, limits: &ForwardLimits) -> Told {
        [limits.slots.give(), self.slots.give()]
    }
}

impl ForwardLimits {
    /// The limits of one forward.
    #[must_use]
    pub fn new(max_connections: Option<u64>, limits: &plan::Limits) -> Self {
        Self {
            slots: Slots::new(max_connections),
            refuses: AtomicBool::new(limits.when_full == WhenFull::Refuse),
            has_byte_rate: AtomicBool::new(has_byte_rate(limits)),
            connections: Meter::new(limits.connection_rate),
            connection_bucket: Bucket::default(),
            bytes: Meter::new(limits.rate),
            up: Bucket::default(),
            down: Bucket::default(),
            sources: Sources::new(limits.max_per_source, limits.connection_rate_per_source, limits.rate_per_source),
        }
    }

    /// Changes every limit in place.
    pub fn update(&self, max_connections: Option<u64>, limits: &plan::Limits) {
        self.slots.update(max_connections);
        self.refuses.store(limits.when_full == WhenFull::Refuse, Ordering::Relaxed);
        if self.connections.update(limits.connection_rate) {
            self.connection_bucket.reset();
        }
        if self.bytes.update(limits.rate) {
            self.up.reset();
            self.down.reset();
        }
        self.sources.update(limits.max_per_source, limits.connection_rate_per_source, limits.rate_per_source);
        self.has_byte_rate.store(has_byte_rate(limits), Ordering::Relaxed);
    }

    /// Whether one too many is refused and does not wait.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }

    /// Whether bytes are limited, of the forward or of each source.
    #[must_use]
    pub fn has_byte_rate(&self) -> bool {
        self.has_byte_rate.load(Ordering::Relaxed)
    }
}

fn has_byte_rate(limits: &plan::Limits) -> bool {
    limits.rate.is_some() || limits.rate_per_source.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Rate;

    fn limits(process: Option<u64>, forward: Option<u64>, limits: plan::Limits) -> (Limits, ForwardLimits) {
        let of_forward = ForwardLimits::new(forward, &limits);
        let sources = Sources::new(None, None, None);
        (Limits { begun: Instant::now(), slots: Slots::new(process), sources }, of_forward)
    }

    #[test]
    fn the_tighter_of_process_and_forward_holds_and_nothing_stays_taken() {
        for (process, forward) in [(Some(2), None), (None, Some(2)), (Some(2), Some(5)), (Some(5), Some(2))] {
            let (limits, of) = limits(process, forward, plan::Limits::default());
            let admitted = (0..10).filter(|_| limits.admit(&of, 0, 0).0 == Admission::Enter).count();
            assert_eq!(admitted, 2, "{process:?} {forward:?}");
            assert_eq!((limits.slots.taken(), of.slots.taken()), (2, 2));
            assert_eq!(limits.leave(&of, None, 0).into_iter().flatten().collect::<Vec<_>>(), [0], "worker 0 waits");
        }
    }

    #[test]
    fn full_and_early_connections_wait_or_are_refused() {
        let rate = Some(Rate { per_second: 10, burst: 1 });
        let queue = plan::Limits { connection_rate: rate, ..plan::Limits::default() };
        let (queue, of) = limits(Some(5), None, queue);
        assert_eq!(queue.admit(&of, 0, 0).0, Admission::Enter);
        assert_eq!(queue.admit(&of, 0, 0).0, Admission::WaitUntil(100_000));
        assert_eq!(queue.slots.taken(), 1);
        assert_eq!(queue.withdraw(&of), [None; 2]);
        assert_eq!(queue.admit(&of, 0, 0).0, Admission::Enter, "the token is there again");
        let refuse = plan::Limits { connection_rate: rate, when_full: WhenFull::Refuse, ..plan::Limits::default() };
        let (refuse, of) = limits(Some(1), None, refuse);
        assert_eq!(refuse.admit(&of, 0, 0).0, Admission::Enter);
        assert_eq!(refuse.admit(&of, 0, 0).0, Admission::Refuse(EndReason::Limit));
        assert_eq!(refuse.leave(&of, None, 0), [None; 2], "nobody waits");
        assert_eq!(refuse.admit(&of, 0, 0).0, Admission::Refuse(EndReason::Rate));
        assert_eq!(refuse.slots.taken(), 0);
    }

    #[test]
    fn a_ticket_counts_in_both_tables_or_in_none() {
        let of_forward = plan::Limits { max_per_source: Some(1), ..plan::Limits::default() };
        let (mut limits, of) = limits(None, None, of_forward);
        limits.sources = Sources::new(Some(2), None, None);
        let client = SourceKey::from(std::net::IpAddr::from([192, 0, 2, 1]));
        let ticket = limits.enter(&of, client, 0).unwrap();
        assert!(ticket.is_some());
        for _ in 0..5 {
            assert_eq!(limits.enter(&of, client, 0).unwrap_err(), EndReason::Limit);
        }
        assert_eq!(limits.sources_known(std::iter::once(&of)), 2);
        let _ = limits.admit(&of, 0, 0);
        let _ = limits.leave(&of, ticket, 0);
        assert_eq!(limits.sources_known(std::iter::once(&of)), 0);
    }
}
