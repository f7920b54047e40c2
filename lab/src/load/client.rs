//! The client's side of our own generators: threads that get ready, run for a while, and report.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use mio::Waker;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use spliced::ab::role::{answer, commands, say};

use super::engine::{Engine, Work, now};
use super::latency::Times;

/// How long connections may take to get ready, and to finish what is under way.
const PATIENCE: Duration = Duration::from_secs(20);
/// Errors of connections that are kept word by word.
const KEPT: usize = 5;

const SETUP: u8 = 0;
const RUN: u8 = 1;
const STOP: u8 = 2;

/// Work that is measured.
pub(super) trait Client: Work + Send + Sized + 'static
where
    Self::Session: Send,
{
    /// Begins or ends the window; what was measured before it begins is forgotten.
    fn run(&mut self, running: bool);

    /// What was measured. The connections go on.
    fn take(&mut self) -> Tally;

    /// Connections to be made only when the window begins.
    fn open_late(engine: &mut Engine<Self>) {
        let _ = engine;
    }
}

/// What one thread measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Exchanges, connections or chunks within the window.
    pub(super) done: u64,
    /// Bytes of each bulk stream.
    pub(super) stream_bytes: Vec<u64>,
    /// Time of each.
    pub(super) times: Times,
    /// A second time of each: from the server's sending to our receiving a chunk.
    pub(super) delays: Times,
    /// From connecting to the first byte.
    pub(super) first_bytes: Times,
    /// Errors of connections.
    pub(super) errors: Errors,
}

/// Errors, the first of them in full.
#[derive(Debug, Clone, Default)]
pub(super) struct Errors {
    pub(super) count: u64,
    pub(super) kept: Vec<String>,
}

impl Errors {
    pub(super) fn add(&mut self, error: &io::Error) {
        self.count += 1;
        if self.kept.len() < KEPT {
            self.kept.push(error.to_string());
        }
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.kept.extend(other.kept);
        self.kept.truncate(KEPT);
    }
}

impl Tally {
    fn merge(&mut self, other: Self) {
        self.done += other.done;
        self.stream_bytes.extend(other.stream_bytes);
        self.times.add(&other.times);
        self.delays.add(&other.delays);
        self.first_bytes.add(&other.first_bytes);
        self.errors.merge(other.errors);
    }
}

/// The window of a generator as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// From its begin until the last connection had finished what was under way.
    pub seconds: f64,
    /// Share of the time its threads were busy, 0 to 1: near 1 the generator is the limit.
    pub busy_share: f64,
    /// Connections that broke.
    pub errors: u64,
    /// The first of their errors.
    pub first_errors: Vec<String>,
}

struct Control {
    phase: AtomicU8,
    wakers: Vec<Arc<Waker>>,
}

impl Control {
    fn enter(&self, phase: u8) -> io::Result<()> {
        self.phase.store(phase, Ordering::Release);
        self.wakers.iter().try_for_each(|waker| waker.wake())
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }
}

enum News {
    Ready,
    Done(Box<Tally>),
    Failed(io::Error),
}

/// Runs engines, one thread each, through the commands of standard input: says `ready` once every connection is, runs
/// the window on `go`, prints what `report` makes of it, and keeps the connections until standard input closes.
pub(super) fn run<C: Client, R: Serialize>(
    engines: Vec<Engine<C>>,
    seconds: Duration,
    report: impl FnOnce(Tally, Window) -> R,
) -> io::Result<()>
where
    C::Session: Send,
{
    let commands = commands()?;
    let count = engines.len();
    let wakers = engines.iter().map(Engine::waker).collect();
    let control = Arc::new(Control { phase: AtomicU8::new(SETUP), wakers });
    let (tell, news) = channel();
    for engine in engines {
        let (control, tell) = (Arc::clone(&control), tell.clone());
        let body = move || {
            if let Err(error) = drive(engine, &control, &tell) {
                // Nobody listens any more once another thread has failed.
                let _ = tell.send(News::Failed(error));
            }
        };
        thread::Builder::new().name("load".into()).spawn(body)?;
    }
    collect(&news, count)?;
    say("ready")?;
    await_go(&commands)?;
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    control.enter(RUN)?;
    // A further command, or the end of them, ends the window early.
    let _ = commands.recv_timeout(seconds);
    control.enter(STOP)?;
    let tally = collect(&news, count)?;
    let elapsed = begun.elapsed().as_secs_f64();
    let window = Window {
        seconds: elapsed,
        busy_share: ((cpu_seconds() - cpu) / (elapsed * count as f64)).clamp(0.0, 1.0),
        errors: tally.errors.count,
        first_errors: tally.errors.kept.clone(),
    };
    answer(&report(tally, window))?;
    // The process leaves with the end of standard input.
    while commands.recv().is_ok() {}
    Ok(())
}

/// Waits for the word.
pub(super) fn await_go(commands: &Receiver<String>) -> io::Result<()> {
    match commands.recv() {
        Ok(command) if command == "go" => Ok(()),
        Ok(other) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("unknown command {other:?}"))),
        Err(_) => Err(io::Error::other("standard input closed")),
    }
}

fn collect(news: &Receiver<News>, count: usize) -> io::Result<Tally> {
    let mut all = Tally::default();
    for _ in 0..count {
        match news.recv() {
            Ok(News::Ready) => {}
            Ok(News::Done(tally)) => all.merge(*tally),
            Ok(News::Failed(error)) => return Err(error),
            Err(_) => return Err(io::Error::other("a thread ended without a word")),
        }
    }
    Ok(all)
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    time.map_or(0.0, |time| time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

fn drive<C: Client>(mut engine: Engine<C>, control: &Control, tell: &Sender<News>) -> io::Result<()>
where
    C::Session: Send,
{
    settle(&mut engine)?;
    let errors = engine.work.take().errors;
    if let Some(first) = errors.kept.first() {
        return Err(io::Error::other(format!("{} connections failed before the start: {first}", errors.count)));
    }
    let _ = tell.send(News::Ready);
    while control.phase() == SETUP {
        engine.turn(None)?;
    }
    engine.work.run(true);
    C::open_late(&mut engine);
    engine.kick();
    while control.phase() == RUN {
        engine.turn(None)?;
    }
    engine.work.run(false);
    engine.kick();
    settle(&mut engine)?;
    let _ = tell.send(News::Done(Box::new(engine.work.take())));
    loop {
        engine.turn(None)?;
    }
}

/// Lets every connection come to rest.
fn settle<W: Work>(engine: &mut Engine<W>) -> io::Result<()> {
    let until = now() + PATIENCE.as_nanos() as u64;
    while !engine.all_parked() {
        if now() > until {
            let what = format!("connections did not come to rest within {} s", PATIENCE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        engine.turn(Some(until))?;
    }
    Ok(())
}
