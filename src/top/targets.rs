//! Where sessions of a forward go, and its datagrams, in the view and in the text.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table};

use super::figures::count;
use super::sample::Row;
use super::view::Palette;

/// Most lines the pane takes: a small terminal has 24.
const MOST_LINES: usize = 9;

/// Lines the pane wants, its title included.
pub(super) fn height(row: &Row) -> u16 {
    let lines = 2 + row.targets.len() + usize::from(row.datagrams.is_some());
    lines.clamp(5, MOST_LINES) as u16
}

/// Draws each address of the targets, with the name it is configured by, its state and its open sessions.
pub(super) fn draw(frame: &mut Frame<'_>, row: &Row, area: Rect, palette: Palette) {
    let said = datagrams(row).map(|datagrams| format!(" udp: {datagrams}"));
    let [area, last] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(u16::from(said.is_some()))]).areas(area);
    if let Some(said) = said {
        frame.render_widget(Paragraph::new(said), last);
    }
    let title = format!(" targets of {} ", row.name);
    let room = usize::from(area.height.saturating_sub(2));
    let hidden = row.targets.len().saturating_sub(room);
    // The last line says how many there are beyond.
    let shown = if hidden > 0 { room.saturating_sub(1) } else { row.targets.len() };
    let mut lines: Vec<TableRow<'_>> = row.targets.iter().take(shown).map(|target| line(target, palette)).collect();
    if hidden > 0 {
        lines.push(TableRow::new([Cell::from(format!(" and {} more: spliced stats", row.targets.len() - shown))]));
    }
    let header = ["TARGET", "STATE", "OPEN"].map(Cell::from);
    let table = Table::new(lines, [Constraint::Fill(1), Constraint::Length(10), Constraint::Length(8)])
        .header(TableRow::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(Borders::TOP).title(title).border_style(palette.quiet()));
    frame.render_widget(table, area);
}

fn line((target, state, open): &(String, String, u64), palette: Palette) -> TableRow<'static> {
    let style = if state == "UP" { palette.good() } else { palette.warning() };
    TableRow::new([
        Cell::from(format!(" {target}")),
        Cell::from(state.clone()).style(style),
        Cell::from(Line::from(open.to_string())),
    ])
}

/// Flows, datagrams a second and drops of a forward that has datagrams.
pub(super) fn datagrams(row: &Row) -> Option<String> {
    let (up, down) = row.datagrams?;
    let drops: u64 = row.drops.iter().map(|(_, n)| n).sum();
    Some(format!("{} flows, datagrams {}/s up, {}/s down, {drops} dropped", row.open, count(up), count(down)))
}

/// The same for the column that has connect times of streams: never wider than that one.
pub(super) fn datagrams_in_short(row: &Row) -> Option<String> {
    row.datagrams.map(|(up, down)| format!("{}↑{}↓", count(up), count(down)))
}

/// Each target in words, where there is more to say than that there is one that works.
pub(super) fn lines(row: &Row) -> Vec<String> {
    let plain = |(target, state, _): &(String, String, u64)| state == "UP" && !target.contains(' ');
    if row.targets.len() == 1 && row.targets.iter().all(plain) {
        return Vec::new();
    }
    let line =
        |(target, state, open): &(String, String, u64)| format!("{target} of {} is {state}, {open} open", row.name);
    row.targets.iter().map(line).collect()
}
