//! The loop of the control thread: signals, ended workers, small clients and the drain's clock.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use mio::net::{TcpListener, UnixListener};
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook_mio::v1_0::Signals;

use super::service::{Service, TOKENS};
use super::snapshot::{Snapshot, Sources, WorkerState};
use super::socket::{self, SocketFile};
use super::{RunError, metrics, prometheus};
use crate::fleet::{Doors, Fleet, WorkerEnd};
use crate::plan::Plan;
use crate::session_log::SessionLog;

const SIGNALS: Token = Token(0);
const WORKER_ENDED: Token = Token(1);
const CONTROL: usize = 16;
const METRICS: usize = CONTROL + TOKENS;

/// How long workers may take to end after they were told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Between two lines about a drain that goes on.
const PROGRESS: Duration = Duration::from_secs(1);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// SIGTERM, SIGINT: drain; asked again: stop now.
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
enum Phase {
    /// Takes new sessions.
    Serving,
    /// Lets open sessions finish.
    Draining { until: Option<Instant>, next_line: Instant },
    /// Told the workers to end every session.
    Stopping { until: Instant },
    /// Leaves without waiting for anything.
    Leaving,
}

/// The control thread's loop and all it owns.
pub(super) struct EventLoop {
    poll: Poll,
    signals: Signals,
    control: Option<Service<UnixListener>>,
    metrics: Option<Service<TcpListener>>,
    process: Process,
    phase: Phase,
    // Kept open: a waker that closes takes the wake with it that nobody has seen yet.
    _worker_ended: Arc<Waker>,
    // Dropped after the sockets above, so that the file goes last.
    _control_file: Option<SocketFile>,
}

/// The running process, as the control socket and the metrics endpoint see it.
#[derive(Debug)]
struct Process {
    plan: Arc<Plan>,
    fleet: Fleet,
    log: SessionLog,
    cpus: Vec<Option<usize>>,
    states: Vec<WorkerState>,
    started: Instant,
    draining: bool,
}

/// Catches the signals this program knows. From here on one waits for the loop instead of killing us half-started.
///
/// # Errors
/// The system has no descriptors for it.
pub(super) fn catch_signals() -> Result<Signals, RunError> {
    Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2]).map_err(cannot_start)
}

fn cannot_start(error: io::Error) -> RunError {
    RunError::new(format!(
        "cannot start the control thread: {error}; raise the limits on descriptors (ulimit -n) and processes (ulimit -u)"
    ))
}

impl EventLoop {
    /// Binds the rest, the workers' listeners included, and starts the workers.
    ///
    /// # Errors
    /// An address that cannot be bound, or the system has no descriptors or threads for us.
    pub(super) fn start(
        plan: &Arc<Plan>,
        log: SessionLog,
        control: Option<(UnixListener, SocketFile)>,
        mut signals: Signals,
    ) -> Result<Self, RunError> {
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
        let metrics = match plan.metrics {
            Some(address) => Some(Service::new("metrics", bind_metrics(address)?, registry, METRICS).map_err(failed)?),
            None => None,
        };
        let waker = Arc::new(Waker::new(registry, WORKER_ENDED).map_err(failed)?);
        let fleet = Fleet::start(plan, Doors::default(), log.sender(), Arc::clone(&waker))
            .map_err(|error| RunError::new(error.to_string()))?;
        let process = Process {
            plan: Arc::clone(plan),
            cpus: fleet.cpus(),
            states: vec![WorkerState::Running; fleet.stats().len()],
            fleet,
            log,
            started: Instant::now(),
            draining: false,
        };
        Ok(Self {
            poll,
            signals,
            control,
            metrics,
            process,
            phase: Phase::Serving,
            _worker_ended: waker,
            _control_file: control_file,
        })
    }

    /// What serves, for the line that says the process is ready.
    pub(super) fn describe(&self) -> String {
        self.process.fleet.to_string()
    }

    /// Turns until the process is to end; then waits for the workers and the log.
    ///
    /// # Errors
    /// When no worker is left though nobody asked for an end, or the poller fails.
    pub(super) fn run(&mut self) -> Result<(), RunError> {
        let mut events = Events::with_capacity(64);
        let result = loop {
            let now = Instant::now();
            if let Some(result) = self.tick(now) {
                break result;
            }
            let timeout = self.next_tick().map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(RunError::new(format!("the control thread's poller failed: {error}"))),
                Ok(()) => {}
            }
            let now = Instant::now();
            for event in &events {
                self.dispatch(event.token(), now);
            }
        };
        self.process.fleet.stop();
        self.process.log.finish();
        result
    }

    fn dispatch(&mut self, token: Token, now: Instant) {
        let registry = self.poll.registry();
        let process = &self.process;
        match (&mut self.control, &mut self.metrics) {
            _ if token == SIGNALS => self.take_signals(now),
            _ if token == WORKER_ENDED => {} // The next tick reaps.
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
            Command::Reload => warn!(
                "SIGHUP: this version does not reload; the configuration stays as it is. To change it, check the new \
                 file with `spliced check`, then restart: SIGTERM lets the open sessions finish"
            ),
            Command::Upgrade => warn!(
                "SIGUSR2: this version does not hand over to a new binary and goes on serving. To change it, install \
                 the new one, then restart: SIGTERM lets the open sessions finish"
            ),
        }
    }

    fn quit(&mut self, now: Instant) {
        match self.phase {
            Phase::Serving => {
                let until = self.process.plan.drain.and_then(|time| now.checked_add(time));
                let open = self.process.fleet.open_sessions();
                let limit = limit(until, now);
                info!("draining: {} open, {limit}; a second signal cuts it short", sessions(open));
                self.process.draining = true;
                self.process.fleet.drain();
                self.phase = Phase::Draining { until, next_line: now + PROGRESS };
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
        self.process.reap();
        let registry = self.poll.registry();
        let process = &self.process;
        if let Some(control) = &mut self.control {
            control.tick(registry, now, &mut |request| process.answer_control(request));
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.tick(registry, now, &mut |request| metrics::answer(request, process));
        }
        let nobody_left = self.process.fleet.running() == 0;
        match self.phase {
            Phase::Serving if nobody_left => Some(Err(RunError::new(
                "no worker is left, so nothing is served any more; the errors above say why. Please report them".into(),
            ))),
            Phase::Serving => None,
            _ if nobody_left => Some(Ok(())),
            Phase::Draining { until, next_line } => {
                self.drain_on(until, next_line, now);
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

    fn drain_on(&mut self, until: Option<Instant>, next_line: Instant, now: Instant) {
        let open = self.process.fleet.open_sessions();
        if until.is_some_and(|at| at <= now) {
            warn!("drain time is over: ending {} now", sessions(open));
            self.stop(now);
        } else if next_line <= now {
            let limit = limit(until, now);
            info!("draining: {} open, {limit}", sessions(open));
            self.phase = Phase::Draining { until, next_line: now + PROGRESS };
        }
    }

    fn next_tick(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Serving => None,
            Phase::Draining { until, next_line } => Some(until.map_or(next_line, |at| at.min(next_line))),
            Phase::Stopping { until } => Some(until),
            Phase::Leaving => Some(Instant::now()),
        };
        let control = self.control.as_ref().and_then(Service::next_tick);
        let metrics = self.metrics.as_ref().and_then(Service::next_tick);
        [phase, control, metrics].into_iter().flatten().min()
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

fn bind_metrics(address: SocketAddr) -> Result<TcpListener, RunError> {
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

impl Process {
    fn snapshot(&self) -> Snapshot {
        Snapshot::take(&Sources {
            plan: &self.plan,
            stats: self.fleet.stats(),
            cpus: &self.cpus,
            states: &self.states,
            started: self.started,
            draining: self.draining,
            splices: self.fleet.splices(),
            log_lost: self.log.lost(),
        })
    }

    fn answer_control(&self, request: &[u8]) -> super::service::Answer {
        socket::answer(request, &mut || self.snapshot())
    }

    /// Notes how workers ended. One that panicked takes its own sessions with it and nobody else's: the process goes
    /// on with the others.
    fn reap(&mut self) {
        for (id, end) in self.fleet.reap() {
            let state = match end {
                WorkerEnd::Finished => WorkerState::Finished,
                WorkerEnd::Panicked => {
                    let left = self.fleet.running();
                    error!("worker {id} panicked and its sessions are gone; {left} workers go on. Please report this");
                    WorkerState::Panicked
                }
            };
            if let Some(entry) = self.states.get_mut(id) {
                *entry = state;
            }
        }
    }
}

impl metrics::Facts for Process {
    fn metrics(&self) -> String {
        prometheus::render(&self.snapshot())
    }

    fn is_ready(&self) -> bool {
        !self.draining
    }
}
