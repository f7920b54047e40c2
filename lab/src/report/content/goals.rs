//! What was to be reached, and whether it was.

use crate::goals::judge;
use crate::report::document::{Section, Table};
use crate::report::metric::{number, times, unit_of, with_unit};
use crate::report::text::{cut, name, plain};
use crate::results::{Goal, Results};

/// Longest reason shown.
const TEXT_CHARS: usize = 200;

/// A row for each goal; empty where the experiment has none.
pub(super) fn section(results: &Results) -> Section {
    let mut section = Section::new("Goals");
    let mut table = Table::new("").words("Goal").words("Verdict").words("Of").words("Load").words("Metric");
    table = table.words("Against").words("Wanted").numbers("Measured").numbers("Rounds");
    let (mut met, mut measured) = (0, 0);
    for judged in judge(results) {
        let goal = judged.goal;
        let mut cells = vec![name(&goal.name)];
        let what = [&goal.of, &goal.load, &goal.metric].map(|text| name(text));
        match &judged.measured {
            Ok(found) => {
                measured += 1;
                met += usize::from(found.met);
                let write = |value| write(goal, value);
                let (low, high) = found.range;
                let value = if low == high {
                    write(found.value)
                } else {
                    format!("{} ({}–{})", write(found.value), write(low), write(high))
                };
                cells.push(found.verdict().into());
                cells.extend(what);
                let against = match (&found.against, &goal.against_load) {
                    (Some(arm), Some(load)) => format!("{} under {}", name(arm), name(load)),
                    (Some(arm), None) => name(arm),
                    (None, _) => "–".into(),
                };
                cells.extend([against, plain(&goal.bounds()), value, found.rounds.to_string()]);
            }
            Err(why) => {
                cells.push(cut(&plain(why), TEXT_CHARS));
                cells.extend(what);
                cells.extend([name(&goal.opponent()), plain(&goal.bounds())]);
            }
        }
        table.row(cells);
    }
    if !table.rows.is_empty() {
        section.text(format!(
            "{met} of {measured} goals that were measured are met. A ratio is median over median; behind it stand the \
             smallest and the greatest within one round."
        ));
        section.table(table);
    }
    section
}

fn write(goal: &Goal, value: f64) -> String {
    match unit_of(&goal.metric) {
        _ if !goal.against.is_empty() => times(value),
        "bytes" => with_unit(value, "bytes"),
        _ => number(value),
    }
}
