//! The session log: one line per finished session, written by a thread of its own.
//!
//! Workers hand over batches with `try_send` and count what does not fit: a slow terminal, a full disk or a stopped
//! reader costs lines, never a byte of a session.

mod format;
mod sink;
mod stderr;
#[cfg(test)]
mod tests;
mod throttle;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use crate::panics::{self, Helper};
use crate::plan::{LogFormat, Plan};
use crate::sandbox::{self, Role};
use crate::stats::SessionRecord;
use format::Formatter;
use sink::Sink;
pub use stderr::Stderr;
use throttle::{Throttle, Verdict};

/// Batches that may wait for the log thread.
const QUEUE: usize = 256;
/// Batches written with one write.
const BATCHES_PER_WRITE: usize = 64;
/// How long the end of the process waits for lines to be written.
const FINISH_LIMIT: Duration = Duration::from_secs(2);
/// From a panic to the next try meanwhile.
const LAST_PAUSE: Duration = Duration::from_millis(10);

/// The running session log.
#[derive(Debug)]
pub struct SessionLog {
    sender: Option<SyncSender<Vec<SessionRecord>>>,
    finished: Option<Receiver<()>>,
    file: Option<PathBuf>,
    shared: Arc<Shared>,
    /// What the log thread will run.
    unstarted: Option<Unstarted>,
}

/// What the log thread and its owner both touch.
#[derive(Debug, Default)]
struct Shared {
    /// A reopened file, taken by the log thread before it writes again.
    reopened: Mutex<Option<File>>,
    /// Lines that could not be written.
    lost: Arc<AtomicU64>,
    /// Somebody waits for the last lines, and who pauses is told.
    ending: Mutex<bool>,
    end: Condvar,
}

impl SessionLog {
    /// Opens the log file and starts the log thread. Without a file lines go to standard error, at level info: when
    /// that is filtered out, nothing is started and [`Self::sender`] is `None`.
    ///
    /// # Errors
    /// When the file cannot be opened (it is named in the message) or the thread cannot start.
    pub fn start(plan: &Plan) -> io::Result<Self> {
        let mut log = Self::open(plan)?;
        log.spawn()?;
        Ok(log)
    }

    /// The same without the thread: [`Self::spawn`] starts it once the process has given up what it does not need.
    ///
    /// # Errors
    /// When the file cannot be opened; it is named in the message.
    pub fn open(plan: &Plan) -> io::Result<Self> {
        Self::begin(plan, Arc::default())
    }

    /// As [`Self::start`], to take the place of this one. Lost lines are counted together.
    ///
    /// # Errors
    /// As [`Self::start`]; this one goes on then.
    pub fn successor(&self, plan: &Plan) -> io::Result<Self> {
        let mut log = Self::begin(plan, Arc::clone(&self.shared.lost))?;
        log.spawn()?;
        Ok(log)
    }

    fn begin(plan: &Plan, lost: Arc<AtomicU64>) -> io::Result<Self> {
        let shared = Arc::new(Shared { lost, ..Shared::default() });
        let file = plan.log.file.clone();
        let sink = match &file {
            Some(path) => Sink::file(path.clone(), sink::open(path)?),
            None if !log::log_enabled!(target: sink::TARGET, log::Level::Info) => {
                return Ok(Self { sender: None, finished: None, file, shared, unstarted: None });
            }
            None if plan.log.format == LogFormat::Text => Sink::logger(),
            None => Sink::standard_error(),
        };
        let (sender, records) = mpsc::sync_channel(QUEUE);
        let (done, finished) = mpsc::sync_channel(1);
        let writer = Writer {
            formatter: Formatter::new(plan.log.format, file.is_some()),
            throttle: Throttle::new(plan.log.format == LogFormat::Text),
            sink,
            lines: String::new(),
            taken: 0,
            shared: Arc::clone(&shared),
        };
        let unstarted = Some(Unstarted { task: Task { writer, records }, done });
        Ok(Self { sender: Some(sender), finished: Some(finished), file, shared, unstarted })
    }

    /// Starts the log thread of [`Self::open`], once.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn spawn(&mut self) -> io::Result<()> {
        let Some(Unstarted { mut task, done }) = self.unstarted.take() else { return Ok(()) };
        let thread = thread::Builder::new().name("session-log".to_owned()).spawn(move || {
            crate::sys::leave_signals_to_main();
            sandbox::enter(Role::Log);
            panics::go_on(&mut task);
            // Nobody waits any more when the process did not care to.
            let _ = done.send(());
        });
        thread.map(|_| ())
    }

    /// Where workers send finished sessions; `None` when nothing is logged.
    #[must_use]
    pub fn sender(&self) -> Option<SyncSender<Vec<SessionRecord>>> {
        self.sender.clone()
    }

    /// Ends it without waiting, once every other sender is gone and what is queued is written.
    pub fn retire(mut self) {
        self.sender = None;
        self.finished = None;
    }

    /// Lines that could not be written so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Opens the log file by its name again, after a rotation has moved it. When that fails the old file is kept.
    pub fn reopen(&self) {
        let Some(path) = &self.file else {
            info!("the session log goes to standard error: there is no file to reopen");
            return;
        };
        match sink::open(path) {
            Ok(file) => {
                *self.shared.reopened.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
                info!("session log {} reopened", path.display());
            }
            Err(error) => error!("session log: {error}; the file that is open is kept"),
        }
    }

    /// Writes what is queued and ends the log thread, once every other sender is gone. Waits at most two seconds.
    pub fn finish(&mut self) {
        self.sender = None;
        self.unstarted = None;
        let Some(finished) = self.finished.take() else { return };
        *self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.end.notify_all();
        if finished.recv_timeout(FINISH_LIMIT) == Err(RecvTimeoutError::Timeout) {
            warn!("the session log did not finish within {FINISH_LIMIT:?}; its last lines may be missing");
        }
    }
}

impl Drop for SessionLog {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A log thread that has not begun.
#[derive(Debug)]
struct Unstarted {
    task: Task,
    done: SyncSender<()>,
}

/// What the log thread does.
#[derive(Debug)]
struct Task {
    writer: Writer,
    records: Receiver<Vec<SessionRecord>>,
}

impl Helper for Task {
    fn work(&mut self, again: bool) -> Result<(), String> {
        if again {
            self.writer.give_up_lines();
        }
        self.writer.run(&self.records);
        Ok(())
    }

    /// What waits in the queue is tried also when the end has come: at its end the queue says so.
    fn pause(&mut self, time: Duration) -> bool {
        let Shared { ending, end, .. } = &*self.writer.shared;
        let ending = ending.lock().unwrap_or_else(PoisonError::into_inner);
        let time = if *ending { LAST_PAUSE } else { time };
        drop(end.wait_timeout(ending, time));
        true
    }
}

/// The log thread.
#[derive(Debug)]
struct Writer {
    formatter: Formatter,
    throttle: Throttle,
    sink: Sink,
    lines: String,
    /// Records that were taken and are not written yet.
    taken: u64,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&mut self, records: &Receiver<Vec<SessionRecord>>) {
        loop {
            let received = match self.throttle.summary_due() {
                Some(at) => records.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => records.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            self.summarise(matches!(received, Err(RecvTimeoutError::Disconnected)));
            match received {
                Ok(batch) => {
                    for batch in std::iter::once(batch).chain(records.try_iter().take(BATCHES_PER_WRITE - 1)) {
                        self.add(&batch);
                    }
                    self.write();
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => return self.write(),
            }
        }
    }

    /// After a panic: whatever was about to be written is not written twice.
    fn give_up_lines(&mut self) {
        self.shared.lost.fetch_add(std::mem::take(&mut self.taken), Ordering::Relaxed);
        self.lines.clear();
    }

    fn add(&mut self, batch: &[SessionRecord]) {
        self.taken += batch.len() as u64;
        let now = Instant::now();
        for record in batch {
            #[cfg(test)]
            assert!(record.forward.name != tests::FATAL, "asked to");
            if self.throttle.admit(&record.forward.name, record.reason, now) == Verdict::Write {
                self.formatter.line(record, &mut self.lines);
            }
        }
    }

    fn summarise(&mut self, at_once: bool) {
        for (forward, reason, more) in self.throttle.take_summaries(Instant::now(), at_once) {
            self.formatter.summary(&forward, reason, more, &mut self.lines);
        }
    }

    fn write(&mut self) {
        if let Some(file) = self.shared.reopened.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.sink.replace(file);
        }
        let lost = self.sink.write(&self.lines);
        self.shared.lost.fetch_add(lost, Ordering::Relaxed);
        self.taken = 0;
        self.lines.clear();
    }
}
