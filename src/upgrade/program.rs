//! The program as it was started, to be started again.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::protocol::{VARIABLE, VERSION};
use crate::sandbox;

/// What of the environment speaks of this process alone: the new one would misread it.
const OURS_ALONE: [&str; 4] = ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_PID"];

/// Where the program is found, and with what it was started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// This process's own. Symbolic links are kept as they are: one that is moved to a new version leads there.
    ///
    /// # Errors
    /// Neither the command line nor the system says where the program is.
    pub fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let name = arguments.next();
        let named = name.and_then(|name| find(&name, &env::current_dir().ok()?, env::var_os("PATH").as_deref()));
        // A name of the caller's choice (exec -a) leads nowhere; the system knows the file behind it.
        let path = named.map_or_else(env::current_exe, Ok)?;
        Ok(Self { path, arguments: arguments.collect() })
    }

    /// Where the program is looked for.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts it with one side of a channel. Its standard error is a pipe.
    ///
    /// # Errors
    /// What fork(2) or execve(2) reports, with the path.
    pub(super) fn start(&self, channel: OwnedFd) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        command.arg0(&self.path).args(&self.arguments).env(VARIABLE, VERSION);
        for name in OURS_ALONE {
            command.env_remove(name);
        }
        if let Some((name, value)) = sandbox::environment() {
            command.env(name, value);
        }
        command.stdin(Stdio::from(channel)).stderr(Stdio::piped()).spawn().map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "install the new program there".to_owned(),
                io::ErrorKind::PermissionDenied => sandbox::why_not_started(),
                _ => "install a program for this machine there".to_owned(),
            };
            io::Error::new(error.kind(), format!("cannot start {}: {error}; {hint}", self.path.display()))
        })
    }
}

/// The file a shell would have run for a name.
fn find(name: &OsStr, directory: &Path, path: Option<&OsStr>) -> Option<PathBuf> {
    let is_there = |file: &PathBuf| file.is_file();
    if name.as_encoded_bytes().contains(&b'/') {
        return Some(directory.join(name)).filter(is_there);
    }
    env::split_paths(path?).map(|entry| directory.join(entry).join(name)).find(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, other) = (dir.path().join("bin"), dir.path().join("other"));
        std::fs::create_dir(&bin).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::write(bin.join("new"), "").unwrap();
        std::os::unix::fs::symlink("new", bin.join("spliced")).unwrap();
        let path = env::join_paths([other.as_path(), Path::new("bin")]).unwrap();
        let found = |name: &str| find(name.as_ref(), dir.path(), Some(&path));
        let link = bin.join("spliced");
        assert_eq!(found("spliced"), Some(link.clone()), "through PATH, a relative entry included, link kept");
        assert_eq!(found("bin/spliced"), Some(link.clone()));
        assert_eq!(found("./bin/spliced").unwrap().canonicalize().unwrap(), bin.join("new").canonicalize().unwrap());
        assert_eq!(found(link.to_str().unwrap()), Some(link));
        for name in ["missing", "./missing", "/missing", "bin", ""] {
            assert_eq!(found(name), None, "{name:?}");
        }
        assert_eq!(find("spliced".as_ref(), dir.path(), None), None);
    }

    #[test]
    fn this_process_is_found() {
        let program = Program::of_this_process().unwrap();
        assert!(program.path().is_absolute() && program.path().exists(), "{program:?}");
    }
}
