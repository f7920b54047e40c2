//! Statistics, ratios and sentences on rounds made here.

use std::collections::BTreeMap;

use super::content;
use super::document::Tone;
use super::summary::{Load, Spread, Summary};
use super::verdict::verdicts;
use crate::results::{Kind, Latency, Results, Round};

const CPU: &str = "forwarder_cpu_seconds_per_gb";
const RATE: &str = "gbit_per_second";

fn round(round: u32, (arm, kind): (&str, Kind), load: &str, samples: &[(&str, f64)]) -> Round {
    let samples = samples.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Round { round, arm: arm.into(), kind, load: load.into(), samples, ..Round::default() }
}

/// Rounds of CPU per GB for each arm, one value a round.
fn cpu(arms: &[(&str, Kind, &[f64])]) -> Results {
    let of = |&(arm, kind, values): &(&'static str, Kind, &'static [f64])| {
        (1_u32..).zip(values).map(move |(n, value)| round(n, (arm, kind), "bulk", &[(CPU, *value)]))
    };
    let arms: Vec<_> = arms.iter().map(|(a, k, v)| (*a, *k, *v)).collect();
    // Leaked so that the closure above needs no lifetimes; a test ends soon.
    let arms: Vec<(&'static str, Kind, &'static [f64])> =
        arms.into_iter().map(|(a, k, v)| (&*a.to_owned().leak(), k, &*v.to_vec().leak())).collect();
    Results { rounds: arms.iter().flat_map(of).collect(), ..Results::default() }
}
