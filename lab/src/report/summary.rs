//! Statistics: rounds gathered by load and arm, medians and spread, ratios.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::metric::{Better, Metric};
use crate::results::{Kind, Results, Round};

/// Rounds below which a spread says little.
pub(super) const ENOUGH_ROUNDS: usize = 5;
/// Rounds that have to agree before a finding counts as settled.
const AGREEING_ROUNDS: usize = 3;
/// A generator busy for this share of its time is itself the limit.
pub(super) const SATURATED: f64 = 0.95;
/// The setting that names a load.
const NAME: &str = "name";
/// The arm engines are compared with.
const BASELINE: [&str; 2] = ["copy-64k", "copy-64kib"];

/// All loads, in the order they were first run.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) loads: Vec<Load>,
}

/// One load, or one setting of a load whose settings were varied.
#[derive(Debug)]
pub(super) struct Load {
    /// `bulk`, or `rr, connections=16`.
    pub(super) title: String,
    /// Engines, then peers, then limits; within a kind in the order they were run.
    pub(super) arms: Vec<Arm>,
    /// Settings that changed from round to round although nothing asked for a comparison of them.
    pub(super) unsteady: BTreeSet<String>,
}

/// One arm under one load.
#[derive(Debug)]
pub(super) struct Arm {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Rounds that count, in order; those with an error are not among them.
    pub(super) rounds: usize,
    pub(super) errors: Vec<(u32, String)>,
    /// Each note once, with the number of rounds that carry it.
    pub(super) notes: BTreeMap<String, usize>,
    pub(super) samples: BTreeMap<String, Sampled>,
    pub(super) latency: Option<Latencies>,
    /// Median number of calls by name: per GB where the rounds know their bytes, else per round.
    pub(super) syscalls: BTreeMap<String, f64>,
    /// Whether `syscalls` is per GB.
    pub(super) syscalls_per_gb: bool,
    /// Settings of the arm's first round.
    pub(super) settings: BTreeMap<String, Value>,
}

/// One sample over the rounds of an arm.
#[derive(Debug, Clone)]
pub(super) struct Sampled {
    /// Round number and value; only finite values.
    pub(super) by_round: Vec<(u32, f64)>,
    pub(super) spread: Spread,
}

/// Median and range of at least one finite value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) n: usize,
}

/// Quantiles in µs over rounds, and all rounds' histograms added up.
#[derive(Debug)]
pub(super) struct Latencies {
    /// p50, p90, p99, p99.9, max.
    pub(super) quantiles: [Spread; 5],
    pub(super) count: u64,
    /// Upper edge in µs and how many were at or below it but above the edge before; ascending.
    pub(super) buckets: Vec<(f64, u64)>,
}

/// How an arm stands to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    /// Median over median.
    pub(super) of_medians: f64,
    /// Smallest and greatest ratio within one round, over the rounds both have.
    pub(super) range: Option<(f64, f64)>,
    /// How many rounds both have.
    pub(super) pairs: usize,
}

impl Spread {
    /// Of the finite values; `None` when there is none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let n = sorted.len();
        // Halves first: the sum of two finite values may not be finite.
        let median = if n % 2 == 1 { sorted[n / 2] } else { sorted[n / 2 - 1] / 2.0 + sorted[n / 2] / 2.0 };
        Some(Self { median, min, max, n })
    }
}

impl Sampled {
    fn of(by_round: Vec<(u32, f64)>) -> Option<Self> {
        let by_round: Vec<_> = by_round.into_iter().filter(|(_, value)| value.is_finite()).collect();
        let spread = Spread::of(by_round.iter().map(|(_, value)| *value))?;
        Some(Self { by_round, spread })
    }

    /// This against `base`; `None` where the base is zero or has another sign.
    pub(super) fn against(&self, base: &Self) -> Option<Ratio> {
        let divide = |a: f64, b: f64| Some(a / b).filter(|r| b > 0.0 && a >= 0.0 && r.is_finite());
        let of_medians = divide(self.spread.median, base.spread.median)?;
        let of_round = |(round, value): &(u32, f64)| {
            let (_, other) = base.by_round.iter().find(|(other, _)| other == round)?;
            divide(*value, *other)
        };
        let pairs = Spread::of(self.by_round.iter().filter_map(of_round));
        Some(Ratio {
            of_medians,
            range: pairs.filter(|p| p.n > 1).map(|p| (p.min, p.max)),
            pairs: pairs.map_or(0, |p| p.n),
        })
    }
}

impl Ratio {
    /// Every round lies on the same side of 1, and there are enough that this is hardly chance.
    pub(super) fn is_clear(&self) -> bool {
        self.pairs >= AGREEING_ROUNDS && self.range.is_some_and(|(low, high)| low > 1.0 || high < 1.0)
    }
}

impl Arm {
    /// Median and spread of a sample.
    pub(super) fn spread(&self, sample: &str) -> Option<Spread> {
        self.samples.get(sample).map(|s| s.spread)
    }

    /// The share of its time the load generator was busy, where it was enough to be the limit itself.
    pub(super) fn saturated(&self) -> Option<f64> {
        self.spread("generator_busy_share").map(|s| s.median).filter(|share| *share >= SATURATED)
    }
}

impl Load {
    /// The load itself without what was varied: `rr` of `rr, connections=16` and of `rr-16`.
    pub(super) fn kind(&self) -> &str {
        self.title.split([',', '-', ' ']).next().unwrap_or_default()
    }

    /// The arm engines are compared with.
    pub(super) fn baseline(&self) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.kind == Kind::Engine && BASELINE.contains(&arm.name.to_lowercase().as_str()))
    }

    /// The arm of that name.
    pub(super) fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// The best arm of a kind by the median of a metric.
    pub(super) fn best(&self, kind: Kind, metric: &Metric) -> Option<&Arm> {
        self.best_of(self.arms.iter().filter(|arm| arm.kind == kind), metric.name, metric.better)
    }

    fn best_of<'a>(&self, arms: impl Iterator<Item = &'a Arm>, sample: &str, better: Better) -> Option<&'a Arm> {
        let rated = arms.filter_map(|arm| Some((arm, arm.spread(sample)?.median)));
        rated.reduce(|a, b| if better.prefers(b.1, a.1) { b } else { a }).map(|(arm, _)| arm)
    }

    /// Whether any arm has the sample.
    pub(super) fn has(&self, sample: &str) -> bool {
        self.arms.iter().any(|arm| arm.samples.contains_key(sample))
    }

    /// Whether costs are given by the exchange or the connection.
    pub(super) fn has_pieces(&self) -> bool {
        self.has("cpu_us_per_exchange") || self.has("cpu_us_per_connection")
    }

    /// Fewest and most counted rounds of the arms that have any.
    pub(super) fn rounds(&self) -> Option<(usize, usize)> {
        let counts = || self.arms.iter().map(|arm| arm.rounds).filter(|n| *n > 0);
        counts().min().zip(counts().max())
    }
}

impl Summary {
    /// Gathers the rounds of an experiment.
    pub(super) fn of(results: &Results) -> Self {
        let mut loads: Vec<(String, Vec<&Round>)> = Vec::new();
        let dimensions = dimensions(&results.rounds);
        for round in &results.rounds {
            let title = title(round, dimensions.get(round.load.as_str()));
            match loads.iter_mut().find(|(known, _)| *known == title) {
                Some((_, rounds)) => rounds.push(round),
                None => loads.push((title, vec![round])),
            }
        }
        Self { loads: loads.into_iter().map(|(title, rounds)| load(title, &rounds)).collect() }
    }
}

/// For each load the settings that were varied within one round of one arm: a comparison the plan asked for, such as
/// message sizes. What changes only from round to round, such as a port, is none.
fn dimensions(rounds: &[Round]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut first: BTreeMap<(&str, &str, u32), &Round> = BTreeMap::new();
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    // A name tells them apart already.
    for round in rounds.iter().filter(|round| !round.settings.contains_key(NAME)) {
        let known = first.entry((&round.load, &round.arm, round.round)).or_insert(round);
        let keys = known.settings.keys().chain(round.settings.keys());
        let varied = keys.filter(|key| known.settings.get(*key) != round.settings.get(*key)).map(String::as_str);
        found.entry(&round.load).or_default().extend(varied);
    }
    found
}

fn title(round: &Round, dimensions: Option<&BTreeSet<&str>>) -> String {
    let mut title = round.load.clone();
    if let Some(name) = round.settings.get(NAME) {
        let name = scalar(name);
        // `rr-16` says that it is rr.
        let told = name.strip_prefix(title.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        return if told { name } else { format!("{title} {name}") };
    }
    for key in dimensions.into_iter().flatten() {
        if let Some(value) = round.settings.get(*key) {
            title.push_str(&format!(", {key}={}", scalar(value)));
        }
    }
    title
}

/// A setting as people write it: strings without quotes.
pub(super) fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn load(title: String, rounds: &[&Round]) -> Load {
    let mut by_arm: Vec<(&str, Vec<&Round>)> = Vec::new();
    for round in rounds {
        match by_arm.iter_mut().find(|(name, _)| *name == round.arm) {
            Some((_, list)) => list.push(round),
            None => by_arm.push((&round.arm, vec![round])),
        }
    }
    let unsteady = |rounds: &[&Round]| -> BTreeSet<String> {
        let keys = rounds.iter().flat_map(|r| r.settings.keys());
        keys.filter(|key| rounds.iter().any(|r| r.settings.get(*key) != rounds[0].settings.get(*key)))
            .cloned()
            .collect()
    };
    let unsteady = by_arm.iter().flat_map(|(_, rounds)| unsteady(rounds)).collect();
    let mut arms: Vec<Arm> = by_arm.into_iter().map(|(_, rounds)| arm(&rounds)).collect();
    arms.sort_by_key(|arm| order(arm.kind));
    Load { title, arms, unsteady }
}

/// Engines first, then peers, then limits.
pub(super) fn order(kind: Kind) -> u8 {
    match kind {
        Kind::Engine => 0,
        Kind::Peer => 1,
        Kind::Limit => 2,
    }
}

/// `rounds` holds at least one.
fn arm(rounds: &[&Round]) -> Arm {
    let good: Vec<&&Round> = rounds.iter().filter(|round| round.error.is_none()).collect();
    let mut values: BTreeMap<&str, Vec<(u32, f64)>> = BTreeMap::new();
    for round in &good {
        for (name, value) in &round.samples {
            values.entry(name).or_default().push((round.round, *value));
        }
    }
    let samples = values.into_iter().filter_map(|(name, list)| Some((name.to_owned(), Sampled::of(list)?))).collect();
    let mut notes = BTreeMap::new();
    for note in rounds.iter().flat_map(|round| &round.notes) {
        *notes.entry(note.clone()).or_insert(0) += 1;
    }
    let (syscalls, syscalls_per_gb) = syscalls(&good);
    Arm {
        name: rounds[0].arm.clone(),
        kind: rounds[0].kind,
        rounds: good.len(),
        errors: rounds.iter().filter_map(|r| Some((r.round, r.error.clone()?))).collect(),
        notes,
        samples,
        latency: latencies(&good),
        syscalls,
        syscalls_per_gb,
        settings: rounds[0].settings.clone(),
    }
}

/// Medians over the rounds that counted calls; a call one of them did not make counts as none there.
fn syscalls(rounds: &[&&Round]) -> (BTreeMap<String, f64>, bool) {
    let counted: Vec<_> = rounds.iter().filter(|round| !round.syscalls.is_empty()).collect();
    let factors: Option<Vec<f64>> = counted.iter().map(|round| calls_to_per_gb(round)).collect();
    let per_gb = factors.is_some() && !counted.is_empty();
    let factors = factors.unwrap_or_else(|| vec![1.0; counted.len()]);
    let names: BTreeSet<&String> = counted.iter().flat_map(|round| round.syscalls.keys()).collect();
    let median = |name: &String| {
        let calls = |round: &Round| round.syscalls.get(name).copied().unwrap_or(0) as f64;
        let each = counted.iter().zip(&factors).map(|(round, factor)| calls(round) * factor);
        Some(Spread::of(each)?.median)
    };
    (names.into_iter().filter_map(|name| Some((name.clone(), median(name)?))).collect(), per_gb)
}

/// What turns a round's counts into calls per GB. Calls may have been counted in a pass of their own, with other bytes
/// than the round's: the round's own rate of calls knows them.
fn calls_to_per_gb(round: &Round) -> Option<f64> {
    let sample = |name| round.samples.get(name).copied().filter(|v: &f64| v.is_finite() && *v > 0.0);
    let all: f64 = round.syscalls.values().map(|calls| *calls as f64).sum();
    let of_rate = sample("syscalls_per_gb").filter(|_| all > 0.0).map(|rate| rate / all);
    of_rate.or_else(|| Some(1e9 / sample("bytes")?))
}

fn latencies(rounds: &[&&Round]) -> Option<Latencies> {
    let all: Vec<_> = rounds.iter().filter_map(|round| round.latency.as_ref()).filter(|l| l.count > 0).collect();
    let over = |of: fn(&crate::results::Latency) -> f64| Spread::of(all.iter().map(|l| of(l)));
    let quantiles =
        [over(|l| l.p50_us)?, over(|l| l.p90_us)?, over(|l| l.p99_us)?, over(|l| l.p999_us)?, over(|l| l.max_us)?];
    let mut buckets: Vec<(f64, u64)> = all.iter().flat_map(|l| l.buckets.iter().copied()).collect();
    buckets.retain(|(edge, count)| edge.is_finite() && *edge >= 0.0 && *count > 0);
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        kept.1 = if same { kept.1.saturating_add(later.1) } else { kept.1 };
        same
    });
    Some(Latencies { quantiles, count: all.iter().fold(0, |sum, l| sum.saturating_add(l.count)), buckets })
}
