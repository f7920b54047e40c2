//! What the same work costs on more and more sessions, from loads that differ by their number alone.
//!
//! Such loads have names that end with it: `bytes-1`, `bytes-100`, `bytes-8000`.

use super::growth::{points, sample_charts, table};
use super::{Slots, load_kind};
use crate::report::document::{Block, Section};
use crate::report::text::name;
use crate::results::{Point, Results, Round, Series};

/// Settings that are a number of sessions.
const COUNTS: [&str; 3] = ["connections", "streams", "sessions"];
/// What work costs, by the piece where it comes in pieces.
const COSTS: [&str; 3] = ["cpu_us_per_exchange", "cpu_us_per_connection", "forwarder_cpu_seconds_per_gb"];
/// Name of the axis.
const SESSIONS: &str = "sessions";

/// A chart and a table for each such set of loads; `None` when there is none.
pub(super) fn section(results: &Results, slots: &Slots) -> Option<Section> {
    let mut section = Section::new("Cost against number of sessions");
    let mut stems: Vec<&str> = Vec::new();
    for (stem, ..) in results.rounds.iter().filter_map(counted) {
        if !stems.contains(&stem) {
            stems.push(stem);
        }
    }
    for stem in stems {
        let rounds: Vec<(f64, &Round)> = results
            .rounds
            .iter()
            .filter_map(|round| counted(round).filter(|(of, _)| *of == stem).map(|(_, sessions)| (sessions, round)))
            .collect();
        let has = |cost: &&&str| rounds.iter().any(|(_, round)| round.samples.contains_key(**cost));
        let Some(cost) = COSTS.iter().find(has) else { continue };
        let series: Vec<Series> =
            rounds.iter().filter_map(|(sessions, round)| of_round(*sessions, round, cost)).collect();
        let arms = points(&Vec::from_iter(&series), cost);
        if !arms.iter().any(|(_, points)| points.len() > 1) {
            continue;
        }
        let (_, first) = rounds[0];
        section.blocks.push(Block::Heading(format!(
            "{}: {}",
            name(stem),
            load_kind(&first.load).unwrap_or(&first.load)
        )));
        section.text(work(first));
        section.charts(sample_charts(results, slots, (SESSIONS, cost), &arms));
        section.table(table(results, (SESSIONS, cost), &arms, ("Last ÷ first", grown)));
    }
    (!section.blocks.is_empty()).then_some(section)
}

/// The name of a round's load without its number of sessions, and that number.
fn counted(round: &Round) -> Option<(&str, f64)> {
    let count = COUNTS.iter().find_map(|key| round.settings.get(*key)?.as_u64())?;
    let stem = round.settings.get("name")?.as_str()?.strip_suffix(&count.to_string())?.strip_suffix('-')?;
    #[expect(clippy::cast_precision_loss, reason = "a place on an axis")]
    Some((stem, count as f64))
}

fn of_round(sessions: f64, round: &Round, cost: &str) -> Option<Series> {
    let value = *round.samples.get(cost).filter(|_| round.error.is_none())?;
    let points = vec![Point { x: sessions, values: [(cost.to_owned(), value)].into() }];
    Some(Series { arm: round.arm.clone(), load: round.load.clone(), x: SESSIONS.to_owned(), points })
}

/// Cost at the most sessions over that at the fewest.
fn grown(points: &[(f64, f64)]) -> Option<f64> {
    let ((_, first), (_, last)) = (points.first()?, points.last()?);
    Some(last / first).filter(|ratio| points.len() > 1 && ratio.is_finite())
}

/// What is the same for any number of sessions, and what is not.
fn work(round: &Round) -> String {
    match round.settings.get("exchanges_per_second").and_then(serde_json::Value::as_f64) {
        Some(rate) => format!(
            "{rate} exchanges a second over all sessions together, evenly spread: the same work for any number of them. \
             A flat line costs nothing more as it grows."
        ),
        None if round.load == "rr" => {
            "Every session sends its next request when it has its answer: more sessions offer \
             more work at once, which is done in larger batches. This is another workload than one at a fixed rate."
                .to_owned()
        }
        None => "The loads differ by the number of sessions that share the work. A flat line costs nothing more as it \
             grows."
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loads_that_differ_by_their_sessions_are_one_line() {
        let round = |name: &str, connections: u64, cost: f64| Round {
            round: 1,
            arm: "auto".to_owned(),
            load: "rr".to_owned(),
            settings: [
                ("name".to_owned(), json!(name)),
                ("connections".to_owned(), json!(connections)),
                ("exchanges_per_second".to_owned(), json!(4000.0)),
            ]
            .into(),
            samples: [("cpu_us_per_exchange".to_owned(), cost), ("forwarder_cpu_seconds_per_gb".to_owned(), 9.0)]
                .into(),
            ..Round::default()
        };
        let rounds = vec![round("paced-1", 1, 8.0), round("paced-100", 100, 10.0), round("size-1", 16, 3.0)];
        let results = Results { rounds, ..Results::default() };
        let section = section(&results, &Slots::of(&results)).unwrap();
        fn table(block: &Block) -> Option<&crate::report::document::Table> {
            if let Block::Table(table) = block { Some(table) } else { None }
        }
        let tables: Vec<_> = section.blocks.iter().filter_map(table).collect();
        assert_eq!(tables.len(), 1, "size-1 has 16 connections");
        assert_eq!(tables[0].rows, [["auto", "engine", "8.00", "10.0", "1.25"]]);
        assert!(matches!(&section.blocks[1], Block::Text(text) if text.starts_with("4000 exchanges a second")));
        let alone = Results { rounds: vec![round("paced-1", 1, 8.0)], ..Results::default() };
        assert!(super::section(&alone, &Slots::of(&alone)).is_none(), "one point is no line");
    }
}
