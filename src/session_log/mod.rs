//! The session log: one line per finished session, written by a thread of its own.
//!
//! Workers hand over batches with `try_send` and count what does not fit: a slow terminal, a full disk or a stopped
//! reader costs lines, never a byte of a session.

mod format;
mod sink;
mod stderr;
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

    /// After a panic: whatever lines were about to be written, they are not written twice.
    fn give_up_lines(&mut self) {
        self.shared.lost.fetch_add(self.lines.lines().count() as u64, Ordering::Relaxed);
        self.lines.clear();
    }

    fn add(&mut self, batch: &[SessionRecord]) {
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
        self.lines.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;
    use crate::plan::{Host, LogPlan, Ports, example};
    use crate::stats::{Bytes, EndReason};

    /// A record of a forward with this name makes the log thread panic.
    pub(super) const FATAL: &str = "fatal";

    /// A plan with one forward, 0.0.0.0:9000-9010 to ports 8000-8010 of `host`.
    pub(super) fn plan(name: &str, host: Host) -> Plan {
        let listen = ([0, 0, 0, 0], Ports { first: 9000, last: 9010 });
        example::plan(example::forward(name, listen, (host, Ports { first: 8000, last: 8010 })))
    }

    fn record(reason: EndReason, client_port: u16) -> SessionRecord {
        SessionRecord {
            at: SystemTime::now(),
            forward: Arc::new(plan("web", Host::Ip([10, 0, 0, 2].into())).forwards.remove(0)),
            arm: None,
            client: std::net::SocketAddr::from(([127, 0, 0, 1], client_port)).into(),
            transport: crate::plan::Transport::Tcp,
            proxy: None,
            listener: std::net::SocketAddr::from(([127, 0, 0, 1], 9000)).into(),
            target: None,
            bytes: Bytes::default(),
            duration: Duration::from_millis(5),
            reason,
            errno: None,
        }
    }

    fn start(file: &Path, format: LogFormat) -> SessionLog {
        let mut plan = plan("web", Host::Ip([10, 0, 0, 2].into()));
        plan.log = LogPlan { format, file: Some(file.to_owned()) };
        SessionLog::start(&plan).unwrap()
    }

    #[test]
    fn finish_writes_what_is_queued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "before\n").unwrap();
        let mut log = start(&path, LogFormat::Json);
        let sender = log.sender().unwrap();
        for batch in 0..50 {
            sender.send((0..10).map(|i| record(EndReason::Refused, batch * 10 + i)).collect()).unwrap();
        }
        drop(sender);
        log.finish();
        let text = fs::read_to_string(&path).unwrap();
        let ports: Vec<_> = text.lines().skip(1).map(|line| line.contains("\"reason\":\"refused\"")).collect();
        assert_eq!(ports, [true; 500]);
        assert!(text.starts_with("before\n"), "the file is appended to");
        assert_eq!(log.lost(), 0);
    }

    #[test]
    fn after_a_panic_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = start(&path, LogFormat::Json);
        let sender = log.sender().unwrap();
        let fatal = SessionRecord {
            forward: Arc::new(plan(FATAL, Host::Ip([10, 0, 0, 2].into())).forwards.remove(0)),
            ..record(EndReason::Done, 2)
        };
        sender.send(vec![record(EndReason::Done, 1), fatal]).unwrap();
        // Not of the same write.
        let deadline = Instant::now() + Duration::from_secs(10);
        while log.lost() == 0 {
            assert!(Instant::now() < deadline, "the line that was about to be written is counted as lost");
            thread::park_timeout(Duration::from_millis(5));
        }
        sender.send(vec![record(EndReason::Done, 3)]).unwrap();
        drop(sender);
        log.finish();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() == 1 && text.contains("127.0.0.1:3"), "{text}");
        assert_eq!(log.lost(), 1);
    }

    #[test]
    fn repeated_errors_end_in_a_summary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = start(&path, LogFormat::Text);
        let sender = log.sender().unwrap();
        sender.send((0..300).map(|i| record(EndReason::Refused, i)).collect()).unwrap();
        drop(sender);
        log.finish();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 11, "{text}");
        assert!(text.ends_with(" forward=web reason=refused … 290 more in the last second\n"), "{text}");
    }

    #[test]
    fn the_summary_comes_without_further_sessions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = start(&path, LogFormat::Text);
        log.sender().unwrap().send((0..11).map(|i| record(EndReason::Refused, i)).collect()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&path).unwrap().contains("… 1 more") {
            assert!(Instant::now() < deadline, "no summary");
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    #[test]
    fn reopen_goes_on_under_the_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = start(&path, LogFormat::Json);
        let sender = log.sender().unwrap();
        let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
        sender.send(vec![record(EndReason::Done, 1)]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while lines(&path) < 1 {
            assert!(Instant::now() < deadline, "no line");
            thread::park_timeout(Duration::from_millis(5));
        }
        fs::rename(&path, &rotated).unwrap();
        log.reopen();
        assert!(path.exists(), "the new file is there at once");
        sender.send(vec![record(EndReason::Done, 2), record(EndReason::Done, 3)]).unwrap();
        drop(sender);
        log.finish();
        assert_eq!((lines(&rotated), lines(&path)), (1, 2));
    }

    #[test]
    fn lines_a_full_disk_takes_are_counted() {
        if !Path::new("/dev/full").exists() {
            return; // Only Linux has one.
        }
        let mut log = start(Path::new("/dev/full"), LogFormat::Json);
        let sender = log.sender().unwrap();
        sender.send(vec![record(EndReason::Done, 1), record(EndReason::Done, 2)]).unwrap();
        drop(sender);
        log.finish();
        assert_eq!(log.lost(), 2);
    }

    #[test]
    fn nothing_is_sent_when_nobody_would_see_it() {
        // No logger is installed in this test, so level info is filtered out, as with -q.
        let log = SessionLog::start(&plan("web", Host::Ip([10, 0, 0, 2].into()))).unwrap();
        assert!(log.sender().is_none());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let mut plan = plan("web", Host::Ip([10, 0, 0, 2].into()));
        plan.log.file = Some("/nonexistent/log".into());
        let error = SessionLog::start(&plan).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/log"), "{error}");
    }
}
