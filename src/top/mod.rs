//! `spliced top`: what a running instance does, live, in the terminal.
//!
//! One thread asks the control socket once a second, the other draws and reads keys: an instance that does not answer
//! never keeps a key waiting. Everything shown is worked out from two answers, so that any number of viewers cost an
//! instance one answer a second each and nothing else.

mod app;
mod figures;
mod plain;
mod sample;
mod targets;
mod view;

use std::io::{self, IsTerminal};
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use serde::Deserialize;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};

use self::app::App;
use self::sample::Sample;
use self::view::Palette;
use crate::control;

/// Between two questions to the instance.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a signal may wait to be seen.
const LOOK: Duration = Duration::from_millis(200);

/// `spliced top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// The control socket of the instance
    #[arg(long, value_name = "PATH", default_value = control::DEFAULT_CONTROL, value_parser = NonEmptyStringValueParser::new())]
    pub control: String,
    /// Print one second's figures as text and leave; also without a terminal to draw on
    #[arg(long)]
    pub once: bool,
}

/// An answer of the instance, or why there is none, in one line.
type Answer = Result<Sample, String>;

/// Shows the instance behind the control socket until a key or a signal ends it.
///
/// # Errors
/// The terminal fails; with `--once`, also when the instance does not answer.
pub fn run(args: &TopArgs) -> io::Result<()> {
    let control = PathBuf::from(&args.control);
    if args.once || !io::stdout().is_terminal() {
        return plain::once(&control, INTERVAL);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut app = App::new(control.display().to_string());
    // Dropping the sender ends the thread that asks.
    let (_asking, stopped) = mpsc::channel::<()>();
    let answers = keep_asking(control, stopped)?;
    // To be asked now: one that is gone is no terminal any more.
    let on_stdin = io::stdin().is_terminal();
    let result = ratatui::try_init().and_then(|terminal| {
        // Dropping it panics where the terminal is gone, and standard error with it.
        let mut terminal = ManuallyDrop::new(terminal);
        let result = show(&mut terminal, &mut app, &answers, Palette::new(colour), on_stdin, &stop);
        let _ = terminal.show_cursor();
        result
    });
    // A terminal that is gone takes no message about that either.
    let _ = ratatui::try_restore();
    result
}

fn show(
    terminal: &mut DefaultTerminal,
    app: &mut App,
    answers: &Receiver<Answer>,
    palette: Palette,
    on_stdin: bool,
    stop: &AtomicBool,
) -> io::Result<()> {
    terminal.draw(|frame| view::draw(frame, app, palette))?;
    while !stop.load(Ordering::Relaxed) {
        let mut changed = false;
        if !wait_for_keys(on_stdin)? {
            return Ok(());
        }
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if !app.key(key) => return Ok(()),
                Event::Key(_) | Event::Resize(..) => changed = true,
                _ => {}
            }
        }
        for answer in answers.try_iter() {
            changed |= app.take(answer, Instant::now());
        }
        if changed {
            terminal.draw(|frame| view::draw(frame, app, palette))?;
        }
    }
    Ok(())
}

/// Waits for a key, a signal or a short time; `false` when the terminal is gone. Who reads the keys would try for ever
/// then, without a pause and without a look at what a signal has said.
fn wait_for_keys(on_stdin: bool) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut keys = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let mut wait = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    // A signal may well say that the terminal is gone.
    while let Err(errno) = poll(&mut keys, wait) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
        wait = PollTimeout::ZERO;
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok(!on_stdin || !keys[0].revents().is_some_and(|events| events.intersects(gone)))
}

/// Asks on a thread of its own until the other end of `stopped` is gone.
fn keep_asking(control: PathBuf, stopped: Receiver<()>) -> io::Result<Receiver<Answer>> {
    let (say, answers) = mpsc::sync_channel(4);
    thread::Builder::new().name("ask".to_owned()).spawn(move || {
        loop {
            let begun = Instant::now();
            if say.send(ask(&control)).is_err() {
                return;
            }
            let wait = INTERVAL.saturating_sub(begun.elapsed());
            if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    })?;
    Ok(answers)
}

/// One answer, with the time it came.
fn ask(control: &Path) -> Answer {
    let text = control::ask(control, "stats").map_err(|error| error.to_string())?;
    let not_understood = |error: serde_json::Error| format!("{}: answer not understood: {error}", control.display());
    let value: serde_json::Value = serde_json::from_str(&text).map_err(not_understood)?;
    if let Some(error) = value.get("error").and_then(serde_json::Value::as_str) {
        return Err(format!("{}: {}", control.display(), error.escape_debug()));
    }
    let stats = sample::Stats::deserialize(value).map_err(not_understood)?;
    Ok(Sample { at: Instant::now(), stats })
}
