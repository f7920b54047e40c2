//! The workers of one process: how they are started, changed, told things and joined.
//!
//! The control thread owns the [`Fleet`]; nothing here is on the data path. A start is a change from nothing: both
//! prepare whatever may fail, and then put it into use in one go.
//!
//! A worker has a seat, which outlives its thread: the seat keeps its number and its counters. A thread that ends
//! without having been told to is replaced; see [`Fleet::reap`].

mod change;
mod checks;
mod closing;
mod doors;
mod egress;
mod ledger;
mod names;
mod pools;
mod seat;
mod targets;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use mio::Waker;

pub use self::change::Ready;
use self::change::{Entry, Settling};
use self::checks::Checks;
pub use self::doors::{Doors, Inherited};
pub use self::ledger::ForwardView;
use self::ledger::Ledger;
use self::names::Names;
use self::pools::Pools;
use self::seat::Seat;
pub use self::seat::{WorkerEnd, WorkerView};
use crate::address::Address;
use crate::gather::{Board, Transit};
use crate::limits;
use crate::listener::Shortage;
use crate::names::Known;
use crate::panics;
use crate::plan::{Plan, Scheduling};
use crate::stats::{ForwardSnapshot, SessionRecord, WorkerState};
use crate::sys;
use crate::sys::pipes::Limits;
use crate::udp;
use crate::upstream::Trace;
use crate::worker::{Message, Shared};

/// All workers of the process.
#[derive(Debug)]
pub struct Fleet {
    plan: Arc<Plan>,
    doors: Doors,
    /// The same for datagrams.
    datagram_doors: udp::doors::Doors,
    ledger: Ledger,
    /// Editions by number; `None` is free.
    editions: Vec<Option<Entry>>,
    /// The edition of each forward of the plan, in its order.
    current: Vec<usize>,
    /// Editions that were replaced and are not retired yet: some worker may still accept for them, because it has not
    /// been told yet, or because a listener that closes leads to them.
    closing: Vec<usize>,
    seats: Vec<Seat>,
    /// The first so many seats are to have a worker.
    serving: usize,
    shared: Arc<Shared>,
    board: Arc<Board>,
    limits: Limits,
    pools: Pools,
    names: Names,
    checks: Checks,
    log: Option<SyncSender<Vec<SessionRecord>>>,
    splice_off: Arc<AtomicBool>,
    say_ended: Sender<u64>,
    /// Threads that are about to end.
    ended: Receiver<u64>,
    on_end: Arc<Waker>,
    next_thread: u64,
    /// A change that is not in effect in every worker yet.
    settling: Option<Settling>,
    /// When workers failed lately.
    failures: panics::Recent,
    panics: u64,
    helper_panics: u64,
    /// Nobody is replaced any more.
    ending: bool,
    descriptors: (u64, u64),
    pinning: String,
    /// The listeners belong to another process now, but for those that close.
    letting_go: bool,
    /// The process has given up what it does not need.
    confined: bool,
}

impl Fleet {
    /// A fleet without workers. What is prepared for it takes the listeners of the plan from `doors` where they are open
    /// already and binds the others; sockets no forward of the plan asks for are closed. `on_end` is woken whenever a
    /// worker thread ends.
    #[must_use]
    pub fn new(plan: &Arc<Plan>, doors: Doors, on_end: Arc<Waker>) -> Self {
        let descriptors = sys::raise_descriptor_limit();
        let (say_ended, ended) = mpsc::channel();
        Self {
            plan: Arc::clone(plan),
            doors,
            datagram_doors: udp::doors::Doors::default(),
            ledger: Ledger::default(),
            editions: Vec::new(),
            current: Vec::new(),
            closing: Vec::new(),
            seats: Vec::new(),
            serving: 0,
            shared: Arc::new(Shared {
                limits: limits::Limits::new(plan),
                trace: Trace::default(),
                // So that clients who come from many ports leave some for sessions.
                flows: limits::Slots::new(Some(descriptors.0 / 2)),
                shortage: Shortage::default(),
                transit: Transit::default(),
            }),
            board: Arc::new(Board::new(0, false, Scheduling::Auto, None)),
            limits: Limits::read(),
            pools: Pools::default(),
            names: Names::default(),
            checks: Checks::default(),
            log: None,
            splice_off: Arc::new(AtomicBool::new(!sys::HAS_SPLICE)),
            say_ended,
            ended,
            on_end,
            next_thread: 0,
            settling: None,
            failures: panics::Recent::default(),
            panics: 0,
            helper_panics: 0,
            ending: false,
            descriptors,
            pinning: String::new(),
            letting_go: false,
            confined: false,
        }
    }

    /// What runs.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Workers that serve, and others that have sessions left or have ended for good.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView<'_>> {
        // A worker whose place was taken away and who has finished is nobody's concern any more.
        let shown = |(id, seat): &(usize, &Seat)| *id < self.serving || seat.state != WorkerState::Finished;
        self.seats.iter().enumerate().filter(shown).map(|(id, seat)| WorkerView {
            id,
            cpu: seat.cpu,
            state: seat.state,
            stats: &seat.stats,
            sessions_open: self.ledger.open_sessions(Some(id)),
        })
    }

    /// Every forward that is configured, in the order of the plan, then those that still have sessions.
    pub fn forwards(&self) -> impl Iterator<Item = ForwardView<'_>> {
        self.ledger.views()
    }

    /// What forwards that are gone have counted.
    #[must_use]
    pub fn past(&self) -> &ForwardSnapshot {
        self.ledger.past()
    }

    /// Sources that limits per source know now.
    #[must_use]
    pub fn sources_known(&self) -> usize {
        self.shared.limits.sources_known(self.ledger.limits())
    }

    /// How each name of the plan stands.
    #[must_use]
    pub fn names(&self) -> &Known {
        self.names.known()
    }

    /// Workers that have panicked so far.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.panics
    }

    /// A thread beside the workers has panicked.
    pub fn note_helper_panic(&mut self) {
        self.helper_panics += 1;
    }

    /// How often threads beside the workers have panicked so far.
    #[must_use]
    pub fn helper_panics(&self) -> u64 {
        self.helper_panics
    }

    /// Whether splice is in use: this build has it and the kernel has not refused it.
    #[must_use]
    pub fn splices(&self) -> bool {
        !self.splice_off.load(Ordering::Relaxed)
    }

    /// Every listening address, ranges expanded.
    pub fn listening(&self) -> impl Iterator<Item = Address> {
        self.doors.addresses()
    }

    /// Every listening socket, to pass on to the process that will replace this one.
    #[must_use]
    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Takes sockets for datagrams that were open before this process was. To be called before the first change.
    pub fn inherit_datagrams(&mut self, doors: udp::doors::Doors) {
        self.datagram_doors = doors;
    }

    /// Every socket that clients send datagrams to, to pass on to the process that will replace this one.
    pub fn datagram_sockets(&self) -> impl Iterator<Item = &Arc<socket2::Socket>> {
        self.datagram_doors.sockets()
    }

    /// Stops accepting (listeners are closed); sessions go on, each worker ends when its last one has.
    pub fn drain(&mut self) {
        self.end_with(|| Message::Drain);
    }

    /// Ends every session now with reason `drain`, and the workers with them.
    pub fn stop(&mut self) {
        self.end_with(|| Message::Stop);
    }

    fn end_with(&mut self, message: impl Fn() -> Message) {
        self.ending = true;
        self.doors = Doors::default();
        // The log ends with the last one who may write to it, and no worker begins any more.
        self.log = None;
        self.tell(message);
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for seat in self.seats.iter().filter(|seat| seat.thread.is_some()) {
            // A worker that has ended needs no telling.
            let _ = seat.peer.mailbox.post(message());
        }
    }

    /// Reads counters while no session is on its way from one worker to another, so that each is counted once.
    pub fn while_nothing_moves<T>(&self, read: impl FnMut() -> T) -> T {
        self.shared.transit.while_nothing_moves(read)
    }

    /// How often each worker that has not ended has turned, by its number.
    #[must_use]
    pub fn turns(&self) -> Vec<(usize, u64)> {
        let running = self.seats.iter().enumerate().filter(|(_, seat)| seat.thread.is_some());
        running.map(|(id, seat)| (id, seat.stats.turns.get())).collect()
    }

    /// Makes every worker turn once, also one that has nothing to do.
    pub fn nudge(&self) {
        self.seats.iter().filter(|seat| seat.thread.is_some()).for_each(|seat| seat.peer.mailbox.nudge());
    }

    /// Sessions open in all workers.
    #[must_use]
    pub fn open_sessions(&self) -> u64 {
        self.while_nothing_moves(|| self.ledger.open_sessions(None))
    }

    /// Ends of workers that have finished since the last call, with their number. One that was not told to end is
    /// replaced at once: its sessions are gone, its listeners with what waits in their queues go to its successor, and
    /// its counters go on.
    pub fn reap(&mut self, now: Instant) -> Vec<(usize, WorkerEnd)> {
        // A thread says that it ends before it wakes us, so that the wake is never too early to find it; joining it
        // then takes no longer than the rest of its way out.
        let ended: Vec<u64> = self.ended.try_iter().collect();
        let mut ends = Vec::new();
        for serial in ended {
            let is_it = |seat: &Seat| seat.thread.as_ref().is_some_and(|thread| thread.serial == serial);
            let Some(id) = self.seats.iter().position(is_it) else { continue };
            let seat = &mut self.seats[id];
            let Some(thread) = seat.thread.take() else { continue };
            let end = thread.handle.join().unwrap_or_else(|_| WorkerEnd::Panicked("in its last words".to_owned()));
            seat.state = WorkerState::Finished;
            if matches!(end, WorkerEnd::Panicked(_)) {
                seat.state = WorkerState::Panicked;
                self.panics += 1;
                self.failures.note(now);
            }
            if id < self.serving && !self.ending && !self.has_given_up() {
                self.replace(id);
            }
            ends.push((id, end));
        }
        ends
    }

    /// Whether workers have failed so often that replacing them is no answer: the process is to end.
    #[must_use]
    pub fn has_given_up(&self) -> bool {
        self.failures.are_too_many()
    }

    /// Waits at most so long for workers that were told to stop.
    pub fn await_end(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let left =
            || self.seats.iter().filter_map(|seat| seat.thread.as_ref()).any(|thread| !thread.handle.is_finished());
        while left() && Instant::now() < until {
            // One says that it ends a moment before it has.
            let _ = self.ended.recv_timeout(Duration::from_millis(10));
        }
    }

    /// Workers whose end [`Self::reap`] has not told yet.
    #[must_use]
    pub fn running(&self) -> usize {
        self.seats.iter().filter(|seat| seat.thread.is_some()).count()
    }
}

impl fmt::Display for Fleet {
    /// How many workers, where they run, and the limits they live with, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serving, pinning, pools, descriptors: (soft, hard), .. } = self;
        let pipes = pools.describe();
        write!(f, "{serving} workers, {pinning}; pipes: {pipes}; descriptors: {soft} of {hard} allowed")
    }
}
