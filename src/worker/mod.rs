//! One event loop per core: poll, drive, time out, accept.
//!
//! What a worker shares with the others is [`Shared`], the load and the mailbox of each ([`Peer`]), and what is known of
//! targets ([`Targets`](crate::upstream::Targets)), whose lock is taken only where an address is new. Within a turn the
//! order is fixed: first every ready session is driven, then deadlines, then the mailbox, and only then new
//! connections. So a slab key that is freed in a turn is not given to a new session before every event of that turn
//! has been looked at, and a stale event can reach nobody.
//!
//! A turn reads the clock once. Moving the bytes of a session takes no lock and allocates nothing per event; beginning and
//! ending one may, and the system calls of datagrams allocate.

mod accept;
mod change;
mod client;
mod connect;
mod datagrams;
mod drive;
mod end;
mod gather;
mod mailbox;
mod orders;
mod reserve;
mod routes;
mod stall;
mod trial;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use slab::Slab;

pub use self::mailbox::{Accepted, Change, Learn, Mailbox, Message, Peer};
use self::reserve::Reserve;
pub use self::routes::{Edition, Route, Routes};
use self::stall::Stalls;
use self::trial::Trial;
use crate::deadline::Deadlines;
use crate::gather::{Board, Gatherer, Transit};
use crate::limits::{Limits, Passes, Slots};
use crate::listener::{Listener, Shortage};
use crate::pump::Pumps;
use crate::scheduling::Bursts;
use crate::session::Session;
use crate::stats::{EndReason, SessionRecord, WorkerStats};
use crate::sys;
use crate::udp::table::Table;
use crate::upstream::Trace;

/// Wakes a worker whose mailbox holds something.
pub(crate) const MAILBOX: Token = Token(usize::MAX);
/// Marks the tokens of listeners.
const LISTENER: usize = 1 << (usize::BITS - 2);
/// Events looked at in a turn: with the budget of a session it bounds how long others, timers and new connections wait.
const EVENTS: usize = 256;
/// How long accepting pauses when descriptors have run out; a session that ends lets it go on at once.
const PAUSE_MS: u64 = 50;
/// How long it pauses for want of a slot, of which the worker is told when one comes free; only if whoever should have
/// told has failed, this matters.
const SLOT_PAUSE_MS: u64 = 1000;
/// A pipe nobody has needed for that long is closed.
const TRIM_MS: u64 = 500;
/// The load of a worker that takes no more connections: more than any other can have.
const GONE: usize = usize::MAX / 2;

/// What workers share. Only limits per source take a lock, of a part of their table, when a session begins and ends.
#[derive(Debug)]
pub struct Shared {
    /// What limits connections and bytes of the process.
    pub limits: Limits,
    /// Our own connections to backends.
    pub trace: Trace,
    /// Flows of datagrams there may be at once, whatever a configuration says: a descriptor each.
    pub flows: Slots,
    /// Descriptors or memory have run out.
    pub shortage: Shortage,
    /// Sessions on their way from one worker to another.
    pub transit: Transit,
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts {
    /// Its number, from 0.
    pub id: usize,
    /// What the others see of it.
    pub me: Arc<Peer>,
    /// All workers by number.
    pub peers: Arc<[Arc<Peer>]>,
    /// The first so many serve.
    pub serving: usize,
    /// How busy each of them is.
    pub board: Arc<Board>,
    /// Its poller, the mailbox's waker registered already.
    pub poll: Poll,
    /// What workers share.
    pub shared: Arc<Shared>,
    /// The other end of its mailbox.
    pub inbox: Receiver<Message>,
    /// Its listeners.
    pub listeners: Slab<Listener>,
    /// Its forwards.
    pub routes: Routes,
    /// Its scratch buffer and pipes.
    pub pumps: Pumps,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// Where finished sessions are reported.
    pub log: Option<SyncSender<Vec<SessionRecord>>>,
}

/// An event loop and all it holds.
#[derive(Debug)]
pub struct Worker {
    parts: Parts,
    sessions: Slab<Session>,
    datagrams: Table,
    deadlines: Deadlines,
    /// Keys to drive in this turn, and in the next one without waiting.
    ready: Vec<usize>,
    again: Vec<usize>,
    due: Vec<usize>,
    /// Sessions that wait for a descriptor, a name or room at a target.
    retry: Vec<usize>,
    finished: Vec<SessionRecord>,
    trial: Trial,
    gatherer: Gatherer,
    /// What it moves, and whether the scheduler may be told so: not where somebody has chosen a policy for the process.
    bursts: Bursts,
    /// Time spent looking for events that were not there.
    spun_ns: u64,
    ordinary: bool,
    /// What sessions hold of limits.
    passes: Passes,
    stalls: Stalls,
    /// Descriptors for the backends of clients that are accepted last.
    reserve: Reserve,
    clock: Instant,
    now_us: u64,
    /// Listeners that may have connections. Only these are looked at: there may be thousands of others.
    accepting: Vec<usize>,
    /// Some listener is to be given up once its queue is empty.
    closing: bool,
    /// Accepting pauses until then, for one listener or, when `halted`, for all; 0 when it does not.
    pause_until_ms: u64,
    halted: bool,
    /// Since the last turn something has come free that sessions or listeners may wait for: a descriptor, an address.
    freed: bool,
    /// This worker has been told of a slot that listeners may wait for.
    told: bool,
    life: Life,
    /// Its place was taken away.
    leaving: bool,
    /// Nobody chooses it any more.
    gone: bool,
    /// What threads before this one have spent in this worker's place, in nanoseconds.
    busy_before_ns: u64,
    /// Full batches of events in a row since deadlines were last looked at.
    full_batches: usize,
    /// When pipes that were not needed are closed; 0 while there are none.
    trim_ms: u64,
    /// When the worker's own CPU time is next measured.
    measure_us: u64,
}

/// How far a worker is on its way to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Takes connections.
    Serving,
    /// Takes none; its sessions go on.
    Draining,
    /// Keeps none either.
    Stopping,
}

impl Worker {
    /// A worker that has not begun. Its listeners are registered here.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports.
    pub fn new(parts: Parts) -> io::Result<Self> {
        for (index, listener) in &parts.listeners {
            change::watch(parts.poll.registry(), index, listener)?;
        }
        let trial = Trial::new();
        let accepting = parts.listeners.iter().map(|(index, _)| index).collect();
        let busy_before_ns = parts.stats.busy_ns.get();
        let gatherer = Gatherer::new(parts.id);
        let clock = parts.shared.limits.begun();
        Ok(Self {
            accepting,
            closing: false,
            parts,
            trial,
            gatherer,
            bursts: Bursts::default(),
            spun_ns: 0,
            ordinary: false,
            stalls: Stalls::default(),
            reserve: Reserve::new(),
            // Large enough to be mapped, so that it grows in place and untouched room costs nothing.
            sessions: Slab::with_capacity(4096),
            datagrams: Table::default(),
            deadlines: Deadlines::default(),
            ready: Vec::new(),
            again: Vec::new(),
            due: Vec::new(),
            retry: Vec::new(),
            finished: Vec::new(),
            passes: Passes::default(),
            clock,
            now_us: 0,
            pause_until_ms: 0,
            halted: false,
            freed: false,
            told: false,
            life: Life::Serving,
            leaving: false,
            gone: false,
            busy_before_ns,
            full_batches: 0,
            trim_ms: 0,
            measure_us: 0,
        })
    }

    /// Turns until it has been told to drain and its last session has ended.
    ///
    /// # Errors
    /// The poller failed: nothing can be forwarded any more.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        self.ordinary = sys::is_ordinary();
        // A worker before it in its place may have been something else.
        self.parts.stats.batch.set(u64::from(sys::is_batch()));
        while !self.is_over() {
            if let Err(e) = self.wait(&mut events) {
                if e.kind() == io::ErrorKind::Interrupted {
                    // No event was looked at: a deadline that passed while the process was stopped is no reason yet. But
                    // the time has gone on, and the poller must not sleep as long as before once more.
                    self.now_us = self.clock.elapsed().as_micros() as u64;
                    continue;
                }
                self.end_all(EndReason::WorkerPanic);
                return Err(e);
            }
            self.now_us = self.clock.elapsed().as_micros() as u64;
            self.note(&events);
            self.drive_ready();
            self.forward_datagrams();
            if self.has_seen_all(&events) {
                self.expire();
                self.expire_flows();
            }
            self.read_mailbox();
            let freed = std::mem::take(&mut self.freed);
            let told = std::mem::take(&mut self.told);
            if self.unpause(freed, told) || freed {
                self.retry();
                self.refill();
            }
            self.accept();
            self.look_round();
            self.schedule();
            self.report();
        }
        self.report();
        Ok(())
    }

    /// Whether nothing is left to do. Before it says so it makes sure that no other worker chooses this one any more,
    /// and takes what is on its way already.
    fn is_over(&mut self) -> bool {
        let idle = |worker: &Self| {
            worker.life != Life::Serving && worker.sessions.is_empty() && worker.datagrams.flows.is_empty()
        };
        if idle(self) {
            if !std::mem::replace(&mut self.gone, true) {
                self.parts.me.load.fetch_add(GONE, Ordering::Relaxed);
            }
            self.read_mailbox();
        }
        let over = idle(self);
        if !over && std::mem::replace(&mut self.gone, false) {
            self.parts.me.load.fetch_sub(GONE, Ordering::Relaxed);
        }
        over
    }

    /// Whether every socket that may have been ready has been looked at. With more events to come, a session that
    /// looks overdue may have bytes waiting; but the poller goes round, so after so many full batches as hold both
    /// sockets of every session its turn has been, and a load that never ends cannot keep deadlines from passing.
    fn has_seen_all(&mut self, events: &Events) -> bool {
        let sockets = 2 * self.sessions.len() + self.datagrams.flows.len();
        let full = events.iter().count() >= EVENTS && self.full_batches * EVENTS < sockets;
        self.full_batches = if full { self.full_batches + 1 } else { 0 };
        !full
    }

    fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    /// Waits for events, with open eyes first where that is wished for.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let mut timeout = self.timeout();
        if let Some(spin) = self.parts.board.spin().filter(|_| timeout != Some(Duration::ZERO)) {
            let begun = Instant::now();
            let spin = timeout.map_or(spin, |timeout| spin.min(timeout));
            let spun = loop {
                self.parts.poll.poll(events, Some(Duration::ZERO))?;
                let spun = begun.elapsed();
                if !events.is_empty() || spun >= spin {
                    break spun;
                }
            };
            self.spun_ns += u64::try_from(spun.as_nanos()).unwrap_or(0);
            if !events.is_empty() {
                return Ok(());
            }
            timeout = timeout.map(|timeout| timeout.saturating_sub(spun));
        }
        self.parts.poll.poll(events, timeout)
    }

    /// How long the poller may sleep.
    fn timeout(&self) -> Option<Duration> {
        let accepting = self.may_accept();
        let waiting = self.freed && (self.halted || !self.retry.is_empty());
        let datagrams = self.datagrams.has_ready();
        if accepting || datagrams || !self.again.is_empty() || waiting || (self.told && self.pause_until_ms > 0) {
            return Some(Duration::ZERO);
        }
        let set = |ms: u64| Some(ms).filter(|ms| *ms > 0);
        let times = [
            self.deadlines.next_ms(),
            self.datagrams.next_ms(),
            set(self.pause_until_ms),
            set(self.trim_ms),
            set(self.stalls.summary_ms()),
        ];
        let at_ms = times.into_iter().flatten().min()?;
        Some(Duration::from_millis(at_ms.saturating_sub(self.now_ms())))
    }
}
