//! What the view looks like, cell by cell.

use std::time::Instant;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::app::tests::watched;
use super::super::figures::time;
use super::super::sample::tests::sample;
use super::*;

fn screen(app: &App, width: u16, height: u16, colour: bool) -> (Vec<String>, bool) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, Palette::new(colour))).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    let coloured = buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
    ((0..height).map(line).collect(), coloured)
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[test]
fn everything_fits_80_by_24() {
    let (lines, coloured) = screen(&watched(60), 80, 24, true);
    let text = lines.join("\n");
    for part in [
        " spliced 0.1.0  process 1  up 1h 02m  serving  splice  CPUs 0.50",
        "  spliced 75%  sessions 14 +100/s  errors 5.00/s",
        " bytes of 1 session wait for a side that takes none",
        " target 10.0.0.3:9001 of data\\u{1b}base is DOWN",
        " both ways, the last minute, peak ",
        "FORWARD",
        "UP bit/s",
        "CONNECT",
        "data\\u{1b}base",
        "181µs/2.9ms",
        "   1 ███░░░░░░░  25%  5 sessions  CPU 1  not accepting",
        "   2 █████░░░░░  50%  5 sessions  CPU 2  panicked",
        " pipes  3 hold bytes, 2 pooled, 128 allowed, up to 1.00 MiB each",
    ] {
        assert!(has(&lines, part), "{part} is missing in\n{text}");
    }
    let row = lines.iter().find(|line| line.starts_with("web")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells.len(), 8, "{row}");
    assert_eq!((cells[4], cells[5], cells[7]), ("7", "100", "5.00"), "{row}");
    assert!(lines[23].starts_with(" q  leave"), "{text}");
    assert!(coloured && !has(&lines, "10.0.0.2"), "no room for details\n{text}");
}

#[test]
fn a_large_terminal_shows_the_chosen_forward() {
    let mut app = watched(60);
    app.selected = 1;
    let (lines, _) = screen(&app, 120, 40, true);
    let text = lines.join("\n");
    for part in [
        " data\\u{1b}base ",
        " 127.0.0.1:9000 → 10.0.0.2:9001, 10.0.0.3:9001  engine auto",
        " ends       done 5605, refused 295",
        " fallbacks  budget_exhausted 3",
        " targets    10.0.0.2:9001 UP 3, 10.0.0.3:9001 DOWN 3, db.example:9001 (10.0.0.9:9001) GONE 3",
        " udp        14 flows, datagrams 1.20k/s up, 30.0/s down, 4 dropped: limit 4",
        " stalled    1 directions",
        "FIRST BYTE",
        "DOWN bit/s",
    ] {
        assert!(has(&lines, part), "{part} is missing in\n{text}");
    }
}

#[test]
fn targets_and_datagrams_of_the_chosen_forward_fit_80_columns() {
    let mut app = watched(60);
    (app.targets, app.selected) = (true, 1);
    let (lines, _) = screen(&app, 80, 24, true);
    let text = lines.join("\n");
    for part in [
        " targets of data\\u{1b}base ",
        " udp: 14 flows, datagrams 1.20k/s up, 30.0/s down, 4 dropped",
        " 10.0.0.2:9001 ",
        " db.example:9001 (10.0.0.9:9001) ",
        "1.20k↑30.0↓",
    ] {
        assert!(has(&lines, part), "{part} is missing in\n{text}");
    }
    let state = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(&format!(" {name}"))).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().rev().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        (state("10.0.0.3:9001"), state("db.example:9001")),
        (vec!["3".into(), "DOWN".into()], vec!["3".into(), "GONE".into()])
    );
    assert!(has(&lines, " q  leave") && has(&lines, "FORWARD"), "{text}");
    app.selected = 0;
    assert!(has(&screen(&app, 80, 24, true).0, " targets of web "), "one without datagrams");
}

#[test]
fn without_colour_nothing_is_lost() {
    let app = watched(60);
    let (coloured, plain) = (screen(&app, 80, 24, true), screen(&app, 80, 24, false));
    assert_eq!((coloured.0, true), (plain.0, coloured.1));
    assert!(!plain.1);
}

#[test]
fn the_sorted_column_is_marked() {
    let mut app = watched(3);
    app.sort = Some(Column::Open);
    assert!(has(&screen(&app, 80, 24, true).0, " OPEN▼"));
    app.reversed = true;
    assert!(has(&screen(&app, 80, 24, true).0, " OPEN▲"));
}

#[test]
fn trouble_pause_and_restart_are_said_and_the_figures_stay() {
    let mut app = watched(10);
    assert!(app.take(Err("control socket: gone".to_owned()), Instant::now()));
    app.paused = true;
    let (lines, _) = screen(&app, 80, 24, true);
    assert!(has(&lines, " no answer, trying again: control socket: gone") && has(&lines, " paused"), "{lines:#?}");
    assert!(has(&lines, "181µs/2.9ms"));
    app.paused = false;
    assert!(app.take(Ok(sample(Instant::now(), 77, 0, 1)), Instant::now()));
    let (lines, _) = screen(&app, 80, 24, true);
    assert!(has(&lines, "another instance answers now, process 77") && !has(&lines, "no answer"), "{lines:#?}");
}

#[test]
fn before_the_first_answer_it_says_what_it_waits_for() {
    let mut app = App::new("/run/x.sock".to_owned());
    assert!(has(&screen(&app, 80, 24, true).0, " asking /run/x.sock"));
    assert!(app.take(Err("nobody".to_owned()), Instant::now()));
    assert!(has(&screen(&app, 80, 24, true).0, " no answer, trying again: nobody"));
}

#[test]
fn the_help_covers_what_is_below() {
    let mut app = watched(3);
    app.help = true;
    let (lines, _) = screen(&app, 80, 24, true);
    assert!(has(&lines, "┌ help ─") && has(&lines, "sort by another column") && has(&lines, "vanished."), "{lines:#?}");
}

/// Any size a terminal can have, also while it is being made smaller.
#[test]
fn no_size_panics() {
    let mut app = watched(60);
    for help in [false, true] {
        app.help = help;
        for (width, height) in [(1, 1), (2, 30), (10, 3), (79, 23), (80, 24), (300, 100), (40, 12)] {
            let _ = screen(&app, width, height, true);
        }
    }
}

#[test]
fn numbers_are_short() {
    for (value, text) in [(0.0, "0"), (0.5, "4.00"), (1250.0, "10.0k"), (124.9e6, "999M"), (1.25e9, "10.0G")] {
        assert_eq!(bits(value), text);
    }
    for (seconds, text) in
        [(0.000_181, "181µs"), (0.002_9, "2.9ms"), (0.05, "50ms"), (0.999_9, "1.0s"), (12.0, "12.0s"), (500.0, "500s")]
    {
        assert_eq!(time(seconds), text);
    }
    for (seconds, text) in [(59.9, "59s"), (303.0, "5m 03s"), (3_725.0, "1h 02m"), (273_600.0, "3d 04h")] {
        assert_eq!(time_up(seconds), text);
    }
}
