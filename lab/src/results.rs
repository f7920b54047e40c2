//! What an experiment found: the shape of `results.json`.
//!
//! Sample names carry their unit last, such as `forwarder_cpu_seconds_per_gb` (a GB is 10⁹ bytes) or `gap_us_p99`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Named numbers.
pub type Samples = BTreeMap<String, f64>;
/// Named settings of an experiment or a round.
pub type Settings = BTreeMap<String, Value>;

/// Everything one experiment found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Version of this shape.
    pub version: u32,
    /// The command, such as `ab`.
    pub experiment: String,
    /// One line for people.
    pub title: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// The machine.
    pub host: Host,
    /// What was asked for.
    pub settings: Settings,
    /// Versions of the programs that took part.
    pub tools: BTreeMap<String, String>,
    /// What could not take part.
    pub missing: Vec<Missing>,
    /// Every measurement, in the order taken.
    pub rounds: Vec<Round>,
    /// Values that grow along an axis.
    pub series: Vec<Series>,
    /// What was to be reached; whether it was is computed from the rounds.
    #[serde(default)]
    pub goals: Vec<Goal>,
}

impl Results {
    /// The version this program writes.
    pub const VERSION: u32 = 1;

    /// Adds what forwarders said of their versions.
    pub(crate) fn take_versions(&mut self, versions: BTreeMap<String, Option<String>>) {
        self.tools.extend(versions.into_iter().filter_map(|(name, version)| Some((name, version?))));
    }
}

/// The machine an experiment ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors the lab may use.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Name and version of the distribution.
    pub os: String,
}

/// Something that could not take part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// A peer, a tool or a counter.
    pub name: String,
    /// Why, and how to get it.
    pub how: String,
}

/// What an arm is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// spliced itself.
    #[default]
    Engine,
    /// Another forwarder.
    Peer,
    /// What no forwarder in user space can reach.
    Limit,
}

/// One measurement of one arm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Counted from 1; every arm is measured once in each.
    pub round: u32,
    /// `copy-64K`, `haproxy`, `direct` …
    pub arm: String,
    /// What it is.
    pub kind: Kind,
    /// `bulk`, `reverse`, `bidirectional`, `rate`, `rr`, `crr`, `stream` …
    pub load: String,
    /// What is particular to this round.
    pub settings: Settings,
    /// Why it gave no result.
    pub error: Option<String>,
    /// What was measured.
    pub samples: Samples,
    /// Distribution of the time of one exchange, connection or gap.
    pub latency: Option<Latency>,
    /// System calls of the forwarder by name.
    pub syscalls: BTreeMap<String, u64>,
    /// What a reader should know, such as a load generator at its limit.
    pub notes: Vec<String>,
}

impl Round {
    /// A sample, or a quantile of the times as `latency_us_p50`, `latency_us_p99`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        let latency = || self.latency.as_ref();
        match name {
            "latency_us_p50" => latency().map(|latency| latency.p50_us),
            "latency_us_p99" => latency().map(|latency| latency.p99_us),
            _ => self.samples.get(name).copied(),
        }
    }

    /// Whether it is of the load with that name, or of that kind where loads have none.
    #[must_use]
    pub fn is_of(&self, load: &str) -> bool {
        let name = self.settings.get("name").and_then(Value::as_str);
        name.unwrap_or(&self.load) == load
    }
}

/// Something to be reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// What people call it, such as `G1`.
    pub name: String,
    /// Name of the load, or its kind where it has none.
    pub load: String,
    /// A sample, or `latency_us_p50`, `latency_us_p99`.
    pub metric: String,
    /// The arm it is about.
    pub of: String,
    /// Arms it is compared with, of several the best; `best_peer` stands for all peers. Empty: the number itself counts.
    #[serde(default)]
    pub against: Vec<String>,
    /// The load under which those count, where it is another one.
    #[serde(default)]
    pub against_load: Option<String>,
    /// Smallest ratio, or number, that will do.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// Greatest.
    #[serde(default)]
    pub at_most: Option<f64>,
}

/// A distribution of times.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median in µs.
    pub p50_us: f64,
    /// 90th percentile in µs.
    pub p90_us: f64,
    /// 99th percentile in µs.
    pub p99_us: f64,
    /// 99.9th percentile in µs.
    pub p999_us: f64,
    /// Longest in µs.
    pub max_us: f64,
    /// Number of times measured.
    pub count: u64,
    /// Upper bound in µs and number of times up to it that are in no earlier bucket, ascending.
    pub buckets: Vec<(f64, u64)>,
}

/// Values of one arm along an axis.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// As in [`Round::arm`].
    pub arm: String,
    /// As in [`Round::load`].
    pub load: String,
    /// Name of the axis, such as `sessions`.
    pub x: String,
    /// In ascending order of `x`.
    pub points: Vec<Point>,
}

/// Values at one place of the axis.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Where on the axis.
    pub x: f64,
    /// What was measured there.
    pub values: Samples,
}
