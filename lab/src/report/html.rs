//! A document as one HTML file that needs nothing else: style, charts and shapes are inside, no script, no network.

use super::chart::shapes;
use super::document::{Block, Document, Section, Table};
use super::text::html as escape;

/// Colours, sizes, light and dark.
const STYLE: &str = include_str!("style.css");
/// Whatever a name could smuggle in: nothing may be loaded and no script may run.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The whole page.
pub(super) fn render(document: &Document) -> String {
    let title = escape(&document.title);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n{}<main>\n<header>\n<h1>{title}</h1>\n<p class=\"lead\">{}</p>\n{}</header>\n",
        shapes(),
        escape(&document.lead),
        contents(&document.sections),
    );
    out.push_str(&verdicts(document));
    let mut ids = 0;
    for (at, section) in document.sections.iter().enumerate() {
        out.push_str(&format!("<section id=\"s{at}\">\n<h2>{}</h2>\n", escape(&section.title)));
        for block in &section.blocks {
            out.push_str(&render_block(block, &mut ids));
        }
        out.push_str("</section>\n");
    }
    out + "</main>\n</body>\n</html>\n"
}

fn contents(sections: &[Section]) -> String {
    let link = |(at, section): (usize, &Section)| format!("<li><a href=\"#s{at}\">{}</a></li>", escape(&section.title));
    let links: String = sections.iter().enumerate().map(link).collect();
    format!("<nav aria-label=\"Contents\"><ul>{links}</ul></nav>\n")
}

fn verdicts(document: &Document) -> String {
    if document.verdicts.is_empty() {
        return String::new();
    }
    let item = |verdict: &super::document::Verdict| {
        let (class, word) = (verdict.tone.class(), verdict.tone.word());
        let figure = verdict.figure.as_deref().unwrap_or_default();
        format!(
            "<li class=\"{class}\"><b class=\"figure\">{}</b><span class=\"tone\">{word}</span><span>{}</span></li>\n",
            escape(figure),
            escape(&verdict.sentence)
        )
    };
    let items: String = document.verdicts.iter().map(item).collect();
    format!("<section class=\"verdicts\">\n<h2>In short</h2>\n<ul>\n{items}</ul>\n</section>\n")
}

fn render_block(block: &Block, ids: &mut usize) -> String {
    match block {
        Block::Heading(text) => format!("<h3>{}</h3>\n", escape(text)),
        Block::Text(text) => format!("<p>{}</p>\n", escape(text)),
        Block::List(items) => {
            let items: String = items.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect();
            format!("<ul>\n{items}</ul>\n")
        }
        Block::Table(table) => render_table(table, false),
        Block::Folded(table) => {
            let (summary, rows) = (escape(&table.caption), table.rows.len());
            let body = render_table(table, true);
            format!("<details>\n<summary>{summary} <small>({rows} rows)</small></summary>\n{body}</details>\n")
        }
        Block::Charts(charts) => {
            let mut draw = |chart: &super::chart::Chart| {
                *ids += 1;
                chart.figure(&format!("c{ids}"))
            };
            let figures: String = charts.iter().map(&mut draw).collect();
            format!("<div class=\"charts\">\n{figures}</div>\n")
        }
    }
}

/// A table in a box of its own that scrolls sideways where it is too wide.
fn render_table(table: &Table, folded: bool) -> String {
    let class = |number: bool| if number { " class=\"number\"" } else { "" };
    let head = table.head.iter().map(|c| format!("<th scope=\"col\"{}>{}</th>", class(c.number), escape(&c.title)));
    let row = |cells: &Vec<String>| {
        let cell = |(at, cell): (usize, &String)| match table.head.get(at) {
            _ if at == 0 => format!("<th scope=\"row\">{}</th>", escape(cell)),
            column => format!("<td{}>{}</td>", class(column.is_some_and(|c| c.number)), escape(cell)),
        };
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
    };
    let caption = match table.caption.as_str() {
        "" => String::new(),
        _ if folded => String::new(),
        text => format!("<caption>{}</caption>\n", escape(text)),
    };
    let label = if table.caption.is_empty() { "Table".to_owned() } else { escape(&table.caption) };
    format!(
        "<div class=\"table\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\">\n<table>\n{caption}<thead><tr>{}</tr></thead>\n\
         <tbody>\n{}</tbody>\n</table>\n</div>\n",
        head.collect::<String>(),
        table.rows.iter().map(row).collect::<String>()
    )
}
