//! What the numbers say, in sentences.

use super::arm::Arm;
use super::host::Host;
use super::measure::Settings;
use super::report::{ArmReport, Spread};
use super::usage::Paths;
use crate::config::Size;

/// What the ratios are relative to.
pub(super) const BASE: Arm = Arm::Copy(64 << 10);
/// Share of busy CPUs from which on the host is the limit.
const SATURATED: f64 = 0.9;
/// Share of its bytes the splice arm has to move by splice to go without a note.
const SPLICED: f64 = 0.99;

pub(super) fn notes(host: &Host, arms: &[ArmReport], busy: Option<Spread>) -> Vec<String> {
    let mut notes = Vec::new();
    if host.cpus == 1 {
        notes.push(
            "This host has 1 CPU, which source, sink and forwarder share: only CPU per byte compares the arms.".into(),
        );
    } else if let Some(busy) = busy.filter(|busy| busy.median >= SATURATED) {
        notes.push(format!(
            "Source and sink run on this host too and its CPUs were {:.0} % busy: throughput is the host's limit, \
             CPU per byte is the number to read.",
            busy.median * 100.0
        ));
    }
    for arm in arms {
        let fallbacks: Vec<String> = arm.fallbacks().iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        let share = arm.bulk.bytes.and_then(Paths::splice_share);
        let fell_back = if fallbacks.is_empty() { String::new() } else { format!(" ({})", fallbacks.join(", ")) };
        match (arm.kind, share) {
            (Arm::Splice, Some(share)) if share < SPLICED => {
                notes.push(format!("splice moved only {:.1} % of the bulk bytes by splice{fell_back}.", share * 100.0));
            }
            _ if !fallbacks.is_empty() => notes.push(format!("{} fell back to copying{fell_back}.", arm.arm)),
            _ => {}
        }
    }
    notes
}

pub(super) fn verdict(arms: &[ArmReport], settings: &Settings) -> Vec<String> {
    let size = Size(settings.exchange_bytes as usize).to_string();
    let size = if size.ends_with('B') { size } else { format!("{size}-byte") };
    let bulk = compared(arms, "CPU per byte", |arm| arm.bulk.cpu_seconds_per_gb);
    let ping = compared(arms, &format!("CPU per {size} exchange"), |arm| arm.exchanges.cpu_us_per_exchange);
    [("Bulk", bulk), ("Ping-pong", ping)]
        .into_iter()
        .filter(|(_, said)| !said.is_empty())
        .map(|(what, said)| format!("{what}: {}.", said.join("; ")))
        .collect()
}

/// Splice against copy 64 KiB, and `auto`, which chooses between these two, against the better of them.
fn compared(arms: &[ArmReport], what: &str, cost: fn(&ArmReport) -> Option<Spread>) -> Vec<String> {
    let of = |kind: Arm| arms.iter().find(|arm| arm.kind == kind).and_then(cost);
    let mut said = Vec::new();
    if let (Some(splice), Some(base)) = (of(Arm::Splice), of(BASE)) {
        said.push(format!("splice needs {:.2} × the {what} of {BASE}", splice.median / base.median));
    }
    let fixed = [Arm::Splice, BASE].into_iter().filter_map(|arm| Some((arm, of(arm)?)));
    let best = fixed.min_by(|a, b| a.1.median.total_cmp(&b.1.median));
    if let (Some(auto), Some((arm, best))) = (of(Arm::Auto), best) {
        said.push(auto_against(auto, arm, best));
    }
    said
}

fn auto_against(auto: Spread, arm: Arm, best: Spread) -> String {
    let percent = (auto.median / best.median - 1.0) * 100.0;
    // One round has no spread to judge a difference by.
    let overlap = best.min < best.max && auto.min <= best.max && best.min <= auto.max;
    let doubt = if overlap { ", which is within the spread of the rounds" } else { "" };
    match percent {
        p if p.abs() < 0.5 => format!("auto is level with {arm}, the better one"),
        p if p < 0.0 => format!("auto needs {:.0} % less than {arm}, the better one{doubt}", -p),
        p if p <= 5.0 => format!("auto is within {:.0} % of {arm}, the better one", p.ceil()),
        p => format!("auto needs {p:.0} % more than {arm}, the better one{doubt}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worse_auto_is_called_worse() {
        let spread = |median: f64| Spread { median, min: median * 0.99, max: median * 1.01 };
        let said = |auto: f64| auto_against(spread(auto), Arm::Splice, spread(1.0));
        assert_eq!(said(1.3), "auto needs 30 % more than splice, the better one");
        assert_eq!(said(0.8), "auto needs 20 % less than splice, the better one");
        let wide = Spread { median: 1.1, min: 0.9, max: 1.3 };
        let said = auto_against(wide, Arm::Splice, spread(1.0));
        assert_eq!(said, "auto needs 10 % more than splice, the better one, which is within the spread of the rounds");
    }
}
