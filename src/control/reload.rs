//! Changing the configuration while running.
//!
//! The file is read and checked by a thread of its own: a file system that hangs or a name that takes seconds to look up
//! hold up neither signals nor statistics. What may fail after that is done before anything changes; see
//! [`Fleet::prepare`](crate::fleet::Fleet::prepare).

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{error, info, warn};
use mio::Waker;
use mio::net::TcpListener;
use serde_json::{Value, json};

use super::event_loop::{EventLoop, METRICS, Phase, bind_metrics};
use super::service::Service;
use super::snapshot::Reloads;
use super::socket;
use crate::config::{self, ConfigError, Diff, Overrides};
use crate::panics;
use crate::plan::Plan;
use crate::session_log::SessionLog;

/// How long a file may take to be read and checked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the configuration came from, to read it again.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What the command line said beside it.
    pub overrides: Overrides,
}

/// Reloads of one process.
#[derive(Debug)]
pub(super) struct Reloader {
    source: Option<Source>,
    loading: Option<Loading>,
    /// Asked for again while a file was being read: what was read may be older than the request.
    again: bool,
    pub(super) counts: Reloads,
}

/// A file that is being read.
#[derive(Debug)]
struct Loading {
    result: Receiver<Result<Plan, String>>,
    until: Instant,
}

/// What is opened for another plan beside the workers' part.
struct Opened {
    /// `None` goes on with the present one.
    log: Option<SessionLog>,
    /// `None` goes on with the present one, `Some(None)` ends it.
    metrics: Option<Option<TcpListener>>,
}

impl Reloader {
    pub(super) fn new(source: Option<Source>) -> Self {
        let counts = Reloads { generation: 1, ..Reloads::default() };
        Self { source, loading: None, again: false, counts }
    }

    /// Starts to read the file, or says why it cannot be read.
    fn begin(&mut self, now: Instant, waker: &Arc<Waker>) -> Result<(), String> {
        if self.loading.is_some() {
            self.again = true;
            return Ok(());
        }
        let Some(source) = self.source.clone() else {
            return Err("it was started without a file, so there is nothing to read again".to_owned());
        };
        if source.path == Path::new("-") {
            return Err("the configuration came from standard input, which cannot be read again".to_owned());
        }
        let (say, result) = mpsc::channel();
        let waker = Arc::clone(waker);
        let task = move || {
            crate::sys::leave_signals_to_main();
            // Nobody waits any more when it took too long.
            let _ = say.send(read(|| config::load_again(&source.path, &source.overrides)));
            if let Err(error) = waker.wake() {
                warn!("cannot wake the control thread: {error}");
            }
        };
        let started = thread::Builder::new().name("reload".to_owned()).spawn(task);
        started.map_err(|error| format!("cannot start a thread to read the file: {error}; try again"))?;
        self.loading = Some(Loading { result, until: now + PATIENCE });
        Ok(())
    }

    /// What reading the file came to, once it has.
    fn loaded(&mut self, now: Instant) -> Option<Result<Plan, String>> {
        let loading = self.loading.as_ref()?;
        let result = match loading.result.try_recv() {
            Ok(result) => result,
            Err(TryRecvError::Empty) if now < loading.until => return None,
            Err(TryRecvError::Empty) => Err(format!("reading the file took longer than {PATIENCE:?}")),
            Err(TryRecvError::Disconnected) => Err("reading the file failed; please report this".to_owned()),
        };
        self.loading = None;
        Some(result)
    }

    /// Whether a file is being read.
    pub(super) fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    /// When a file that is being read has had its time.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.loading.as_ref().map(|loading| loading.until)
    }

    fn count(&mut self, ok: bool) {
        let Reloads { ok: good, failed, last_unix_seconds, last_ok, generation } = &mut self.counts;
        *(if ok { &mut *good } else { failed }) += 1;
        *generation += u64::from(ok);
        // Milliseconds are enough, and read well.
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
        (*last_unix_seconds, *last_ok) = (Some(now_ms as f64 / 1e3), Some(ok));
    }
}

/// What reading the file comes to. A panic is counted, and fails this reload alone.
fn read(load: impl FnOnce() -> Result<Plan, ConfigError>) -> Result<Plan, String> {
    let read = panics::caught(load).map_err(|why| {
        panics::tell(why.clone(), "the reload has failed, and sessions go on");
        format!("reading the file panicked: {why}; please report this")
    })?;
    read.map_err(|error| error.to_string())
}

impl EventLoop {
    /// Asks for a reload: its result goes to the log and to everybody who waits at the control socket.
    pub(super) fn reload(&mut self, now: Instant) {
        self.notifier.reloading();
        if let Some(why) = self.cannot_reload() {
            // Not for those who wait at the control socket: they wait for the upgrade.
            self.reloader.count(false);
            error!("reload failed, nothing has changed: {why}");
            return self.notifier.ready();
        }
        let begun = match self.phase {
            Phase::Serving => self.reloader.begin(now, &self.waker),
            _ => Err("it is on its way to its end".to_owned()),
        };
        if let Err(why) = begun {
            self.tell_failure(&why);
        }
    }

    /// SIGHUP. Without a file it asks for nothing.
    pub(super) fn hang_up(&mut self, now: Instant) {
        if self.reloader.source.is_none() {
            self.notifier.reloading();
            self.notifier.ready();
            info!("SIGHUP: it was started without a file, so there is nothing to reload; ignored");
            return;
        }
        self.reload(now);
    }

    /// Goes on with a reload whose file has been read.
    pub(super) fn continue_reload(&mut self, now: Instant) {
        let Some(read) = self.reloader.loaded(now) else { return };
        if std::mem::take(&mut self.reloader.again) {
            return self.reload(now);
        }
        let applied = match self.phase {
            Phase::Serving => read.and_then(|plan| self.apply(plan)),
            _ => Err("it is on its way to its end".to_owned()),
        };
        match applied {
            Ok(diff) => self.tell_success(&diff),
            Err(why) => self.tell_failure(&why),
        }
    }

    /// Puts a plan into use, all of it or, with an error, nothing.
    fn apply(&mut self, read: Plan) -> Result<Diff, String> {
        let running = Arc::clone(self.process.fleet.plan());
        let diff = config::diff(&running, &read);
        let plan = Arc::new(config::keep_fixed(&running, read));
        let opened = self.open(&running, &plan)?;
        let ready = self.process.fleet.prepare(&plan).map_err(|error| error.to_string())?;
        // From here on nothing fails.
        let Opened { log, metrics } = opened;
        let retired = log.map(|log| std::mem::replace(&mut self.process.log, log));
        self.process.fleet.commit(ready, self.process.log.sender());
        if let Some(retired) = retired {
            retired.retire();
        }
        if let Some(listener) = metrics {
            self.set_metrics(listener);
        }
        Ok(diff)
    }

    fn open(&self, running: &Plan, plan: &Plan) -> Result<Opened, String> {
        let log = || self.process.log.successor(plan).map_err(|error| format!("session log: {error}"));
        let log = if plan.log == running.log { None } else { Some(log()?) };
        let bind = |address: SocketAddr| bind_metrics(address).map_err(|error| error.to_string());
        let metrics = if plan.metrics == running.metrics { None } else { Some(plan.metrics.map(bind).transpose()?) };
        Ok(Opened { log, metrics })
    }

    fn set_metrics(&mut self, listener: Option<TcpListener>) {
        // Its descriptors leave the poller by being closed.
        self.metrics = None;
        let Some(listener) = listener else { return };
        let service: io::Result<_> = Service::new("metrics", listener, self.poll.registry(), METRICS);
        match service {
            Ok(service) => self.metrics = Some(service),
            Err(error) => error!("metrics: the new address cannot be watched: {error}; a reload tries again"),
        }
    }

    fn tell_success(&mut self, diff: &Diff) {
        self.reloader.count(true);
        let generation = self.reloader.counts.generation;
        info!("configuration {generation} is in effect:");
        diff.lines().iter().for_each(|line| info!("  {line}"));
        self.answer_reload(&json!({ "result": "ok", "generation": generation, "diff": diff.lines() }));
    }

    fn tell_failure(&mut self, why: &str) {
        self.reloader.count(false);
        error!("reload failed, nothing has changed: {why}");
        self.answer_reload(&json!({ "error": why }));
    }

    fn answer_reload(&mut self, answer: &Value) {
        self.notifier.ready();
        if let Some(control) = &mut self.control {
            control.resolve(&socket::line(answer), self.poll.registry());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::panics::Panicked;

    #[test]
    fn a_panic_while_reading_is_said_and_counted() {
        let name = "a reload that panics";
        let failed = thread::Builder::new().name(name.to_owned()).spawn(|| read(|| panic!("asked to"))).unwrap();
        let why = failed.join().unwrap().unwrap_err();
        assert_eq!(why, "reading the file panicked: asked to; please report this");
        let told = panics::take_of(name);
        assert!(matches!(&told[..], [Panicked { why, .. }] if why == "asked to"), "{told:?}");
    }
}
