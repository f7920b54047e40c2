//! The place of a worker, and the thread that has it.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use mio::{Poll, Waker};
use slab::Slab;

use super::Fleet;
use crate::panics;
use crate::plan::{Pin, Plan};
use crate::pump::Pumps;
use crate::sandbox::{self, Role};
use crate::stats::{WorkerState, WorkerStats};
use crate::sys;
use crate::worker::{MAILBOX, Parts, Peer, Routes, Worker};

/// The place of a worker.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) cpu: Option<usize>,
    pub(super) stats: Arc<WorkerStats>,
    pub(super) state: WorkerState,
    pub(super) peer: Arc<Peer>,
    /// `None` once it has ended.
    pub(super) thread: Option<Thread>,
}

/// A worker that runs.
#[derive(Debug)]
pub(super) struct Thread {
    /// No other thread of the process ever has the same number.
    pub(super) serial: u64,
    pub(super) handle: JoinHandle<WorkerEnd>,
}

/// How a worker thread ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEnd {
    /// After `drain` or `stop`, or when its place was taken away, with every session ended.
    Finished,
    /// It panicked or its poller failed, as the message says; its sessions were reset and counted as `worker_panic`.
    Panicked(String),
}

/// A worker, to be shown.
#[derive(Debug, Clone, Copy)]
pub struct WorkerView<'a> {
    /// Its number, from 0.
    pub id: usize,
    /// CPU it is bound to.
    pub cpu: Option<usize>,
    /// What it is doing.
    pub state: WorkerState,
    /// Its counters.
    pub stats: &'a WorkerStats,
    /// Sessions it holds.
    pub sessions_open: u64,
}

impl Fleet {
    /// Starts a thread for a seat. It has nothing to serve until it is told.
    pub(super) fn spawn(
        &mut self,
        id: usize,
        cpu: Option<usize>,
        stats: &Arc<WorkerStats>,
    ) -> io::Result<(Arc<Peer>, Thread)> {
        let poll = Poll::new()?;
        let (peer, inbox) = Peer::new(Waker::new(poll.registry(), MAILBOX)?);
        let worker = Worker::new(Parts {
            id,
            me: Arc::clone(&peer),
            peers: Arc::new([]),
            serving: 0,
            board: Arc::clone(&self.board),
            poll,
            shared: Arc::clone(&self.shared),
            inbox,
            listeners: Slab::new(),
            routes: Routes::default(),
            pumps: Pumps::new(0, Vec::new(), Arc::clone(&self.splice_off)),
            stats: Arc::clone(stats),
            log: None,
        })?;
        self.next_thread += 1;
        let serial = self.next_thread;
        let (say_ended, on_end) = (self.say_ended.clone(), Arc::clone(&self.on_end));
        let handle = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
            let end = run(id, worker, cpu);
            // Nobody listens any more when the fleet was dropped.
            let _ = say_ended.send(serial);
            if let Err(e) = on_end.wake() {
                log::debug!("cannot wake the control thread: {e}");
            }
            end
        })?;
        Ok((peer, Thread { serial, handle }))
    }
}

fn run(id: usize, mut worker: Worker, cpu: Option<usize>) -> WorkerEnd {
    sys::leave_signals_to_main();
    sandbox::enter(Role::Worker);
    if let Some(Err(e)) = cpu.map(sys::pin_to) {
        log::warn!("cannot pin worker {id}: {e}; it runs where the scheduler puts it");
    }
    // The worker moves into the closure, so that after a panic its sessions are reset while it unwinds.
    match panics::caught(move || worker.run()) {
        Ok(Ok(())) => WorkerEnd::Finished,
        Ok(Err(e)) => WorkerEnd::Panicked(format!("its poller failed: {e}")),
        Err(why) => WorkerEnd::Panicked(why),
    }
}

pub(super) fn worker_count(plan: &Plan) -> usize {
    let cpus = sys::allowed_cpus().len();
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    plan.workers.unwrap_or(if cpus > 0 { cpus } else { all() })
}

/// Which CPU each worker is bound to, and how to say so.
pub(super) fn choose_cpus(pin: Pin, workers: usize) -> (Vec<Option<usize>>, String) {
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
