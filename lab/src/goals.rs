//! Goals of an experiment, and whether what was measured meets them.
//!
//! A goal compares medians. The range beside its number is that of the ratios within single rounds, in which both were
//! measured next to each other.

use std::collections::BTreeSet;

use crate::results::{Goal, Kind, Results, Round};
use crate::statistics;

/// Stands for the best of all peers in [`Goal::against`].
pub const BEST_PEER: &str = "best_peer";

/// A goal and what was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged<'a> {
    /// The goal.
    pub goal: &'a Goal,
    /// What was measured; or why there is nothing.
    pub measured: Result<Measured, String>,
}

/// What a goal's number is.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The ratio of medians, or the median itself where nothing is compared.
    pub value: f64,
    /// Smallest and greatest of the rounds that both have.
    pub range: (f64, f64),
    /// How many those are.
    pub rounds: usize,
    /// With which arm it was compared.
    pub against: Option<String>,
    /// Whether the number is within the bounds.
    pub met: bool,
    /// Whether there is a round that both have, and every one alone says the same.
    pub settled: bool,
}

/// Values of one arm under one load, by round.
type Values = Vec<(u32, f64)>;

/// Judges every goal.
#[must_use]
pub fn judge(results: &Results) -> Vec<Judged<'_>> {
    results.goals.iter().map(|goal| Judged { goal, measured: measure(goal, results) }).collect()
}

fn measure(goal: &Goal, results: &Results) -> Result<Measured, String> {
    let of_load = |load: &str| -> Vec<&Round> { results.rounds.iter().filter(|round| round.is_of(load)).collect() };
    let own = values(&of_load(&goal.load), &goal.of, &goal.metric);
    if own.is_empty() {
        return Err(format!("nothing was measured of {} under {}", goal.of, goal.load));
    }
    if goal.against.is_empty() {
        return Ok(measured(goal, median(&own), own.iter().map(|(_, value)| *value), None));
    }
    let base_load = goal.against_load.as_deref().unwrap_or(&goal.load);
    let (against, base) = best(goal, &of_load(base_load))
        .ok_or_else(|| format!("nothing was measured of {} under {base_load}", goal.against.join(", ")))?;
    let pairs = own.iter().filter_map(|(round, value)| {
        let (_, other) = base.iter().find(|(other, _)| other == round)?;
        Some(value / other)
    });
    let value = median(&own) / median(&base);
    if !value.is_finite() {
        return Err(format!("{} of {against} is 0, which nothing can be compared with", goal.metric));
    }
    Ok(measured(goal, value, pairs.filter(|pair| pair.is_finite()), Some(against)))
}

fn measured(goal: &Goal, value: f64, rounds: impl Iterator<Item = f64>, against: Option<String>) -> Measured {
    let rounds: Vec<f64> = rounds.collect();
    let met = goal.allows(value);
    let range = rounds.iter().fold((value, value), |(low, high), one| (low.min(*one), high.max(*one)));
    // Medians of rounds that were never side by side are no more than a hint.
    let settled = !rounds.is_empty() && rounds.iter().all(|one| goal.allows(*one) == met);
    Measured { value, range, rounds: rounds.len(), against, met, settled }
}

/// The arm to beat, and its values: of several the best.
fn best(goal: &Goal, rounds: &[&Round]) -> Option<(String, Values)> {
    let named = |round: &&&Round| {
        let peer = round.kind == Kind::Peer && goal.against.iter().any(|name| name == BEST_PEER);
        (peer || goal.against.contains(&round.arm)) && round.arm != goal.of
    };
    let mut names: BTreeSet<&str> = rounds.iter().filter(named).map(|round| round.arm.as_str()).collect();
    // The arm itself, under another load.
    if goal.against_load.is_some() && goal.against.contains(&goal.of) {
        names.insert(&goal.of);
    }
    let measured = names.into_iter().map(|name| (name.to_owned(), values(rounds, name, &goal.metric)));
    let more_is_better = goal.at_most.is_none();
    measured.filter(|(_, values)| !values.is_empty()).reduce(|a, b| {
        let better = if more_is_better { median(&b.1) > median(&a.1) } else { median(&b.1) < median(&a.1) };
        if better { b } else { a }
    })
}

fn values(rounds: &[&Round], arm: &str, metric: &str) -> Values {
    let good = rounds.iter().filter(|round| round.arm == arm && round.error.is_none());
    good.filter_map(|round| Some((round.round, round.value(metric).filter(|value| value.is_finite())?))).collect()
}

fn median(values: &Values) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|(_, value)| *value).collect();
    sorted.sort_by(f64::total_cmp);
    statistics::median(&sorted).unwrap_or(f64::NAN)
}

impl Goal {
    fn allows(&self, value: f64) -> bool {
        self.at_least.is_none_or(|least| value >= least) && self.at_most.is_none_or(|most| value <= most)
    }

    /// What is compared, in a few words: `cpu_us_per_exchange of auto, rr-16`.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{} of {}, {}", self.metric, self.of, self.load)
    }

    /// Its bounds: `≥ 1.1`, `≤ 512`, `0.9 to 1.1`, with a sign of multiplication where something is compared.
    #[must_use]
    pub fn bounds(&self) -> String {
        let times = if self.against.is_empty() { "" } else { " ×" };
        match (self.at_least, self.at_most) {
            (Some(least), Some(most)) => format!("{least} to {most}{times}"),
            (Some(least), None) => format!("≥ {least}{times}"),
            (None, Some(most)) => format!("≤ {most}{times}"),
            (None, None) => String::new(),
        }
    }

    /// With whom it compares: `best_peer`, or `auto under growth-1`.
    #[must_use]
    pub fn opponent(&self) -> String {
        let under = self.against_load.iter().map(|load| format!(" under {load}"));
        [self.against.join(", ")].into_iter().chain(under).collect()
    }
}

impl Measured {
    /// What people read: whether the goal is met, and whether every round says so.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.met, self.settled) {
            (true, false) if self.rounds == 0 => "met, but in no round side by side",
            (false, false) if self.rounds == 0 => "not met, but in no round side by side",
            (true, true) => "met",
            (true, false) => "met, not in every round",
            (false, true) => "not met",
            (false, false) => "not met, but in some rounds",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal(of: &str, against: &[&str], at_least: Option<f64>, at_most: Option<f64>) -> Goal {
        Goal {
            name: "G".into(),
            load: "bulk".into(),
            metric: "x".into(),
            of: of.into(),
            against: against.iter().map(|name| (*name).to_owned()).collect(),
            against_load: None,
            at_least,
            at_most,
        }
    }

    fn results(goal: Goal, load: &str, arms: &[(&str, Kind, &[f64])]) -> Results {
        let mut results = Results { goals: vec![goal], ..Results::default() };
        for (arm, kind, values) in arms {
            for (round, value) in (1..).zip(*values) {
                let samples = [("x".to_owned(), *value)].into();
                results.rounds.push(Round {
                    round,
                    arm: (*arm).to_owned(),
                    kind: *kind,
                    load: load.to_owned(),
                    samples,
                    ..Round::default()
                });
            }
        }
        results
    }

    const ARMS: [(&str, Kind, &[f64]); 3] = [
        ("auto", Kind::Engine, &[2.0, 4.0, 3.0]),
        ("a", Kind::Peer, &[6.0, 6.0, 3.0]),
        ("b", Kind::Peer, &[1.0, 2.0, 4.0]),
    ];

    #[test]
    fn a_ratio_is_of_medians_and_of_the_best_peer() {
        let more = results(goal("auto", &[BEST_PEER], Some(0.5), None), "bulk", &ARMS);
        let judged = judge(&more).remove(0).measured.unwrap();
        assert_eq!((judged.value, judged.against.as_deref(), judged.met), (0.5, Some("a"), true));
        assert_eq!((judged.range, judged.rounds, judged.settled), ((1.0 / 3.0, 1.0), 3, false));
        let less = results(goal("auto", &[BEST_PEER], None, Some(1.2)), "bulk", &ARMS);
        let judged = judge(&less).remove(0).measured.unwrap();
        assert_eq!(
            (judged.value, judged.against.as_deref(), judged.verdict()),
            (1.5, Some("b"), "not met, but in some rounds")
        );
    }

    #[test]
    fn a_number_by_itself_and_what_is_missing() {
        let alone = results(goal("auto", &[], None, Some(4.0)), "bulk", &ARMS);
        let judged = judge(&alone).remove(0).measured.unwrap();
        assert_eq!((judged.value, judged.range, judged.verdict()), (3.0, (2.0, 4.0), "met"));
        for (goal, load) in
            [(goal("auto", &["c"], None, Some(1.0)), "bulk"), (goal("auto", &["a"], None, Some(1.0)), "rr")]
        {
            assert!(
                judge(&results(goal, load, &ARMS)).remove(0).measured.unwrap_err().contains("nothing was measured")
            );
        }
    }

    #[test]
    fn rounds_that_were_never_side_by_side_settle_nothing() {
        let mut apart = results(goal("auto", &["a"], None, Some(1.0)), "bulk", &ARMS[..2]);
        apart.rounds.retain(|round| (round.arm == "auto") == (round.round == 1));
        let judged = judge(&apart).remove(0).measured.unwrap();
        assert_eq!((judged.rounds, judged.met, judged.settled), (0, true, false));
        assert_eq!(judged.verdict(), "met, but in no round side by side");
    }

    #[test]
    fn the_same_arm_under_another_load() {
        let mut all =
            results(goal("auto", &["auto"], Some(0.9), Some(1.1)), "bulk", &[("auto", Kind::Engine, &[2.0, 2.1])]);
        all.rounds.extend(results(goal("", &[], None, None), "small", &[("auto", Kind::Engine, &[2.0, 2.0])]).rounds);
        all.goals[0].against_load = Some("small".into());
        let judged = judge(&all).remove(0).measured.unwrap();
        assert!((judged.value - 1.025).abs() < 1e-9 && judged.verdict() == "met", "{judged:?}");
    }
}
