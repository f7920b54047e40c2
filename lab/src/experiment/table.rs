//! What an experiment found, as a table on a terminal: medians, and how far rounds were apart.

use std::fmt::Write;

use super::case::Case;
use super::load;
use crate::goals::judge;
use crate::load::Load;
use crate::results::{Results, Round};
use crate::statistics::median;

/// Begins the note of every round on a machine that was not quiet, after the arm.
const DISTURBED: &str = ": other programs used ";

/// A table for each load.
#[must_use]
pub fn tables(results: &Results, cases: &[Case]) -> String {
    let mut text = String::new();
    for case in cases {
        let settings = case.settings();
        let of = |round: &&Round| round.load == load::name(&case.load) && round.settings == settings;
        let rounds: Vec<&Round> = results.rounds.iter().filter(of).collect();
        if rounds.is_empty() {
            continue;
        }
        // Infallible on a string, here and below.
        let _ = writeln!(text, "\n{}", case.describe());
        text.push_str(&table(&case.load, &rounds));
    }
    text.push_str(&goals(results));
    for missing in &results.missing {
        let _ = writeln!(text, "missing: {}: {}", missing.name, missing.how);
    }
    let mut notes: Vec<String> = Vec::new();
    for round in &results.rounds {
        for note in &round.notes {
            let line = format!("note: {}: {note}", round.arm);
            if !notes.contains(&line) {
                notes.push(line);
            }
        }
    }
    let shares = results.rounds.iter().filter_map(|round| round.samples.get("others_cpu_share").copied());
    let most = shares.fold(0.0, f64::max);
    if notes.iter().any(|note| note.contains(DISTURBED)) {
        notes.retain(|note| !note.contains(DISTURBED));
        let _ = writeln!(
            text,
            "NOT QUIET: other programs used up to {:.0} % of this machine's CPUs meanwhile; do not compare these numbers, \
             measure again",
            most * 100.0
        );
    }
    for note in notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

/// What was to be reached, and whether it was.
fn goals(results: &Results) -> String {
    if results.goals.is_empty() {
        return String::new();
    }
    let mut rows = vec![["goal", "what", "bounds", "against", "measured", "rounds", ""].map(str::to_owned).to_vec()];
    for judged in judge(results) {
        let goal = judged.goal;
        let mut row = vec![goal.name.clone(), goal.subject(), goal.bounds()];
        match judged.measured {
            Ok(measured) => {
                let (low, high) = measured.range;
                row.push(measured.against.clone().unwrap_or_default());
                row.push(format!("{} ({}–{})", number(measured.value), number(low), number(high)));
                row.push(measured.rounds.to_string());
                row.push(measured.verdict().to_owned());
            }
            Err(why) => row.extend([goal.opponent(), "–".to_owned(), "0".to_owned(), why]),
        }
        rows.push(row);
    }
    format!("\ngoals\n{}", aligned(&rows))
}

fn table(load: &Load, rounds: &[&Round]) -> String {
    let mut arms: Vec<&str> = Vec::new();
    for round in rounds {
        if !arms.contains(&round.arm.as_str()) {
            arms.push(&round.arm);
        }
    }
    let has = |name: &str| rounds.iter().any(|round| round.value(name).is_some());
    let columns: Vec<_> = load::columns(load).iter().filter(|(name, _)| has(name)).collect();
    let mut rows =
        vec![std::iter::once("arm".to_owned()).chain(columns.iter().map(|(_, words)| (*words).to_owned())).collect()];
    for arm in arms {
        let good: Vec<&&Round> = rounds.iter().filter(|round| round.arm == arm && round.error.is_none()).collect();
        let mut row = vec![arm.to_owned()];
        for (name, _) in &columns {
            let mut values: Vec<f64> = good.iter().filter_map(|round| round.value(name)).collect();
            values.sort_by(f64::total_cmp);
            row.push(cell(&values));
        }
        if good.is_empty() {
            row[1..].fill(String::new());
            row.push("failed".to_owned());
        }
        rows.push(row);
    }
    aligned(&rows)
}

/// Median, and the range when there is one: `9.12 (8.9–9.3)`.
fn cell(sorted: &[f64]) -> String {
    let (Some(first), Some(last), Some(median)) = (sorted.first(), sorted.last(), median(sorted)) else {
        return "–".to_owned();
    };
    if sorted.len() == 1 {
        number(median)
    } else {
        format!("{} ({}–{})", number(median), number(*first), number(*last))
    }
}

/// Three digits that matter.
#[must_use]
pub fn number(value: f64) -> String {
    match value.abs() {
        a if a >= 100.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell = if column == 0 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_a_median_and_a_range() {
        assert_eq!(cell(&[]), "–");
        assert_eq!(cell(&[1.5]), "1.50");
        assert_eq!(cell(&[1.0, 2.0, 30.0]), "2.00 (1.00–30.0)");
        assert_eq!(cell(&[0.25, 0.75]), "0.500 (0.250–0.750)");
        assert_eq!(aligned(&[vec!["a".into(), "µ".into()], vec!["bcd".into(), "12".into()]]), "  a     µ\n  bcd  12\n");
    }
}
