//! From results to a document: what is said, in which order, with which charts.

mod cost;
mod facts;
mod goals;
mod growth;
mod latency;
mod load;
mod paths;

use super::chart::Line;
use super::document::{Block, Document};
use super::summary::{Load, Summary, order};
use super::text::{name, plain};
use super::verdict::{verdicts, warnings};
use crate::results::{Kind, Results};

/// The whole report.
pub(super) fn document(results: &Results) -> Document {
    let summary = Summary::of(results);
    let slots = Slots::of(results);
    let title = if results.title.trim().is_empty() { &results.experiment } else { &results.title };
    let mut sections = vec![goals::section(results), facts::machine(results)];
    sections.extend(summary.loads.iter().map(|one| load::section(one, &slots)));
    sections.extend(cost::section(results, &slots));
    sections.extend(growth::section(results, &slots));
    sections.extend([facts::trouble(&summary), facts::missing(results), facts::settings(results, &summary)]);
    sections.extend([facts::samples(&summary), facts::reading()]);
    sections.retain(|section| section.blocks.iter().any(|block| !matches!(block, Block::Heading(_))));
    Document {
        title: name(title),
        lead: format!("lab {}, started {}", plain(&results.experiment), plain(&results.started)),
        verdicts: if results.goals.is_empty() { verdicts(&summary) } else { warnings(&summary) },
        sections,
    }
}

/// Which colour and mark an arm has; the same in every chart.
struct Slots(Vec<(Kind, String)>);

impl Slots {
    fn of(results: &Results) -> Self {
        let mut arms: Vec<(Kind, String)> = Vec::new();
        let of_series = results.series.iter().map(|series| (kind_of(results, &series.arm), series.arm.clone()));
        for arm in results.rounds.iter().map(|round| (round.kind, round.arm.clone())).chain(of_series) {
            if !arms.contains(&arm) {
                arms.push(arm);
            }
        }
        Self(arms)
    }

    /// Counted within the kind: the kinds differ by their dash.
    fn slot(&self, kind: Kind, arm: &str) -> usize {
        self.0.iter().filter(|(other, _)| *other == kind).position(|(_, other)| other == arm).unwrap_or(0)
    }
}

/// What an arm of a series is: as its rounds say, or by its name where it has none.
fn kind_of(results: &Results, arm: &str) -> Kind {
    let known = results.rounds.iter().find(|round| round.arm == arm).map(|round| round.kind);
    let engine = arm.starts_with("copy") || arm.starts_with("splice") || arm.starts_with("auto");
    let limit = arm == "direct" || arm == "dnat";
    known.unwrap_or(if engine {
        Kind::Engine
    } else if limit {
        Kind::Limit
    } else {
        Kind::Peer
    })
}

/// What a kind is called in a table.
fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Engine => "engine",
        Kind::Peer => "peer",
        Kind::Limit => "limit",
    }
}

/// Lines one chart can show; more are split into engines and the others.
const LINES: usize = 7;

/// Lines for one chart, or two when they are many: the engines with the limits, and the peers with the engine a user
/// gets by default. Each with what to add to the title.
fn split(mut lines: Vec<Line>) -> Vec<(&'static str, Vec<Line>)> {
    lines.sort_by_key(|line| order(line.kind));
    let peers = lines.iter().filter(|line| line.kind == Kind::Peer).count();
    if lines.len() <= LINES || peers == 0 || peers == lines.len() {
        return vec![("", lines)];
    }
    let (others, engines): (Vec<Line>, Vec<Line>) = lines.into_iter().partition(|line| line.kind == Kind::Peer);
    let default = engines.iter().find(|line| line.name == "auto").or_else(|| engines.first()).cloned();
    let others = default.into_iter().chain(others).collect();
    vec![(": engines", engines), (": other forwarders", others)]
}

/// What people call a load.
fn load_title(load: &Load) -> String {
    let title = name(&load.title);
    match load_kind(load.kind()) {
        Some(people) => format!("{people} ({title})"),
        None => title,
    }
}

/// What people call a kind of load.
fn load_kind(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bulk" => "Bulk, client to server",
        "reverse" => "Bulk, server to client",
        "bidirectional" => "Bulk, both ways at once",
        "rate" => "Bulk at a fixed rate",
        "rr" => "Request and reply on open connections",
        "crr" => "Connect, request, reply, close",
        "stream" => "Streams of small chunks",
        "sessions" => "Many bulk sessions at once",
        "idle" => "Sessions that do nothing",
        "stalled" => "Sessions whose reader has stopped",
        _ => return None,
    })
}
