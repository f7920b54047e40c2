//! Series: memory, descriptors and cost as sessions (or whatever the axis is) grow.

use std::collections::BTreeMap;

use super::{Slots, kind_of, kind_word, split};
use crate::report::chart::{Axis, Chart, Drawing, Line, Lines};
use crate::report::document::{Block, Section, Table};
use crate::report::metric::{Better, find, number, unit_of, with_unit};
use crate::report::summary::Spread;
use crate::report::text::{name, plain};
use crate::results::{Results, Series};
use crate::statistics::slope;

/// Places of the axis a table shows.
const COLUMNS: usize = 7;

/// Points of one arm: x to value, ascending.
pub(super) type Points = Vec<(f64, f64)>;
/// What stands behind the points of an arm in a table: its title, and how it is found.
pub(super) type Figure<'a> = (&'a str, fn(&[(f64, f64)]) -> Option<f64>);

/// Charts and tables of every series; `None` when there is none.
pub(super) fn section(results: &Results, slots: &Slots) -> Option<Section> {
    let mut section = Section::new("Growth");
    let mut axes: Vec<(&str, &str)> = Vec::new();
    for series in &results.series {
        if !axes.contains(&(&series.load, &series.x)) {
            axes.push((&series.load, &series.x));
        }
    }
    for (load, x) in axes {
        let of: Vec<&Series> = results.series.iter().filter(|s| s.load == load && s.x == x).collect();
        let mut samples: Vec<&str> = Vec::new();
        for sample in of.iter().flat_map(|s| &s.points).flat_map(|point| point.values.keys()) {
            if !samples.contains(&sample.as_str()) {
                samples.push(sample);
            }
        }
        section.blocks.push(Block::Heading(format!("{}, by {}", name(load), name(x))));
        section.text("The slope is what one more on the axis adds, fitted by least squares over all its points.");
        let (mut charts, mut tables) = (Vec::new(), Vec::new());
        for sample in samples {
            let arms = points(&of, sample);
            charts.extend(sample_charts(results, slots, (x, sample), &arms));
            tables.push(table(results, (x, sample), &arms, ("Slope", slope)));
        }
        section.charts(charts);
        for table in tables {
            section.table(table);
        }
    }
    (!section.blocks.is_empty()).then_some(section)
}

/// For each arm its points; several series of one arm (one a round) become their medians.
pub(super) fn points(series: &[&Series], sample: &str) -> Vec<(String, Points)> {
    let mut arms: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for one in series {
        let values = one.points.iter().filter_map(|point| Some((point.x, *point.values.get(sample)?)));
        let values = values.filter(|(x, value)| x.is_finite() && value.is_finite());
        match arms.iter_mut().find(|(arm, _)| *arm == one.arm) {
            Some((_, list)) => list.extend(values),
            None => arms.push((one.arm.clone(), values.collect())),
        }
    }
    for (_, list) in &mut arms {
        list.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at_one_x = list.chunk_by(|a, b| a.0 == b.0);
        let median = |chunk: &[(f64, f64)]| Some((chunk[0].0, Spread::of(chunk.iter().map(|(_, v)| *v))?.median));
        *list = at_one_x.filter_map(median).collect();
    }
    arms
}

/// What people call a sample.
fn label(sample: &str) -> String {
    find(sample).map_or_else(|| plain(sample).replace('_', " "), |metric| metric.label.to_owned())
}

/// How to read the line of a sample.
fn hint(sample: &str) -> &'static str {
    match find(sample).map(|metric| metric.better) {
        Some(Better::Lower) => "Lower is better; a flat line costs nothing more as it grows.",
        Some(Better::Higher) => "Higher is better; a flat line loses nothing as it grows.",
        None => "Median where there is more than one series of an arm.",
    }
}

pub(super) fn sample_charts(
    results: &Results,
    slots: &Slots,
    (x, sample): (&str, &str),
    arms: &[(String, Points)],
) -> Vec<Chart> {
    let line = |(arm, points): &(String, Points)| {
        let kind = kind_of(results, arm);
        Line { name: name(arm), kind, points: points.clone(), slot: slots.slot(kind, arm) }
    };
    let lines = arms.iter().filter(|(_, points)| !points.is_empty()).map(line).collect();
    let unit = unit_of(sample);
    let shown = if unit.is_empty() || unit == "bytes" { String::new() } else { format!(", {unit}") };
    let chart = |(part, lines): (&str, Vec<Line>)| Chart {
        title: format!("{} by {}{part}{shown}", label(sample), name(x)),
        description: hint(sample).into(),
        drawing: Drawing::Lines(Lines { x: Axis::Number(name(x)), y_unit: unit, lines }),
    };
    split(lines).into_iter().filter(|(_, lines)| !lines.is_empty()).map(chart).collect()
}

pub(super) fn table(
    results: &Results,
    (x, sample): (&str, &str),
    arms: &[(String, Points)],
    (title, figure): Figure<'_>,
) -> Table {
    let places = places(arms);
    let unit = unit_of(sample);
    let shown = if unit.is_empty() || unit == "bytes" { String::new() } else { format!(", {unit}") };
    let mut table = Table::new(format!("{}{shown}, by {}", label(sample), name(x))).words("Arm").words("Kind");
    for place in &places {
        table = table.numbers(number(*place));
    }
    table = table.numbers(title);
    let write = |value: f64| if unit == "bytes" { with_unit(value, unit) } else { number(value) };
    for (arm, points) in arms {
        let by_x: BTreeMap<u64, f64> = points.iter().map(|(x, value)| (x.to_bits(), *value)).collect();
        let mut cells = vec![name(arm), kind_word(kind_of(results, arm)).into()];
        cells.extend(places.iter().map(|place| by_x.get(&place.to_bits()).map_or_else(|| "–".into(), |v| write(*v))));
        cells.push(figure(points).map_or_else(|| "–".into(), write));
        table.row(cells);
    }
    table
}

/// Places of the axis that any arm has, thinned evenly to what a table can show; both ends stay.
fn places(arms: &[(String, Points)]) -> Vec<f64> {
    let mut all: Vec<f64> = arms.iter().flat_map(|(_, points)| points).map(|(x, _)| *x).collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    if all.len() <= COLUMNS {
        return all;
    }
    (0..COLUMNS).map(|n| all[n * (all.len() - 1) / (COLUMNS - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keep_both_ends_of_the_axis() {
        let arms = vec![("a".to_owned(), (0..100).map(|n| (f64::from(n), 1.0)).collect())];
        let places = places(&arms);
        assert_eq!((places.len(), places[0], places[COLUMNS - 1]), (COLUMNS, 0.0, 99.0));
    }
}
