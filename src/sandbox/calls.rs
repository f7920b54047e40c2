//! The system calls of each role, as `strace` shows them over the whole test-suite, with what other C libraries and
//! processors use in their place.
//!
//! Calls without arguments to check are the cheap ones: from Linux 5.11 on the kernel remembers them as always allowed
//! and does not run the filter (`seccomp_cache_check_allow` in kernel/seccomp.c). Everything a turn of a worker does
//! is one of those.

use libc::c_long;

/// A processor that still has the calls newer ones left out.
#[cfg(target_arch = "x86_64")]
macro_rules! old {
    ($($call:ident),* $(,)?) => { &[$(libc::$call),*] };
}
#[cfg(not(target_arch = "x86_64"))]
macro_rules! old {
    ($($call:ident),* $(,)?) => {
        &[]
    };
}

/// What every thread needs to live: locks, clocks, memory, its end, and a panic's way out.
pub(super) const LIFE: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];
/// The same under older names.
pub(super) const LIFE_OLD: &[c_long] = old![SYS_poll, SYS_time];

/// Moving bytes: everything here is also allowed to the main thread, which starts the workers.
pub(super) const TRAFFIC: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getpriority,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_pipe2,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setpriority,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];
/// The same under older names.
pub(super) const TRAFFIC_OLD: &[c_long] = old![SYS_epoll_wait];

/// Looking up names: the C library reads its files, loads its modules and asks servers.
pub(super) const NAMES: &[c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_readlinkat,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_uname,
];
/// The same under older names.
pub(super) const NAMES_OLD: &[c_long] = old![SYS_access, SYS_lstat, SYS_open, SYS_readlink, SYS_stat];

/// What the main thread does beside: it reads configurations, opens and removes files, confines new threads, and starts
/// a newer executable, which begins under this same filter.
pub(super) const CONTROL: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_get_robust_list,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getppid,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getsid,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_mkdirat,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_pwrite64,
    libc::SYS_renameat2,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_seccomp,
    libc::SYS_set_tid_address,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_signalfd4,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_wait4,
    libc::SYS_waitid,
];
/// The same under older names. vfork(2) takes no arguments that could be misused.
pub(super) const CONTROL_OLD: &[c_long] = old![
    SYS_arch_prctl,
    SYS_chmod,
    SYS_dup2,
    SYS_epoll_create,
    SYS_fork,
    SYS_getpgrp,
    SYS_getrlimit,
    SYS_mkdir,
    SYS_pipe,
    SYS_rename,
    SYS_unlink,
    SYS_vfork,
];
