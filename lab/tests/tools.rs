//! strace and perf on a process that is known to read and write. Both are optional: where one is missing, or the host
//! forbids it, the test says so.

use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::profile::Recording;
use lab::sample::Tree;
use lab::sample::counters::Counters;
use lab::sample::cpu::CpuReading;
use lab::sample::syscalls::Syscalls;
use lab::tools::{PERF, STRACE, Tool};

/// Copies zeros until it is killed.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "of=/dev/null", "bs=64k"]).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("dd is part of every system"))
    }

    fn tree(&self) -> Tree {
        Tree::new([self.0.id()])
    }

    /// Waits until it has used so much CPU time.
    fn works(&self, time: Duration) {
        let before = CpuReading::of(&self.tree());
        let deadline = Instant::now() + Duration::from_secs(30);
        while CpuReading::of(&self.tree()).since(&before).total_ns < time.as_nanos() as u64 {
            assert!(Instant::now() < deadline, "dd does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the kernel has events for perf at all, even of its own: a filter may take them away.
fn has_events() -> bool {
    let trial = Command::new("perf").args(["stat", "-e", "task-clock", "true"]).output();
    let has = trial.is_ok_and(|output| !String::from_utf8_lossy(&output.stderr).contains("<not supported>"));
    if !has {
        eprintln!("skipped: perf_event_open(2) is not to be had here");
    }
    has
}

/// What a tool gave, or `None` with a word why not.
fn or_skip<T>(tool: &Tool, result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let forbidden = ["not permitted", "ermission", "No permission", "not implemented", "not found on PATH"];
            let error = error.to_string();
            assert!(forbidden.iter().any(|why| error.contains(why)), "{}: {error}", tool.program);
            eprintln!("skipped: {error}; {}", tool.how);
            None
        }
    }
}

#[test]
fn strace_counts_by_name_and_leaves_the_process_running() {
    let (busy, out) = (Busy::start(), tempfile::tempdir().expect("a directory"));
    let Some(strace) = or_skip(&STRACE, Syscalls::attach(&busy.tree(), out.path())) else { return };
    busy.works(Duration::from_millis(30));
    let calls = strace.detach().expect("a table");
    let (reads, writes) = (calls.calls["read"], calls.calls["write"]);
    assert!(reads > 10 && reads.abs_diff(writes) <= 1, "{calls:?}");
    assert!(calls.total() >= reads + writes);
    busy.works(Duration::from_millis(10));
}

#[test]
fn perf_counts_or_says_that_it_cannot() {
    if PERF.find().is_ok() && !has_events() {
        return;
    }
    let (busy, out) = (Busy::start(), tempfile::tempdir().expect("a directory"));
    let Some(perf) = or_skip(&PERF, Counters::attach(&busy.tree(), out.path())) else { return };
    busy.works(Duration::from_millis(50));
    let counted = perf.detach().expect("counts");
    // With perf_event_paranoid at 2 an ordinary user gets no kernel's share: that is said, and nothing shown as if it were all.
    let only_user = counted.unsupported.iter().any(|event| event.starts_with("task-clock (only in user mode"));
    let of_task = counted.counts.get("task-clock");
    assert!(of_task.map_or(only_user, |ms| *ms > 40.0 && !only_user), "milliseconds: {counted:?}");
    let cycles = counted.counts.contains_key("cycles");
    assert_eq!(cycles, !counted.note().is_some_and(|note| note.contains("cycles")), "{counted:?}");
}

#[test]
fn perf_draws_a_flame_graph() {
    let (busy, out) = (Busy::start(), tempfile::tempdir().expect("a directory"));
    let Some(recording) = or_skip(&PERF, Recording::start(&busy.tree(), out.path())) else { return };
    busy.works(Duration::from_millis(200));
    let profile = recording.finish("zeros").expect("a profile");
    assert!(profile.samples > 20, "{profile:?}");
    assert!(profile.top[0].itself > 0.05, "{profile:?}");
    let svg = std::fs::read_to_string(&profile.svg).expect("the graph");
    assert!(svg.contains("zeros") && svg.contains(&profile.event), "{profile:?}");
}
