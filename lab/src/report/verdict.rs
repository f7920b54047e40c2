//! Plain sentences about what the numbers say, and about what they do not.

use super::bars_share;
use super::document::{Tone, Verdict};
use super::metric::{Better, Metric, find, times};
use super::summary::{Arm, ENOUGH_ROUNDS, Load, Ratio, Sampled, Summary};
use super::text::name;
use crate::results::Kind;
use crate::sample::DISTURBED;

/// What a ratio of this metric is called in a sentence.
const PHRASES: [(&str, &str); 9] = [
    ("forwarder_cpu_seconds_per_gb", "the forwarder CPU per GB"),
    ("machine_cpu_seconds_per_gb", "the machine's CPU per GB"),
    ("gbit_per_second", "the throughput"),
    ("cpu_us_per_exchange", "the forwarder CPU per exchange"),
    ("exchanges_per_second", "the exchanges per second"),
    ("cpu_us_per_connection", "the forwarder CPU per connection"),
    ("connections_per_second", "the connections per second"),
    ("first_byte_us_p99", "the p99 time to the first byte"),
    ("gap_us_p99", "the p99 gap between chunks"),
];
/// Per byte, per exchange, per connection: what the engines are about.
const COSTS: [&str; 3] = ["forwarder_cpu_seconds_per_gb", "cpu_us_per_exchange", "cpu_us_per_connection"];
/// The founding ladder: each step is to be cheaper per byte than the one before.
const LADDER: [&str; 4] = ["copy-8K", "copy-16K", "copy-64K", "splice"];
/// Ratios nearer to 1 than this are called the same.
const SAME: f64 = 0.02;

/// Every sentence, load by load; cautions last.
pub(super) fn verdicts(summary: &Summary) -> Vec<Verdict> {
    let mut all: Vec<Verdict> = summary.loads.iter().flat_map(findings).collect();
    all.extend(warnings(summary));
    all
}

/// The cautions alone: where goals are judged, they are what was to be found.
pub(super) fn warnings(summary: &Summary) -> Vec<Verdict> {
    let sentences = not_quiet(summary).into_iter().chain(few_rounds(summary));
    let sentences = sentences.chain(summary.loads.iter().flat_map(cautions));
    sentences.map(|sentence| Verdict { tone: Tone::Caution, figure: None, sentence }).collect()
}

/// That others used the machine: it stands before everything else.
fn not_quiet(summary: &Summary) -> Option<String> {
    let arms = summary.loads.iter().flat_map(|load| &load.arms);
    let most = arms.filter_map(|arm| arm.spread("others_cpu_share")).map(|s| s.max).fold(0.0, f64::max);
    (most >= DISTURBED).then(|| {
        format!(
            "NOT QUIET: other programs used up to {} of this machine's CPUs meanwhile. Do not compare these numbers; \
             measure again.",
            bars_share(most)
        )
    })
}

/// That there were few rounds, once for all loads of which the same is to be said.
fn few_rounds(summary: &Summary) -> Vec<String> {
    let mut told: Vec<(String, Vec<String>)> = Vec::new();
    for load in &summary.loads {
        let Some((fewest, most)) = load.rounds().filter(|(fewest, _)| *fewest < ENOUGH_ROUNDS) else { continue };
        let rounds = if fewest == 1 { "one round".into() } else { format!("{fewest} rounds") };
        let of = if fewest == most { "" } else { " of some arms" };
        let sentence = format!(
            "only {rounds}{of}; with fewer than {ENOUGH_ROUNDS} the spread says little. Take more with --rounds."
        );
        match told.iter_mut().find(|(known, _)| *known == sentence) {
            Some((_, loads)) => loads.push(name(&load.title)),
            None => told.push((sentence, vec![name(&load.title)])),
        }
    }
    told.into_iter().map(|(sentence, loads)| format!("{}: {sentence}", loads.join("; "))).collect()
}

fn findings(load: &Load) -> Vec<Verdict> {
    let mut found = Vec::new();
    for cost in COSTS.iter().filter_map(|cost| find(cost)) {
        found.extend(against_baseline(load, cost));
    }
    found.extend(ladder(load));
    for (sample, _) in PHRASES {
        if sample.ends_with("_per_gb") && load.has_pieces() {
            continue;
        }
        found.extend(find(sample).and_then(|metric| against_best_peer(load, metric)));
    }
    found.extend(against_dnat(load));
    found
}

fn against_baseline(load: &Load, cost: &Metric) -> Vec<Verdict> {
    let Some(base) = load.baseline() else { return Vec::new() };
    ["splice", "auto"].iter().filter_map(|engine| compared(load, load.arm(engine)?, base, cost, "")).collect()
}

fn against_best_peer(load: &Load, metric: &Metric) -> Option<Verdict> {
    // What was offered at a fixed rate is no achievement of the forwarder.
    if metric.better == Better::Higher && is_paced(load) {
        return None;
    }
    let peer = load.best(Kind::Peer, metric)?;
    let engine = load.best(Kind::Engine, metric)?;
    compared(load, engine, peer, metric, ", the best engine against the best peer")
}

fn against_dnat(load: &Load) -> Option<Verdict> {
    let metric = find("gbit_per_second").filter(|_| !is_paced(load))?;
    let engine = load.best(Kind::Engine, metric)?;
    let mut verdict = compared(load, engine, load.arm("dnat")?, metric, ", a limit for any forwarder in user space")?;
    verdict.tone = Tone::Fact;
    Some(verdict)
}

/// Whether the load offers a rate instead of taking all it can.
pub(super) fn is_paced(load: &Load) -> bool {
    ["rate", "stream", "idle"].contains(&load.kind())
}

/// One arm against another; `None` where one of them has not been measured or a rate was the generator's.
fn compared(load: &Load, arm: &Arm, base: &Arm, metric: &Metric, tail: &str) -> Option<Verdict> {
    if metric.better == Better::Higher && (arm.saturated().is_some() || base.saturated().is_some()) {
        return None;
    }
    let ratio = arm.samples.get(metric.name)?.against(base.samples.get(metric.name)?)?;
    let phrase = PHRASES.iter().find(|(sample, _)| *sample == metric.name).map_or(metric.label, |(_, phrase)| phrase);
    let verb = if metric.better == Better::Higher { "reaches" } else { "needs" };
    let sentence = format!(
        "{}: {} {verb} {} {phrase} of {}{tail}{}.",
        name(&load.title),
        name(&arm.name),
        times(ratio.of_medians),
        name(&base.name),
        certainty(&ratio),
    );
    Some(Verdict { tone: tone(&ratio, metric.better), figure: Some(times(ratio.of_medians)), sentence })
}

/// How far the rounds agree.
fn certainty(ratio: &Ratio) -> String {
    match ratio.range {
        None if ratio.pairs == 1 => " (one round, so no spread is known)".into(),
        None => " (no round has both, so only medians are compared)".into(),
        Some((low, high)) => {
            let split = low <= 1.0 && high >= 1.0;
            let agree = match ratio.is_clear() {
                true => "",
                false if split => "; the rounds do not agree which is better",
                false => "; too few to settle it",
            };
            format!(" ({}–{} in {} rounds{agree})", times(low), times(high), ratio.pairs)
        }
    }
}

fn tone(ratio: &Ratio, better: Better) -> Tone {
    if !ratio.is_clear() || (ratio.of_medians - 1.0).abs() < SAME {
        return Tone::Open;
    }
    if better.prefers(ratio.of_medians, 1.0) { Tone::Better } else { Tone::Worse }
}

/// Whether each step of the ladder is cheaper per byte than the one before.
fn ladder(load: &Load) -> Option<Verdict> {
    let steps: Vec<(&str, &Sampled)> = LADDER
        .iter()
        .filter_map(|arm| Some((*arm, load.arm(arm)?.samples.get("forwarder_cpu_seconds_per_gb")?)))
        .collect();
    if steps.len() < 3 {
        return None;
    }
    let written: Vec<String> =
        steps.iter().map(|(arm, s)| format!("{arm} {}", super::metric::number(s.spread.median))).collect();
    let falls: Vec<bool> = steps.windows(2).map(|pair| pair[1].1.spread.median < pair[0].1.spread.median).collect();
    let clear = steps.windows(2).all(|pair| pair[1].1.against(pair[0].1).is_some_and(|r| r.is_clear()));
    let (tone, end) = match (falls.iter().all(|f| *f), clear) {
        (true, true) => (Tone::Better, "each cheaper per byte than the one before, in every round"),
        (true, false) => (Tone::Open, "medians fall step by step, single rounds do not all agree"),
        (false, _) => (Tone::Open, "not each is cheaper per byte than the one before"),
    };
    let sentence = format!("{}: {} forwarder CPU s/GB: {end}.", name(&load.title), written.join(" → "));
    Some(Verdict { tone, figure: None, sentence })
}

/// What a reader has to know before he believes the load's numbers.
fn cautions(load: &Load) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |sentence: String| said.push(format!("{}: {sentence}", name(&load.title)));
    for arm in &load.arms {
        if let Some(share) = arm.saturated() {
            say(format!(
                "the load generator was busy {} of its time with {}: its rate is the generator's limit, not the forwarder's; \
                 CPU per byte or exchange still holds.",
                bars_share(share),
                name(&arm.name)
            ));
        }
        if let Some((round, error)) = arm.errors.first() {
            let count = arm.errors.len();
            let error = super::text::cut(&super::text::plain(error), 200);
            say(format!(
                "{} failed in {count} of {} rounds; round {round}: {error}.",
                name(&arm.name),
                count + arm.rounds
            ));
        }
    }
    if !load.unsteady.is_empty() {
        let keys: Vec<String> = load.unsteady.iter().map(|key| name(key)).collect();
        say(format!("these settings differ between rounds of one arm: {}.", keys.join(", ")));
    }
    said
}
