//! Where there is no Linux: nothing to give up, and a word about what was asked for.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Part, Role};
use crate::plan::{Confinement, Plan, RunAs};

/// Refuses what this system does not have.
///
/// # Errors
/// `user` is set, or `sandbox` is `strict`: both need Linux.
pub fn prepare(plan: &Plan, _config: Option<&Path>) -> io::Result<()> {
    let asked = match &plan.privileges {
        privileges if privileges.user.is_some() => "user",
        privileges if privileges.sandbox == Confinement::Strict => "sandbox strict",
        _ => return Ok(()),
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("{asked} is there on Linux only; leave it out")))
}

/// Nothing to do.
///
/// # Errors
/// None.
pub fn confine() -> io::Result<()> {
    Ok(())
}

/// Nothing to do.
pub fn enter(_role: Role) {}

/// Nothing to do.
///
/// # Errors
/// None.
pub fn give(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Nothing to do.
///
/// # Errors
/// None.
pub fn give_path(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Nothing to do.
///
/// # Errors
/// None.
pub fn give_socket(_socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    Ok(())
}

/// The user who may own what this process finds in the place of its files: itself or root.
pub(crate) fn may_own(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Users are looked up on Linux only.
///
/// # Errors
/// Always.
pub fn find_user(run_as: &RunAs) -> io::Result<(u32, u32)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("user {run_as}: looked up on Linux only")))
}

/// Nothing is in force.
#[must_use]
pub fn report() -> Vec<Part> {
    Vec::new()
}

/// What this system could confine.
#[must_use]
pub fn support() -> Vec<Part> {
    vec![Part::missing("sandbox", "there on Linux only")]
}

/// Nothing to hand over.
#[must_use]
pub fn environment() -> Option<(&'static str, String)> {
    None
}

/// Why a program that is there may not be started, in words that follow what execve(2) reports.
#[must_use]
pub fn why_not_started() -> String {
    "the user spliced runs as must be allowed to execute it".to_owned()
}
