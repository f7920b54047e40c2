//! Counters of one worker, and how they are summed.
//!
//! Every counter has exactly one writer, its worker, so that adding is a plain load and store and never a locked
//! instruction. The control thread reads them at any time; a reading may be a turn old but never torn.

mod names;
mod snapshot;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

pub use self::names::{DropCause, EndReason, Fallback, Side};
pub use self::snapshot::{ByName, Bytes, DatagramSnapshot, ForwardSnapshot, HistogramSnapshot, PathBytes};
use crate::arms::ArmStats;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Its event loop turns.
    Running,
    /// Its place was taken away by a reload; it takes no connection and ends with its last session.
    Leaving,
    /// It ended after the drain, or was stopped.
    Finished,
    /// It panicked, its sessions are gone, and no other was started in its place.
    Panicked,
}

/// A number only its worker changes and anybody may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this: two writers would lose counts.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes `n` away; for gauges.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Sets the value; for gauges.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A sum of fractions that only its worker changes and anybody may read.
#[derive(Debug, Default)]
pub struct Sum(AtomicU64);

impl Sum {
    /// Adds `x`. Only the owning worker may call this.
    pub fn add(&self, x: f64) {
        self.0.store((self.get() + x).to_bits(), Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Times in powers of two: bucket `i` counts times below 2^i µs, the last one everything else.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; Self::BUCKETS],
    sum_us: Counter,
}

impl Histogram {
    /// Number of buckets: the last finite bound is 2^30 µs, about 18 minutes.
    pub const BUCKETS: usize = 32;

    /// Counts one time.
    pub fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = (64 - us.leading_zeros() as usize).min(Self::BUCKETS - 1);
        self.buckets[bucket].add(1);
        self.sum_us.add(us);
    }

    pub(crate) fn add_to(&self, sum: &mut HistogramSnapshot) {
        sum.buckets.resize(Self::BUCKETS, 0);
        for (to, from) in sum.buckets.iter_mut().zip(&self.buckets) {
            *to += from.get();
        }
        sum.sum_us += self.sum_us.get();
    }
}

/// Counters of one forward in one worker.
#[derive(Debug, Default)]
pub struct ForwardStats {
    /// Connections taken from the listener, refused ones included.
    pub accepted: Counter,
    /// Sessions open now (gauge).
    pub open: Counter,
    /// Bytes written to the backend through a pipe.
    pub up_splice: Counter,
    /// Bytes written to the backend from memory.
    pub up_copy: Counter,
    /// Bytes written to the client through a pipe.
    pub down_splice: Counter,
    /// Bytes written to the client from memory.
    pub down_copy: Counter,
    /// Attempts to connect after another one of the same session had failed.
    pub retries: Counter,
    /// Times a direction waited for bytes of a rate.
    pub rate_waits: Counter,
    /// PROXY headers accepted from clients.
    pub proxy_received: Counter,
    /// PROXY headers sent to backends.
    pub proxy_sent: Counter,
    /// By [`Fallback`].
    pub fallbacks: [Counter; Fallback::ALL.len()],
    /// By [`EndReason`].
    pub ends: [Counter; EndReason::ALL.len()],
    /// Times bytes waited for `stall_warning` and none was taken, by [`Side`] that took none.
    pub stalls: [Counter; Side::ALL.len()],
    /// Directions stalled now (gauge).
    pub stalled: Counter,
    /// From the first connect call to the connected backend.
    pub connect_time: Histogram,
    /// From accept to the backend's first byte.
    pub first_byte_time: Histogram,
    /// From accept to the end.
    pub session_time: Histogram,
    /// Datagrams, where the forward has such listeners.
    pub datagrams: DatagramStats,
    /// One per arm of a live A/B, in the order of the plan; else empty.
    pub arms: Box<[ArmStats]>,
}

/// Datagrams of one forward in one worker.
#[derive(Debug, Default)]
pub struct DatagramStats {
    /// Passed on to the target.
    pub up: Counter,
    /// Passed on to the client.
    pub down: Counter,
    /// Not passed on, by [`DropCause`].
    pub drops: [Counter; DropCause::ALL.len()],
    /// System calls that received datagrams.
    pub receives: Counter,
    /// System calls that sent datagrams.
    pub sends: Counter,
    /// Datagrams that came joined to others as one by the kernel (`UDP_GRO`).
    pub joined: Counter,
    /// Datagrams that left joined to others as one, for the kernel to take apart (`UDP_SEGMENT`).
    pub segmented: Counter,
}

/// Counters of one worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Turns of the event loop.
    pub turns: Counter,
    /// CPU time of the worker's threads, one after the other, in nanoseconds, measured about once a second while it
    /// turns.
    pub busy_ns: Counter,
    /// New connections given to another worker.
    pub handed_over: Counter,
    /// Sessions given to another worker while bytes moved.
    pub moved: Counter,
    /// Accepting paused for want of descriptors, slots or tokens of a connection rate (gauge, 0 or 1).
    pub accept_paused: Counter,
    /// 1 while the scheduler takes it as a batch job.
    pub batch: Counter,
    /// Times accepting was paused for want of descriptors, slots or tokens of a connection rate; a pause for want of
    /// descriptors that lasts is taken up again every 50 ms.
    pub accept_pauses: Counter,
    /// Pipes that hold bytes now (gauge).
    pub pipes_in_use: Counter,
    /// Empty pipes kept for the next burst (gauge).
    pub pipes_pooled: Counter,
    /// Pipes this worker may have (gauge).
    pub pipes_budget: Counter,
    /// Size of a pipe in bytes as read back (gauge).
    pub pipe_size: Counter,
    /// Session log records dropped because the log did not keep up.
    pub log_dropped: Counter,
}

impl ForwardStats {
    /// Zeroes for a forward with so many arms.
    #[must_use]
    pub fn new(arms: usize) -> Self {
        Self { arms: (0..arms).map(|_| ArmStats::default()).collect(), ..Self::default() }
    }
}

/// A finished session, for the session log.
#[derive(Debug, Clone)]
pub struct SessionRecord {
    /// When it ended.
    pub at: std::time::SystemTime,
    /// The forward as it was when the session began.
    pub forward: std::sync::Arc<crate::plan::Forward>,
    /// Index of the arm in the forward's, in a live A/B.
    pub arm: Option<usize>,
    /// The client's address.
    pub client: crate::address::Address,
    /// What the client speaks.
    pub transport: crate::plan::Transport,
    /// Who brought the client's address in a PROXY header.
    pub proxy: Option<crate::address::Address>,
    /// The local address the client connected to.
    pub listener: crate::address::Address,
    /// The last target tried, if any was.
    pub target: Option<crate::address::Address>,
    /// Bytes by direction and path.
    pub bytes: Bytes,
    /// From accept to the end.
    pub duration: Duration,
    /// Why it ended.
    pub reason: EndReason,
    /// The kernel's error behind `reason`, as an errno, where there is one.
    pub errno: Option<i32>,
}
