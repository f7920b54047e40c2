use std::sync::Arc;

use super::*;
use crate::arms::Sampled;
use crate::names::Known;
use crate::plan::{Arm, Engine, Host, Plan, Ports, example};
use crate::stats::{EndReason, ForwardStats, WorkerStats};
use crate::upstream::{Targets, Upstreams};

/// Counters of one worker and of one forward in it.
pub(in crate::control) type Counters = (WorkerStats, ForwardStats);

/// A plan with one forward of the given name, 127.0.0.1:9000 → 10.0.0.2:9001.
pub(in crate::control) fn plan(name: &str) -> Plan {
    let target = (Host::Ip([10, 0, 0, 2].into()), Ports::one(9001));
    let forward = example::forward(name, ([127, 0, 0, 1], Ports::one(9000)), target);
    Plan { workers: Some(2), drain: Some(Duration::from_secs(30)), ..example::plan(forward) }
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
    workers[0].0.batch.set(1);
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
    let targets = Arc::new(Targets::new("web", Instant::now()));
    targets.update(&plan.forwards[0]);
    let _upstreams = Upstreams::new(&plan.forwards[0], &targets);
    let forward = ForwardView {
        forward: &plan.forwards[0],
        removed: false,
        targets: &targets,
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
        helper_panics: 3,
        started: Instant::now(),
        draining: false,
        splices: true,
        log_lost: 2,
        sources: 3,
        names: &Known::default(),
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
        ("/helper_panics", 3.into()),
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
