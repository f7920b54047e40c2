//! From one plan to the next while sessions go on.
//!
//! [`Fleet::prepare`] does everything that can fail and changes nothing. [`Fleet::commit`] cannot fail. It tells every
//! worker all it serves from now on, waits until each has done so, and only then takes away what nobody can need any
//! more: a worker that has not been told yet may still accept for an old edition, or hand a connection to a worker
//! whose place is gone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::Fleet;
use super::doors::Prepared;
use super::seat::{Seat, choose_cpus, worker_count};
use super::{checks, egress, names};
use crate::address::Address;
use crate::gather::Board;
use crate::limits;
use crate::netns;
use crate::plan::{Forward, Plan};
use crate::sandbox;
use crate::stats::{SessionRecord, WorkerState};
use crate::sys;
use crate::sys::pipes::Limits;
use crate::udp;
use crate::worker::{Change, Edition, Learn, Message, Peer, Route};

/// How long a change waits for workers; one that takes longer learns of it all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// An edition and where it is counted.
#[derive(Debug)]
pub(super) struct Entry {
    edition: Arc<Edition>,
    book: usize,
}

/// A plan with all it needs, to be put into use. When it is dropped nothing has changed.
#[derive(Debug)]
pub struct Ready {
    plan: Arc<Plan>,
    workers: usize,
    doors: Prepared,
    datagram_doors: udp::doors::Prepared,
    names: names::Prepared,
    checks: checks::Prepared,
    newcomers: Newcomers,
    pinning: String,
}

/// Workers that have nothing to serve yet. They are told to end when nobody takes them.
#[derive(Debug, Default)]
struct Newcomers(Vec<(usize, Seat)>);

/// A change that is not in effect in every worker yet.
#[derive(Debug)]
pub(super) struct Settling {
    told: Receiver<()>,
    left: usize,
}

impl Drop for Newcomers {
    fn drop(&mut self) {
        for (_, seat) in &self.0 {
            let _ = seat.peer.mailbox.post(Message::Stop);
        }
    }
}

impl Fleet {
    /// Opens and starts what a plan needs beside what runs, without putting it into use.
    ///
    /// # Errors
    /// An address that cannot be bound, a thread that cannot start, an earlier change that is still on its way; named
    /// in the message with what can be done. Nothing has changed then.
    pub fn prepare(&mut self, plan: &Arc<Plan>) -> io::Result<Ready> {
        if !self.settle(Duration::ZERO) {
            let text = "an earlier change is not in effect in every worker yet; try again";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        let workers = worker_count(plan);
        // Before rights are given up, which it takes.
        netns::open_targets(plan)?;
        let doors = self.doors.prepare(plan, workers)?;
        let datagram_doors = self.datagram_doors.prepare(plan, workers)?;
        let sockets = doors.sockets() + datagram_doors.sockets();
        if let Some(shortfall) = limits::shortfall(plan, self.descriptors.0, workers, sockets) {
            log::warn!("{shortfall}");
        }
        if plan.forwards.iter().any(|forward| forward.tcp.fast_open.is_some())
            && let Some(shortfall) = sys::FastOpen::allowed().shortfall()
        {
            log::warn!("fast_open: {shortfall}");
        }
        if !self.confined {
            // Before any thread, which inherits what is left, and before the budget, which depends on it.
            doors.give()?;
            datagram_doors.give()?;
            sandbox::confine()?;
            (self.confined, self.limits) = (true, Limits::read());
        }
        if self.seats.is_empty() {
            limits::check_room(plan, self.descriptors.0, workers).map_err(io::Error::other)?;
        }
        egress::probe(plan)?;
        let fail = |what: &str, e: &io::Error| explain(what, workers, e);
        let names = self.names.prepare(plan).map_err(|e| fail("start the threads that look up names", &e))?;
        let needed = plan.forwards.iter().any(|forward| forward.balancing.check.is_some());
        let checks = self.checks.prepare(needed, self.names.shared());
        let checks = checks.map_err(|e| fail("start the thread that checks targets", &e))?;
        let (cpus, pinning) = choose_cpus(plan.pin, workers);
        let mut newcomers = Newcomers::default();
        for (id, cpu) in cpus.iter().enumerate() {
            let stats = match self.seats.get(id) {
                Some(Seat { thread: Some(_), .. }) => continue,
                Some(seat) => Arc::clone(&seat.stats),
                None => Arc::default(),
            };
            let (peer, thread) = self.spawn(id, *cpu, &stats).map_err(|e| fail("start the threads", &e))?;
            let seat = Seat { cpu: *cpu, stats, state: WorkerState::Running, peer, thread: Some(thread) };
            newcomers.0.push((id, seat));
        }
        Ok(Ready { plan: Arc::clone(plan), workers, doors, datagram_doors, names, checks, newcomers, pinning })
    }

    /// Puts a plan into use. Sessions keep the edition of their forward they began with; listeners the plan still has
    /// keep their socket and its queue. Returns when every worker serves the plan, or has had two seconds for it.
    pub fn commit(&mut self, ready: Ready, log: Option<SyncSender<Vec<SessionRecord>>>) {
        let Ready { plan, workers, doors, datagram_doors, names, checks, mut newcomers, pinning } = ready;
        let board = |plan: &Plan| (plan.gather, plan.scheduling, plan.spin);
        if (workers, board(&plan)) != (self.serving, board(&self.plan)) {
            self.board = Arc::new(Board::new(workers, plan.gather, plan.scheduling, plan.spin));
        }
        let seated = self.seat(std::mem::take(&mut newcomers.0));
        (self.plan, self.serving, self.log, self.pinning) = (plan, workers, log, pinning);
        for (id, seat) in self.seats.iter_mut().enumerate().filter(|(_, seat)| seat.thread.is_some()) {
            seat.state = if id < workers { WorkerState::Running } else { WorkerState::Leaving };
        }
        let before = self.current.clone();
        let fresh = self.enter_editions();
        let plan = Arc::clone(&self.plan);
        self.doors.commit(doors, &plan, &self.current, Instant::now());
        self.datagram_doors.commit(datagram_doors, &plan, &self.current);
        self.shared.limits.update(&plan);
        self.names.commit(names);
        let kept: HashSet<usize> = self.current.iter().copied().collect();
        self.closing.extend(before.into_iter().filter(|id| !kept.contains(id)));
        let (told, left) = self.post(&fresh, &seated);
        self.settling = Some(Settling { told, left });
        self.checks.commit(checks, self.ledger.checked());
        if !self.settle(PATIENCE) {
            log::warn!("a worker takes longer than {PATIENCE:?} to change; until then it serves what it served before");
        }
    }

    fn seat(&mut self, newcomers: Vec<(usize, Seat)>) -> Vec<usize> {
        let mut seated = Vec::new();
        for (id, seat) in newcomers {
            match self.seats.get_mut(id) {
                Some(place) => *place = seat,
                None => self.seats.push(seat),
            }
            seated.push(id);
        }
        self.ledger.seat(self.seats.len());
        seated
    }

    /// Gives every forward of the plan its edition; returns those that are new.
    fn enter_editions(&mut self) -> Vec<usize> {
        let plan = Arc::clone(&self.plan);
        let entries = &self.editions;
        let uses = |pool| entries.iter().flatten().any(|entry| entry.edition.pool == pool);
        self.pools.change(&self.limits, &plan, self.serving, uses);
        let named = |id: &usize| Some((self.editions[*id].as_ref()?.edition.forward.name.clone(), *id));
        let known: HashMap<String, usize> = self.current.iter().filter_map(named).collect();
        let (mut current, mut fresh, mut order) = (Vec::new(), Vec::new(), Vec::new());
        for forward in &plan.forwards {
            let pool = self.pools.number(forward.pipe_size);
            let entry = known.get(&forward.name).and_then(|id| self.editions[*id].as_ref());
            let id = match entry.filter(|entry| *entry.edition.forward == *forward && entry.edition.pool == pool) {
                Some(entry) => entry.edition.id,
                None => {
                    let id = self.enter(forward, pool);
                    fresh.push(id);
                    id
                }
            };
            current.push(id);
            order.extend(self.editions[id].as_ref().map(|entry| Arc::clone(&entry.edition.forward)));
        }
        self.ledger.sort(&order);
        self.current = current;
        fresh
    }

    fn enter(&mut self, forward: &Forward, pool: usize) -> usize {
        let forward = Arc::new(forward.clone());
        let (limits, targets, book) = self.ledger.enter(&forward, self.shared.limits.begun());
        let id = self.editions.iter().position(Option::is_none).unwrap_or(self.editions.len());
        let entry = Some(Entry { edition: Arc::new(Edition { id, forward, limits, targets, pool }), book });
        match self.editions.get_mut(id) {
            Some(place) => *place = entry,
            None => self.editions.push(entry),
        }
        id
    }

    /// Tells every worker what it serves. `fresh` are editions nobody knows yet, `newcomers` workers that know none.
    fn post(&mut self, fresh: &[usize], newcomers: &[usize]) -> (Receiver<()>, usize) {
        self.teach(fresh, newcomers);
        let has_thread = |id: &usize| self.seats[*id].thread.is_some();
        let serving: Vec<usize> = (0..self.serving).filter(has_thread).collect();
        let peers: Arc<[Arc<Peer>]> = self.seats.iter().map(|seat| Arc::clone(&seat.peer)).collect();
        let current: Arc<[usize]> = self.current.as_slice().into();
        let mut sets = if serving.is_empty() { HashMap::new() } else { self.doors.deal(&serving) };
        let mut datagrams = if serving.is_empty() { HashMap::new() } else { self.datagram_doors.deal(&serving) };
        let (done, told) = mpsc::channel();
        let mut left = 0;
        for (id, seat) in self.seats.iter().enumerate().filter(|(_, seat)| seat.thread.is_some()) {
            let change = Change {
                current: Arc::clone(&current),
                listeners: sets.remove(&id).unwrap_or_default(),
                datagrams: datagrams.remove(&id).unwrap_or_default(),
                peers: Arc::clone(&peers),
                serving: self.serving,
                board: Arc::clone(&self.board),
                log: self.log.clone(),
                done: done.clone(),
            };
            // One that has ended is found by its end.
            left += usize::from(seat.peer.mailbox.post(Message::Change(Box::new(change))).is_ok());
        }
        (told, left)
    }

    /// Tells every worker of editions before any is told to serve them: one that serves already may pass a connection on
    /// to one that does not yet.
    fn teach(&self, fresh: &[usize], newcomers: &[usize]) {
        let all: HashSet<usize> = self.current.iter().chain(&self.closing).copied().collect();
        let scratch = self.plan.forwards.iter().map(Forward::largest_read).max().unwrap_or(64 * 1024);
        // What is looked up from here on is told to the newcomers too.
        let mut board = self.names.board();
        let alive = || self.seats.iter().enumerate().filter(|(_, seat)| seat.thread.is_some());
        board.peers = alive().map(|(_, seat)| Arc::clone(&seat.peer)).collect();
        for (id, seat) in alive() {
            let editions: Vec<usize> =
                if newcomers.contains(&id) { all.iter().copied().collect() } else { fresh.to_vec() };
            let route = |edition: usize| {
                let Entry { edition, book } = self.editions[edition].as_ref()?;
                let upstreams = board.upstreams(&edition.forward, &edition.targets);
                Some(Route::new(Arc::clone(edition), upstreams, self.ledger.stats(*book, id), id))
            };
            let routes = editions.into_iter().filter_map(route).collect();
            let learn = Learn { routes, budgets: self.pools.budgets().to_vec(), scratch };
            let _ = seat.peer.mailbox.post(Message::Learn(Box::new(learn)));
        }
    }

    /// Waits at most so long for a change to be in effect in every worker, and does what has to wait for that; true
    /// when none is on its way any more.
    fn settle(&mut self, wait: Duration) -> bool {
        let Some(mut settling) = self.settling.take() else { return true };
        let until = Instant::now() + wait;
        while settling.left > 0 {
            match settling.told.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => settling.left -= 1,
                // Every worker has been told, or has ended.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    self.settling = Some(settling);
                    return false;
                }
            }
        }
        self.retire();
        for seat in self.seats.iter().skip(self.serving).filter(|seat| seat.thread.is_some()) {
            let _ = seat.peer.mailbox.post(Message::Leave);
        }
        self.reclaim();
        true
    }

    /// Retires the editions that are replaced, but for those a listener still leads to.
    fn retire(&mut self) {
        let led_to: HashSet<usize> = self.doors.closing_editions().collect();
        let closing = std::mem::take(&mut self.closing);
        let (late, retire): (Vec<usize>, Vec<usize>) = closing.into_iter().partition(|id| led_to.contains(id));
        self.closing = late;
        if !retire.is_empty() {
            let retire: Arc<[usize]> = retire.into();
            self.tell(|| Message::Retire(Arc::clone(&retire)));
        }
    }

    /// Frees the numbers and counters of editions nobody has any more.
    fn reclaim(&mut self) {
        let kept: HashSet<usize> = self.current.iter().chain(&self.closing).copied().collect();
        for (id, place) in self.editions.iter_mut().enumerate() {
            if !kept.contains(&id) && place.as_mut().is_some_and(|entry| Arc::get_mut(&mut entry.edition).is_some()) {
                *place = None;
            }
        }
        let live: Vec<usize> = self.editions.iter().flatten().map(|entry| entry.book).collect();
        self.ledger.close(&live);
    }

    /// Does what is due: listeners that are given up are closed, and what is not needed any more is freed.
    pub fn tick(&mut self, now: Instant) {
        self.settle(Duration::ZERO);
        let (streams, datagrams) = (self.doors.close_due(now), self.datagram_doors.close_due());
        if streams || datagrams {
            self.post(&[], &[]);
        }
        // A change that is on its way looks for itself once every worker has it.
        if self.doors.closed() && self.settling.is_none() {
            self.retire();
        }
        self.reclaim();
        self.end_when_closed();
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let settling = self.settling.as_ref().map(|_| now + Duration::from_millis(20));
        [settling, self.doors.next_tick(now), self.datagram_doors.next_tick(now)].into_iter().flatten().min()
    }

    /// Leaves the listening sockets to whoever they were passed on to: nothing is accepted from them any more and nothing
    /// in their queues is lost. Those on the addresses in `given_up` nobody else serves: they close as after a reload,
    /// once their queues are empty. Sessions go on, each worker ends when its last one has.
    pub fn let_go(&mut self, given_up: &[Address], now: Instant) {
        self.letting_go = true;
        // Both processes would take datagrams from the same queues.
        self.tell(|| Message::LeaveDatagrams);
        self.datagram_doors = udp::doors::Doors::default();
        self.doors.leave(given_up, now);
        if !self.doors.is_empty() {
            self.post(&[], &[]);
        }
        self.end_when_closed();
    }

    /// Lets the workers end once no listener is left that closes.
    fn end_when_closed(&mut self) {
        if self.letting_go && !self.ending && self.doors.is_empty() {
            self.end_with(|| Message::LetGo);
        }
    }

    /// Starts another thread in the place of one that has ended; where that cannot be, the others take its listeners.
    pub(super) fn replace(&mut self, id: usize) {
        let (cpu, stats) = (self.seats[id].cpu, Arc::clone(&self.seats[id].stats));
        match self.spawn(id, cpu, &stats) {
            Ok((peer, thread)) => {
                self.seats[id] = Seat { cpu, stats, state: WorkerState::Running, peer, thread: Some(thread) };
                self.post(&[], &[id]);
            }
            Err(e) => {
                log::error!(
                    "cannot start worker {id} again: {e}; the others serve its listeners; a reload tries again"
                );
                self.post(&[], &[]);
            }
        }
    }
}

fn explain(what: &str, workers: usize, error: &io::Error) -> io::Error {
    let text = format!(
        "cannot {what} of {workers} workers: {error}; use fewer (--workers), or raise the limits on descriptors \
         (ulimit -n) and processes (ulimit -u)"
    );
    io::Error::new(error.kind(), text)
}
