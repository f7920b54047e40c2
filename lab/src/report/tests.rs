//! Statistics, ratios and sentences on rounds made here.

use serde_json::json;

use super::content;
use super::document::{Block, Tone};
use super::metric::find;
use super::summary::{Spread, Summary};
use super::verdict::verdicts;
use crate::results::{Kind, Latency, Results, Round};

const CPU: &str = "forwarder_cpu_seconds_per_gb";
const RATE: &str = "gbit_per_second";

fn round(number: u32, arm: &str, kind: Kind, samples: &[(&str, f64)]) -> Round {
    let samples = samples.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Round { round: number, arm: arm.into(), kind, load: "bulk".into(), samples, ..Round::default() }
}

/// One sample of several arms, one value a round.
fn rounds(sample: &str, arms: &[(&str, Kind, &[f64])]) -> Vec<Round> {
    let mut rounds = Vec::new();
    for (arm, kind, values) in arms {
        for (number, value) in (1_u32..).zip(*values) {
            rounds.push(round(number, arm, *kind, &[(sample, *value)]));
        }
    }
    rounds
}

fn results(rounds: Vec<Round>) -> Results {
    Results { version: Results::VERSION, rounds, ..Results::default() }
}

fn sentences(results: &Results) -> Vec<(Tone, String)> {
    verdicts(&Summary::of(results)).into_iter().map(|v| (v.tone, v.sentence)).collect()
}

#[test]
fn spreads_of_odd_and_even_and_broken_values() {
    let spread = |values: &[f64]| Spread::of(values.iter().copied());
    assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0, n: 3 }));
    assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0, n: 4 }));
    assert_eq!(spread(&[f64::NAN, 7.0, f64::INFINITY]), Some(Spread { median: 7.0, min: 7.0, max: 7.0, n: 1 }));
    assert_eq!(spread(&[f64::MAX, f64::MAX]).map(|s| s.median), Some(f64::MAX));
    assert_eq!(spread(&[f64::NAN]), None);
    assert_eq!(spread(&[]), None);
}

#[test]
fn ratios_are_of_medians_and_their_range_is_within_rounds() {
    let arms: [(&str, Kind, &[f64]); 2] =
        [("splice", Kind::Engine, &[0.5, 0.6, 0.4]), ("copy-64K", Kind::Engine, &[1.0, 1.0, 0.5])];
    let summary = Summary::of(&results(rounds(CPU, &arms)));
    let load = &summary.loads[0];
    let of = |arm: &str| &load.arm(arm).unwrap().samples[CPU];
    let ratio = of("splice").against(of("copy-64K")).unwrap();
    assert_eq!((ratio.of_medians, ratio.range, ratio.pairs), (0.5, Some((0.5, 0.8)), 3));
    assert!(ratio.is_clear());
    assert_eq!(load.baseline().unwrap().name, "copy-64K");
}

#[test]
fn a_ratio_to_nothing_is_none() {
    let arms: [(&str, Kind, &[f64]); 3] =
        [("a", Kind::Engine, &[1.0, 2.0]), ("zero", Kind::Peer, &[0.0, 0.0]), ("tiny", Kind::Peer, &[5e-324, 5e-324])];
    let summary = Summary::of(&results(rounds(CPU, &arms)));
    let of = |arm: &str| &summary.loads[0].arm(arm).unwrap().samples[CPU];
    assert_eq!(of("a").against(of("zero")), None);
    assert_eq!(of("a").against(of("tiny")), None, "an infinite ratio");
    assert_eq!(of("zero").against(of("a")).unwrap().of_medians, 0.0);
}

#[test]
fn rounds_only_one_arm_has_do_not_pair() {
    let mut all = rounds(CPU, &[("splice", Kind::Engine, &[0.5, 0.5, 9.0]), ("copy-64K", Kind::Engine, &[1.0, 1.0])]);
    all[2].error = Some("the client died".into());
    let summary = Summary::of(&results(all));
    let splice = summary.loads[0].arm("splice").unwrap();
    assert_eq!((splice.rounds, splice.spread(CPU).unwrap().max), (2, 0.5), "a failed round counts nowhere");
    assert_eq!(splice.errors, [(3, "the client died".to_owned())]);
}

#[test]
fn the_best_peer_goes_by_what_is_better() {
    let mut all =
        rounds(RATE, &[("haproxy", Kind::Peer, &[9.0]), ("oi", Kind::Peer, &[2.0]), ("direct", Kind::Limit, &[20.0])]);
    for (round, cpu) in all.iter_mut().zip([0.7, 3.0, 0.1]) {
        round.samples.insert(CPU.into(), cpu);
    }
    let summary = Summary::of(&results(all));
    let best = |sample| summary.loads[0].best(Kind::Peer, find(sample).unwrap()).unwrap().name.clone();
    assert_eq!((best(RATE), best(CPU)), ("haproxy".into(), "haproxy".into()));
    assert!(summary.loads[0].best(Kind::Engine, find(RATE).unwrap()).is_none());
}

#[test]
fn settings_varied_within_a_round_are_loads_of_their_own() {
    let mut all = rounds(CPU, &[("splice", Kind::Engine, &[0.5, 0.6, 2.5, 2.6])]);
    for (at, round) in all.iter_mut().enumerate() {
        round.round = 1 + at as u32 % 2;
        let connections = if at < 2 { 1 } else { 16 };
        round.settings =
            [("connections".to_owned(), json!(connections)), ("port".to_owned(), json!(9000 + round.round))].into();
    }
    let summary = Summary::of(&results(all));
    let titles: Vec<_> = summary.loads.iter().map(|load| load.title.as_str()).collect();
    assert_eq!(titles, ["bulk, connections=1", "bulk, connections=16"]);
    let medians: Vec<_> = summary.loads.iter().map(|load| load.arms[0].spread(CPU).unwrap().median).collect();
    assert_eq!(medians, [0.55, 2.55]);
    assert!(summary.loads[0].unsteady.contains("port"), "what changed from round to round is said");
}

#[test]
fn system_calls_are_per_gb_where_bytes_are_known() {
    let mut all = rounds("bytes", &[("splice", Kind::Engine, &[2e9, 4e9, 4e9])]);
    for (round, calls) in all.iter_mut().zip([2000, 8000, 4000]) {
        round.syscalls = [("splice".to_owned(), calls)].into();
    }
    all[1].syscalls.insert("futex".into(), 4);
    let summary = Summary::of(&results(all.clone()));
    let arm = &summary.loads[0].arms[0];
    assert!(arm.syscalls_per_gb);
    assert_eq!((arm.syscalls["splice"], arm.syscalls["futex"]), (1000.0, 0.0));

    // Counted in a pass of its own, of which only the rate is known: 2,000 calls were 500 per GB.
    all[0].samples.insert("syscalls_per_gb".into(), 500.0);
    let summary = Summary::of(&results(all[..1].to_vec()));
    assert_eq!(summary.loads[0].arms[0].syscalls["splice"], 500.0);

    all[0].samples.remove("syscalls_per_gb");
    all[0].samples.insert("bytes".into(), 0.0);
    let summary = Summary::of(&results(all));
    let arm = &summary.loads[0].arms[0];
    assert!(!arm.syscalls_per_gb);
    assert_eq!(arm.syscalls["splice"], 4000.0);
}

#[test]
fn histograms_of_rounds_add_up() {
    let mut all = rounds(CPU, &[("auto", Kind::Engine, &[1.0, 1.0])]);
    for (round, buckets) in all.iter_mut().zip([vec![(10.0, 3), (20.0, 1)], vec![(20.0, 5), (f64::NAN, 9), (15.0, 0)]])
    {
        let (p50, count) = (10.0 * f64::from(round.round), 4);
        round.latency = Some(Latency { p50_us: p50, count, buckets, ..Latency::default() });
    }
    let summary = Summary::of(&results(all));
    let latency = summary.loads[0].arms[0].latency.as_ref().unwrap();
    assert_eq!(latency.buckets, [(10.0, 3), (20.0, 6)]);
    assert_eq!((latency.count, latency.quantiles[0].median), (8, 15.0));
}

#[test]
fn a_finding_is_settled_only_where_every_round_agrees() {
    let five = |splice: &'static [f64]| {
        let arms: [(&str, Kind, &[f64]); 2] = [("splice", Kind::Engine, splice), ("copy-64K", Kind::Engine, &[1.0; 5])];
        sentences(&results(rounds(CPU, &arms))).remove(0)
    };
    let (tone, sentence) = five(&[0.5, 0.6, 0.61, 0.62, 0.7]);
    assert_eq!(tone, Tone::Better);
    let wanted = "bulk: splice needs 0.61× the forwarder CPU per GB of copy-64K (0.50×–0.70× in 5 rounds).";
    assert_eq!(sentence, wanted);
    assert_eq!(five(&[1.5, 1.6, 1.61, 1.62, 1.7]).0, Tone::Worse);
    let (tone, sentence) = five(&[0.5, 0.6, 0.61, 0.62, 1.1]);
    assert_eq!(tone, Tone::Open);
    assert!(sentence.contains("do not agree"), "{sentence}");
}

#[test]
fn one_round_is_said_and_settles_nothing() {
    let arms: [(&str, Kind, &[f64]); 2] = [("splice", Kind::Engine, &[0.5]), ("copy-64K", Kind::Engine, &[1.0])];
    let said = sentences(&results(rounds(CPU, &arms)));
    assert!(said[0].0 == Tone::Open && said[0].1.contains("one round, so no spread"), "{said:?}");
    assert!(said.iter().any(|(tone, s)| *tone == Tone::Caution && s.contains("only one round")), "{said:?}");

    let arms: [(&str, Kind, &[f64]); 2] = [("splice", Kind::Engine, &[0.5; 2]), ("copy-64K", Kind::Engine, &[1.0; 2])];
    let said = sentences(&results(rounds(CPU, &arms)));
    assert!(said[0].0 == Tone::Open && said[0].1.contains("2 rounds; too few to settle it"), "{said:?}");
}

#[test]
fn a_saturated_generator_is_said_and_its_rate_compared_with_nobody() {
    let mut all = rounds(RATE, &[("auto", Kind::Engine, &[9.0; 5]), ("haproxy", Kind::Peer, &[8.0; 5])]);
    let compares = |said: &[(Tone, String)]| said.iter().any(|(_, s)| s.contains("the throughput of haproxy"));
    assert!(compares(&sentences(&results(all.clone()))));
    for round in all.iter_mut().filter(|round| round.arm == "auto") {
        round.samples.insert("generator_busy_share".into(), 0.99);
    }
    let all = results(all);
    let said = sentences(&all);
    assert!(!compares(&said), "{said:?}");
    assert!(
        said.iter().any(|(tone, s)| *tone == Tone::Caution && s.contains("busy 99.0 % of its time with auto")),
        "{said:?}"
    );
    let document = content::document(&all);
    let tables = document.sections.iter().flat_map(|s| &s.blocks).filter_map(|block| match block {
        Block::Table(table) => Some(table),
        _ => None,
    });
    let marked =
        tables.flat_map(|t| &t.rows).filter(|row| row[0] == "auto").any(|row| row.iter().any(|c| c.contains('†')));
    assert!(marked, "the table marks it too");
}

#[test]
fn the_ladder_is_judged_step_by_step() {
    let ladder = |steps: [f64; 4]| {
        let names = ["copy-8K", "copy-16K", "copy-64K", "splice"];
        let values: Vec<Vec<f64>> = steps.iter().map(|v| vec![*v; 5]).collect();
        let arms: Vec<_> = names.iter().zip(&values).map(|(n, v)| (*n, Kind::Engine, v.as_slice())).collect();
        let said = sentences(&results(rounds(CPU, &arms)));
        said.into_iter().find(|(_, s)| s.contains('→')).unwrap()
    };
    let (tone, sentence) = ladder([1.6, 1.1, 0.9, 0.6]);
    assert_eq!(tone, Tone::Better);
    assert!(sentence.contains("copy-8K 1.60 → copy-16K 1.10 → copy-64K 0.900 → splice 0.600"), "{sentence}");
    assert_eq!(ladder([1.6, 1.7, 0.9, 0.6]).0, Tone::Open);
}

#[test]
fn a_rate_that_was_offered_is_no_achievement() {
    let mut all = rounds(RATE, &[("auto", Kind::Engine, &[4.0; 5]), ("haproxy", Kind::Peer, &[3.9; 5])]);
    all.iter_mut().for_each(|round| round.load = "rate".into());
    assert!(sentences(&results(all)).iter().all(|(_, s)| !s.contains("throughput")));
}
