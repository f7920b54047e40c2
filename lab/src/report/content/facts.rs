//! The machine, the settings, what is missing, what went wrong, and every sample.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{kind_word, load_title};
use crate::report::document::{Block, Section, Table};
use crate::report::metric::{number, unit_of, with_unit};
use crate::report::summary::{Summary, scalar};
use crate::report::text::{cut, name, plain};
use crate::results::Results;

/// Longest setting, error or note shown; the whole text is in `results.json`.
const TEXT_CHARS: usize = 400;

fn text(value: &str) -> String {
    let value = plain(value);
    if value.is_empty() { "unknown".into() } else { cut(&value, TEXT_CHARS) }
}

/// Host and versions.
pub(super) fn machine(results: &Results) -> Section {
    let mut section = Section::new("The machine");
    let host = &results.host;
    let mut table = Table::new("").words("What").words("Value");
    let memory = with_unit(host.memory_bytes as f64, "bytes");
    let rows = [
        ("Kernel", text(&host.kernel)),
        ("Processor", text(&host.cpu)),
        ("CPUs the lab may use", host.cpus.to_string()),
        ("Memory", memory),
        ("System", text(&host.os)),
    ];
    for (what, value) in rows {
        table.row(vec![what.into(), value]);
    }
    for (tool, version) in &results.tools {
        table.row(vec![name(tool), text(version)]);
    }
    section.table(table);
    section
}

/// What was asked for, and what was particular to each arm.
pub(super) fn settings(results: &Results, summary: &Summary) -> Section {
    let mut section = Section::new("Settings");
    let mut table = Table::new("Of the experiment").words("Setting").words("Value");
    for (key, value) in &results.settings {
        table.row(vec![name(key), text(&scalar(value))]);
    }
    section.table(table);
    let mut table = Table::new("Of the arms, in their first round").words("Load").words("Arm").words("Settings");
    for load in &summary.loads {
        for arm in load.arms.iter().filter(|arm| !arm.settings.is_empty()) {
            table.row(vec![name(&load.title), name(&arm.name), text(&pairs(&arm.settings))]);
        }
    }
    if !table.rows.is_empty() {
        section.blocks.push(Block::Folded(table));
    }
    section
}

fn pairs(settings: &BTreeMap<String, Value>) -> String {
    let pairs: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={}", scalar(value))).collect();
    pairs.join(", ")
}

/// What could not take part.
pub(super) fn missing(results: &Results) -> Section {
    let mut section = Section::new("Not taken part");
    let mut table = Table::new("").words("What").words("Why, and how to get it");
    for missing in &results.missing {
        table.row(vec![name(&missing.name), text(&missing.how)]);
    }
    section.table(table);
    section
}

/// Errors and notes, round by round where they differ.
pub(super) fn trouble(summary: &Summary) -> Section {
    let mut section = Section::new("Errors and notes");
    let mut table = Table::new("").words("Load").words("Arm").words("Rounds").words("What was said");
    for load in &summary.loads {
        for arm in &load.arms {
            let mut errors: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (round, error) in &arm.errors {
                errors.entry(error).or_default().push(round.to_string());
            }
            let (load, arm_name) = (name(&load.title), name(&arm.name));
            for (error, rounds) in errors {
                let said = format!("failed: {}", text(error));
                table.row(vec![load.clone(), arm_name.clone(), cut(&rounds.join(", "), TEXT_CHARS), said]);
            }
            for (note, count) in &arm.notes {
                let all = arm.rounds + arm.errors.len();
                table.row(vec![load.clone(), arm_name.clone(), format!("{count} of {all}"), text(note)]);
            }
        }
    }
    section.table(table);
    section
}

/// Median, smallest, greatest and number of every sample.
pub(super) fn samples(summary: &Summary) -> Section {
    let mut section = Section::new("Every sample");
    for load in &summary.loads {
        let mut table = Table::new(load_title(load)).words("Arm").words("Kind").words("Sample");
        for title in ["Median", "Smallest", "Greatest", "Rounds"] {
            table = table.numbers(title);
        }
        for arm in &load.arms {
            for (sample, sampled) in &arm.samples {
                let unit = if unit_of(sample) == "bytes" { "bytes" } else { "" };
                let s = sampled.spread;
                let mut cells = vec![name(&arm.name), kind_word(arm.kind).into(), name(sample)];
                cells.extend([s.median, s.min, s.max].map(|value| with_unit(value, unit)));
                cells.push(number(s.n as f64));
                table.row(cells);
            }
        }
        if !table.rows.is_empty() {
            section.blocks.push(Block::Folded(table));
        }
    }
    section
}

/// What the words and signs mean.
pub(super) fn reading() -> Section {
    let mut section = Section::new("How to read this");
    let items = [
        "Arms run in turn within a round, round after round, so that a change of the machine meets all of them. A number is \
         the median of the rounds, the range behind it their smallest and greatest.",
        "A ratio is median over median. The range in a sentence is that of the ratios within single rounds; a finding counts \
         as settled only where every round agrees, and at least three.",
        "A GB is 10⁹ bytes delivered. CPU of the forwarder is that of all its threads and child processes, taken from the \
         kernel's exact process times and not from /proc/stat, which counts whole ticks.",
        "Rounds with an error count nowhere; they are listed.",
        "Limits are no competitors: direct has no forwarder at all, dnat rewrites addresses in the kernel and cannot do what \
         a forwarder in user space does.",
    ];
    section.blocks.push(Block::List(items.map(String::from).into()));
    section
}
