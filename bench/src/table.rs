//! Turns criterion's results of several rounds into the tables kept in `results/`.
//!
//! A ratio is made within a round, where both of its numbers come from the same minute, and only then the median is
//! taken over the rounds: what else the machine does weighs on both alike.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::{MESSAGES, MIXES, engines};

/// Medians of one round in nanoseconds, by benchmark id.
pub type Round = BTreeMap<String, f64>;

/// The middle one of some numbers, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of at least one number; `None` of none.
    #[must_use]
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { median, least, most })
    }
}

/// Reads what criterion has left in one directory (`CRITERION_HOME`).
///
/// # Errors
/// A file that cannot be read or is not criterion's, named in the message; also a directory without any result.
pub fn read_round(home: &Path) -> io::Result<Round> {
    let mut round = Round::new();
    collect(home, &mut round)?;
    if round.is_empty() {
        let message =
            format!("{}: no result of criterion in it; run `cargo bench` with CRITERION_HOME there", home.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(round)
}

fn collect(directory: &Path, round: &mut Round) -> io::Result<()> {
    let named = |path: &Path, e: &dyn std::fmt::Display| io::Error::other(format!("{}: {e}", path.display()));
    for entry in fs::read_dir(directory).map_err(|e| named(directory, &e))? {
        let path = entry.map_err(|e| named(directory, &e))?.path();
        if !path.is_dir() {
            continue;
        }
        if path.file_name().is_none_or(|name| name != "new") {
            collect(&path, round)?;
            continue;
        }
        let json = |name: &str| -> io::Result<serde_json::Value> {
            let path = path.join(name);
            let text = fs::read_to_string(&path).map_err(|e| named(&path, &e))?;
            serde_json::from_str(&text).map_err(|e| named(&path, &e))
        };
        let (about, estimates) = (json("benchmark.json")?, json("estimates.json")?);
        let found = (about["full_id"].as_str(), estimates["median"]["point_estimate"].as_f64());
        let (Some(id), Some(median)) = found else {
            return Err(named(&path, &"not the layout of the criterion this was written for"));
        };
        round.insert(id.to_owned(), median);
    }
    Ok(())
}

/// One row per message or mix: the time of the first engine, and of every other its ratio to that.
#[must_use]
pub fn pumps(rounds: &[Round]) -> String {
    let names: Vec<String> = engines().into_iter().map(|engine| engine.name).collect();
    let Some((base, others)) = names.split_first() else { return String::new() };
    let messages = MESSAGES.iter().map(|(name, _)| format!("pump/{name}"));
    let rows = messages.chain(MIXES.iter().map(|(name, _)| format!("mix/{name}")));
    let mut table = format!("| messages | {base} |");
    others.iter().for_each(|name| table.push_str(&format!(" {name} |")));
    table.push_str(&format!("\n|{}\n", " --- |".repeat(others.len() + 2)));
    for row in rows {
        let id = |engine: &str| format!("{row}/{engine}");
        let Some(time) = Spread::of(rounds.iter().filter_map(|r| r.get(&id(base)).copied())) else { continue };
        table.push_str(&format!("| {row} | {} |", show(time)));
        for engine in others {
            let ratio = |r: &Round| Some(r.get(&id(engine))? / r.get(&id(base))?);
            match Spread::of(rounds.iter().filter_map(ratio)) {
                Some(Spread { median, least, most }) => {
                    table.push_str(&format!(" {median:.2} ({least:.2}–{most:.2}) |"));
                }
                None => table.push_str(" – |"),
            }
        }
        table.push('\n');
    }
    table
}

/// One row per benchmark that is not a pump.
#[must_use]
pub fn others(rounds: &[Round]) -> String {
    let mut table = "| benchmark | time |\n| --- | --- |\n".to_owned();
    let ids: std::collections::BTreeSet<&String> = rounds.iter().flat_map(Round::keys).collect();
    for id in ids.into_iter().filter(|id| !id.starts_with("pump/") && !id.starts_with("mix/")) {
        if let Some(time) = Spread::of(rounds.iter().filter_map(|r| r.get(id).copied())) {
            table.push_str(&format!("| {id} | {} |\n", show(time)));
        }
    }
    table
}

/// A time for people, with its spread as ratios to it: these hold on other machines as well.
fn show(time: Spread) -> String {
    let (divisor, unit) = match time.median {
        ns if ns < 1e3 => (1.0, "ns"),
        ns if ns < 1e6 => (1e3, "µs"),
        _ => (1e6, "ms"),
    };
    let Spread { median, least, most } = time;
    format!("{:.2} {unit} (×{:.2}–{:.2})", median / divisor, least / median, most / median)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave(home: &Path, id: &str, median: &str) {
        let directory = home.join(id).join("new");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("benchmark.json"), format!(r#"{{"full_id":"{id}"}}"#)).unwrap();
        fs::write(directory.join("estimates.json"), format!(r#"{{"median":{{"point_estimate":{median}}}}}"#)).unwrap();
    }

    #[test]
    fn the_median_lies_between() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
    }

    #[test]
    fn ratios_are_made_within_a_round() {
        let homes: Vec<_> = [("1000", "500"), ("4000", "1000"), ("2000", "1200")]
            .map(|(copy, other)| {
                let home = tempfile::tempdir().unwrap();
                leave(home.path(), "pump/64B/copy-64KiB", copy);
                leave(home.path(), "pump/64B/splice-1MiB", other);
                leave(home.path(), "stats/counter-add", "1.5");
                home
            })
            .into();
        let rounds: Vec<Round> = homes.iter().map(|home| read_round(home.path()).unwrap()).collect();
        let table = pumps(&rounds);
        assert!(table.contains("| pump/64B | 2.00 µs (×0.50–2.00) |"), "{table}");
        assert_eq!(table.contains("0.50 (0.25–0.60)"), spliced::sys::HAS_SPLICE, "{table}");
        assert!(!table.contains("128KiB"), "{table}");
        assert_eq!(
            others(&rounds),
            "| benchmark | time |\n| --- | --- |\n| stats/counter-add | 1.50 ns (×1.00–1.00) |\n"
        );
    }

    #[test]
    fn what_is_not_criterions_is_named() {
        let home = tempfile::tempdir().unwrap();
        assert!(read_round(home.path()).unwrap_err().to_string().contains("CRITERION_HOME"));
        leave(home.path(), "pump/64B/copy-64KiB", "\"fast\"");
        let error = read_round(home.path()).unwrap_err().to_string();
        assert!(error.contains("copy-64KiB") && error.contains("layout"), "{error}");
        fs::write(home.path().join("pump/64B/copy-64KiB/new/estimates.json"), "{").unwrap();
        assert!(read_round(home.path()).unwrap_err().to_string().contains("estimates.json"));
    }
}
