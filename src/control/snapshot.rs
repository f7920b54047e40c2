//! All counters of the process at one moment: what `spliced stats` and the metrics endpoint show.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;

use crate::arms::{self, ArmSnapshot};
use crate::fleet::{ForwardView, WorkerView};
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
    /// The arms of a live A/B; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<ArmSnapshot>,
    /// What the arms show so far; left out where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
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
            sources: sources.sources,
            pipes: workers.iter().fold(Pipes::default(), |sum, worker| sum.plus(worker.pipes)),
            workers,
            total,
            forwards,
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
        listen: forward.listen.iter().map(ToString::to_string).collect(),
        to: forward.targets.iter().map(ToString::to_string).collect(),
        engine: forward.engine_text(),
        counters,
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
pub(super) mod tests {
    use super::*;
    use crate::arms::Sampled;
    use crate::plan::{
        Access, Arm, Engine, Forward, Host, Limits, Listen, LogPlan, Pin, Plan, Ports, Target, TcpOptions, Timeouts,
    };
    use crate::stats::{EndReason, ForwardStats, WorkerStats};

    /// Counters of one worker and of one forward in it.
    pub(in crate::control) type Counters = (WorkerStats, ForwardStats);

    /// A plan with one forward of the given name, 127.0.0.1:9000 → 10.0.0.2:9001.
    pub(in crate::control) fn plan(name: &str) -> Plan {
        Plan {
            workers: Some(2),
            pin: Pin::Off,
            gather: false,
            max_connections: None,
            max_connections_per_source: None,
            drain: Some(Duration::from_secs(30)),
            upgrade_drain: None,
            control: None,
            metrics: None,
            log: LogPlan::default(),
            pid_file: None,
            privileges: Default::default(),
            forwards: vec![Forward {
                name: name.to_owned(),
                listen: vec![Listen { local: crate::plan::Local::Ip([127, 0, 0, 1].into()), ports: Ports::one(9000) }],
                targets: vec![Target { host: Host::Ip([10, 0, 0, 2].into()), ports: Ports::one(9001), weight: 1 }],
                engine: Engine::Auto,
                arms: Vec::new(),
                copy_buffer: 65536,
                pipe_size: None,
                max_connections: None,
                limits: Limits::default(),
                timeouts: Timeouts::default(),
                stall_warning: None,
                tcp: TcpOptions::default(),
                listen_options: crate::plan::ListenOptions::default(),
                sources: Vec::new(),
                access: Access::default(),
            }],
        }
    }

    /// Two workers with different counters.
    pub(in crate::control) fn stats() -> Vec<Counters> {
        let workers: Vec<_> = (0..2).map(|_| Counters::default()).collect();
        for ((worker, forward), n) in workers.iter().zip([1, 10]) {
            forward.accepted.add(5 * n);
            forward.open.add(n);
            forward.up_splice.add(100 * n);
            forward.down_copy.add(7 * n);
            forward.ends[EndReason::Done as usize].add(4 * n);
            forward.connect_time.record(Duration::from_micros(3 * n));
            worker.pipes_in_use.add(n);
            worker.pipes_budget.add(64);
            worker.pipe_size.set(1 << 20);
            worker.busy_ns.add(500_000_000 * n);
        }
        workers
    }

    pub(in crate::control) fn snapshot(plan: &Plan, stats: &[Counters]) -> Snapshot {
        let states = [(Some(3), WorkerState::Running), (None, WorkerState::Panicked)];
        let workers = stats.iter().zip(states).enumerate().map(|(id, ((stats, forward), (cpu, state)))| WorkerView {
            id,
            cpu,
            state,
            stats,
            sessions_open: forward.open.get(),
        });
        let forwards: Vec<_> = stats.iter().map(|(_, forward)| forward).collect();
        let forward = ForwardView {
            forward: &plan.forwards[0],
            removed: false,
            arms: forwards.clone(),
            stats: forwards,
            past: None,
        };
        Snapshot::take(&Sources {
            workers: workers.collect(),
            forwards: vec![forward],
            past: &ForwardSnapshot::default(),
            reloads: Reloads { ok: 3, failed: 1, last_unix_seconds: Some(1.5), last_ok: Some(true), generation: 4 },
            worker_panics: 2,
            started: Instant::now(),
            draining: false,
            splices: true,
            log_lost: 2,
            sources: 3,
        })
    }

    /// A live A/B of a splice and a copy arm, with one session of each in each of two workers.
    pub(in crate::control) fn trial() -> (Plan, Vec<Counters>) {
        let mut plan = plan("web");
        let arm = |name: &str, engine, share| Arm { name: name.to_owned(), engine, copy_buffer: 65536, share };
        plan.forwards[0].arms = vec![arm("splice", Engine::Splice, 50), arm("copy-64KiB", Engine::Copy, 25)];
        let workers: Vec<_> = (0..2).map(|_| (WorkerStats::default(), ForwardStats::new(2))).collect();
        for arms in workers.iter().map(|(_, forward)| &forward.arms) {
            for (arm, n) in arms.iter().zip([1, 2]) {
                arm.sessions.add(1);
                arm.open.add(n - 1);
                arm.calls.add(10 * n);
                arm.first_byte.record(Duration::from_micros(3 * n));
                arm.measured(&mut Sampled::default(), 1_000_000, 500_000 * n);
            }
            arms[0].up_splice.add(1_000_000);
            arms[1].down_copy.add(2_000_000);
        }
        (plan, workers)
    }

    #[test]
    fn arms_are_told_where_there_are_some() {
        let (plan, stats) = trial();
        let json = serde_json::to_value(snapshot(&plan, &stats)).unwrap();
        for (pointer, value) in [
            ("/forwards/0/engine", "ab:splice=50,copy-64KiB=25".into()),
            ("/forwards/0/verdict", "not enough data yet".into()),
            ("/forwards/0/arms/0/name", "splice".into()),
            ("/forwards/0/arms/1/share", 25.into()),
            ("/forwards/0/arms/0/sessions", 2.into()),
            ("/forwards/0/arms/1/open", 2.into()),
            ("/forwards/0/arms/0/bytes/client_to_backend/splice", 2_000_000.into()),
            ("/forwards/0/arms/1/bytes/backend_to_client/copy", 4_000_000.into()),
            ("/forwards/0/arms/0/syscalls", 20.into()),
            ("/forwards/0/arms/1/syscalls_per_gb", 10_000.0.into()),
            ("/forwards/0/arms/0/cpu_seconds_per_gb", 0.5.into()),
            ("/forwards/0/arms/0/cpu_ci95", serde_json::Value::Null),
            ("/forwards/0/arms/1/measured/turns", 2.into()),
            ("/forwards/0/arms/1/measured/cpu_seconds", 0.002.into()),
            ("/forwards/0/arms/0/first_byte_time/sum_us", 6.into()),
            ("/forwards/0/arms/0/session_time/mean_seconds", serde_json::Value::Null),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer} in {json}");
        }
        let json = serde_json::to_value(snapshot(&self::plan("web"), &self::stats())).unwrap();
        assert_eq!((json.pointer("/forwards/0/arms"), json.pointer("/forwards/0/verdict")), (None, None));
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(snapshot(&plan("web"), &stats())).unwrap();
        for (pointer, value) in [
            ("/version", env!("CARGO_PKG_VERSION").into()),
            ("/pid", std::process::id().into()),
            ("/draining", false.into()),
            ("/reloads/ok", 3.into()),
            ("/reloads/failed", 1.into()),
            ("/reloads/last_unix_seconds", 1.5.into()),
            ("/reloads/generation", 4.into()),
            ("/worker_panics", 2.into()),
            ("/engine_available/splice", true.into()),
            ("/workers/0/id", 0.into()),
            ("/workers/0/cpu", 3.into()),
            ("/workers/1/cpu", serde_json::Value::Null),
            ("/workers/0/state", "running".into()),
            ("/workers/1/state", "panicked".into()),
            ("/workers/1/busy_seconds", 5.0.into()),
            ("/workers/1/sessions_open", 10.into()),
            ("/workers/0/accept_paused", false.into()),
            ("/workers/0/pipes/budget", 64.into()),
            ("/pipes/in_use", 11.into()),
            ("/pipes/budget", 128.into()),
            ("/pipes/size_bytes", 1_048_576.into()),
            ("/total/sessions_accepted", 55.into()),
            ("/total/sessions_open", 11.into()),
            ("/forwards/0/name", "web".into()),
            ("/forwards/0/listen/0", "127.0.0.1:9000".into()),
            ("/forwards/0/to/0", "10.0.0.2:9001".into()),
            ("/forwards/0/engine", "auto".into()),
            ("/forwards/0/bytes/client_to_backend/splice", 1100.into()),
            ("/forwards/0/bytes/backend_to_client/copy", 77.into()),
            ("/forwards/0/ends/done", 44.into()),
            ("/forwards/0/ends/idle", 0.into()),
            ("/forwards/0/fallbacks/splice_refused", 0.into()),
            ("/forwards/0/connect_time/sum_us", 33.into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        }
        assert!(json["uptime_seconds"].is_f64());
        assert!(json["cpu"]["user_seconds"].is_f64());
    }
}
