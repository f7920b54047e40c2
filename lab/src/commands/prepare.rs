//! What an experiment needs before it goes inside: a directory for its results and a forwarder to measure.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Error;
use crate::cli::Files;
use crate::plan::about;
use crate::sample::memory;
use crate::topology::sandbox;

/// Tells the process inside where results go.
const OUT: &str = "SPLICED_LAB_OUT";
/// Tells it which forwarder to measure.
const SPLICED: &str = "SPLICED_LAB_SPLICED";

/// What the process inside works with.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// Where results go; it exists.
    pub(super) out: PathBuf,
    /// The forwarder to measure.
    pub(super) spliced: PathBuf,
    /// Held by the guard, so that no other lab writes there meanwhile.
    _lock: Option<Arc<Flock<File>>>,
}

impl Prepared {
    /// What the guard prepared.
    pub(super) fn inside() -> Result<Self, Error> {
        let path = |name: &str| {
            let value = std::env::var_os(name).map(PathBuf::from);
            value.ok_or_else(|| Error::Failed(format!("{name} is not set; do not set SPLICED_LAB_INSIDE yourself")))
        };
        Ok(Self { out: path(OUT)?, spliced: path(SPLICED)?, _lock: None })
    }

    /// Prepares outside. What an earlier experiment left in the directory is written over file by file.
    pub(super) fn outside(files: &Files) -> Result<Self, Error> {
        check_json(files.json.as_deref())?;
        let out = files.out.clone().unwrap_or_else(default_out);
        let spliced = find_spliced(files.spliced.as_deref())?;
        fs::create_dir_all(&out).map_err(about("make the directory", &out))?;
        let out = fs::canonicalize(&out).map_err(about("find the directory", &out))?;
        for path in [&out, &spliced] {
            if sandbox::hides(path) {
                return Err(hidden(path));
            }
        }
        let lock = File::open(&out).map_err(about("open the directory", &out))?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Some(Arc::new(lock)),
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::Failed(format!("another lab writes to {}; name another --out", out.display())));
            }
            // Not every file system has locks.
            Err(_) => None,
        };
        Ok(Self { out, spliced, _lock: lock })
    }

    /// Runs this program again inside.
    pub(super) fn run_inside(&self) -> Result<ExitCode, Error> {
        let tcp_memory = memory::tcp_memory_of_host();
        let environment: [(&str, &OsStr); 3] = [
            (OUT, self.out.as_os_str()),
            (SPLICED, self.spliced.as_os_str()),
            (memory::TCP_MEMORY, OsStr::new(&tcp_memory)),
        ];
        let status = sandbox::run_inside(&environment)?;
        match status.code() {
            Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(super::FAILED))),
            None => Err(Error::Failed(format!("the lab was ended from outside ({status}); nothing of it is left"))),
        }
    }
}

fn hidden(path: &Path) -> Error {
    Error::Wrong(format!("found {}; allowed: a path outside of /run and /proc", path.display()))
}

/// Whether `--json FILE` can be written in the end, while nothing has been measured yet: after an hour is late.
fn check_json(json: Option<&Path>) -> Result<(), Error> {
    let Some(path) = json.filter(|path| *path != Path::new("-")) else { return Ok(()) };
    let wrong = |what: String| Error::Wrong(format!("--json {}: {what}", path.display()));
    if path.is_dir() {
        return Err(wrong("found a directory; allowed: a file, or - for standard output".to_owned()));
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = fs::canonicalize(parent).map_err(|error| wrong(error.to_string()))?;
    // Written there it would be gone with the lab.
    if sandbox::hides(&parent) { Err(hidden(path)) } else { Ok(()) }
}

fn default_out() -> PathBuf {
    let time = jiff::Zoned::now().strftime("%Y-%m-%d-%H%M%S").to_string();
    Path::new("lab-results").join(time)
}

/// The forwarder: the one named, else the release build beside this program, brought up to date first.
fn find_spliced(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        return fs::canonicalize(path).map_err(|error| Error::Wrong(format!("--spliced {}: {error}", path.display())));
    }
    let program = std::env::current_exe()?;
    let profile = program.parent().unwrap_or(Path::new("/"));
    let target = profile.parent().unwrap_or(profile);
    let path = target.join("release").join("spliced");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml");
    if manifest.is_file()
        && let Err(error) = build(&manifest, target)
    {
        if !path.is_file() {
            return Err(error);
        }
        crate::tell!("lab: {error}; measuring the older build {}", path.display());
    }
    if path.is_file() {
        return Ok(path);
    }
    let beside = profile.join("spliced");
    if beside.is_file() {
        return Ok(beside);
    }
    Err(Error::Failed(format!("no forwarder at {} or beside it; name one with --spliced PATH", path.display())))
}

/// A measurement of yesterday's build helps nobody; when nothing changed this takes a moment.
fn build(manifest: &Path, target: &Path) -> Result<(), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    crate::tell!("lab: cargo build --release -p spliced");
    let status = Command::new(&cargo)
        .args(["build", "--quiet", "--release", "-p", "spliced", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(target)
        .status()
        .map_err(|error: io::Error| Error::Failed(format!("cannot run {}: {error}", cargo.to_string_lossy())))?;
    if status.success() { Ok(()) } else { Err(Error::Failed(format!("cargo build --release -p spliced: {status}"))) }
}
