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

/// Keeps the signals this program handles from the calling thread, so that they go to the main thread. The kernel gives
/// a signal of the process to any thread that does not block it when the main thread is held by a debugger
/// (`complete_signal`, kernel/signal.c), and a thread whose system calls are filtered cannot pass it on.
pub fn leave_signals_to_main() {
    #[cfg(unix)]
    {
        use nix::sys::signal::{SigSet, Signal};
        let ours = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD];
        if let Err(e) = ours.into_iter().collect::<SigSet>().thread_block() {
            log::debug!("cannot leave signals to the main thread: {e}");
        }
    }
}

/// Whether the scheduler takes the calling thread as it takes any other (`SCHED_OTHER`, sched(7)).
#[must_use]
pub fn is_ordinary() -> bool {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadSchedulePolicy, thread_schedule_policy};
        thread_schedule_policy() == Ok(ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other))
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether the scheduler takes the calling thread as a batch job (`SCHED_BATCH`, sched(7)).
#[must_use]
pub fn is_batch() -> bool {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadSchedulePolicy, thread_schedule_policy};
        thread_schedule_policy() == Ok(ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch))
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Makes the calling thread a batch job of the scheduler (`SCHED_BATCH`, sched(7)), or an ordinary one again. Its nice
/// value stays. Needs no privilege.
///
/// # Errors
/// What sched_setscheduler(2) reports, or a filter in its place; `Unsupported` off Linux.
pub fn be_batch(batch: bool) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::io::{Error, ErrorKind};
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
            set_thread_priority_and_policy, thread_native_id,
        };
        let policy = if batch { NormalThreadSchedulePolicy::Batch } else { NormalThreadSchedulePolicy::Other };
        let policy = ThreadSchedulePolicy::Normal(policy);
        // The library sets the nice value too, by a scale of its own: found here is the step that changes nothing.
        let nice = rustix::process::getpriority_process(None)?;
        let steps = (0..=99u8).filter_map(|step| ThreadPriorityValue::try_from(step).ok());
        let same = steps.map(ThreadPriority::Crossplatform).find(|step| step.to_posix(policy) == Ok(nice));
        let same = same.ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("a nice value of {nice}")))?;
        set_thread_priority_and_policy(thread_native_id(), same, policy).map_err(|e| match e {
            thread_priority::Error::OS(errno) => Error::from_raw_os_error(errno),
            other => Error::other(other.to_string()),
        })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = batch;
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
