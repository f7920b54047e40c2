//! All counters of the process at one moment: what `spliced stats` and the metrics endpoint show.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;

use super::names::{self, NameSnapshot};
use super::targets::{self, TargetSnapshot};
use crate::arms::{self, ArmSnapshot};
use crate::fleet::{ForwardView, WorkerView};
use crate::names::Known;
use crate::stats::ForwardSnapshot;
pub use crate::stats::WorkerState;

/// Where a [`Snapshot`] is taken from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// The workers.
    pub workers: Vec<WorkerView<'a>>,
    /// The forwards: those of the plan in its order, then those that were removed and still have sessions.
    pub forwards: Vec<ForwardView<'a>>,
    /// What forwards that are gone have counted.
    pub past: &'a ForwardSnapshot,
    /// Changes of the configuration.
    pub reloads: Reloads,
    /// Workers that have panicked.
    pub worker_panics: u64,
    /// The same of other threads.
    pub helper_panics: u64,
    /// When the process began to serve.
    pub started: Instant,
    /// True once no new sessions are taken.
    pub draining: bool,
    /// Whether this build has splice and the kernel has not refused it.
    pub splices: bool,
    /// Session log lines that could not be written.
    pub log_lost: u64,
    /// Sources that limits per source know.
    pub sources: usize,
    /// How each name stands.
    pub names: &'a Known,
}

/// Changes of the configuration while running.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct Reloads {
    /// Those that took effect, also when nothing was different.
    pub ok: u64,
    /// Those that failed and changed nothing.
    pub failed: u64,
    /// When the last one was, well or not, in seconds since 1970.
    pub last_unix_seconds: Option<f64>,
    /// Whether that one took effect.
    pub last_ok: Option<bool>,
    /// The configuration that runs: 1 is the one of the start, each reload that takes effect makes the next.
    pub generation: u64,
}

/// The JSON object of `spliced stats --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Version of the program.
    pub version: &'static str,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it began to serve.
    pub uptime_seconds: f64,
    /// True once no new sessions are taken.
    pub draining: bool,
    /// CPU time of all threads.
    pub cpu: Cpu,
    /// Which engines can run here.
    pub engine_available: EngineAvailable,
    /// Session log lines that could not be written (disk full, for instance).
    pub log_lost: u64,
    /// Changes of the configuration.
    pub reloads: Reloads,
    /// Workers that have panicked; each was replaced.
    pub worker_panics: u64,
    /// How often other threads have panicked; each went on.
    pub helper_panics: u64,
    /// Sources that limits per source know: those with a session, and those whose bucket is not full again yet.
    pub sources: usize,
    /// One entry per worker.
    pub workers: Vec<WorkerSnapshot>,
    /// Pipes of all workers; `size_bytes` is the largest.
    pub pipes: Pipes,
    /// All forwards together.
    pub total: ForwardSnapshot,
    /// Each forward, in the order of the plan.
    pub forwards: Vec<NamedForward>,
    /// Each name of the targets.
    pub names: Vec<NameSnapshot>,
}

/// CPU time used by the process, in seconds.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Cpu {
    /// In user mode.
    pub user_seconds: f64,
    /// In the kernel.
    pub system_seconds: f64,
}

/// Which engines can run in this process.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct EngineAvailable {
    /// False in a portable build, and once the kernel refused splice(2) for the process.
    pub splice: bool,
}

/// Counters of one worker.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerSnapshot {
    /// Its number, from 0.
    pub id: usize,
    /// CPU it is bound to.
    pub cpu: Option<usize>,
    /// What it is doing.
    pub state: WorkerState,
    /// Sessions it holds.
    pub sessions_open: u64,
    /// Turns of its event loop.
    pub turns: u64,
    /// CPU time of its thread in seconds, a second old at most while it turns.
    pub busy_seconds: f64,
    /// Accepted sessions it gave to another worker.
    pub handed_over: u64,
    /// Sessions it gave to another worker while bytes moved.
    pub moved: u64,
    /// True while it does not accept for want of descriptors or slots.
    pub accept_paused: bool,
    /// True while the scheduler takes it as a batch job.
    pub batch: bool,
    /// How often accepting was paused for want of descriptors.
    pub accept_pauses: u64,
    /// Session log records dropped because the log did not keep up.
    pub log_dropped: u64,
    /// Its pipes.
    pub pipes: Pipes,
}

/// Pipes of a worker, or of all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pipes {
    /// Pipes that hold bytes.
    pub in_use: u64,
    /// Empty pipes kept for the next burst.
    pub pooled: u64,
    /// Pipes allowed.
    pub budget: u64,
    /// Size of one pipe in bytes.
    pub size_bytes: u64,
}

/// One forward with its counters.
#[derive(Debug, Clone, Serialize)]
pub struct NamedForward {
    /// Its name in the plan.
    pub name: String,
    /// True once no configuration has it any more; its open sessions go on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// Addresses it listens on.
    pub listen: Vec<String>,
    /// Targets it leads to.
    pub to: Vec<String>,
    /// The engine asked for, with its arms where it is a live A/B.
    pub engine: String,
    /// Its counters over all workers.
    #[serde(flatten)]
    pub counters: ForwardSnapshot,
    /// Each address of each target.
    pub targets: Vec<TargetSnapshot>,
    /// The arms of a live A/B; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<ArmSnapshot>,
    /// What the arms show so far; left out where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
}

impl NamedForward {
    /// Whether it listens for datagrams, or has had some.
    #[must_use]
    pub fn has_datagrams(&self) -> bool {
        let moved = &self.counters.datagrams;
        self.listen.iter().any(|listen| listen.starts_with("udp:")) || moved.receives > 0 || moved.sends > 0
    }
}

impl Snapshot {
    /// Reads every counter now. Counters of different workers may be a turn apart.
    #[must_use]
    pub fn take(sources: &Sources<'_>) -> Self {
        let workers: Vec<_> = sources.workers.iter().map(worker).collect();
        let forwards: Vec<_> = sources.forwards.iter().map(forward).collect();
        let mut total = sources.past.clone();
        forwards.iter().for_each(|forward| total.merge(&forward.counters));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_seconds: sources.started.elapsed().as_secs_f64(),
            draining: sources.draining,
            cpu: Cpu::now(),
            engine_available: EngineAvailable { splice: sources.splices },
            log_lost: sources.log_lost,
            reloads: sources.reloads,
            worker_panics: sources.worker_panics,
            helper_panics: sources.helper_panics,
            sources: sources.sources,
            pipes: workers.iter().fold(Pipes::default(), |sum, worker| sum.plus(worker.pipes)),
            workers,
            total,
            forwards,
            names: names::snapshots(sources.names, Instant::now()),
        }
    }
}

fn worker(view: &WorkerView<'_>) -> WorkerSnapshot {
    let stats = view.stats;
    WorkerSnapshot {
        id: view.id,
        cpu: view.cpu,
        state: view.state,
        sessions_open: view.sessions_open,
        turns: stats.turns.get(),
        busy_seconds: Duration::from_nanos(stats.busy_ns.get()).as_secs_f64(),
        handed_over: stats.handed_over.get(),
        moved: stats.moved.get(),
        accept_paused: stats.accept_paused.get() != 0,
        batch: stats.batch.get() != 0,
        accept_pauses: stats.accept_pauses.get(),
        log_dropped: stats.log_dropped.get(),
        pipes: Pipes {
            in_use: stats.pipes_in_use.get(),
            pooled: stats.pipes_pooled.get(),
            budget: stats.pipes_budget.get(),
            size_bytes: stats.pipe_size.get(),
        },
    }
}

fn forward(view: &ForwardView<'_>) -> NamedForward {
    let mut counters = view.past.cloned().unwrap_or_default();
    view.stats.iter().for_each(|stats| counters.add(stats));
    let forward = view.forward;
    let arm_stats: Vec<_> = view.arms.iter().map(|stats| &*stats.arms).collect();
    let (arms, verdict) = arms::report(&forward.arms, &arm_stats);
    NamedForward {
        name: forward.name.clone(),
        removed: view.removed,
        listen: forward.listeners().collect(),
        to: forward.written_targets().collect(),
        engine: forward.engine_text(),
        counters,
        targets: targets::snapshots(view.targets),
        arms,
        verdict,
    }
}

impl Pipes {
    fn plus(self, other: Self) -> Self {
        Self {
            in_use: self.in_use + other.in_use,
            pooled: self.pooled + other.pooled,
            budget: self.budget + other.budget,
            size_bytes: self.size_bytes.max(other.size_bytes),
        }
    }
}

impl Cpu {
    /// CPU time of this process so far, from getrusage(2); zeroes if the system does not say.
    #[must_use]
    pub fn now() -> Self {
        let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
        getrusage(UsageWho::RUSAGE_SELF).map_or_else(
            |_| Self::default(),
            |usage| Self { user_seconds: seconds(usage.user_time()), system_seconds: seconds(usage.system_time()) },
        )
    }
}

#[cfg(test)]
pub(super) mod tests;
