//! Answers of an instance, and what two of them say about the time between.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Deserialize;

/// Answers kept: a minute's worth at one a second.
const KEPT: usize = 61;
/// Latency is that of sessions connected within this time: in one second there may be none.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);
/// A worker tells its CPU time about once a second, so that a shorter difference would flicker.
const BUSY_WINDOW: Duration = Duration::from_secs(5);
/// Ends that are nobody's failure: sessions that were complete, that a limit ended as asked, or that were kept out.
const NO_FAILURE: [&str; 10] = [
    "done",
    "reset_by_client",
    "idle",
    "half_closed",
    "drain",
    "denied",
    "not_allowed",
    "proxy_unlisted",
    "limit",
    "rate",
];

/// One answer and when it came.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) stats: Stats,
}

// What is shown of the answer. Fields it does not know are left out, so that a newer instance can be watched.

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Stats {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) uptime_seconds: f64,
    pub(super) draining: bool,
    pub(super) cpu: Cpu,
    pub(super) engine_available: EngineAvailable,
    pub(super) workers: Vec<Worker>,
    pub(super) pipes: Pipes,
    pub(super) total: Counters,
    pub(super) forwards: Vec<Forward>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Cpu {
    user_seconds: f64,
    system_seconds: f64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct EngineAvailable {
    pub(super) splice: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Worker {
    pub(super) id: usize,
    pub(super) cpu: Option<usize>,
    pub(super) state: String,
    pub(super) sessions_open: u64,
    busy_seconds: f64,
    pub(super) accept_paused: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Pipes {
    pub(super) in_use: u64,
    pub(super) pooled: u64,
    pub(super) budget: u64,
    pub(super) size_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Forward {
    name: String,
    listen: Vec<String>,
    to: Vec<String>,
    engine: String,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(flatten)]
    counters: Counters,
}

/// An address of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Target {
    target: String,
    address: Option<String>,
    state: Option<String>,
    #[serde(default)]
    gone: bool,
    sessions_open: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Counters {
    sessions_accepted: u64,
    sessions_open: u64,
    bytes: Bytes,
    fallbacks: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
    #[serde(default)]
    datagrams: Datagrams,
    #[serde(default)]
    stalled: u64,
    connect_time: Times,
    first_byte_time: Times,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Datagrams {
    client_to_backend: u64,
    backend_to_client: u64,
    drops: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Bytes {
    client_to_backend: PathBytes,
    backend_to_client: PathBytes,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct PathBytes {
    splice: u64,
    copy: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Times {
    buckets: Vec<u64>,
}

/// The last minute of one instance.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
}

/// A forward, or all of them, now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) listen: String,
    pub(super) to: String,
    pub(super) engine: String,
    /// Bytes a second towards the backend.
    pub(super) up: f64,
    /// Bytes a second towards the client.
    pub(super) down: f64,
    /// Part of these bytes that went through a pipe; `None` without a byte.
    pub(super) spliced: Option<f64>,
    pub(super) open: u64,
    /// New sessions a second.
    pub(super) new: f64,
    /// Median and 99th percentile of connecting, in seconds; `None` without a connect.
    pub(super) connect: Option<(f64, f64)>,
    /// The same from accept to the backend's first byte.
    pub(super) first_byte: Option<(f64, f64)>,
    /// Failed sessions a second.
    pub(super) errors: f64,
    /// Directions whose bytes wait too long.
    pub(super) stalled: u64,
    /// Each address of its targets with its state and its open sessions.
    pub(super) targets: Vec<(String, String, u64)>,
    /// Since the start, by reason, without those that never came up.
    pub(super) ends: Vec<(String, u64)>,
    /// Likewise.
    pub(super) fallbacks: Vec<(String, u64)>,
    /// Datagrams a second, to the backend and to the client; `None` where there have been none.
    pub(super) datagrams: Option<(f64, f64)>,
    /// Datagrams not passed on since the start, by cause.
    pub(super) drops: Vec<(String, u64)>,
}

impl Target {
    fn shown(&self) -> (String, String, u64) {
        let address = self.address.as_ref().filter(|address| **address != self.target);
        let name = address.map_or_else(|| self.target.clone(), |address| format!("{} ({address})", self.target));
        let state = if self.gone { "GONE" } else { self.state.as_deref().unwrap_or("UNRESOLVED") };
        (name.escape_debug().to_string(), state.escape_debug().to_string(), self.sessions_open)
    }
}

impl History {
    /// Adds an answer. One of another process begins a new history; whether it did.
    pub(super) fn push(&mut self, sample: Sample) -> bool {
        let other = self.samples.back().is_some_and(|last| {
            last.stats.pid != sample.stats.pid || last.stats.uptime_seconds > sample.stats.uptime_seconds
        });
        if other {
            self.samples.clear();
        }
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        other
    }

    /// The last answer.
    pub(super) fn last(&self) -> Option<&Stats> {
        self.samples.back().map(|sample| &sample.stats)
    }

    /// The oldest answer within `window` before the last one that is not the last one itself.
    fn before(&self, window: Duration) -> Option<&Sample> {
        let last = self.samples.back()?;
        let older = self.samples.iter().take(self.samples.len() - 1);
        let mut within =
            older.filter(|sample| last.at.duration_since(sample.at) <= window + Duration::from_millis(500));
        within.next().or_else(|| self.samples.iter().rev().nth(1))
    }

    /// The answer before the last one, and the seconds between.
    fn previous(&self) -> Option<(&Stats, f64)> {
        let (last, before) = (self.samples.back()?, self.samples.iter().rev().nth(1)?);
        Some((&before.stats, seconds(before.at, last.at)))
    }

    /// All forwards together.
    pub(super) fn total(&self) -> Option<Row> {
        let last = self.last()?;
        let mut row = self.row(&last.total, |stats| Some(&stats.total));
        row.name = "all".to_owned();
        Some(row)
    }

    /// Each forward, in the order of the plan.
    pub(super) fn forwards(&self) -> Vec<Row> {
        let Some(last) = self.last() else { return Vec::new() };
        let row = |forward: &Forward| {
            let same = |stats: &'_ Stats| stats.forwards.iter().position(|other| other.name == forward.name);
            let row = self.row(&forward.counters, |stats| Some(&stats.forwards[same(stats)?].counters));
            let shown = |list: &[String]| list.join(", ").escape_debug().to_string();
            Row {
                // The name is free text, and whoever answers need not be us.
                name: forward.name.escape_debug().to_string(),
                listen: shown(&forward.listen),
                to: shown(&forward.to),
                engine: forward.engine.escape_debug().to_string(),
                targets: forward.targets.iter().map(Target::shown).collect(),
                ..row
            }
        };
        last.forwards.iter().map(row).collect()
    }

    fn row<'a>(&'a self, now: &Counters, of: impl Fn(&'a Stats) -> Option<&'a Counters>) -> Row {
        let listed = |counts: &BTreeMap<String, u64>| {
            let some = counts.iter().filter(|(_, n)| **n > 0);
            some.map(|(name, n)| (name.escape_debug().to_string(), *n)).collect()
        };
        let mut row = Row {
            open: now.sessions_open,
            stalled: now.stalled,
            ends: listed(&now.ends),
            fallbacks: listed(&now.fallbacks),
            drops: listed(&now.datagrams.drops),
            datagrams: now.datagrams.has_any().then_some((0.0, 0.0)),
            ..Row::default()
        };
        // A forward that a reload has just added has no past.
        if let Some((before, time)) = self.previous().and_then(|(stats, time)| Some((of(stats)?, time))) {
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / time;
            row.up = rate(now.bytes.client_to_backend.all(), before.bytes.client_to_backend.all());
            row.down = rate(now.bytes.backend_to_client.all(), before.bytes.backend_to_client.all());
            let spliced = rate(now.bytes.spliced(), before.bytes.spliced());
            row.spliced = (row.up + row.down > 0.0).then(|| spliced / (row.up + row.down));
            row.new = rate(now.sessions_accepted, before.sessions_accepted);
            row.errors = rate(failures(&now.ends), failures(&before.ends));
            if let Some(datagrams) = &mut row.datagrams {
                let (now, before) = (&now.datagrams, &before.datagrams);
                *datagrams = (
                    rate(now.client_to_backend, before.client_to_backend),
                    rate(now.backend_to_client, before.backend_to_client),
                );
            }
        }
        if let Some(before) = self.before(LATENCY_WINDOW).and_then(|sample| of(&sample.stats)) {
            row.connect = quantiles(&now.connect_time, &before.connect_time);
            row.first_byte = quantiles(&now.first_byte_time, &before.first_byte_time);
        }
        row
    }

    /// Part of its time each worker was on its CPU, in the order of the answer.
    pub(super) fn busy(&self) -> Vec<Option<f64>> {
        let Some(last) = self.samples.back() else { return Vec::new() };
        let before = self.before(BUSY_WINDOW);
        let busy = |worker: &Worker| {
            let before = before?;
            let then = before.stats.workers.iter().find(|other| other.id == worker.id)?;
            Some(((worker.busy_seconds - then.busy_seconds) / seconds(before.at, last.at)).clamp(0.0, 1.0))
        };
        last.stats.workers.iter().map(busy).collect()
    }

    /// CPUs the process kept busy.
    pub(super) fn cpus(&self) -> Option<f64> {
        let (last, (before, time)) = (self.last()?, self.previous()?);
        let used = |cpu: Cpu| cpu.user_seconds + cpu.system_seconds;
        Some((used(last.cpu) - used(before.cpu)).max(0.0) / time)
    }

    /// Bytes a second both ways between any two answers in a row, oldest first.
    pub(super) fn throughput(&self) -> Vec<u64> {
        let all = |sample: &Sample| {
            let bytes = sample.stats.total.bytes;
            bytes.client_to_backend.all().saturating_add(bytes.backend_to_client.all())
        };
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(|(a, b)| (all(b).saturating_sub(all(a)) as f64 / seconds(a.at, b.at)) as u64).collect()
    }
}

impl Datagrams {
    fn has_any(&self) -> bool {
        self.client_to_backend > 0 || self.backend_to_client > 0 || self.drops.values().any(|n| *n > 0)
    }
}

impl PathBytes {
    fn all(self) -> u64 {
        self.splice.saturating_add(self.copy)
    }
}

impl Bytes {
    fn spliced(self) -> u64 {
        self.client_to_backend.splice.saturating_add(self.backend_to_client.splice)
    }
}

fn failures(ends: &BTreeMap<String, u64>) -> u64 {
    ends.iter().filter(|(reason, _)| !NO_FAILURE.contains(&reason.as_str())).map(|(_, n)| n).sum()
}

/// Seconds from one time to a later one; never 0, so that it may divide.
fn seconds(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64().max(1e-3)
}

/// Median and 99th percentile of the times counted in between, in seconds: the geometric middle of the bucket, whose
/// bounds are powers of two.
fn quantiles(now: &Times, before: &Times) -> Option<(f64, f64)> {
    let old = before.buckets.iter().copied().chain(std::iter::repeat(0));
    let counts: Vec<u64> = now.buckets.iter().zip(old).map(|(now, old)| now.saturating_sub(old)).collect();
    let all: u64 = counts.iter().sum();
    let quantile = |part: f64| {
        let wanted = ((all as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = counts.iter().position(|n| {
            seen += n;
            seen >= wanted
        });
        // Bucket i is below 2^i µs and not below half of that.
        2f64.powi(bucket.unwrap_or(0) as i32) * std::f64::consts::FRAC_1_SQRT_2 / 1e6
    };
    (all > 0).then(|| (quantile(0.5), quantile(0.99)))
}

#[cfg(test)]
pub(super) mod tests;
