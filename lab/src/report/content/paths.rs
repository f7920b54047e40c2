//! Which way the bytes took, and the system calls it cost.

use super::kind_word;
use crate::report::chart::{Chart, Drawing, Stack, StackRow, share};
use crate::report::document::{Block, Section, Table};
use crate::report::metric::{number, with_unit};
use crate::report::summary::{Arm, Load};
use crate::report::text::name;

/// System calls with a column of their own; the others are summed.
const NAMED_CALLS: usize = 8;

/// Adds bytes by path, from the forwarder's own counters.
pub(super) fn add_bytes(section: &mut Section, load: &Load) {
    let counted = |arm: &Arm| {
        let of = |sample| arm.spread(sample).map_or(0.0, |s| s.median.max(0.0));
        let (spliced, copied) = (of("spliced_bytes"), of("copied_bytes"));
        // Halves, as the sum of two numbers may not be one.
        (spliced + copied > 0.0)
            .then(|| (name(&arm.name), spliced, copied, spliced / 2.0 / (spliced / 2.0 + copied / 2.0)))
    };
    let counted: Vec<_> = load.arms.iter().filter_map(counted).collect();
    if counted.is_empty() {
        return;
    }
    section.blocks.push(Block::Heading("Bytes by path".into()));
    section.text(
        "As the forwarder counted them: spliced bytes went socket → pipe → socket and never into user space, copied bytes \
         went through its buffer.",
    );
    let rows = counted.iter().map(|(name, _, _, first)| StackRow { name: name.clone(), first: *first }).collect();
    section.charts(vec![Chart {
        title: "Bytes by path".into(),
        description: "Shares of all bytes of the median round.".into(),
        drawing: Drawing::Stack(Stack { parts: ["spliced", "copied"], rows }),
    }]);
    let mut table = Table::new("Bytes by path, median of the rounds").words("Arm");
    for title in ["Spliced", "Copied", "Spliced share"] {
        table = table.numbers(title);
    }
    for (name, spliced, copied, first) in counted {
        table.row(vec![name, with_unit(spliced, "bytes"), with_unit(copied, "bytes"), share(first)]);
    }
    section.table(table);
}

/// Adds system calls by name.
pub(super) fn add_syscalls(section: &mut Section, load: &Load) {
    let counted: Vec<&Arm> = load.arms.iter().filter(|arm| !arm.syscalls.is_empty()).collect();
    if counted.is_empty() {
        return;
    }
    let mut greatest: Vec<(&String, f64)> = Vec::new();
    for (call, count) in counted.iter().flat_map(|arm| &arm.syscalls) {
        match greatest.iter_mut().find(|(known, _)| *known == call) {
            Some((_, most)) => *most = most.max(*count),
            None => greatest.push((call, *count)),
        }
    }
    greatest.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    let named: Vec<&String> = greatest.iter().take(NAMED_CALLS).map(|(call, _)| *call).collect();
    let unit = if counted.iter().all(|arm| arm.syscalls_per_gb) { "per GB" } else { "per round" };
    section.blocks.push(Block::Heading(format!("System calls {unit}")));
    section.text(
        "Counts only. Counting slows a forwarder down, so it is done apart from the timed window, and the times that \
         strace gives are left out: they charge a call that waits, such as epoll_wait, with waiting and every call with \
         being traced.",
    );
    let mut table = Table::new(format!("System calls {unit}, median of the rounds")).words("Arm").words("Kind");
    for call in &named {
        table = table.numbers(name(call));
    }
    if greatest.len() > named.len() {
        table = table.numbers("others");
    }
    table = table.numbers("All");
    for arm in counted {
        let count = |call: &&String| arm.syscalls.get(*call).copied().unwrap_or(0.0);
        let (all, of_named): (f64, f64) = (arm.syscalls.values().sum(), named.iter().map(count).sum());
        let mut cells = vec![name(&arm.name), kind_word(arm.kind).into()];
        cells.extend(named.iter().map(|call| number(count(call))));
        if greatest.len() > named.len() {
            cells.push(number((all - of_named).max(0.0)));
        }
        cells.push(number(all));
        table.row(cells);
    }
    section.table(table);
}
