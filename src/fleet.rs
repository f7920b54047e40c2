//! The workers of one process: how they are started, told things and joined.
//!
//! The control thread owns the [`Fleet`]; nothing here is on the data path.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use crate::plan::Plan;
use crate::stats::{SessionRecord, WorkerStats};

/// All workers of the process.
#[derive(Debug)]
pub struct Fleet {
    stats: Vec<Arc<WorkerStats>>,
}

/// How a worker thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEnd {
    /// After `drain` or `stop`, with every session ended.
    Finished,
    /// It panicked; its sessions are gone and counted as `worker_panic`.
    Panicked,
}

impl Fleet {
    /// Binds every listener of the plan, then starts the workers. `on_end` is woken whenever a worker thread ends.
    ///
    /// # Errors
    /// With nothing started: an address that cannot be bound (named in the message), or a thread that cannot start.
    pub fn start(
        _plan: &Arc<Plan>,
        _log: Option<SyncSender<Vec<SessionRecord>>>,
        _on_end: Arc<mio::Waker>,
    ) -> io::Result<Self> {
        Err(io::Error::other("not written yet"))
    }

    /// Counters, one entry per worker.
    #[must_use]
    pub fn stats(&self) -> &[Arc<WorkerStats>] {
        &self.stats
    }

    /// CPU each worker is bound to, `None` where it is not.
    #[must_use]
    pub fn cpus(&self) -> Vec<Option<usize>> {
        Vec::new()
    }

    /// Stops accepting (listeners are closed); sessions go on, each worker ends when its last one has.
    pub fn drain(&self) {}

    /// Ends every session now with reason `drain`, and the workers with them.
    pub fn stop(&self) {}

    /// Sessions open in all workers.
    #[must_use]
    pub fn open_sessions(&self) -> u64 {
        0
    }

    /// Ends of workers that have finished since the last call, with their number.
    pub fn reap(&mut self) -> Vec<(usize, WorkerEnd)> {
        Vec::new()
    }

    /// Workers still running.
    #[must_use]
    pub fn running(&self) -> usize {
        0
    }
}
