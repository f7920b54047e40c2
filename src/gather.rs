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
mod tests {
    use super::*;

    /// A view, what each session it holds costs and remembers, and the CPU time used.
    type Simulated = (Gatherer, Vec<(u32, u8)>, u64);

    /// Workers whose sessions cost a fixed share of a CPU each, and nothing else.
    struct Host {
        board: Board,
        workers: Vec<Simulated>,
        now_us: u64,
        moved: usize,
    }

    impl Host {
        fn new(workers: usize, sessions: &[&[u32]]) -> Self {
            let one = |id: usize| {
                let held = sessions.get(id).map_or(Vec::new(), |s| s.iter().map(|cost| (*cost, 0)).collect());
                (Gatherer::new(id), held, 0)
            };
            Self {
                board: Board::new(workers, true, Scheduling::Auto, None),
                workers: (0..workers).map(one).collect(),
                now_us: 1,
                moved: 0,
            }
        }

        /// Lets time pass, a window at a time; every session is driven several times in each.
        fn run(&mut self, windows: usize) {
            for _ in 0..windows {
                self.now_us += WINDOW_US;
                for id in 0..self.workers.len() {
                    let (gatherer, held, cpu_ns) = &mut self.workers[id];
                    if held.is_empty() {
                        continue;
                    }
                    let cost: u64 = held.iter().map(|(cost, _)| u64::from(*cost)).sum();
                    *cpu_ns += cost.min(1000) * WINDOW_US;
                    gatherer.look(&self.board, self.now_us, *cpu_ns);
                    for _ in 0..3 {
                        let (gatherer, held, _) = &mut self.workers[id];
                        let mut given = Vec::new();
                        held.retain_mut(|(cost, seen)| match gatherer.home_of(seen) {
                            Some(to) => {
                                given.push((to, *cost));
                                false
                            }
                            None => true,
                        });
                        self.moved += given.len();
                        given.into_iter().for_each(|(to, cost)| self.workers[to].1.push((cost, 0)));
                    }
                }
            }
        }

        fn counts(&self) -> Vec<usize> {
            self.workers.iter().map(|w| w.1.len()).collect()
        }

        fn shares(&self) -> Vec<u32> {
            self.workers.iter().map(|w| w.1.iter().map(|s| s.0).sum()).collect()
        }
    }

    #[test]
    fn few_sessions_gather_on_one_worker_and_stay() {
        let mut host = Host::new(4, &[&[20; 3], &[20; 3], &[20; 2], &[]]);
        host.run(20);
        assert_eq!(host.counts(), [8, 0, 0, 0]);
        host.run(1000);
        assert_eq!((host.counts(), host.moved), (vec![8, 0, 0, 0], 5));
    }

    #[test]
    fn a_busy_worker_is_relieved_by_one_that_was_not_needed() {
        let mut host = Host::new(2, &[&[50; 30], &[]]);
        host.run(100);
        let shares = host.shares();
        assert!(shares.iter().all(|share| (500..=1000).contains(share)), "{shares:?}");
        let moved = host.moved;
        host.run(1000);
        assert_eq!(host.moved, moved, "nothing moves to and fro");
    }

    #[test]
    fn all_workers_are_used_when_all_are_needed() {
        let mut host = Host::new(8, &[&[10; 560]]);
        host.run(600);
        assert_eq!(host.board.active(), 8);
        assert!(host.shares().iter().all(|share| *share <= 1000), "{:?}", host.shares());
        let moved = host.moved;
        host.run(1000);
        assert!(host.moved - moved <= 60, "{} moves in ten seconds without need", host.moved - moved);
    }

    #[test]
    fn when_the_load_falls_fewer_workers_are_used() {
        let mut host = Host::new(4, &[&[50; 50]]);
        host.run(300);
        assert_eq!(host.board.active(), 4);
        for worker in &mut host.workers {
            worker.1.iter_mut().for_each(|session| session.0 = 2);
        }
        host.run(600);
        assert_eq!((host.board.active(), host.counts()), (1, vec![50, 0, 0, 0]));
    }

    #[test]
    fn one_heavy_session_has_nowhere_better_to_be() {
        let mut host = Host::new(2, &[&[1000]]);
        host.run(500);
        assert_eq!((host.counts(), host.moved), (vec![1, 0], 0));
    }

    #[test]
    fn without_gathering_all_workers_are_in_use() {
        let board = Board::new(3, false, Scheduling::Auto, None);
        let mut gatherer = Gatherer::new(2);
        gatherer.look(&board, WINDOW_US, 0);
        assert!(!board.gathers() && !gatherer.gives());
    }

    #[test]
    fn a_reading_waits_for_sessions_on_their_way() {
        let transit = Transit::default();
        let mut readings = 0;
        transit.leaves();
        transit.while_nothing_moves(|| {
            readings += 1;
            if readings == 3 {
                transit.arrives();
            }
        });
        assert_eq!(readings, 4, "the reading in which it arrived may have missed it");
    }

    #[test]
    fn what_a_sleeping_worker_posted_grows_stale() {
        let board = Board::new(2, true, Scheduling::Auto, None);
        board.post(1, 1000, 900);
        assert_eq!((board.share(1, 1000 + STALE_MS), board.share(1, 1001 + STALE_MS)), (900, 0));
    }
}
