//! Mount, process and network namespaces that are the lab's own.
//!
//! Experiments run inside: their named namespaces, devices, rules and files in `/run` exist nowhere else, and when the
//! lab ends, however it ends, the kernel ends every process in it and takes the rest down with them. Two labs at once
//! cannot meet. As an ordinary user a user namespace goes around it, where the lab is root.
//!
//! The process that the user started stays outside as a guard: it passes signals on and hands back the exit status.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::tools;

/// Set in the process inside.
const INSIDE: &str = "SPLICED_LAB_INSIDE";
/// Where the outer `/proc` is kept, in [`scratch`].
const OUTER_PROC: &str = "proc";
/// Sysctls that can forbid user namespaces, with the value that allows them.
const SYSCTLS: [(&str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "1"),
    ("user.max_user_namespaces", "15000"),
    ("kernel.apparmor_restrict_unprivileged_userns", "0"),
];

/// Whether this process is the one inside.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again with the same arguments, and with `environment` set, inside namespaces of its own, until
/// it ends. Call it before any thread is started.
///
/// # Errors
/// When the host gives no namespaces, saying what would allow them.
pub fn run_inside(environment: &[(&str, &OsStr)]) -> io::Result<ExitStatus> {
    let mut signals = Signals::new([SIGCHLD, SIGINT, SIGTERM, SIGHUP])?;
    let mut child = spawn_inside(Stdio::piped(), Stdio::inherit(), environment)?;
    let pid = pid_of(&child);
    loop {
        for signal in signals.wait() {
            if signal != SIGCHLD
                && let Ok(signal) = Signal::try_from(signal)
            {
                // Fails only when it has just ended, which the next turn finds out.
                let _ = kill(pid, signal);
            }
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
    }
}

/// The process id of a child that has not been waited for.
#[must_use]
pub fn pid_of(child: &Child) -> Pid {
    // Process ids fit an i32 on Linux (PID_MAX_LIMIT is 2^22).
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Starts this program inside, with the arguments of this process.
///
/// # Errors
/// As [`run_inside`].
pub fn spawn_inside(stdin: Stdio, stdout: Stdio, environment: &[(&str, &OsStr)]) -> io::Result<Child> {
    let program = std::env::current_exe()?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    separate()?;
    Command::new(&program)
        .args(arguments)
        .envs(environment.iter().copied())
        .env(INSIDE, "1")
        // An ordinary user's leaves out where servers, and programs such as nft, are.
        .env("PATH", tools::search_path())
        .stdin(stdin)
        .stdout(stdout)
        // Ctrl-C reaches the guard alone, which passes it on once.
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start {} again: {error}", program.display())))
}

/// Takes this process into a new network namespace and its children into a new process namespace. Mounts come later,
/// in [`settle`], so that this process keeps its view of files.
fn separate() -> io::Result<()> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    let (user, group) = (geteuid(), getegid());
    match unshare(flags) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(refused(error)),
    }
    unshare(flags | CloneFlags::CLONE_NEWUSER).map_err(refused)?;
    let maps =
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1")), ("gid_map", format!("0 {group} 1"))];
    for (file, text) in maps {
        fs::write(Path::new("/proc/self").join(file), text).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write /proc/self/{file}: {error}; {}", advice()))
        })?;
    }
    Ok(())
}

fn refused(error: Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("this host gives no namespaces (unshare: {error}); {}", advice()))
}

/// What the user can do where namespaces are refused.
fn advice() -> String {
    let forbids = |(name, allowed): &&(&str, &str)| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let value = fs::read_to_string(path).unwrap_or_default();
        let value = value.trim().to_owned();
        match *allowed {
            "15000" => value == "0",
            allowed => !value.is_empty() && value != allowed,
        }
    };
    let found: Vec<String> =
        SYSCTLS.iter().filter(forbids).map(|(name, allowed)| format!("`sysctl -w {name}={allowed}`")).collect();
    if found.is_empty() {
        "run it as root; in a container, with the capabilities SYS_ADMIN and NET_ADMIN".to_owned()
    } else {
        format!("run it as root, or allow them to users with {}", found.join(" and "))
    }
}

/// Makes the inside a place to work in: its own `/proc`, an empty `/run` with `/run/netns` and [`scratch`] in it,
/// loopback up. Ends this process when the guard has gone.
///
/// # Errors
/// What could not be mounted.
pub fn settle(guarded: bool) -> io::Result<()> {
    if guarded {
        std::thread::Builder::new().name("guard".to_owned()).stack_size(64 << 10).spawn(|| {
            // The guard holds the other end and never writes. As the first process of our namespace we take all others
            // with us.
            let _ = io::stdin().lock().read(&mut [0]);
            std::process::exit(1);
        })?;
    }
    let none: Option<&str> = None;
    let mounted = |what: &str, result: nix::Result<()>| {
        result.map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(
                error.kind(),
                format!("cannot mount {what} in a namespace of our own: {error}; {}", advice()),
            )
        })
    };
    mounted("anything", unshare(CloneFlags::CLONE_NEWNS))?;
    mounted("/ as private", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let flags_run = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mounted("/run", mount(Some("tmpfs"), "/run", Some("tmpfs"), flags_run, Some("mode=0755")))?;
    fs::create_dir_all("/run/netns")?;
    fs::create_dir_all(scratch())?;
    let outer = scratch().join(OUTER_PROC);
    fs::create_dir_all(&outer)?;
    mounted("the outer /proc", mount(Some("/proc"), &outer, none, MsFlags::MS_BIND | MsFlags::MS_REC, none))?;
    mounted("/proc", mount(Some("proc"), "/proc", Some("proc"), flags, none))
}

/// Whether a path would be hidden inside.
#[must_use]
pub fn hides(path: &Path) -> bool {
    path.starts_with("/run") || path.starts_with("/proc")
}

/// The `/proc` with every process of the machine, kernel threads too: not that of our own process namespace.
#[must_use]
pub fn machine_proc() -> PathBuf {
    let outer = scratch().join(OUTER_PROC);
    if is_inside() && outer.exists() { outer } else { PathBuf::from("/proc") }
}

/// A directory that ends with the lab, with short paths for sockets. Only inside.
#[must_use]
pub fn scratch() -> &'static Path {
    Path::new("/run/lab")
}
