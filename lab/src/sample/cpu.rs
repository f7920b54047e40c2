//! CPU time of a tree of processes and of the whole machine, exact to the nanosecond.
//!
//! The total of a process is its CPU clock (clock_getcpuclockid(3)): every thread, finished ones included, and the
//! thread that runs right now up to this moment, which `/proc/PID/task/TID/schedstat` leaves out until the next tick.
//! Children that ended are in their parent's account to 10 ms. The machine is the sum over all processes, kernel
//! threads included: `/proc/stat` is sampled at ticks and far off for work in short bursts. Interrupts taken while a
//! CPU idles belong to no process and are missed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::process::{Stat, Tree, threads};
use crate::topology::sandbox::machine_proc;

/// How often processes are read that nobody waits for.
const WATCH: Duration = Duration::from_millis(20);

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// In user mode; to the kernel's own split, which shows 10 ms steps.
    pub user_ns: u64,
    /// In the kernel: the rest of the total.
    pub system_ns: u64,
    /// Both; exact.
    pub total_ns: u64,
}

impl CpuTimes {
    /// The total in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.total_ns as f64 / 1e9
    }

    fn new(total_ns: u64, user_ns: u64) -> Self {
        let user_ns = user_ns.min(total_ns);
        Self { user_ns, system_ns: total_ns - user_ns, total_ns }
    }
}

/// How the time of children that ended is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accounting {
    /// From their parents' account.
    #[default]
    Waited,
    /// Nobody in the tree waits for them: they are read every 20 ms while they live. What one uses after the last
    /// reading is lost.
    Watched,
}

/// The parent of all threads of the kernel.
const KTHREADD: u32 = 2;
/// Marks their ids; process ids stay below 2^22.
const KERNEL: u32 = 1 << 31;

/// CPU times of some processes at one moment.
#[derive(Debug, Clone, Default)]
pub struct CpuReading(HashMap<(u32, u64), Times>);

#[derive(Debug, Clone, Copy, Default)]
struct Times {
    own_ns: u64,
    own_user_ticks: u64,
    waited_user_ticks: u64,
    waited_system_ticks: u64,
}

impl CpuReading {
    /// Of a tree.
    #[must_use]
    pub fn of(tree: &Tree) -> Self {
        Self::read(&tree.members())
    }

    /// Of every process that can be seen, and of the kernel's threads, which work for the network too and are outside
    /// of the lab's process namespace.
    #[must_use]
    pub fn of_machine() -> Self {
        let mut reading = Self::read(&Stat::all());
        let machine = machine_proc();
        if machine != Path::new("/proc") {
            reading.0.extend(kernel_threads(&machine));
        }
        reading
    }

    fn read(processes: &[Stat]) -> Self {
        let times = |stat: &Stat| Times {
            own_ns: total_ns(stat),
            own_user_ticks: stat.user_ticks,
            waited_user_ticks: stat.waited_user_ticks,
            waited_system_ticks: stat.waited_system_ticks,
        };
        Self(processes.iter().map(|stat| ((stat.pid, stat.started_ticks), times(stat))).collect())
    }

    /// Time used since `earlier` when whoever ends is waited for by another process of the reading: what leaves one
    /// account arrives in another, so that the sums can be compared.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> CpuTimes {
        let tick = ns_per_tick();
        let sum = |reading: &Self| {
            reading.0.values().fold((0, 0), |(total, user), t| {
                let waited = (t.waited_user_ticks + t.waited_system_ticks) * tick;
                (total + t.own_ns + waited, user + (t.own_user_ticks + t.waited_user_ticks) * tick)
            })
        };
        let ((total, user), (total_before, user_before)) = (sum(self), sum(earlier));
        CpuTimes::new(total.saturating_sub(total_before), user.saturating_sub(user_before))
    }

    /// Time used since `earlier` by the processes themselves; those that have gone count as last seen.
    fn own_since(&self, earlier: &Self) -> CpuTimes {
        let used = |(key, now): (&(u32, u64), &Times)| {
            let before = earlier.0.get(key).copied().unwrap_or_default();
            (
                now.own_ns.saturating_sub(before.own_ns),
                now.own_user_ticks.saturating_sub(before.own_user_ticks) * ns_per_tick(),
            )
        };
        let (total, user) = self.0.iter().map(used).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        CpuTimes::new(total, user)
    }
}

/// Times of the threads of the kernel under another `/proc` than ours. Their ids there are not ours, so they are marked.
fn kernel_threads(proc: &Path) -> Vec<((u32, u64), Times)> {
    let read = |stat: &Stat| {
        let text = std::fs::read_to_string(proc.join(format!("{}/schedstat", stat.pid)));
        let own_ns = text.ok().and_then(|text| run_ns(&text));
        let own_ns = own_ns.unwrap_or((stat.user_ticks + stat.system_ticks) * ns_per_tick());
        ((stat.pid | KERNEL, stat.started_ticks), Times { own_ns, ..Times::default() })
    };
    Stat::all_in(proc).iter().filter(|stat| stat.pid == KTHREADD || stat.parent == KTHREADD).map(read).collect()
}

fn total_ns(stat: &Stat) -> u64 {
    let clock = i32::try_from(stat.pid).ok().and_then(|pid| {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok()?;
        let time = clock_gettime(clock).ok()?;
        u64::try_from(time.tv_sec()).ok()?.checked_mul(1_000_000_000)?.checked_add(u64::try_from(time.tv_nsec()).ok()?)
    });
    // A process that was waited for since its line was read has no clock any more, and is counted with that line.
    clock.or_else(|| schedstat_ns(stat.pid)).unwrap_or((stat.user_ticks + stat.system_ticks) * ns_per_tick())
}

/// Sum over the threads that are there.
fn schedstat_ns(pid: u32) -> Option<u64> {
    let one = |thread| std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok();
    let times: Vec<u64> = threads(pid).into_iter().filter_map(one).filter_map(|text| run_ns(&text)).collect();
    (!times.is_empty()).then(|| times.iter().sum())
}

/// The first field of a schedstat line; see `Documentation/scheduler/sched-stats.rst` of the kernel.
fn run_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

fn ns_per_tick() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    1_000_000_000 / ticks.unwrap_or(100)
}

/// Measures a tree from [`CpuMeter::start`] to [`CpuMeter::finish`].
#[derive(Debug)]
pub struct CpuMeter {
    tree: Tree,
    before: CpuReading,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<CpuReading>,
}

impl CpuMeter {
    /// Begins now. Where the thread that watches cannot be started, what ended by then is missed.
    #[must_use]
    pub fn start(tree: &Tree, accounting: Accounting) -> Self {
        let before = CpuReading::of(tree);
        let watch = (accounting == Accounting::Watched).then(|| Watch::start(tree.clone())).flatten();
        Self { tree: tree.clone(), before, watch }
    }

    /// The time used since the start.
    #[must_use]
    pub fn finish(self) -> CpuTimes {
        match self.watch {
            None => CpuReading::of(&self.tree).since(&self.before),
            Some(watch) => {
                // The thread ends with the channel, whether or not it hears this.
                let _ = watch.stop.send(());
                watch.thread.join().unwrap_or_default().own_since(&self.before)
            }
        }
    }
}

impl Watch {
    fn start(tree: Tree) -> Option<Self> {
        let (stop, stopped) = channel();
        let watch = move || {
            let mut seen = CpuReading::default();
            loop {
                seen.0.extend(CpuReading::of(&tree).0);
                if stopped.recv_timeout(WATCH) != Err(RecvTimeoutError::Timeout) {
                    seen.0.extend(CpuReading::of(&tree).0);
                    return seen;
                }
            }
        };
        let thread = thread::Builder::new().name("watch".into()).spawn(watch).ok()?;
        Some(Self { stop, thread })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).process_group(0).spawn().unwrap()
    }

    /// A loop that takes some CPU time.
    const BURN: &str = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";

    #[test]
    fn time_of_a_child_that_was_waited_for_is_its_parents() {
        let mut child = shell(&format!("read x < /dev/null; sh -c '{BURN}'; exec sleep 60"));
        let tree = Tree::new([child.id()]);
        let before = CpuReading::default();
        let deadline = Instant::now() + Duration::from_secs(20);
        let used = loop {
            let reading = CpuReading::of(&tree);
            let waited = reading.0.values().map(|t| t.waited_user_ticks + t.waited_system_ticks).sum::<u64>();
            if waited > 0 || Instant::now() > deadline {
                break reading.since(&before);
            }
            thread::sleep(Duration::from_millis(10));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used.total_ns >= 10_000_000, "{used:?}");
        assert_eq!(used.total_ns, used.user_ns + used.system_ns);
    }

    #[test]
    fn a_watched_orphan_is_counted_although_nobody_waits_for_it() {
        // The child of the child outlives its parent, works, and ends before the meter does.
        let mut child = shell(&format!("(sh -c '{BURN}; sleep 0.2' &) ; exec sleep 60"));
        let tree = Tree::new([child.id()]);
        let meter = CpuMeter::start(&tree, Accounting::Watched);
        let deadline = Instant::now() + Duration::from_secs(20);
        for orphan in [true, false] {
            while (tree.members().len() > 1) != orphan && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let used = meter.finish();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used.total_ns >= 10_000_000, "{used:?}");
    }

    #[test]
    fn the_machine_uses_at_least_what_this_thread_does() {
        let (machine, own) = (CpuReading::of_machine(), CpuReading::of(&Tree::new([std::process::id()])));
        let begun = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let spent = || (clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap() - begun).num_nanoseconds_test();
        while spent() < 20_000_000 {
            std::hint::black_box(0);
        }
        let own = CpuReading::of(&Tree::new([std::process::id()])).since(&own);
        assert!(own.total_ns >= 20_000_000, "{own:?}");
        assert!(CpuReading::of_machine().since(&machine).total_ns >= 20_000_000);
    }

    trait Nanoseconds {
        fn num_nanoseconds_test(&self) -> i64;
    }

    impl Nanoseconds for nix::sys::time::TimeSpec {
        fn num_nanoseconds_test(&self) -> i64 {
            self.tv_sec() * 1_000_000_000 + self.tv_nsec()
        }
    }

    #[test]
    fn a_schedstat_line_begins_with_the_time_run() {
        assert_eq!(run_ns("1234567 89 10\n"), Some(1_234_567));
        assert_eq!(run_ns(""), None);
    }
}
