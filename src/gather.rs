//! Which worker should hold a busy session.
//!
//! The kernel spreads connections over the workers by hash. That is good for many short ones, and costly for few that
//! move bytes all the time: every worker sleeps between two bursts, and each of its wake-ups moves little. One worker
//! that serves them all wakes up once for the bursts of several, so the same bytes take fewer wake-ups. Therefore
//! sessions that last are gathered on the first workers, and on one more only when those are busy.
//!
//! Each worker measures its share of CPU time and posts it on the [`Board`]. A worker with too much gives a part of
//! its sessions to the one with the least; a worker that is not needed gives every session it drives to one that is.
//! A session moves only when it is driven: idle ones stay where they are, and cost nothing there.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::plan::Scheduling;

/// How often a worker that turns measures itself.
const WINDOW_US: u64 = 10_000;
/// The past that counts: the weight of a measurement is its time against this.
const MEMORY_US: u64 = 30_000;
/// A posted share older than this says nothing: that worker sleeps.
const STALE_MS: u64 = 200;
/// Thousandths of a CPU above which a worker gives sessions away.
const BUSY: u32 = 650;
/// One worker less must do when the others would then have at most so many thousandths each.
const CALM: u32 = 500;
/// For so long at a stretch.
const CALM_MS: u64 = 1000;
/// A difference of so many thousandths between two workers is worth moving sessions.
const UNEVEN: u32 = 250;
/// Windows between two decisions, in which the last one shows its effect.
const SETTLE: u32 = 5;

/// What workers tell each other about themselves. Nothing in it is locked.
#[derive(Debug)]
pub struct Board {
    /// Per worker: milliseconds of the common clock, then 16 bits of thousandths of a CPU.
    shares: Box<[AtomicU64]>,
    /// Workers with a smaller number are in use.
    active: AtomicUsize,
    gather: bool,
    /// How they want the scheduler to take them.
    scheduling: Scheduling,
    /// How long they look for events before they sleep.
    spin: Option<Duration>,
}

impl Board {
    /// A board for so many workers. Without `gather` nothing ever moves.
    #[must_use]
    pub fn new(workers: usize, gather: bool, scheduling: Scheduling, spin: Option<Duration>) -> Self {
        let shares = (0..workers).map(|_| AtomicU64::new(0)).collect();
        let gather = gather && workers > 1;
        let active = AtomicUsize::new(if gather { 1 } else { workers });
        Self { shares, active, gather, scheduling, spin }
    }

    /// Whether sessions move at all.
    #[must_use]
    pub fn gathers(&self) -> bool {
        self.gather
    }

    /// How workers want the scheduler to take them.
    #[must_use]
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// How long workers look for events again and again before they sleep.
    #[must_use]
    pub fn spin(&self) -> Option<Duration> {
        self.spin
    }

    /// Workers in use for sessions that last.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    fn post(&self, id: usize, now_ms: u64, share: u32) {
        // A worker whose place was taken away is on no board any more.
        if let Some(place) = self.shares.get(id) {
            place.store(now_ms << 16 | u64::from(share.min(0xffff)), Ordering::Relaxed);
        }
    }

    fn share(&self, id: usize, now_ms: u64) -> u32 {
        let posted = self.shares[id].load(Ordering::Relaxed);
        if (posted >> 16) + STALE_MS < now_ms { 0 } else { (posted & 0xffff) as u32 }
    }

    fn least(&self, among: usize, but: usize, now_ms: u64) -> Option<usize> {
        (0..among).filter(|id| *id != but).min_by_key(|id| self.share(*id, now_ms))
    }

    fn sum(&self, among: usize, now_ms: u64) -> u32 {
        (0..among).map(|id| self.share(id, now_ms)).sum()
    }

    /// Changes the number of workers in use, unless somebody else has just done so.
    fn set_active(&self, from: usize, to: usize) -> bool {
        self.active.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Sessions on their way between workers, whom no worker counts meanwhile.
#[derive(Debug, Default)]
pub struct Transit {
    left: AtomicU64,
    arrived: AtomicU64,
}

impl Transit {
    /// A session is about to leave a worker's counters.
    pub fn leaves(&self) {
        self.left.fetch_add(1, Ordering::AcqRel);
    }

    /// A session that left one worker is in the counters of another, or has ended.
    pub fn arrives(&self) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
    }

    /// Reads counters of several workers while no session is on its way between them. Where sessions move all the time,
    /// the last reading stands.
    pub fn while_nothing_moves<T>(&self, mut read: impl FnMut() -> T) -> T {
        for _ in 0..1000 {
            let arrived = self.arrived.load(Ordering::Acquire);
            let reading = read();
            if self.left.load(Ordering::Acquire) == arrived {
                return reading;
            }
            std::thread::yield_now();
        }
        read()
    }
}

/// Sessions to give away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gift {
    /// The worker that gets them.
    pub to: usize,
    /// Thousandths of the sessions that are driven.
    part: u32,
}

/// One worker's view: how busy it is, and what it gives away at present.
#[derive(Debug, Default)]
pub struct Gatherer {
    id: usize,
    since_us: u64,
    since_cpu_ns: u64,
    share: u32,
    /// Since then one worker less could do; 0 while it could not.
    calm_since_ms: u64,
    settle: u32,
    gift: Option<Gift>,
    /// Thousandths of a session that have been promised and not given.
    owed: u32,
    /// Number of the gift, so that no session is counted twice for it.
    episode: u8,
}

impl Gatherer {
    /// The view of the worker with that number.
    #[must_use]
    pub fn new(id: usize) -> Self {
        Self { id, ..Self::default() }
    }

    /// Whether it is time to [`look`](Self::look) again.
    #[must_use]
    pub fn is_due(&self, now_us: u64) -> bool {
        now_us >= self.since_us + WINDOW_US
    }

    /// Measures the time since the last look by the thread's CPU time, posts it, and decides what to give away until
    /// the next look.
    pub fn look(&mut self, board: &Board, now_us: u64, cpu_ns: u64) {
        let (wall_us, cpu_us) = (now_us - self.since_us, cpu_ns.saturating_sub(self.since_cpu_ns) / 1000);
        (self.since_us, self.since_cpu_ns) = (now_us, cpu_ns);
        let measured = cpu_us * 1000 / wall_us.max(1);
        let share = (u64::from(self.share) * MEMORY_US + measured * wall_us) / (MEMORY_US + wall_us);
        self.share = u32::try_from(share).unwrap_or(u32::MAX);
        let now_ms = now_us / 1000;
        board.post(self.id, now_ms, self.share);
        self.gift = self.decide(board, now_ms);
        self.owed = 0;
        self.episode = self.episode.wrapping_add(1);
    }

    fn decide(&mut self, board: &Board, now_ms: u64) -> Option<Gift> {
        let active = board.active();
        if self.id >= active {
            self.calm_since_ms = 0;
            return board.least(active, self.id, now_ms).map(|to| Gift { to, part: 1000 });
        }
        if self.settle > 0 {
            self.settle -= 1;
            return None;
        }
        if self.share > BUSY {
            return self.relieve(board, active, now_ms);
        }
        let fewer = active - 1;
        let calm = self.id == fewer && fewer > 0 && board.sum(active, now_ms) <= CALM * fewer as u32;
        if !calm {
            self.calm_since_ms = 0;
        } else if self.calm_since_ms == 0 {
            self.calm_since_ms = now_ms.max(1);
        } else if now_ms >= self.calm_since_ms + CALM_MS {
            self.calm_since_ms = 0;
            board.set_active(active, fewer);
        }
        None
    }

    /// Gives half of the difference to the worker with the least to do, which is a fresh one while there is any.
    fn relieve(&mut self, board: &Board, active: usize, now_ms: u64) -> Option<Gift> {
        let all = board.shares.len();
        if active < all && board.sum(active, now_ms) > CALM * active as u32 {
            board.set_active(active, active + 1);
        }
        let to = board.least(board.active(), self.id, now_ms)?;
        let difference = self.share.saturating_sub(board.share(to, now_ms));
        if difference < UNEVEN {
            return None;
        }
        self.settle = SETTLE;
        Some(Gift { to, part: difference * 500 / self.share })
    }

    /// Whether sessions are given away at present.
    #[must_use]
    pub fn gives(&self) -> bool {
        self.gift.is_some()
    }

    /// The worker a session that was just driven should move to, if any. `seen` is the session's own, 0 at first.
    pub fn home_of(&mut self, seen: &mut u8) -> Option<usize> {
        let gift = self.gift?;
        if gift.part < 1000 && std::mem::replace(seen, self.episode) == self.episode {
            return None;
        }
        self.owed += gift.part;
        if self.owed < 1000 {
            return None;
        }
        self.owed -= 1000;
        Some(gift.to)
    }
}

#[cfg(test)]
mod tests;
