//! Draws the view. Made for 80 × 24; more room shows more.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Clear, Paragraph, Row as TableRow, Sparkline, Table, TableState};

use super::app::{App, Column};
use super::figures::{bits, count, pair, share, time_up};
use super::sample::{Row, Stats, Worker};
use super::targets;

/// From this height on the selected forward is shown whole.
const TALL: u16 = 30;
/// From this width on first-byte times have a column.
const WIDE: u16 = 100;
/// Lines workers may take; further ones are put beside each other.
const WORKER_LINES: usize = 4;
/// Cells of a worker's bar.
const BAR: usize = 10;

const HELP: &str = "\
 ↑ ↓     choose a forward; a tall terminal shows it whole
 ← →     sort by another column, or in the order of the file
 r       reverse the order
 t       targets of the chosen forward in the place of the chart
 p       pause, and go on
 h       this help
 q       leave

 UP goes to the backend, DOWN to the client. SPL is the part of the
 bytes that went through a pipe. CONNECT is the median and the 99th
 percentile of the last 10 s; of UDP, datagrams/s. ERR/s counts sessions that failed: no
 backend reached, one that reset, a peer that vanished.";

/// Styles, with or without colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Palette {
    colour: bool,
}

impl Palette {
    pub(super) fn new(colour: bool) -> Self {
        Self { colour }
    }

    fn of(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn good(self) -> Style {
        self.of(Color::Green)
    }

    fn accent(self) -> Style {
        self.of(Color::Cyan)
    }

    pub(super) fn warning(self) -> Style {
        self.of(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    pub(super) fn bad(self) -> Style {
        self.of(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(super) fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, palette: Palette) {
    let area = frame.area();
    let notices = notices(app, palette);
    let workers = app.history.last().map_or(0, |stats| stats.workers.len());
    let columns = workers.div_ceil(WORKER_LINES).max(1);
    let rows = app.rows();
    let chosen = rows.get(app.selected.min(rows.len().saturating_sub(1))).filter(|_| app.targets);
    let heights = [
        Constraint::Length(2),
        Constraint::Length(notices.len() as u16),
        Constraint::Length(match chosen {
            Some(row) => targets::height(row),
            None if area.height >= TALL => 8,
            None => 5,
        }),
        Constraint::Fill(1),
        Constraint::Length(if area.height >= TALL { 8 } else { 0 }),
        Constraint::Length(workers.div_ceil(columns) as u16 + 2),
        Constraint::Length(1),
    ];
    let [head, notice, chart, table, details, foot, keys] = Layout::vertical(heights).areas(area);
    frame.render_widget(Paragraph::new(notices), notice);
    frame.render_widget(keys_line(palette), keys);
    if let Some(stats) = app.history.last() {
        frame.render_widget(Paragraph::new(head_lines(app, stats, palette)), head);
        match chosen {
            Some(row) => targets::draw(frame, row, chart, palette),
            None => draw_chart(frame, app, chart, palette),
        }
        draw_table(frame, app, &rows, table, palette);
        if let Some(row) = rows.get(app.selected).filter(|_| details.height > 0) {
            draw_details(frame, row, details, palette);
        }
        draw_workers(frame, app, stats, (foot, columns), palette);
    } else if app.trouble.is_none() {
        frame.render_widget(Paragraph::new(format!(" asking {} …", app.control)), head);
    }
    if app.help {
        draw_help(frame, area);
    }
}

fn notices(app: &App, palette: Palette) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(why) = &app.trouble {
        lines.push(Line::styled(format!(" no answer, trying again: {why}"), palette.bad()));
    }
    if app.restarted.is_some() {
        let pid = app.history.last().map_or(0, |stats| stats.pid);
        lines.push(Line::styled(format!(" another instance answers now, process {pid}"), palette.warning()));
    }
    match app.history.total().map_or(0, |total| total.stalled) {
        0 => {}
        1 => lines.push(Line::styled(" bytes of 1 session wait for a side that takes none", palette.warning())),
        n => lines
            .push(Line::styled(format!(" bytes of {n} sessions wait for a side that takes none"), palette.warning())),
    }
    let out: Vec<String> = app.history.forwards().iter().flat_map(out_of_service).collect();
    match out.as_slice() {
        [] => {}
        [one] => lines.push(Line::styled(format!(" target {one}"), palette.warning())),
        [first, rest @ ..] => lines
            .push(Line::styled(format!(" target {first}; {} more take no sessions", rest.len()), palette.warning())),
    }
    if app.paused {
        lines.push(Line::styled(" paused: p goes on", palette.warning()));
    }
    lines
}

/// The targets of a forward that take no sessions now.
fn out_of_service(row: &Row) -> Vec<String> {
    let out = row.targets.iter().filter(|(_, state, _)| state != "UP");
    out.map(|(target, state, _)| format!("{target} of {} is {state}", row.name)).collect()
}

fn head_lines(app: &App, stats: &Stats, palette: Palette) -> Vec<Line<'static>> {
    let state = if stats.draining { ("draining", palette.warning()) } else { ("serving", palette.good()) };
    let splice =
        if stats.engine_available.splice { ("splice", palette.good()) } else { ("no splice: copying", palette.bad()) };
    let cpus = app.history.cpus().map_or("–".to_owned(), |cpus| format!("{cpus:.2}"));
    let version = stats.version.escape_debug();
    let first = Line::from(vec![
        Span::styled(format!(" spliced {version}"), Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("  process {}  up {}  ", stats.pid, time_up(stats.uptime_seconds))),
        Span::styled(state.0, state.1),
        Span::raw("  "),
        Span::styled(splice.0, splice.1),
        Span::raw(format!("  CPUs {cpus}")),
    ]);
    let total = app.history.total().unwrap_or_default();
    let errors = if total.errors > 0.0 { palette.bad() } else { Style::new() };
    let second = vec![
        Span::styled(format!(" ↑ {}bit/s", bits(total.up)), palette.accent()),
        Span::styled(format!("  ↓ {}bit/s", bits(total.down)), palette.accent()),
        Span::raw(format!("  spliced {}", share(total.spliced))),
        Span::raw(format!("  sessions {} +{}/s  ", total.open, count(total.new))),
        Span::styled(format!("errors {}/s", count(total.errors)), errors),
    ];
    vec![first, Line::from(second)]
}

fn draw_chart(frame: &mut Frame<'_>, app: &App, area: Rect, palette: Palette) {
    let history = app.history.throughput();
    let peak = history.iter().max().copied().unwrap_or(0);
    let title = format!(" both ways, the last minute, peak {}bit/s ", bits(peak as f64));
    let block = Block::new().borders(Borders::TOP).title(title).border_style(palette.quiet());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    // Each second as wide as there is room for, the newest at the right.
    let wide = (usize::from(inner.width) / 60).max(1);
    let room = usize::from(inner.width);
    let cells: Vec<u64> = history.iter().flat_map(|rate| std::iter::repeat_n(*rate, wide)).collect();
    let cells = &cells[cells.len().saturating_sub(room)..];
    let padded: Vec<u64> = std::iter::repeat_n(0, room - cells.len()).chain(cells.iter().copied()).collect();
    frame.render_widget(Sparkline::default().data(padded).max(peak.max(1)).style(palette.accent()), inner);
}

fn draw_table(frame: &mut Frame<'_>, app: &App, rows: &[Row], area: Rect, palette: Palette) {
    let wide = area.width >= WIDE;
    let mut headings = [
        (Column::Forward, "FORWARD", Constraint::Fill(1)),
        (Column::Up, "UP bit/s", Constraint::Length(9)),
        (Column::Down, "DOWN bit/s", Constraint::Length(11)),
        (Column::Spliced, "SPL", Constraint::Length(5)),
        (Column::Open, "OPEN", Constraint::Length(6)),
        (Column::New, "NEW/s", Constraint::Length(6)),
        (Column::Connect, "CONNECT", Constraint::Length(12)),
        (Column::Errors, "ERR/s", Constraint::Length(6)),
    ];
    if !wide {
        headings[2].1 = "DOWN";
        headings[2].2 = Constraint::Length(7);
    }
    let mut widths: Vec<Constraint> = headings.iter().map(|(.., width)| *width).collect();
    let mut header: Vec<Cell<'_>> = headings
        .iter()
        .map(|(column, text, _)| {
            let mark = match (app.sort == Some(*column), app.reversed) {
                (false, _) => "",
                (true, false) => "▼",
                (true, true) => "▲",
            };
            let cell = Line::from(format!("{text}{mark}"));
            Cell::from(if *column == Column::Forward { cell } else { cell.right_aligned() })
        })
        .collect();
    if wide {
        header.push(Cell::from(Line::from("FIRST BYTE").right_aligned()));
        widths.push(Constraint::Length(12));
    }
    let body = rows.iter().map(|row| table_row(row, wide, palette));
    let table = Table::new(body, widths)
        .header(TableRow::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(Borders::TOP).border_style(palette.quiet()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(app.selected.min(rows.len().saturating_sub(1))));
    frame.render_stateful_widget(table, area, &mut state);
}

fn table_row(row: &Row, wide: bool, palette: Palette) -> TableRow<'static> {
    let number = |text: String, style: Style| Cell::from(Line::from(text).right_aligned()).style(style);
    let plain = Style::new();
    let name = if row.stalled > 0 { palette.warning() } else { plain };
    let errors = if row.errors > 0.0 { palette.bad() } else { plain };
    let mut cells = vec![
        Cell::from(row.name.clone()).style(name),
        number(bits(row.up), plain),
        number(bits(row.down), plain),
        number(share(row.spliced), plain),
        number(row.open.to_string(), plain),
        number(count(row.new), plain),
        number(targets::datagrams_in_short(row).unwrap_or_else(|| pair(row.connect)), plain),
        number(count(row.errors), errors),
    ];
    if wide {
        cells.push(number(pair(row.first_byte), plain));
    }
    TableRow::new(cells)
}

fn draw_details(frame: &mut Frame<'_>, row: &Row, area: Rect, palette: Palette) {
    let block = Block::new().borders(Borders::TOP).title(format!(" {} ", row.name)).border_style(palette.quiet());
    let listed = |counts: &[(String, u64)]| {
        let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    };
    let mut lines = vec![
        format!(" {} → {}  engine {}", row.listen, row.to, row.engine),
        format!(" ends       {}", listed(&row.ends)),
        format!(" fallbacks  {}", listed(&row.fallbacks)),
        format!(" connect    {}  first byte {}  (median/99 %)", pair(row.connect), pair(row.first_byte)),
    ];
    if !row.targets.is_empty() {
        let targets = row.targets.iter().map(|(target, state, open)| format!("{target} {state} {open}"));
        lines.push(format!(" targets    {}", targets.collect::<Vec<_>>().join(", ")));
    }
    if let Some(datagrams) = targets::datagrams(row) {
        lines.push(format!(" udp        {datagrams}: {}", listed(&row.drops)));
    }
    if row.stalled > 0 {
        lines.push(format!(" stalled    {} directions: the log names them", row.stalled));
    }
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_workers(frame: &mut Frame<'_>, app: &App, stats: &Stats, (area, columns): (Rect, usize), palette: Palette) {
    let block = Block::new().borders(Borders::TOP).title(" workers ").border_style(palette.quiet());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [workers, pipes] = Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(inner);
    let busy = app.history.busy();
    let each = stats.workers.iter().zip(&busy).map(|(worker, busy)| worker_line(worker, *busy, palette));
    let lines: Vec<Line<'_>> = each.collect();
    let parts = Layout::horizontal(vec![Constraint::Fill(1); columns]).split(workers);
    let a_column = lines.len().div_ceil(columns).max(1);
    for (part, lines) in parts.iter().zip(lines.chunks(a_column)) {
        frame.render_widget(Paragraph::new(lines.to_vec()), *part);
    }
    let p = stats.pipes;
    let size = crate::control::human(p.size_bytes);
    let text = format!(" pipes  {} hold bytes, {} pooled, {} allowed, up to {size} each", p.in_use, p.pooled, p.budget);
    let full = p.budget > 0 && p.in_use >= p.budget;
    frame.render_widget(Paragraph::new(text).style(if full { palette.warning() } else { Style::new() }), pipes);
}

fn worker_line(worker: &Worker, busy: Option<f64>, palette: Palette) -> Line<'static> {
    let part = busy.unwrap_or(0.0);
    let filled = (part * BAR as f64).round() as usize;
    let style = match part {
        part if part >= 0.9 => palette.bad(),
        part if part >= 0.7 => palette.warning(),
        _ => palette.good(),
    };
    let mut spans = vec![
        Span::raw(format!(" {:>3} ", worker.id)),
        Span::styled("█".repeat(filled), style),
        Span::styled("░".repeat(BAR.saturating_sub(filled)), palette.quiet()),
        Span::raw(format!(" {:>4}  {} sessions", share(busy), worker.sessions_open)),
    ];
    if let Some(cpu) = worker.cpu {
        spans.push(Span::styled(format!("  CPU {cpu}"), palette.quiet()));
    }
    if worker.accept_paused {
        spans.push(Span::styled("  not accepting", palette.warning()));
    }
    if worker.state != "running" {
        spans.push(Span::styled(format!("  {}", worker.state.escape_debug()), palette.bad()));
    }
    Line::from(spans)
}

fn keys_line(palette: Palette) -> Paragraph<'static> {
    let keys = [
        ("q", "leave"),
        ("↑↓", "choose"),
        ("←→", "sort"),
        ("r", "reverse"),
        ("t", "targets"),
        ("p", "pause"),
        ("h", "help"),
    ];
    let spans = keys.iter().flat_map(|(key, what)| {
        [
            Span::styled(format!(" {key} "), Style::new().add_modifier(Modifier::REVERSED)),
            Span::raw(format!(" {what}  ")),
        ]
    });
    Paragraph::new(Line::from(spans.collect::<Vec<_>>())).style(palette.quiet())
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (72.min(area.width), 15.min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" help ")), place);
}

#[cfg(test)]
mod tests;
