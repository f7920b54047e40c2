//! The distribution of times: a curve over percentiles and its table.

use super::{Slots, kind_word, split};
use crate::report::chart::{Axis, Chart, Drawing, Line, Lines};
use crate::report::document::{Block, Section, Table};
use crate::report::metric::{number, spread, times};
use crate::report::summary::{Latencies, Load};
use crate::report::text::name;
use crate::results::Kind;

/// Shares of the quantiles that every round has; the last is the maximum.
const SHARES: [f64; 5] = [0.5, 0.9, 0.99, 0.999, 1.0];
/// Points further apart than this share of the axis are all drawn.
const NEAR: f64 = 0.008;

/// Adds the curves and the table of a load that has distributions.
pub(super) fn add(section: &mut Section, load: &Load, slots: &Slots) {
    let measured: Vec<_> = load.arms.iter().filter_map(|arm| Some((arm, arm.latency.as_ref()?))).collect();
    if measured.is_empty() {
        return;
    }
    section.blocks.push(Block::Heading("Latency".into()));
    section.text(
        "How long one took, over all rounds. A point at 99 % says that 99 of 100 took no longer. Every nine takes the same \
         room, so that the tail is seen.",
    );
    let lines = measured.iter().map(|(arm, latencies)| Line {
        name: name(&arm.name),
        kind: arm.kind,
        points: curve(latencies),
        slot: slots.slot(arm.kind, &arm.name),
    });
    let chart = |(part, lines): (&str, Vec<Line>)| Chart {
        title: format!("Latency by percentile{part}, µs"),
        description: "Lower is better.".into(),
        drawing: Drawing::Lines(Lines { x: Axis::Percentile, y_unit: "µs", lines }),
    };
    section.charts(split(lines.collect()).into_iter().map(chart).collect());
    let best_peer = measured.iter().filter(|(arm, _)| arm.kind == Kind::Peer);
    let best_peer = best_peer.min_by(|a, b| a.1.quantiles[2].median.total_cmp(&b.1.quantiles[2].median));
    let mut table =
        Table::new("Latency in µs: median of the rounds (smallest–greatest round)").words("Arm").words("Kind");
    for title in ["p50", "p90", "p99", "p99.9", "max"] {
        table = table.numbers(title);
    }
    if let Some((arm, _)) = best_peer {
        table = table.numbers(format!("p99 × best peer ({})", name(&arm.name)));
    }
    table = table.numbers("Count");
    for (arm, latencies) in &measured {
        let mut cells = vec![name(&arm.name), kind_word(arm.kind).into()];
        cells.extend(latencies.quantiles.iter().map(|s| spread(s.median, s.min, s.max, "")));
        cells.extend(best_peer.map(|(_, peer)| times(latencies.quantiles[2].median / peer.quantiles[2].median)));
        cells.push(number(latencies.count as f64));
        table.row(cells);
    }
    section.table(table);
}

/// Share at or below, and time in µs; ascending in both.
fn curve(latencies: &Latencies) -> Vec<(f64, f64)> {
    let total: u64 = latencies.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count));
    if total == 0 {
        let last = 1.0 - 0.5 / latencies.count.max(1) as f64;
        return SHARES.into_iter().zip(&latencies.quantiles).map(|(share, s)| (share.min(last), s.median)).collect();
    }
    // The slowest one stands in the middle of the share it makes up, not at an infinite number of nines.
    let last = 1.0 - 0.5 / total as f64;
    let nines = |share: f64| -(1.0 - share).log10() / 4.0;
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut seen = 0_u64;
    for (at, (edge, count)) in latencies.buckets.iter().enumerate() {
        seen = seen.saturating_add(*count);
        let share = (seen as f64 / total as f64).min(last);
        let far = points.last().is_none_or(|(before, _)| nines(share) - nines(*before) > NEAR);
        if far || at + 1 == latencies.buckets.len() {
            // The last bucket may reach further than anything measured did.
            points.push((share, edge.min(latencies.quantiles[4].max)));
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::summary::Spread;

    fn latencies(buckets: Vec<(f64, u64)>) -> Latencies {
        let flat = |value| Spread { median: value, min: value, max: value, n: 1 };
        Latencies { quantiles: [20.0, 30.0, 50.0, 80.0, 4950.0].map(flat), count: 1000, buckets }
    }

    #[test]
    fn a_curve_adds_up_the_buckets_and_rises() {
        let points = curve(&latencies(vec![(20.0, 500), (30.0, 400), (50.0, 90), (80.0, 9), (900.0, 1)]));
        let wanted = [(0.5, 20.0), (0.9, 30.0), (0.99, 50.0), (0.999, 80.0), (0.9995, 900.0)];
        assert_eq!(points.len(), wanted.len());
        for ((share, time), (wanted_share, wanted_time)) in points.into_iter().zip(wanted) {
            assert!((share - wanted_share).abs() < 1e-9 && time == wanted_time, "{share} {time}");
        }
    }

    #[test]
    fn without_buckets_the_quantiles_are_the_curve() {
        let points = curve(&latencies(Vec::new()));
        assert_eq!(points.len(), 5);
        assert!(points.iter().all(|(share, _)| *share < 1.0));
    }

    #[test]
    fn thousands_of_buckets_are_thinned_and_keep_their_end() {
        let buckets: Vec<(f64, u64)> = (1..5000).map(|n| (f64::from(n), 10)).collect();
        let points = curve(&latencies(buckets));
        assert!(points.len() < 200, "{}", points.len());
        assert_eq!(points.last().unwrap().1, 4950.0, "the longest, not the edge of its bucket");
    }
}
