//! The workers of one process: how they are started, told things and joined.
//!
//! The control thread owns the [`Fleet`]; nothing here is on the data path.

mod doors;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use mio::{Poll, Waker};

pub use self::doors::{Door, Doors, Inherited};
use crate::listener::{self, Shortage, Slots};
use crate::plan::{Forward, Pin, Plan};
use crate::pump::Pumps;
use crate::stats::{SessionRecord, WorkerStats};
use crate::sys;
use crate::sys::pipes::PipeBudget;
use crate::upstream::{self, Resolver, Trace, Upstreams};
use crate::worker::{MAILBOX, Mailbox, Message, Parts, Route, Shared, Worker};

/// All workers of the process.
#[derive(Debug)]
pub struct Fleet {
    stats: Vec<Arc<WorkerStats>>,
    cpus: Vec<Option<usize>>,
    threads: Vec<Option<JoinHandle<WorkerEnd>>>,
    /// Numbers of workers whose threads are about to end.
    ended: Receiver<usize>,
    doors: Doors,
    shared: Arc<Shared>,
    splice_off: Arc<AtomicBool>,
    description: String,
    /// Workers turn once it is set.
    gate: Arc<OnceLock<()>>,
    _resolver: Option<Resolver>,
}

/// How a worker thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEnd {
    /// After `drain` or `stop`, with every session ended.
    Finished,
    /// It panicked or its poller failed; its sessions were reset and counted as `worker_panic`.
    Panicked,
}

/// Pipe budgets, one per pipe size of the plan.
struct Budgets {
    sizes: Vec<Option<usize>>,
    budgets: Vec<PipeBudget>,
}

impl Budgets {
    fn of(plan: &Plan, workers: usize) -> Self {
        let sizes: BTreeSet<Option<usize>> = plan.forwards.iter().map(|f| f.pipe_size).collect();
        let sizes: Vec<Option<usize>> = sizes.into_iter().collect();
        // Every pool takes from the same limits: each size gets its share of them.
        let budgets = sizes.iter().map(|size| PipeBudget::detect(*size, workers * sizes.len())).collect();
        Self { sizes, budgets }
    }

    fn index(&self, size: Option<usize>) -> usize {
        self.sizes.iter().position(|s| *s == size).unwrap_or(0)
    }
}

impl Fleet {
    /// A fleet that is prepared and opened.
    ///
    /// # Errors
    /// Those of [`Self::prepare`].
    pub fn start(
        plan: &Arc<Plan>,
        doors: Doors,
        log: Option<SyncSender<Vec<SessionRecord>>>,
        on_end: Arc<mio::Waker>,
    ) -> io::Result<Self> {
        let mut fleet = Self::prepare(plan, doors, log, on_end)?;
        fleet.open();
        Ok(fleet)
    }

    /// Takes the listeners of the plan from `doors` where they are open already, binds the others, then starts the
    /// workers, which wait for [`Self::open`]. Sockets no forward of the plan asks for are closed. `on_end` is woken
    /// whenever a worker thread ends.
    ///
    /// # Errors
    /// With nothing started: an address that cannot be bound (named in the message), or a thread that cannot start.
    pub fn prepare(
        plan: &Arc<Plan>,
        mut doors: Doors,
        log: Option<SyncSender<Vec<SessionRecord>>>,
        on_end: Arc<mio::Waker>,
    ) -> io::Result<Self> {
        let (soft, hard) = sys::raise_descriptor_limit();
        let workers = worker_count(plan);
        let prepared = doors.prepare(plan, workers)?;
        let budgets = Budgets::of(plan, workers);
        let stats: Vec<_> =
            (0..workers).map(|_| Arc::new(WorkerStats::new(plan.forwards.iter().map(|f| f.arms.len())))).collect();
        let splice_off = Arc::new(AtomicBool::new(!sys::HAS_SPLICE));
        let (shared, ends) = share(plan, workers).map_err(|e| explain("make the event loops", workers, &e))?;
        let mut made = Vec::new();
        doors.adopt(prepared);
        let sets = doors.deal(workers);
        for (id, ((poll, inbox), listeners)) in ends.into_iter().zip(sets).enumerate() {
            let pools = budgets.budgets.iter().map(PipeBudget::pool).collect();
            let scratch = plan.forwards.iter().map(Forward::largest_read).max().unwrap_or(64 * 1024);
            made.push(Worker::new(Parts {
                id,
                poll,
                plan: Arc::clone(plan),
                shared: Arc::clone(&shared),
                inbox,
                listeners,
                routes: routes(plan, &budgets),
                pumps: Pumps::new(scratch, pools, Arc::clone(&splice_off)),
                stats: Arc::clone(&stats[id]),
                log: log.clone(),
            })?);
        }
        let (cpus, pinning) = choose_cpus(plan.pin, workers);
        let pipes: Vec<String> = budgets.budgets.iter().map(ToString::to_string).collect();
        let description =
            format!("{workers} workers, {pinning}; pipes: {}; descriptors: {soft} of {hard} allowed", pipes.join("; "));
        let (say_ended, ended) = mpsc::channel();
        // The control thread may also stop the fleet by dropping it: every thread holds only what is its own.
        let mut fleet = Self {
            stats,
            cpus: cpus.clone(),
            threads: Vec::new(),
            ended,
            doors,
            shared: Arc::clone(&shared),
            splice_off,
            description,
            gate: Arc::default(),
            _resolver: resolver(plan, &shared)?,
        };
        for (id, worker) in made.into_iter().enumerate() {
            let gate = Arc::clone(&fleet.gate);
            let spawned = spawn(id, worker, cpus[id], gate, (say_ended.clone(), Arc::clone(&on_end)))
                .map_err(|e| explain("start the threads", workers, &e));
            if spawned.is_err() {
                fleet.stop();
            }
            fleet.threads.push(Some(spawned?));
        }
        Ok(fleet)
    }

    /// Lets the workers turn and accept. Nothing can fail from here on.
    pub fn open(&mut self) {
        self.doors.listen();
        let _ = self.gate.set(());
    }

    /// Counters, one entry per worker.
    #[must_use]
    pub fn stats(&self) -> &[Arc<WorkerStats>] {
        &self.stats
    }

    /// CPU each worker is bound to, `None` where it is not.
    #[must_use]
    pub fn cpus(&self) -> Vec<Option<usize>> {
        self.cpus.clone()
    }

    /// Whether splice is in use: this build has it and the kernel has not refused it.
    #[must_use]
    pub fn splices(&self) -> bool {
        !self.splice_off.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Every listening address, ranges expanded.
    #[must_use]
    pub fn listening(&self) -> &[SocketAddr] {
        &self.shared.listening
    }

    /// Every listening socket, to pass on to the process that will replace this one.
    #[must_use]
    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Leaves the listening sockets to whoever they were passed on to: nothing is accepted any more and nothing in
    /// their queues is lost. What waits on the addresses in `given_up` is taken before those close, for nobody else
    /// will. Sessions go on, each worker ends when its last one has.
    pub fn let_go(&mut self, given_up: &[SocketAddr]) {
        self.doors = Doors::default();
        let given_up: Arc<[SocketAddr]> = given_up.into();
        self.tell(|| Message::LetGo(Arc::clone(&given_up)));
    }

    /// Stops accepting (listeners are closed); sessions go on, each worker ends when its last one has.
    pub fn drain(&mut self) {
        self.doors = Doors::default();
        self.tell(|| Message::Drain);
    }

    /// Ends every session now with reason `drain`, and the workers with them.
    pub fn stop(&mut self) {
        self.doors = Doors::default();
        self.tell(|| Message::Stop);
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for mailbox in &self.shared.mailboxes {
            // A worker that has ended needs no telling.
            let _ = mailbox.post(message());
        }
        // One that waits still to begin learns of it first of all.
        let _ = self.gate.set(());
    }

    /// How often each worker that has not ended has turned, by its number.
    #[must_use]
    pub fn turns(&self) -> Vec<(usize, u64)> {
        let running = |id: &usize| self.threads.get(*id).is_some_and(Option::is_some);
        (0..self.stats.len()).filter(running).map(|id| (id, self.stats[id].turns.get())).collect()
    }

    /// Makes every worker turn once, also one that has nothing to do.
    pub fn nudge(&self) {
        self.shared.mailboxes.iter().for_each(Mailbox::nudge);
    }

    /// Sessions open in all workers.
    #[must_use]
    pub fn open_sessions(&self) -> u64 {
        self.stats.iter().flat_map(|s| s.forwards.iter()).map(|f| f.open.get()).sum()
    }

    /// Ends of workers that have finished since the last call, with their number.
    pub fn reap(&mut self) -> Vec<(usize, WorkerEnd)> {
        // A thread says that it ends before it wakes us, so that the wake is never too early to find it; joining it
        // then takes no longer than the rest of its way out.
        let threads = &mut self.threads;
        let joined = |id: usize| threads.get_mut(id)?.take().map(|thread| (id, thread.join()));
        let ends = self.ended.try_iter().filter_map(joined);
        ends.map(|(id, end)| (id, end.unwrap_or(WorkerEnd::Panicked))).collect()
    }

    /// Workers whose end [`Self::reap`] has not told yet.
    #[must_use]
    pub fn running(&self) -> usize {
        self.threads.iter().flatten().count()
    }
}

impl fmt::Display for Fleet {
    /// How many workers, where they run, and the limits they live with, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

fn explain(what: &str, workers: usize, error: &io::Error) -> io::Error {
    let text = format!(
        "cannot {what} of {workers} workers: {error}; use fewer (--workers), or raise the limits on descriptors \
         (ulimit -n) and processes (ulimit -u)"
    );
    io::Error::new(error.kind(), text)
}

fn worker_count(plan: &Plan) -> usize {
    let cpus = sys::allowed_cpus().len();
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    plan.workers.unwrap_or(if cpus > 0 { cpus } else { all() })
}

/// Which CPU each worker is bound to, and how to say so.
fn choose_cpus(pin: Pin, workers: usize) -> (Vec<Option<usize>>, String) {
    let cpus = sys::allowed_cpus();
    let enough = cpus.len() >= workers;
    if cpus.is_empty() || pin == Pin::Off || (pin == Pin::Auto && !enough) {
        let why = match pin {
            Pin::Off => "pin is off".to_string(),
            _ => format!("{} CPUs are allowed", cpus.len()),
        };
        return (vec![None; workers], format!("not pinned ({why})"));
    }
    let chosen: Vec<Option<usize>> = (0..workers).map(|id| Some(cpus[id % cpus.len()])).collect();
    let names: Vec<String> = chosen.iter().flatten().map(ToString::to_string).collect();
    (chosen, format!("pinned to CPUs {}", names.join(",")))
}

type End = (Poll, Receiver<Message>);

/// What workers share, and each one's poller and mailbox.
fn share(plan: &Plan, workers: usize) -> io::Result<(Arc<Shared>, Vec<End>)> {
    let (mut mailboxes, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        let poll = Poll::new()?;
        let (mailbox, inbox) = Mailbox::new(Waker::new(poll.registry(), MAILBOX)?);
        mailboxes.push(mailbox);
        ends.push((poll, inbox));
    }
    let shared = Shared {
        loads: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        slots: Slots::new(plan.max_connections),
        forward_slots: plan.forwards.iter().map(|f| Slots::new(f.max_connections)).collect(),
        trace: Trace::default(),
        shortage: Shortage::default(),
        listening: listener::places(plan).map(|place| place.address).collect(),
        mailboxes: mailboxes.into(),
    };
    Ok((Arc::new(shared), ends))
}

fn routes(plan: &Plan, budgets: &Budgets) -> Vec<Route> {
    let route = |f| Route { upstreams: Upstreams::new(f), pool: budgets.index(f.pipe_size) };
    plan.forwards.iter().map(route).collect()
}

fn resolver(plan: &Plan, shared: &Arc<Shared>) -> io::Result<Option<Resolver>> {
    let names = upstream::names(plan);
    if names.is_empty() {
        return Ok(None);
    }
    let shared = Arc::clone(shared);
    let tell = move |forward, target, addresses: &[std::net::IpAddr]| {
        for mailbox in &shared.mailboxes {
            let _ = mailbox.post(Message::Resolved(forward, target, addresses.to_vec()));
        }
    };
    Resolver::start(names, tell).map(Some)
}

/// Starts a worker's thread, which says its number and wakes the waker when it ends.
fn spawn(
    id: usize,
    mut worker: Worker,
    cpu: Option<usize>,
    gate: Arc<OnceLock<()>>,
    (say_ended, on_end): (mpsc::Sender<usize>, Arc<Waker>),
) -> io::Result<JoinHandle<WorkerEnd>> {
    std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
        if let Some(Err(e)) = cpu.map(sys::pin_to) {
            log::warn!("cannot pin worker {id}: {e}; it runs where the scheduler puts it");
        }
        gate.wait();
        // The worker moves into the closure, so that after a panic its sessions are reset while it unwinds.
        let result = catch_unwind(AssertUnwindSafe(move || worker.run()));
        let end = match result {
            Ok(Ok(())) => WorkerEnd::Finished,
            Ok(Err(e)) => {
                log::error!("worker {id}: the poller failed: {e}");
                WorkerEnd::Panicked
            }
            Err(_) => WorkerEnd::Panicked,
        };
        // Nobody listens any more when the fleet was dropped.
        let _ = say_ended.send(id);
        if let Err(e) = on_end.wake() {
            log::debug!("cannot wake the control thread: {e}");
        }
        end
    })
}
