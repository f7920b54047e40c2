//! A document as Markdown, with tables that also read well as plain text.

use super::document::{Block, Document, Table};
use super::text::markdown as escape;

/// The whole document.
pub(super) fn render(document: &Document) -> String {
    let mut out = format!("# {}\n\n{}\n", escape(&document.title), escape(&document.lead));
    if !document.verdicts.is_empty() {
        out.push_str("\n## In short\n\n");
        for verdict in &document.verdicts {
            let figure = verdict.figure.as_ref().map(|f| format!(" **{}**", escape(f))).unwrap_or_default();
            out.push_str(&format!("- {}:{figure} {}\n", verdict.tone.word(), escape(&verdict.sentence)));
        }
    }
    for section in &document.sections {
        out.push_str(&format!("\n## {}\n", escape(&section.title)));
        for block in &section.blocks {
            out.push_str(&render_block(block));
        }
    }
    out
}

fn render_block(block: &Block) -> String {
    match block {
        Block::Heading(text) => format!("\n### {}\n", escape(text)),
        Block::Text(text) => format!("\n{}\n", escape(text)),
        Block::List(items) => {
            let items: String = items.iter().map(|item| format!("- {}\n", escape(item))).collect();
            format!("\n{items}")
        }
        Block::Table(table) | Block::Folded(table) => render_table(table),
        // Markdown has no charts of its own; the table after them holds the same numbers.
        Block::Charts(_) => String::new(),
    }
}

/// Widest column that is padded; longer cells just stick out.
const PADDED_CHARS: usize = 40;

fn render_table(table: &Table) -> String {
    let head: Vec<String> = table.head.iter().map(|column| escape(&column.title)).collect();
    let rows: Vec<Vec<String>> = table.rows.iter().map(|row| row.iter().map(|cell| escape(cell)).collect()).collect();
    let width = |at: usize| {
        let cells = std::iter::once(&head).chain(&rows).filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count().min(PADDED_CHARS)).max().unwrap_or(0).max(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut line = String::from("|");
        for ((cell, width), column) in cells.iter().zip(&widths).zip(&table.head) {
            let cell = if column.number { format!(" {cell:>width$} |") } else { format!(" {cell:<width$} |") };
            line.push_str(&cell);
        }
        line + "\n"
    };
    let rule = |(width, number): (&usize, bool)| {
        let dashes = "-".repeat(width - usize::from(number));
        if number { format!(" {dashes}: |") } else { format!(" {dashes} |") }
    };
    let rules: String = widths.iter().zip(table.head.iter().map(|c| c.number)).map(rule).collect();
    let body: String = rows.iter().map(|row| line(row)).collect();
    let caption = if table.caption.is_empty() { String::new() } else { format!("{}:\n\n", escape(&table.caption)) };
    format!("\n{caption}{}|{rules}\n{body}", line(&head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_its_columns_whatever_is_in_the_cells() {
        let mut table = Table::new("odd").words("arm").numbers("a|b");
        table.row(vec!["x|y\nz".into(), "1".into()]);
        table.row(vec!["é".repeat(100)]);
        let text = render_table(&table);
        for line in text.lines().filter(|line| line.starts_with('|')) {
            let bars = line.char_indices().filter(|(at, c)| *c == '|' && !line[..*at].ends_with('\\')).count();
            assert_eq!(bars, 3, "{line}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with('|')).count(), 4);
    }
}
