//! The section of one load: for each group of samples a chart, and a table with spread and ratios.

use super::{Slots, kind_word, latency, load_title, paths};
use crate::report::chart::{Bar, Bars, Chart, Drawing};
use crate::report::document::{Block, Section, Table};
use crate::report::metric::{Better, GROUPS, Group, Metric, spread, times};
use crate::report::summary::{Arm, Load};
use crate::report::text::name;
use crate::results::Kind;

/// Everything about one load.
pub(super) fn section(load: &Load, slots: &Slots) -> Section {
    let mut section = Section::new(load_title(load));
    for group in GROUPS {
        let present: Vec<&Metric> = group.metrics.iter().filter(|metric| load.has(metric.name)).collect();
        // Of a few bytes the cost by the gigabyte says nothing that the cost by the piece does not.
        let by_the_piece = ["rr", "crr"].contains(&load.kind()) && group.title == GROUPS[0].title;
        if by_the_piece && load.has_pieces() {
            continue;
        }
        if !present.is_empty() {
            add_group(&mut section, load, group, &present);
        }
    }
    latency::add(&mut section, load, slots);
    paths::add_bytes(&mut section, load);
    paths::add_syscalls(&mut section, load);
    if section.blocks.is_empty() {
        section.text("Nothing was measured.");
        section.table(table(load, "Rounds", &[], 0));
    }
    section
}

fn add_group(section: &mut Section, load: &Load, group: &Group, present: &[&Metric]) {
    section.blocks.push(Block::Heading(group.title.into()));
    section.text(group.hint);
    let compared = present.iter().filter(|metric| group.metrics[..group.compared].contains(metric)).count();
    let charts = present[..compared].iter().filter_map(|metric| chart(load, metric)).collect();
    section.charts(charts);
    section.table(table(load, &format!("{}: median (smallest–greatest round)", group.title), present, compared));
    if group.metrics[..group.compared].iter().any(|metric| metric.better == Better::Higher) {
        for arm in load.arms.iter().filter(|arm| arm.saturated().is_some()) {
            section.text(format!("† {}: the load generator itself was at its limit.", name(&arm.name)));
        }
    }
}

/// The dagger of an arm whose rate is the generator's.
fn mark(arm: &Arm, metric: &Metric) -> &'static str {
    if metric.better == Better::Higher && arm.saturated().is_some() { " †" } else { "" }
}

fn chart(load: &Load, metric: &Metric) -> Option<Chart> {
    let bar = |arm: &Arm| {
        let s = arm.spread(metric.name)?;
        let (name, mark) = (name(&arm.name), mark(arm, metric));
        Some(Bar { name, kind: arm.kind, median: s.median, min: s.min, max: s.max, mark })
    };
    let rows: Vec<Bar> = load.arms.iter().filter_map(bar).collect();
    if rows.is_empty() {
        return None;
    }
    let reference = load.baseline().and_then(|arm| Some((name(&arm.name), arm.spread(metric.name)?.median)));
    let best = load.best(Kind::Engine, metric).map(|arm| format!(" Best engine: {}.", name(&arm.name)));
    let best_peer = load.best(Kind::Peer, metric).map(|arm| format!(" Best peer: {}.", name(&arm.name)));
    Some(Chart {
        title: format!("{}, {}", metric.label, metric.unit),
        description: format!(
            "Median of the rounds; {}.{}{}",
            metric.better.hint(),
            best.unwrap_or_default(),
            best_peer.unwrap_or_default()
        ),
        drawing: Drawing::Bars(Bars { unit: metric.unit, reference, rows }),
    })
}

/// One row an arm; the first `compared` metrics with ratios.
fn table(load: &Load, caption: &str, metrics: &[&Metric], compared: usize) -> Table {
    let baseline = load.baseline();
    let mut table = Table::new(caption).words("Arm").words("Kind");
    for (at, metric) in metrics.iter().enumerate() {
        let unit =
            if metric.unit.is_empty() || metric.unit == "bytes" { String::new() } else { format!(", {}", metric.unit) };
        table = table.numbers(format!("{}{unit}", metric.label));
        if at < compared {
            if let Some(base) = baseline {
                table = table.numbers(format!("× {}", name(&base.name)));
            }
            if let Some(peer) = load.best(Kind::Peer, metric) {
                table = table.numbers(format!("× best peer ({})", name(&peer.name)));
            }
        }
    }
    table = table.numbers("Rounds");
    for arm in &load.arms {
        table.row(row(load, arm, metrics, compared));
    }
    table
}

fn row(load: &Load, arm: &Arm, metrics: &[&Metric], compared: usize) -> Vec<String> {
    let mut cells = vec![name(&arm.name), kind_word(arm.kind).into()];
    for (at, metric) in metrics.iter().enumerate() {
        let unit = if metric.unit == "bytes" { "bytes" } else { "" };
        let value = arm.spread(metric.name).map(|s| spread(s.median, s.min, s.max, unit) + mark(arm, metric));
        cells.push(value.unwrap_or_else(|| "–".into()));
        if at < compared {
            let bases = [load.baseline(), load.best(Kind::Peer, metric)];
            cells.extend(bases.into_iter().flatten().map(|base| ratio(arm, base, metric.name)));
        }
    }
    let all = arm.rounds + arm.errors.len();
    cells.push(if arm.errors.is_empty() { arm.rounds.to_string() } else { format!("{} of {all}", arm.rounds) });
    cells
}

/// `0.64×`, or a dash where one of them has no such sample.
pub(super) fn ratio(arm: &Arm, base: &Arm, sample: &str) -> String {
    let both = arm.samples.get(sample).zip(base.samples.get(sample));
    both.and_then(|(a, b)| a.against(b)).map_or_else(|| "–".into(), |r| times(r.of_medians))
}
