//! Counters summed over workers, as they are shown.

use serde::Serialize;

use super::{DatagramStats, DropCause, EndReason, Fallback, ForwardStats, Histogram, Side};

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
