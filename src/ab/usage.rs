//! What a forwarder says of itself, and what it did and used between two readings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::host::ThreadTimes;

/// What the comparison needs of `spliced stats --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Stats {
    /// CPU time of the process.
    pub cpu: CpuSeconds,
    /// What it may use.
    pub engine_available: Available,
    /// Counters of all forwards.
    pub total: Total,
}

/// CPU time of a process as getrusage(2) has it.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct CpuSeconds {
    /// In user mode.
    pub user_seconds: f64,
    /// In the kernel.
    pub system_seconds: f64,
}

/// Engines the process can use.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Available {
    /// False in a portable build and once the kernel has refused splice.
    pub splice: bool,
}

/// Counters of the process.
#[derive(Debug, Clone, Deserialize)]
pub struct Total {
    /// Bytes by direction.
    pub bytes: Directions,
    /// Fallbacks by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// Ends of sessions by reason.
    pub ends: BTreeMap<String, u64>,
}

/// Bytes of both directions.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Directions {
    /// Towards the backend.
    pub client_to_backend: Paths,
    /// Towards the client.
    pub backend_to_client: Paths,
}

/// Bytes by the way they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// Through a pipe.
    pub splice: u64,
    /// Through memory.
    pub copy: u64,
}

/// One reading of a forwarder, for the difference of two.
#[derive(Debug, Clone)]
pub struct Reading {
    stats: Stats,
    threads: Option<ThreadTimes>,
}

/// What a forwarder did and used between two readings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Usage {
    /// User and system time of the forwarder alone, in seconds.
    pub cpu_seconds: f64,
    /// `schedstat` (nanoseconds of the scheduler) or `getrusage`.
    pub cpu_source: &'static str,
    /// Bytes passed on, both directions together.
    pub bytes: Paths,
    /// Bytes passed on to the backend.
    pub bytes_to_backend: u64,
    /// Fallbacks by reason; only those that happened.
    pub fallbacks: BTreeMap<String, u64>,
}

impl Reading {
    /// What the process with that id has just said, with its CPU time now.
    #[must_use]
    pub fn new(stats: Stats, pid: u32) -> Self {
        Self { stats, threads: ThreadTimes::of(pid) }
    }

    /// Whether the process may use splice.
    #[must_use]
    pub fn splice_available(&self) -> bool {
        self.stats.engine_available.splice
    }

    /// Sessions that ended otherwise than whole, by reason, as the tail of a message; empty when there are none.
    #[must_use]
    pub fn broken_sessions(&self) -> String {
        let broken = self.stats.total.ends.iter().filter(|(reason, n)| **n > 0 && *reason != "done");
        let broken: Vec<String> = broken.map(|(reason, n)| format!("{reason} {n}")).collect();
        if broken.is_empty() {
            String::new()
        } else {
            format!("; ends of the forwarder's sessions: {}", broken.join(", "))
        }
    }

    /// What happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Usage {
        let (cpu_seconds, cpu_source) = match (&self.threads, &earlier.threads) {
            (Some(now), Some(then)) => (now.seconds_since(then), "schedstat"),
            _ => (self.stats.cpu.total() - earlier.stats.cpu.total(), "getrusage"),
        };
        let (now, then) = (&self.stats.total, &earlier.stats.total);
        let up = now.bytes.client_to_backend.since(then.bytes.client_to_backend);
        let down = now.bytes.backend_to_client.since(then.bytes.backend_to_client);
        let fallbacks = now.fallbacks.iter().filter_map(|(reason, n)| {
            let n = n.saturating_sub(*then.fallbacks.get(reason).unwrap_or(&0));
            (n > 0).then(|| (reason.clone(), n))
        });
        Usage {
            cpu_seconds,
            cpu_source,
            bytes: Paths { splice: up.splice + down.splice, copy: up.copy + down.copy },
            bytes_to_backend: up.splice + up.copy,
            fallbacks: fallbacks.collect(),
        }
    }
}

impl CpuSeconds {
    fn total(self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

impl Paths {
    /// Both together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.splice + self.copy
    }

    /// Part of the bytes that went through a pipe, 0 to 1; `None` without bytes.
    #[must_use]
    pub fn splice_share(self) -> Option<f64> {
        (self.total() > 0).then(|| self.splice as f64 / self.total() as f64)
    }

    fn since(self, earlier: Self) -> Self {
        Self { splice: self.splice.saturating_sub(earlier.splice), copy: self.copy.saturating_sub(earlier.copy) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_of_two_readings() {
        let reading = |cpu: f64, splice: u64, refused: u64| Reading {
            stats: Stats {
                cpu: CpuSeconds { user_seconds: cpu, system_seconds: cpu * 2.0 },
                engine_available: Available { splice: true },
                total: Total {
                    bytes: Directions {
                        client_to_backend: Paths { splice, copy: 10 },
                        backend_to_client: Paths { splice: 0, copy: splice / 2 },
                    },
                    fallbacks: BTreeMap::from([("urgent".into(), 3), ("splice_refused".into(), refused)]),
                    ends: BTreeMap::from([("done".into(), 9), ("idle".into(), 0), ("refused".into(), refused)]),
                },
            },
            threads: None,
        };
        assert_eq!(reading(1.0, 0, 0).broken_sessions(), "");
        assert_eq!(reading(1.0, 0, 2).broken_sessions(), "; ends of the forwarder's sessions: refused 2");
        let usage = reading(2.0, 1000, 1).since(&reading(1.5, 400, 0));
        assert!((usage.cpu_seconds - 1.5).abs() < 1e-9);
        assert_eq!(usage.cpu_source, "getrusage");
        assert_eq!(usage.bytes, Paths { splice: 600, copy: 300 });
        assert_eq!(usage.bytes_to_backend, 600);
        assert_eq!(usage.fallbacks, BTreeMap::from([("splice_refused".into(), 1)]));
    }
}
