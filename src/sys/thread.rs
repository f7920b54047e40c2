//! Threads and CPUs.

use std::time::Duration;

/// CPUs this process may run on, in order; empty where the system does not say.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        use nix::sched::{CpuSet, sched_getaffinity};
        use nix::unistd::Pid;
        if let Ok(set) = sched_getaffinity(Pid::from_raw(0)) {
            return (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect();
        }
    }
    Vec::new()
}

/// Binds the calling thread to one CPU.
///
/// # Errors
/// What sched_setaffinity(2) reports; `Unsupported` off Linux.
pub fn pin_to(cpu: usize) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::sched::{CpuSet, sched_setaffinity};
        let mut set = CpuSet::new();
        set.set(cpu)?;
        Ok(sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = cpu;
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Nanoseconds of CPU time of the calling thread, for differences over short times (`CLOCK_THREAD_CPUTIME_ID`,
/// clock_gettime(2)); zero where the system does not say.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::time::TimeValLike;
        use nix::time::ClockId;
        if let Ok(time) = ClockId::CLOCK_THREAD_CPUTIME_ID.now() {
            return u64::try_from(time.num_nanoseconds()).unwrap_or(0);
        }
    }
    0
}

/// User and system CPU time of the calling thread; zero where the system does not say.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        use nix::sys::time::TimeValLike;
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_THREAD) {
            let us = (usage.user_time() + usage.system_time()).num_microseconds();
            return Duration::from_micros(u64::try_from(us).unwrap_or(0));
        }
    }
    Duration::ZERO
}
