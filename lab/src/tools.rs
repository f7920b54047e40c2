//! Programs of others: where they are, which version, and how to get them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::place::Place;
use crate::process::Process;
use crate::results::Missing;

/// Where servers are installed although an ordinary user's PATH leaves these out.
const SERVER_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// A program of which the lab knows how it is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its file name.
    pub program: &'static str,
    /// Arguments that make it print its version.
    pub version: &'static [&'static str],
    /// How to get it.
    pub how: &'static str,
}

/// Bulk load.
pub const IPERF3: Tool = Tool { program: "iperf3", version: &["--version"], how: "apt install iperf3" };
/// Small exchanges, its client.
pub const NETPERF: Tool = Tool {
    program: "netperf",
    version: &["-V"],
    how: "Debian has it in non-free: apt install netperf; else https://github.com/HewlettPackard/netperf",
};
/// System calls by name.
pub const STRACE: Tool = Tool { program: "strace", version: &["-V"], how: "apt install strace" };
/// Counters and profiles.
pub const PERF: Tool = Tool { program: "perf", version: &["--version"], how: "apt install linux-perf" };

impl Tool {
    /// Its path.
    ///
    /// # Errors
    /// That it is not there, and how to get it.
    pub fn find(&self) -> Result<PathBuf, Missing> {
        on_path(self.program)
            .ok_or_else(|| Missing { name: self.program.to_owned(), how: format!("not found on PATH; {}", self.how) })
    }

    /// [`Self::find`] with the miss as an error.
    ///
    /// # Errors
    /// As there.
    pub fn require(&self) -> io::Result<PathBuf> {
        self.find()
            .map_err(|missing| io::Error::new(io::ErrorKind::NotFound, format!("{}: {}", missing.name, missing.how)))
    }

    /// The first line it says of its version; `None` where it is missing or silent.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        first_line(&output_of(&self.find().ok()?, self.version)?)
    }
}

/// The executable file a name leads to; a name with a slash is a path. Directories of servers are searched last.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return executable(Path::new(name)).then(|| PathBuf::from(name));
    }
    within(name, env::split_paths(&search_path()))
}

/// PATH and the directories of servers behind it: what the lab and all it starts inside look for programs in.
#[must_use]
pub fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    with_servers(&path)
}

fn with_servers(path: &OsStr) -> OsString {
    let mut all: Vec<PathBuf> = env::split_paths(path).filter(|directory| !directory.as_os_str().is_empty()).collect();
    for directory in SERVER_DIRECTORIES.map(PathBuf::from) {
        if !all.contains(&directory) {
            all.push(directory);
        }
    }
    // What came from a path goes into one.
    env::join_paths(all).unwrap_or_else(|_| path.to_owned())
}

fn within(name: &str, directories: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    directories.map(|directory| directory.join(name)).find(|file| executable(file))
}

fn executable(file: &Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// What a program prints, standard output before standard error, when it ends by itself within a few seconds.
#[must_use]
pub fn output_of(program: &Path, arguments: &[&str]) -> Option<String> {
    output_in(&Place::here(), &[program.to_string_lossy().into_owned()], arguments)
}

/// As [`output_of`], of a program with words of the user's around it, and in a place.
#[must_use]
pub fn output_in(place: &Place, words: &[String], arguments: &[&str]) -> Option<String> {
    let directory = tempfile::tempdir().ok()?;
    let (out, err) = (directory.path().join("out"), directory.path().join("err"));
    let (program, rest) = words.split_first()?;
    let mut command = place.command(program);
    command.args(rest).args(arguments);
    let mut process = Process::start_bounded("version", command, &out, &err).ok()?;
    process.wait_for_end(PATIENCE).ok()?;
    let read = |path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    Some(read(&out) + &read(&err))
}

/// The first line that says something.
#[must_use]
pub fn first_line(output: &str) -> Option<String> {
    output.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        let sh = on_path("sh").unwrap();
        assert_eq!(on_path(sh.to_str().unwrap()), Some(sh.clone()));
        assert_eq!(on_path("/etc/passwd"), None, "no program");
        assert_eq!(on_path("no-such-program-anywhere"), None);
        let first = |script| first_line(&output_of(&sh, &["-c", script]).unwrap());
        assert_eq!(first("echo; echo ' 1.2 '; echo x >&2").as_deref(), Some("1.2"));
        assert_eq!(first("echo only >&2; exit 3").as_deref(), Some("only"));
        let words = ["env", "A=b", "sh"].map(str::to_owned);
        assert_eq!(output_in(&Place::here(), &words, &["-c", "echo $A"]).as_deref(), Some("b\n"));
    }

    #[test]
    fn directories_of_servers_are_searched_behind_the_path_of_the_user() {
        let path = with_servers(OsStr::new("/opt/bin:/usr/sbin:/usr/bin"));
        assert_eq!(path, "/opt/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/sbin");
        assert_eq!(with_servers(OsStr::new("")), "/usr/local/sbin:/usr/sbin:/sbin");
    }

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        let tool = Tool { program: "no-such-tool", version: &[], how: "apt install no-such-tool" };
        let missing = tool.find().unwrap_err();
        assert!(missing.how.contains("apt install"), "{missing:?}");
        assert!(tool.require().unwrap_err().to_string().contains("apt install"));
        assert_eq!(tool.version(), None);
    }
}
