//! The loop of the control thread: signals, ended workers, small clients and the drain's clock.

mod delay;
mod handover;
mod process;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use mio::net::{TcpListener, UnixListener};
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::signal::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals;

use self::handover::Handover;
pub(super) use self::process::Process;
use super::opened::Opened;
use super::pid_file::PidFile;
use super::reload::{Reloader, Source};
use super::service::{Service, TOKENS};
use super::{RunError, metrics};
use crate::fleet::{Fleet, Ready};
use crate::panics;
use crate::plan::Plan;
use crate::socket_file::SocketFile;
use crate::systemd::Notifier;

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
const CONTROL: usize = 16;
pub(super) const METRICS: usize = CONTROL + TOKENS;

/// How long workers may take to end after they were told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Between two lines about a drain that goes on.
const PROGRESS: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// SIGTERM, SIGINT: drain, after a delay where there is one; asked again: sooner.
    Quit,
    /// SIGHUP.
    Reload,
    /// SIGUSR2.
    Upgrade,
    /// SIGUSR1.
    ReopenLogs,
}

/// Where the process is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Takes new sessions.
    Serving,
    /// Not ready any more, but takes new sessions until balancers have noticed.
    Delaying { until: Instant },
    /// Lets open sessions finish.
    Draining {
        until: Option<Instant>,
        next_line: Instant,
        every: Duration,
        /// Another process has taken over, and nobody has told this one to stop yet.
        replaced: bool,
    },
    /// Told the workers to end every session.
    Stopping { until: Instant },
    /// Leaves without waiting for anything.
    Leaving,
}

/// The control thread's loop and all it owns.
pub(super) struct EventLoop {
    pub(super) poll: Poll,
    signals: Signals,
    pub(super) control: Option<Service<UnixListener>>,
    pub(super) metrics: Option<Service<TcpListener>>,
    pub(super) process: Process,
    pub(super) reloader: Reloader,
    pub(super) phase: Phase,
    handover: Handover,
    pub(super) notifier: Notifier,
    /// What is to run, until it begins.
    ready: Option<Ready>,
    /// Woken by other threads: a worker has ended, a file has been read. Kept open: a waker that closes takes the wake
    /// with it that nobody has seen yet.
    pub(super) waker: Arc<Waker>,
    // Dropped after the sockets above, so that the file goes last.
    control_file: Option<SocketFile>,
    pid_file: Option<PidFile>,
}

/// Catches the signals this program knows. From here on one waits for the loop instead of killing us half-started.
///
/// # Errors
/// The system has no descriptors for it.
pub(super) fn catch_signals() -> Result<Signals, RunError> {
    // SIGCHLD asks for nothing: the tick that follows it finds the process that took over and has ended.
    Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD]).map_err(cannot_start)
}

fn cannot_start(error: io::Error) -> RunError {
    RunError::new(format!(
        "cannot start the control thread: {error}; raise the limits on descriptors (ulimit -n) and processes (ulimit -u)"
    ))
}

impl EventLoop {
    /// Binds the rest, the workers' listeners included, and starts the workers, which serve nothing before [`Self::begin`].
    ///
    /// # Errors
    /// An address that cannot be bound, or the system has no descriptors or threads for us.
    pub(super) fn start(plan: &Arc<Plan>, source: Option<Source>, opened: Opened) -> Result<Self, RunError> {
        let Opened { mut signals, pid_file, control, metrics, mut log, doors, datagrams } = opened;
        let failed = cannot_start;
        let poll = Poll::new().map_err(failed)?;
        let registry = poll.registry();
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(failed)?;
        let (control, control_file) = match control {
            Some((listener, file)) => {
                (Some(Service::new("control socket", listener, registry, CONTROL).map_err(failed)?), Some(file))
            }
            None => (None, None),
        };
        let metrics = metrics.map(|listener| Service::new("metrics", listener, registry, METRICS));
        let metrics = metrics.transpose().map_err(failed)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(failed)?);
        panics::wake(&waker);
        let mut fleet = Fleet::new(plan, doors, Arc::clone(&waker));
        fleet.inherit_datagrams(datagrams);
        let ready = fleet.prepare(plan).map_err(|error| RunError::new(error.to_string()))?;
        // Threads start once the fleet has bound its listeners and the process has given up what it does not need.
        log.spawn().map_err(failed)?;
        let process = Process::new(fleet, log);
        Ok(Self {
            poll,
            signals,
            control,
            metrics,
            process,
            reloader: Reloader::new(source),
            phase: Phase::Serving,
            handover: Handover::new(),
            notifier: Notifier::from_env(),
            ready: Some(ready),
            waker,
            control_file,
            pid_file,
        })
    }

    /// Lets the workers accept. Nothing fails from here on.
    pub(super) fn begin(&mut self) {
        if let Some(ready) = self.ready.take() {
            self.process.fleet.commit(ready, self.process.log.sender());
        }
        self.notifier.ready();
    }

    /// Makes the pid file and the control socket's file of the process before our own, whose they were until now.
    pub(super) fn take_files_over(&mut self) {
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.take_over();
        }
        if let Some(file) = &mut self.control_file {
            file.own();
        }
    }

    /// What serves, for the line that says the process is ready.
    pub(super) fn describe(&self) -> String {
        self.process.fleet.to_string()
    }

    /// Turns until the process is to end; then waits for the workers and the log.
    ///
    /// # Errors
    /// When no worker is left though nobody asked for an end, the poller fails, or this thread panics.
    pub(super) fn run(&mut self) -> Result<(), RunError> {
        let result = panics::caught(|| self.turn()).unwrap_or_else(|why| {
            let message = "nobody else can do its work, so the process ends. Please report this";
            Err(RunError::new(format!("the control thread panicked: {why}; {message}")))
        });
        self.process.fleet.stop();
        if result.is_err() {
            // Sessions are reset by their workers; the end of the process would close them as if they were complete.
            self.process.fleet.await_end(STOP_LIMIT);
        }
        self.process.log.finish();
        result
    }

    fn turn(&mut self) -> Result<(), RunError> {
        let mut events = Events::with_capacity(64);
        loop {
            let now = Instant::now();
            if let Some(result) = self.tick(now) {
                return result;
            }
            let timeout = self.next_tick(now).map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(RunError::new(format!("the control thread's poller failed: {error}"))),
                Ok(()) => {}
            }
            let now = Instant::now();
            for event in &events {
                self.dispatch(event.token(), now);
            }
        }
    }

    fn dispatch(&mut self, token: Token, now: Instant) {
        self.note_what_cannot_be();
        let registry = self.poll.registry();
        let process = &self.process;
        match (&mut self.control, &mut self.metrics) {
            _ if token == SIGNALS => self.take_signals(now),
            _ if token == WAKER => {} // The next tick looks what there is.
            _ if Handover::owns(token) => self.advance_upgrade(now),
            (Some(control), _) if control.owns(token) => {
                control.ready(token, registry, now, &mut |request| process.answer_control(request));
            }
            (_, Some(metrics)) if metrics.owns(token) => {
                metrics.ready(token, registry, now, &mut |request| metrics::answer(request, process));
            }
            _ => {}
        }
    }

    fn take_signals(&mut self, now: Instant) {
        let commands: Vec<_> = self.signals.pending().filter_map(Command::of_signal).collect();
        for command in commands {
            self.execute(command, now);
        }
    }

    fn execute(&mut self, command: Command, now: Instant) {
        match command {
            Command::Quit => self.quit(now),
            Command::ReopenLogs => self.process.log.reopen(),
            Command::Reload => self.hang_up(now),
            Command::Upgrade => self.upgrade(now),
        }
    }

    fn quit(&mut self, now: Instant) {
        if self.phase == Phase::Serving && self.delays(now) {
            return;
        }
        match self.phase {
            Phase::Serving | Phase::Delaying { .. } => {
                let until = self.process.fleet.plan().drain.and_then(|time| now.checked_add(time));
                let open = self.process.fleet.open_sessions();
                let limit = limit(until, now);
                info!("draining: {} open, {limit}; a second signal cuts it short", sessions(open));
                self.notifier.stopping();
                self.abandon_upgrade();
                (self.process.draining, self.process.delaying) = (true, false);
                self.process.fleet.drain();
                self.phase = Phase::Draining { until, next_line: now + PROGRESS, every: PROGRESS, replaced: false };
            }
            Phase::Draining { until, replaced: true, .. } => {
                let own = self.process.fleet.plan().drain.and_then(|time| now.checked_add(time));
                let until = [until, own].into_iter().flatten().min();
                let (open, limit) = (self.process.fleet.open_sessions(), limit(until, now));
                info!("draining: {} open, {limit}; a second signal cuts it short", sessions(open));
                self.phase = Phase::Draining { until, next_line: now + PROGRESS, every: PROGRESS, replaced: false };
            }
            Phase::Draining { .. } => {
                let open = self.process.fleet.open_sessions();
                warn!("second signal: ending {} now", sessions(open));
                self.stop(now);
            }
            Phase::Stopping { .. } | Phase::Leaving => self.phase = Phase::Leaving,
        }
    }

    fn stop(&mut self, now: Instant) {
        self.process.fleet.stop();
        self.phase = Phase::Stopping { until: now + STOP_LIMIT };
    }

    /// Does what is due, and says how the process ends once it does.
    fn tick(&mut self, now: Instant) -> Option<Result<(), RunError>> {
        self.process.reap(now);
        self.process.fleet.tick(now);
        self.continue_reload(now);
        self.process.reloads = self.reloader.counts;
        self.advance_upgrade(now);
        self.note_what_cannot_be();
        let registry = self.poll.registry();
        let process = &self.process;
        if let Some(control) = &mut self.control {
            control.tick(registry, now, &mut |request| process.answer_control(request));
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.tick(registry, now, &mut |request| metrics::answer(request, process));
        }
        if self.process.wants_reload.take() {
            self.reload(now);
        }
        if self.process.wants_upgrade.take() {
            self.upgrade(now);
        }
        let process = &self.process;
        if self.notifier.tick(now, || process.facts(), || process.fleet.turns()) {
            process.fleet.nudge();
        }
        if self.process.fleet.has_given_up() {
            let message = "worker threads panicked again and again, so starting others is no answer; the errors above say why. \
                           Please report them";
            return Some(Err(RunError::new(message.to_owned())));
        }
        let nobody_left = self.process.fleet.running() == 0;
        match self.phase {
            Phase::Serving | Phase::Delaying { .. } if nobody_left => Some(Err(RunError::new(
                "no worker is left, so nothing is served any more; the errors above say why. Please report them".into(),
            ))),
            Phase::Serving => None,
            Phase::Delaying { until } => {
                if until <= now {
                    self.quit(now);
                }
                None
            }
            _ if nobody_left => Some(Ok(())),
            Phase::Draining { .. } => {
                self.drain_on(now);
                None
            }
            Phase::Stopping { until } if until <= now => {
                warn!("workers did not end within {STOP_LIMIT:?}; leaving without them");
                Some(Ok(()))
            }
            Phase::Stopping { .. } => None,
            Phase::Leaving => Some(Ok(())),
        }
    }

    fn drain_on(&mut self, now: Instant) {
        let Phase::Draining { until, next_line, every, .. } = &mut self.phase else { return };
        let until = *until;
        let open = self.process.fleet.open_sessions();
        if until.is_some_and(|at| at <= now) {
            warn!("drain time is over: ending {} now", sessions(open));
            self.stop(now);
        } else if *next_line <= now {
            let limit = limit(until, now);
            info!("draining: {} open, {limit}", sessions(open));
            *next_line = now + *every;
        }
    }

    fn next_tick(&self, now: Instant) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Draining { until, next_line, .. } => Some(until.map_or(next_line, |at| at.min(next_line))),
            Phase::Delaying { until } | Phase::Stopping { until } => Some(until),
            Phase::Leaving => Some(now),
        };
        let upgrade = self.handover.next_look(now);
        let others = [self.reloader.next_tick(), self.process.fleet.next_tick(now), upgrade, self.notifier.next_tick()];
        let control = self.control.as_ref().and_then(Service::next_tick);
        let metrics = self.metrics.as_ref().and_then(Service::next_tick);
        [phase, control, metrics].into_iter().chain(others).flatten().min()
    }
}

/// `1 session`, `2 sessions`.
fn sessions(n: u64) -> String {
    format!("{n} session{}", if n == 1 { "" } else { "s" })
}

fn limit(until: Option<Instant>, now: Instant) -> String {
    match until {
        Some(at) => format!("up to {}s", at.saturating_duration_since(now).as_secs_f64().ceil()),
        None => "until the last one ends".to_owned(),
    }
}

pub(super) fn bind_metrics(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).map_err(|error| {
        RunError::new(format!("metrics address {address}: {error}; choose another one with --metrics"))
    })
}

impl Command {
    fn of_signal(signal: i32) -> Option<Self> {
        match signal {
            SIGTERM | SIGINT => Some(Self::Quit),
            SIGHUP => Some(Self::Reload),
            SIGUSR1 => Some(Self::ReopenLogs),
            SIGUSR2 => Some(Self::Upgrade),
            _ => None,
        }
    }
}
