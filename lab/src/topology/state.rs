//! What `lab up` left, so that `down` and `status` find it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::links::Links;
use crate::plan::about;

/// Longest state file, in bytes.
const LONGEST: u64 = 64 << 10;

/// A topology that is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How the namespaces are kept.
    pub kept: Kept,
    /// Their names.
    pub namespaces: Vec<String>,
    /// What the links are like.
    pub links: Links,
    /// When it was made, RFC 3339.
    pub since: String,
}

/// How namespaces are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// By name, for everybody to see.
    Named,
    /// By a process of this user.
    Process {
        /// Its id.
        pid: u32,
        /// When it was started, in ticks since boot: tells it from a later process with the same id.
        started: u64,
    },
}

impl State {
    /// `$XDG_RUNTIME_DIR/spliced-lab.json`, or a file in `/tmp` with the user's id.
    #[must_use]
    pub fn path() -> PathBuf {
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(directory) => PathBuf::from(directory).join("spliced-lab.json"),
            None => std::env::temp_dir().join(format!("spliced-lab-{}.json", geteuid())),
        }
    }

    /// Reads what is up; `None` when nothing is.
    ///
    /// # Errors
    /// When the file is not ours or not understood.
    pub fn load() -> io::Result<Option<Self>> {
        let path = Self::path();
        let at = about("read", &path);
        // Never through a symbolic link: the directory may be everybody's.
        let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(error)),
        };
        if file.metadata().map_err(&at)?.uid() != geteuid().as_raw() {
            return Err(at(io::Error::other("it belongs to another user; remove it, or set XDG_RUNTIME_DIR")));
        }
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).map_err(&at)?;
        let state = serde_json::from_str(&text);
        state.map(Some).map_err(|error| at(io::Error::other(format!("{error}; remove the file if no lab is up"))))
    }

    /// Writes it to a new file. As root before anything is made, so that also a lab that is killed half-way can be
    /// taken down; `path` is [`State::path`] of the user who asked, which a user namespace changes.
    ///
    /// # Errors
    /// When there is a file already, or it cannot be written.
    pub fn announce(&self, path: &Path) -> io::Result<()> {
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = opened.map_err(about("make", path))?;
        let text = serde_json::to_vec_pretty(self)?;
        file.write_all(&text).map_err(about("write", path))
    }

    /// Forgets it.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget() -> io::Result<()> {
        let path = Self::path();
        fs::remove_file(&path).map_err(about("remove", &path))
    }
}

/// When a process was started, in ticks since boot (field 22 of proc_pid_stat(5)); `None` when there is none.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_start_and_no_process_has_none() {
        let own = started(std::process::id());
        assert!(own.is_some());
        assert_eq!(own, started(std::process::id()), "it does not change");
        assert_eq!(started(u32::MAX), None);
    }
}
