//! What this host is, how busy it was, and what one process cost it.

use std::collections::HashMap;
use std::fs;

use nix::sys::utsname::uname;
use serde::Serialize;

/// The machine a measurement was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Operating system and its release, such as `Linux 6.12.9`.
    pub kernel: String,
    /// Such as `x86_64`.
    pub machine: String,
    /// CPUs this process may use.
    pub cpus: usize,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn here() -> Self {
        let (kernel, machine) = match uname() {
            Ok(name) => (
                format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()),
                name.machine().to_string_lossy().into_owned(),
            ),
            Err(_) => (std::env::consts::OS.to_owned(), std::env::consts::ARCH.to_owned()),
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { kernel, machine, cpus }
    }
}

/// CPU time of the whole machine since boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTicks {
    busy: u64,
    total: u64,
}

impl CpuTicks {
    /// Reads them; `None` where the system does not tell in `/proc/stat`.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Fields of the first line, see proc_stat(5): user nice system idle iowait irq softirq steal; what follows is
    /// contained in user and nice.
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = fields.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
        let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
        let total: u64 = ticks.iter().sum();
        Some(Self { busy: total.saturating_sub(idle), total })
    }

    /// Share of the CPUs that was busy since `earlier`, 0 to 1.
    #[must_use]
    pub fn busy_since(self, earlier: Self) -> Option<f64> {
        let total = self.total.checked_sub(earlier.total).filter(|total| *total > 0)?;
        Some((self.busy.saturating_sub(earlier.busy) as f64 / total as f64).clamp(0.0, 1.0))
    }
}

/// CPU time of each thread of a process, in nanoseconds, from the scheduler's own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadTimes(HashMap<u32, u64>);

impl ThreadTimes {
    /// Reads them; `None` where `/proc/PID/task/TID/schedstat` does not exist or may not be read.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let mut times = HashMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            let task = task.ok()?;
            let thread = task.file_name().to_str()?.parse().ok()?;
            // A thread that ended since the directory was read is no loss.
            if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
                times.insert(thread, text.split_whitespace().next()?.parse().ok()?);
            }
        }
        (!times.is_empty()).then_some(Self(times))
    }

    /// Seconds used since `earlier` by the threads that are still there.
    #[must_use]
    pub fn seconds_since(&self, earlier: &Self) -> f64 {
        let used = |(thread, now): (&u32, &u64)| now.saturating_sub(*earlier.0.get(thread).unwrap_or(&0));
        self.0.iter().map(used).sum::<u64>() as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_all_but_idle_and_iowait() {
        let before = CpuTicks::parse("cpu  100 0 50 800 50 0 0 0 7 7\ncpu0 1 2").expect("parses");
        let after = CpuTicks::parse("cpu  150 0 60 820 70 5 5 0 99 99\n").expect("parses");
        let busy = after.busy_since(before).expect("time passed");
        assert!((busy - 70.0 / 110.0).abs() < 1e-9, "{busy}");
        assert_eq!(before.busy_since(before), None);
        assert_eq!(CpuTicks::parse("intr 1 2 3"), None);
        assert_eq!(CpuTicks::parse(""), None);
    }

    #[test]
    fn threads_that_come_and_go_count_from_zero_and_not_at_all() {
        let before = ThreadTimes(HashMap::from([(1, 500), (2, 900)]));
        let after = ThreadTimes(HashMap::from([(1, 1500), (3, 250)]));
        assert!((after.seconds_since(&before) - 1250e-9).abs() < 1e-15);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_time() {
        let Some(before) = ThreadTimes::of(std::process::id()) else {
            assert!(!std::path::Path::new("/proc/self/schedstat").exists(), "the kernel has schedstat");
            return;
        };
        let begun = std::time::Instant::now();
        let mut spent = 0.0;
        while spent < 0.02 {
            assert!(begun.elapsed().as_secs() < 20, "a busy loop used only {spent} s of CPU");
            spent = ThreadTimes::of(std::process::id()).expect("was readable").seconds_since(&before);
        }
    }
}
