//! Least privilege: what the process gives up once its listeners are bound.
//!
//! In this order, on the main thread, before any other thread exists:
//!
//! 1. the user (`user`), the bounding set and every capability that is not kept;
//! 2. `no_new_privs`, so that no program this one runs gets anything back;
//! 3. Landlock: files but for what a reload, the session log and an upgrade need; with `strict` also TCP ports;
//! 4. a system-call filter wide enough for the main thread, and for a newer spliced it may start: a filter and a
//!    Landlock domain outlive execve(2), and what they forbid no successor gets back.
//!
//! Threads inherit all of it, and [`enter`] then takes from each what its [`Role`] does not need: a worker has no
//! capability, cannot open a file, start a program or a thread, or map memory as code.
//!
//! A filtered call fails with ENOSYS, as on a kernel that does not have it: that is the error libraries have a way
//! around for (glibc tries clone(2) after clone3(2), and no byte is lost where splice(2) is refused). Killing the
//! thread would cut every session of a worker for one call nobody foresaw.
//!
//! A part the kernel or the container refuses is logged and left out; forwarding goes on. Only `strict` insists.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod calls;
#[cfg(target_os = "linux")]
mod capabilities;
#[cfg(target_os = "linux")]
mod confine;
#[cfg(not(target_os = "linux"))]
#[path = "none.rs"]
mod confine;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")), path = "no_filter.rs")]
mod filter;
#[cfg(target_os = "linux")]
mod handover;
#[cfg(target_os = "linux")]
mod user;

use std::fmt;
use std::path::Path;

pub(crate) use self::confine::may_own;
pub use self::confine::{
    confine, enter, environment, give, give_path, give_socket, prepare, report, support, why_not_started,
};

/// What a thread is there for, which decides what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Moves bytes.
    Worker,
    /// Asks targets whether they work.
    Check,
    /// Writes the session log.
    Log,
    /// Looks names up.
    Resolver,
}

/// One part of the confinement and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `user`, `capabilities`, `no_new_privs`, `seccomp` or `landlock`; `threads` where some are left out.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
}

/// How a part of the confinement stands, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// In force (or, for [`support`], to be had), with what it comes to.
    On(String),
    /// Not wanted.
    Off,
    /// Wanted and not to be had, with the reason and what can be done.
    Missing(String),
}

impl Part {
    fn on(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::On(detail.into()) }
    }

    fn missing(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, state: State::Missing(why.into()) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::On(detail) => write!(f, "{} {detail}", self.name),
            State::Off => write!(f, "{} off", self.name),
            State::Missing(why) => write!(f, "{} missing: {why}", self.name),
        }
    }
}

/// The directory a file is in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}
