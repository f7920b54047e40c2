//! What the view shows, and what keys do to it.

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::Answer;
use super::sample::{History, Row};

/// How long the view says that the instance was restarted.
const NOTICE: Duration = Duration::from_secs(10);

/// Columns of the table, each of which can sort it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Forward,
    Up,
    Down,
    Spliced,
    Open,
    New,
    Connect,
    Errors,
}

impl Column {
    pub(super) const ALL: [Self; 8] =
        [Self::Forward, Self::Up, Self::Down, Self::Spliced, Self::Open, Self::New, Self::Connect, Self::Errors];

    /// What rows are sorted by, largest first; names are not sorted by a number.
    fn key(self, row: &Row) -> f64 {
        match self {
            Self::Forward => 0.0,
            Self::Up => row.up,
            Self::Down => row.down,
            Self::Spliced => row.spliced.unwrap_or(-1.0),
            Self::Open => row.open as f64,
            Self::New => row.new,
            Self::Connect => row.connect.map_or(-1.0, |(_, p99)| p99),
            Self::Errors => row.errors,
        }
    }
}

/// The state of the view.
#[derive(Debug)]
pub(super) struct App {
    /// Where it asks.
    pub(super) control: String,
    pub(super) history: History,
    /// Why there is no answer at present.
    pub(super) trouble: Option<String>,
    /// The instance is another one since then.
    pub(super) restarted: Option<Instant>,
    /// `None` leaves the order of the plan.
    pub(super) sort: Option<Column>,
    pub(super) reversed: bool,
    pub(super) selected: usize,
    pub(super) paused: bool,
    pub(super) help: bool,
    /// The targets of the chosen forward take the place of the chart.
    pub(super) targets: bool,
}

impl App {
    pub(super) fn new(control: String) -> Self {
        Self {
            control,
            history: History::default(),
            trouble: None,
            restarted: None,
            sort: None,
            reversed: false,
            selected: 0,
            paused: false,
            help: false,
            targets: false,
        }
    }

    /// Takes an answer; whether anything looks different now.
    pub(super) fn take(&mut self, answer: Answer, now: Instant) -> bool {
        if self.paused {
            return false;
        }
        match answer {
            Ok(sample) => {
                self.trouble = None;
                if self.history.push(sample) {
                    self.restarted = Some(now);
                }
            }
            Err(why) => self.trouble = Some(why),
        }
        self.restarted = self.restarted.filter(|at| now.duration_since(*at) < NOTICE);
        true
    }

    /// Forwards in the order they are shown.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = self.history.forwards();
        match self.sort {
            None => {}
            Some(Column::Forward) => rows.sort_by(|a, b| a.name.cmp(&b.name)),
            Some(column) => rows.sort_by(|a, b| column.key(b).total_cmp(&column.key(a))),
        }
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    /// Does what a key asks for; `false` when that is to leave.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let last = self.history.last().map_or(0, |stats| stats.forwards.len()).saturating_sub(1);
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.help = !self.help,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('t') => self.targets = !self.targets,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.min(last).saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected = (self.selected + 1).min(last),
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = last,
            KeyCode::Left | KeyCode::Char('<') => self.sort_next(Column::ALL.len()),
            KeyCode::Right | KeyCode::Char('>') => self.sort_next(1),
            _ => {}
        }
        true
    }

    /// Sorts by the column so many places on; the order of the plan is one place too.
    fn sort_next(&mut self, steps: usize) {
        let place = self.sort.and_then(|sort| Column::ALL.iter().position(|column| *column == sort));
        let place = (place.map_or(0, |place| place + 1) + steps) % (Column::ALL.len() + 1);
        self.sort = place.checked_sub(1).map(|place| Column::ALL[place]);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    /// A view that has watched process 1 for so many seconds.
    pub(in crate::top) fn watched(seconds: u64) -> App {
        let (mut app, start) = (App::new("/run/spliced/control.sock".to_owned()), Instant::now());
        for second in 0..seconds {
            assert!(app.take(Ok(sample(start, 1, second, 1000 * (second % 7))), start + Duration::from_secs(second)));
        }
        app
    }

    fn press(app: &mut App, code: KeyCode) -> bool {
        app.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut app = watched(3);
        assert!(press(&mut app, KeyCode::Char('h')) && app.help);
        assert!(press(&mut app, KeyCode::Esc) && !app.help);
        assert!(press(&mut app, KeyCode::Char('t')) && app.targets);
        assert!(press(&mut app, KeyCode::Char('t')) && !app.targets);
        assert!(press(&mut app, KeyCode::Down) && app.selected == 1);
        assert!(press(&mut app, KeyCode::Down) && app.selected == 1, "there are two");
        assert!(press(&mut app, KeyCode::Up) && app.selected == 0);
        assert!(!press(&mut app, KeyCode::Char('q')));
        assert!(!app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(press(&mut app, KeyCode::Char('x')), "any other key does nothing");
    }

    #[test]
    fn rows_are_sorted_by_the_chosen_column() {
        let mut app = watched(3);
        let names = |app: &App| app.rows().iter().map(|row| row.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&app), ["web", "data\\u{1b}base"], "the order of the plan");
        assert!(press(&mut app, KeyCode::Right));
        assert_eq!((app.sort, names(&app)[0].as_str()), (Some(Column::Forward), "data\\u{1b}base"));
        assert!(press(&mut app, KeyCode::Char('r')));
        assert_eq!(names(&app)[0], "web");
        assert!((0..4).all(|_| press(&mut app, KeyCode::Right)));
        assert_eq!((app.sort, names(&app)[0].as_str()), (Some(Column::Open), "web"));
        assert!((0..5).all(|_| press(&mut app, KeyCode::Left)) && app.sort.is_none());
        assert!(press(&mut app, KeyCode::Left) && app.sort == Some(Column::Errors));
    }

    #[test]
    fn a_pause_holds_the_figures_and_trouble_keeps_them() {
        let mut app = watched(3);
        let (start, up) = (Instant::now(), app.history.total().unwrap().up);
        assert!(press(&mut app, KeyCode::Char('p')) && app.paused);
        assert!(!app.take(Ok(sample(start, 1, 50, 1)), start));
        assert_eq!(app.history.total().unwrap().up, up);
        assert!(press(&mut app, KeyCode::Char(' ')) && !app.paused);
        assert!(app.take(Err("gone".to_owned()), start));
        assert_eq!((app.trouble.as_deref(), app.history.total().unwrap().up), (Some("gone"), up));
        assert!(app.take(Ok(sample(start, 2, 0, 1)), start));
        assert_eq!((app.trouble.as_deref(), app.restarted), (None, Some(start)));
        assert!(app.take(Ok(sample(start, 2, 1, 1)), start + NOTICE) && app.restarted.is_none());
    }
}
