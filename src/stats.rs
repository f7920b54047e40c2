//! Counters of one worker, and how they are summed.
//!
//! Every counter has exactly one writer, its worker, so that adding is a plain load and store and never a locked
//! instruction. The control thread reads them at any time; a reading may be a turn old but never torn.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

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

/// Makes an enum whose variants have fixed names in logs, JSON and metrics.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The fixed name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

named! {
    /// Why a session ended.
    EndReason {
        /// Both directions reached their end and everything was delivered.
        Done = "done",
        /// The client reset the connection.
        ResetByClient = "reset_by_client",
        /// The backend reset the connection.
        ResetByBackend = "reset_by_backend",
        /// Every target refused the connection.
        Refused = "refused",
        /// No target was reachable (no route, a local error).
        ConnectFailed = "connect_failed",
        /// No target answered within `timeouts.connect`.
        ConnectTimeout = "connect_timeout",
        /// Every target was drained or disabled by command.
        NoTarget = "no_target",
        /// The target's name has no address.
        Unresolved = "unresolved",
        /// The client stopped answering keepalive probes or acknowledging bytes.
        ClientVanished = "client_vanished",
        /// The backend stopped answering keepalive probes or acknowledging bytes.
        BackendVanished = "backend_vanished",
        /// No byte for `timeouts.idle`; a flow: no datagram for `udp_timeout`.
        Idle = "idle",
        /// No byte for `timeouts.half_closed` after one side had closed its half.
        HalfClosed = "half_closed",
        /// Its target was found down or was disabled, and `on_down` says end.
        TargetDown = "target_down",
        /// Cut at the end of the drain time, or by the second signal.
        Drain = "drain",
        /// A limit on open sessions refused it.
        Limit = "limit",
        /// A limit on new connections per second refused it.
        Rate = "rate",
        /// A deny rule matched.
        Denied = "denied",
        /// There are allow rules and none matched.
        NotAllowed = "not_allowed",
        /// It came from one of our own forwards in a circle.
        Loop = "loop",
        /// The header of the PROXY protocol did not come in time.
        ProxyTimeout = "proxy_timeout",
        /// The connection ended in, or before, its PROXY header.
        ProxyTruncated = "proxy_truncated",
        /// Its PROXY header was longer than is accepted.
        ProxyTooLong = "proxy_too_long",
        /// What came first was no PROXY header.
        ProxyInvalid = "proxy_invalid",
        /// The checksum of its PROXY header did not hold.
        ProxyChecksum = "proxy_checksum",
        /// A PROXY header was required, and it came from a source that may not send one.
        ProxyUnlisted = "proxy_unlisted",
        /// No descriptor for the connection to the backend within `timeouts.connect`.
        NoDescriptors = "no_descriptors",
        /// No local port was left for the connection to the backend, at any of the source addresses.
        NoPorts = "no_ports",
        /// The worker that held it panicked.
        WorkerPanic = "worker_panic",
        /// Something the kernel reported that none of the others covers.
        Error = "error",
    }
}

named! {
    /// Why bytes that should have been spliced were copied.
    Fallback {
        /// No pipe: `pipe2` said EMFILE or ENFILE.
        NoDescriptors = "no_descriptors",
        /// No pipe: the worker's share of the budget is in use, or a new pipe came out smaller than 64 KiB.
        Budget = "budget_exhausted",
        /// The kernel has no splice, or a filter forbids it (ENOSYS, EPERM): off for the whole process.
        Refused = "splice_refused",
        /// splice from this source is not supported (EINVAL, EBADF): this direction copies from now on.
        Source = "source_unsupported",
        /// splice to this target is not supported (EINVAL, EBADF): the pipe was read out, this direction copies from now on.
        Target = "target_unsupported",
        /// An urgent byte was stepped over with one `recv`.
        Urgent = "urgent",
    }
}

named! {
    /// A side of a session.
    Side {
        /// Who connected to us.
        Client = "client",
        /// Whom we connected to.
        Backend = "backend",
    }
}

named! {
    /// Why a datagram was not passed on.
    DropCause {
        /// A deny rule matched.
        Denied = "denied",
        /// There are allow rules and none matched.
        NotAllowed = "not_allowed",
        /// It would have begun a flow, and a limit on flows refused it.
        Limit = "limit",
        /// A limit on new flows or on bytes per second refused it.
        Rate = "rate",
        /// It would have begun a flow while the process ends.
        Drain = "drain",
        /// It came from one of our own forwards in a circle.
        Loop = "loop",
        /// No descriptor for a flow's socket.
        NoDescriptors = "no_descriptors",
        /// No local port was left for a flow's socket.
        NoPorts = "no_ports",
        /// The target's name has no address.
        Unresolved = "unresolved",
        /// The kernel had no room for it in the queue of our socket (`SO_RXQ_OVFL`), or its checksum was wrong. What came
        /// joined may count as one; the kernel tells with the next datagram that it has room for.
        Socket = "socket",
        /// The target is not there: a local error, or an ICMP error that an earlier datagram has brought.
        Unreachable = "unreachable",
        /// The kernel or the stream had no room for it.
        NoRoom = "no_room",
        /// Larger than what the way to the other side carries.
        TooLong = "too_long",
        /// Something the kernel reported that none of the others covers.
        Error = "error",
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

/// Bytes of one direction, by path.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PathBytes {
    /// Through a pipe.
    pub splice: u64,
    /// Through memory.
    pub copy: u64,
}

/// Bytes of both directions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// From the client to the backend.
    pub client_to_backend: PathBytes,
    /// From the backend to the client.
    pub backend_to_client: PathBytes,
}

impl PathBytes {
    fn merge(&mut self, other: Self) {
        self.splice += other.splice;
        self.copy += other.copy;
    }

    /// By either path.
    #[must_use]
    pub fn total(self) -> u64 {
        self.splice + self.copy
    }
}

impl Bytes {
    /// In both directions, by either path.
    #[must_use]
    pub fn total(self) -> u64 {
        self.client_to_backend.total() + self.backend_to_client.total()
    }
}

/// A [`Histogram`] summed over workers.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct HistogramSnapshot {
    /// `buckets[i]` counts times below 2^i µs that fit no earlier bucket.
    pub buckets: Vec<u64>,
    /// Sum of all times in µs.
    pub sum_us: u64,
}

/// Counters by fixed name; every name is present, also with 0.
pub type ByName = std::collections::BTreeMap<&'static str, u64>;

/// Counters of one forward, or of all, summed over workers.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct ForwardSnapshot {
    /// Connections taken from the listeners.
    pub sessions_accepted: u64,
    /// Sessions open now.
    pub sessions_open: u64,
    /// Bytes by direction and path.
    pub bytes: Bytes,
    /// Attempts to connect after another one of the same session had failed.
    pub retries: u64,
    /// Times a direction waited for bytes of a rate.
    pub rate_waits: u64,
    /// PROXY headers accepted from clients.
    pub proxy_received: u64,
    /// PROXY headers sent to backends.
    pub proxy_sent: u64,
    /// By name of [`Fallback`].
    pub fallbacks: ByName,
    /// By name of [`EndReason`].
    pub ends: ByName,
    /// Stalls by name of the [`Side`] that took no bytes.
    pub stalls: ByName,
    /// Directions stalled now.
    pub stalled: u64,
    /// From the first connect call to the connected backend.
    pub connect_time: HistogramSnapshot,
    /// From accept to the backend's first byte.
    pub first_byte_time: HistogramSnapshot,
    /// From accept to the end.
    pub session_time: HistogramSnapshot,
    /// Datagrams.
    pub datagrams: DatagramSnapshot,
}

/// A [`DatagramStats`] summed over workers.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct DatagramSnapshot {
    /// Passed on to the target.
    pub client_to_backend: u64,
    /// Passed on to the client.
    pub backend_to_client: u64,
    /// Not passed on, by name of [`DropCause`].
    pub drops: ByName,
    /// System calls that received datagrams.
    pub receives: u64,
    /// System calls that sent datagrams.
    pub sends: u64,
    /// Datagrams that came joined to others as one by the kernel.
    pub joined: u64,
    /// Datagrams that left joined to others as one.
    pub segmented: u64,
}

impl DatagramSnapshot {
    fn add(&mut self, stats: &DatagramStats) {
        self.client_to_backend += stats.up.get();
        self.backend_to_client += stats.down.get();
        for (cause, counter) in DropCause::ALL.iter().zip(&stats.drops) {
            *self.drops.entry(cause.name()).or_default() += counter.get();
        }
        self.receives += stats.receives.get();
        self.sends += stats.sends.get();
        self.joined += stats.joined.get();
        self.segmented += stats.segmented.get();
    }

    fn merge(&mut self, other: &Self) {
        self.client_to_backend += other.client_to_backend;
        self.backend_to_client += other.backend_to_client;
        for (name, count) in &other.drops {
            *self.drops.entry(name).or_default() += count;
        }
        self.receives += other.receives;
        self.sends += other.sends;
        self.joined += other.joined;
        self.segmented += other.segmented;
    }
}

impl ForwardSnapshot {
    /// Adds one worker's counters.
    pub fn add(&mut self, stats: &ForwardStats) {
        self.sessions_accepted += stats.accepted.get();
        self.sessions_open += stats.open.get();
        self.bytes.client_to_backend.splice += stats.up_splice.get();
        self.bytes.client_to_backend.copy += stats.up_copy.get();
        self.bytes.backend_to_client.splice += stats.down_splice.get();
        self.bytes.backend_to_client.copy += stats.down_copy.get();
        self.retries += stats.retries.get();
        self.rate_waits += stats.rate_waits.get();
        self.proxy_received += stats.proxy_received.get();
        self.proxy_sent += stats.proxy_sent.get();
        for (reason, counter) in Fallback::ALL.iter().zip(&stats.fallbacks) {
            *self.fallbacks.entry(reason.name()).or_default() += counter.get();
        }
        for (reason, counter) in EndReason::ALL.iter().zip(&stats.ends) {
            *self.ends.entry(reason.name()).or_default() += counter.get();
        }
        for (side, counter) in Side::ALL.iter().zip(&stats.stalls) {
            *self.stalls.entry(side.name()).or_default() += counter.get();
        }
        self.stalled += stats.stalled.get();
        stats.connect_time.add_to(&mut self.connect_time);
        stats.first_byte_time.add_to(&mut self.first_byte_time);
        stats.session_time.add_to(&mut self.session_time);
        self.datagrams.add(&stats.datagrams);
    }

    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        self.sessions_accepted += other.sessions_accepted;
        self.sessions_open += other.sessions_open;
        self.bytes.client_to_backend.merge(other.bytes.client_to_backend);
        self.bytes.backend_to_client.merge(other.bytes.backend_to_client);
        self.retries += other.retries;
        self.rate_waits += other.rate_waits;
        self.proxy_received += other.proxy_received;
        self.proxy_sent += other.proxy_sent;
        for (own, others) in [(&mut self.fallbacks, &other.fallbacks), (&mut self.ends, &other.ends)] {
            for (name, count) in others {
                *own.entry(name).or_default() += count;
            }
        }
        for (name, count) in &other.stalls {
            *self.stalls.entry(name).or_default() += count;
        }
        self.stalled += other.stalled;
        self.connect_time.merge(&other.connect_time);
        self.first_byte_time.merge(&other.first_byte_time);
        self.session_time.merge(&other.session_time);
        self.datagrams.merge(&other.datagrams);
    }
}

impl HistogramSnapshot {
    fn merge(&mut self, other: &Self) {
        self.buckets.resize(Histogram::BUCKETS, 0);
        for (to, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *to += from;
        }
        self.sum_us += other.sum_us;
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
