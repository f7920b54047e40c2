//! One second's figures as text, for where there is no terminal to draw on.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::ask;
use super::figures::{bits, count, pair, share, time_up};
use super::sample::History;
use super::targets;
use crate::ab::Table;

/// Asks twice, `interval` apart, and prints what happened in between.
///
/// # Errors
/// When nobody answers, or standard output fails.
pub(super) fn once(control: &Path, interval: Duration) -> io::Result<()> {
    let mut history = History::default();
    history.push(ask(control).map_err(io::Error::other)?);
    thread::sleep(interval);
    history.push(ask(control).map_err(io::Error::other)?);
    let mut stdout = io::stdout().lock();
    stdout.write_all(text(&history).as_bytes())?;
    stdout.flush()
}

fn text(history: &History) -> String {
    let (Some(stats), Some(total)) = (history.last(), history.total()) else { return String::new() };
    let mut out = String::new();
    let state = if stats.draining { "draining" } else { "serving" };
    let cpus = history.cpus().map_or("–".to_owned(), |cpus| format!("{cpus:.2}"));
    let (version, up) = (stats.version.escape_debug(), time_up(stats.uptime_seconds));
    let _ = writeln!(out, "spliced {version}, process {}, up {up}, {state}, CPUs {cpus}", stats.pid);
    let mut table =
        Table::new(["forward", "up bit/s", "down bit/s", "spliced", "open", "new/s", "connect", "errors/s", "stalled"]);
    let mut rows = history.forwards();
    if rows.len() > 1 {
        rows.push(total);
    }
    for row in rows {
        table.row([
            row.name,
            bits(row.up),
            bits(row.down),
            share(row.spliced),
            row.open.to_string(),
            count(row.new),
            pair(row.connect),
            count(row.errors),
            row.stalled.to_string(),
        ]);
    }
    let _ = write!(out, "{table}");
    for target in history.forwards().iter().flat_map(targets::lines) {
        let _ = writeln!(out, "target {target}");
    }
    for row in history.forwards() {
        if let Some(datagrams) = targets::datagrams(&row) {
            let _ = writeln!(out, "udp {}: {datagrams}", row.name);
        }
    }
    let busy: Vec<String> = history.busy().into_iter().map(share).collect();
    let pipes = stats.pipes;
    let _ = writeln!(out, "workers busy {}", busy.join(" "));
    let _ = writeln!(out, "pipes {} hold bytes, {} pooled, {} allowed", pipes.in_use, pipes.pooled, pipes.budget);
    out
}
