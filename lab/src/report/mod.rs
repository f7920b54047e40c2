//! Results for people: `results.json`, `report.md` and one `report.html` that needs nothing else.
//!
//! `summary` gathers rounds into medians, spreads and ratios; `verdict` says in sentences what they mean; `content`
//! lays out one `document`, which `markdown` and `html` write, the latter with charts.

mod chart;
mod content;
mod document;
mod html;
mod markdown;
mod metric;
mod summary;
mod text;
mod verdict;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use chart::share as bars_share;

use crate::results::{Latency, Results, Round};

/// The results, as they were measured.
pub const RESULTS_FILE: &str = "results.json";
/// The report as text.
pub const MARKDOWN_FILE: &str = "report.md";
/// The report with charts.
pub const HTML_FILE: &str = "report.html";
/// Largest `results.json` that is read, in bytes.
const MOST_BYTES: u64 = 512 << 20;

/// Writes all three files into `dir`, which is made if there is none. What is not a number (NaN, infinite), and could
/// not be read back from JSON, is left out and a note takes its place.
///
/// # Errors
/// Names the file that could not be written. Each file appears whole or not at all.
pub fn write(dir: &Path, results: &Results) -> io::Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| wrap("cannot make the directory", dir, &error))?;
    let results = finite(results.clone());
    let json = serde_json::to_string_pretty(&results).map_err(io::Error::other)?;
    put(&dir.join(RESULTS_FILE), &(json + "\n"))?;
    write_reports(dir, &results)
}

/// Reads `results.json` in `dir` and writes the two reports beside it anew: what `lab report DIR` does.
///
/// # Errors
/// Names the file and what is wrong with it: unreadable, too large, no JSON of this shape (with line and column), or
/// written by another version.
pub fn rewrite(dir: &Path) -> io::Result<Results> {
    let results = read(dir)?;
    write_reports(dir, &finite(results.clone()))?;
    Ok(results)
}

/// Reads `results.json` in `dir`.
///
/// # Errors
/// As [`rewrite`].
pub fn read(dir: &Path) -> io::Result<Results> {
    let path = dir.join(RESULTS_FILE);
    let file = File::open(&path).map_err(|error| {
        let hint = "give the directory an experiment was written to with --out";
        io::Error::new(error.kind(), format!("cannot open {}: {error}; {hint}", path.display()))
    })?;
    let mut json = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut json).map_err(|error| wrap("cannot read", &path, &error))?;
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
    if json.len() as u64 > MOST_BYTES {
        return Err(bad(format!("larger than {MOST_BYTES} bytes, which no experiment writes")));
    }
    // The version first: another version's shape would only give an error about some field.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let shape = |error: serde_json::Error| bad(format!("no results of the lab: {error}"));
    let Versioned { version } = serde_json::from_slice(&json).map_err(shape)?;
    if version != Results::VERSION {
        return Err(bad(format!(
            "has version {version}, this lab reads version {}; run the experiment again",
            Results::VERSION
        )));
    }
    serde_json::from_slice(&json).map_err(shape)
}

fn write_reports(dir: &Path, results: &Results) -> io::Result<()> {
    let document = content::document(results);
    put(&dir.join(MARKDOWN_FILE), &markdown::render(&document))?;
    put(&dir.join(HTML_FILE), &html::render(&document))
}

/// Writes beside and renames, so that a reader never sees half a file.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        drop(file);
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| {
        // What is left of it helps nobody; that it cannot be removed is no news then.
        let _ = std::fs::remove_file(&beside);
        wrap("cannot write", path, &error)
    })
}

fn wrap(tried: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{tried} {}: {error}", path.display()))
}

/// The same results with every number finite.
fn finite(mut results: Results) -> Results {
    results.rounds.iter_mut().for_each(finite_round);
    for series in &mut results.series {
        series.points.retain(|point| point.x.is_finite());
        series.points.iter_mut().for_each(|point| point.values.retain(|_, value| value.is_finite()));
    }
    results
}

fn finite_round(round: &mut Round) {
    let Round { samples, latency, notes, .. } = round;
    samples.retain(|name, value| {
        let fine = value.is_finite();
        if !fine {
            notes.push(format!("sample {name} was {value} and is left out"));
        }
        fine
    });
    let whole = |l: &Latency| [l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us].iter().all(|v| v.is_finite());
    if latency.as_ref().is_some_and(|l| !whole(l)) {
        notes.push("the latencies held what is not a number and are left out".into());
        *latency = None;
    }
    if let Some(latency) = latency {
        latency.buckets.retain(|(edge, _)| edge.is_finite());
    }
}
