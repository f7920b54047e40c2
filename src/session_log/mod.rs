//! The session log: one line per finished session, written by a thread of its own.
//!
//! Workers hand over batches with `try_send` and count what does not fit: a slow terminal, a full disk or a stopped
//! reader costs lines, never a byte of a session.

mod format;
mod sink;
mod throttle;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use crate::plan::{LogFormat, Plan};
use crate::stats::SessionRecord;
use format::Formatter;
use sink::Sink;
use throttle::{Throttle, Verdict};

/// Batches that may wait for the log thread.
const QUEUE: usize = 256;
/// Batches written with one write.
const BATCHES_PER_WRITE: usize = 64;
/// How long the end of the process waits for lines to be written.
const FINISH_LIMIT: Duration = Duration::from_secs(2);

/// The running session log.
#[derive(Debug)]
pub struct SessionLog {
    sender: Option<SyncSender<Vec<SessionRecord>>>,
    finished: Option<Receiver<()>>,
    file: Option<PathBuf>,
    shared: Arc<Shared>,
}

/// What the log thread and its owner both touch.
#[derive(Debug, Default)]
struct Shared {
    /// A reopened file, taken by the log thread before it writes again.
    reopened: Mutex<Option<File>>,
    /// Lines that could not be written.
    lost: AtomicU64,
}

impl SessionLog {
    /// Opens the log file and starts the log thread. Without a file lines go to standard error, at level info: when
    /// that is filtered out, nothing is started and [`Self::sender`] is `None`.
    ///
    /// # Errors
    /// When the file cannot be opened (it is named in the message) or the thread cannot start.
    pub fn start(plan: &Plan) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let file = plan.log.file.clone();
        let sink = match &file {
            Some(path) => Sink::file(path.clone(), sink::open(path)?),
            None if !log::log_enabled!(log::Level::Info) => {
                return Ok(Self { sender: None, finished: None, file, shared });
            }
            None if plan.log.format == LogFormat::Text => Sink::logger(),
            None => Sink::standard_error(),
        };
        let (sender, records) = mpsc::sync_channel(QUEUE);
        let (done, finished) = mpsc::sync_channel(1);
        let mut writer = Writer {
            formatter: Formatter::new(plan, file.is_some()),
            throttle: Throttle::new(plan.log.format == LogFormat::Text),
            sink,
            lines: String::new(),
            shared: Arc::clone(&shared),
        };
        thread::Builder::new().name("session-log".to_owned()).spawn(move || {
            writer.run(&records);
            // Nobody waits any more when the process did not care to.
            let _ = done.send(());
        })?;
        Ok(Self { sender: Some(sender), finished: Some(finished), file, shared })
    }

    /// Where workers send finished sessions; `None` when nothing is logged.
    #[must_use]
    pub fn sender(&self) -> Option<SyncSender<Vec<SessionRecord>>> {
        self.sender.clone()
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
        if let Some(finished) = self.finished.take()
            && finished.recv_timeout(FINISH_LIMIT) == Err(RecvTimeoutError::Timeout)
        {
            warn!("the session log did not finish within {FINISH_LIMIT:?}; its last lines may be missing");
        }
    }
}

impl Drop for SessionLog {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The log thread.
struct Writer {
    formatter: Formatter,
    throttle: Throttle,
    sink: Sink,
    lines: String,
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

    fn add(&mut self, batch: &[SessionRecord]) {
        let now = Instant::now();
        for record in batch {
            if self.throttle.admit(record.forward, record.reason, now) == Verdict::Write {
                self.formatter.line(record, &mut self.lines);
            }
        }
    }

    fn summarise(&mut self, at_once: bool) {
        for (forward, reason, more) in self.throttle.take_summaries(Instant::now(), at_once) {
            self.formatter.summary(forward, reason, more, &mut self.lines);
        }
    }

    fn write(&mut self) {
        if let Some(file) = self.shared.reopened.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.sink.replace(file);
        }
        let lost = self.sink.write(&self.lines);
        self.shared.lost.fetch_add(lost, Ordering::Relaxed);
        self.lines.clear();
    }
}
