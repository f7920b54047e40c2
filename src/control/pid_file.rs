//! The pid file: held under a lock while the process lives, so that a second instance cannot take it over.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::RunError;
use crate::sandbox;

/// How often a file that vanished between opening and locking it is opened again.
const ATTEMPTS: usize = 8;

/// A locked file that holds our process id; removed when dropped.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: Flock<File>,
    /// False while it is another process's: it is neither removed nor unlocked then.
    ours: bool,
}

impl PidFile {
    /// Writes our process id to `path`. A file left behind by a dead process is taken over: its lock died with it.
    ///
    /// # Errors
    /// When a living process holds the file, or it cannot be opened or written.
    pub(super) fn create(path: &Path) -> Result<Self, RunError> {
        let failed = |error: io::Error| {
            RunError::new(format!("pid file {}: {error}; choose a path this user may write", path.display()))
        };
        for _ in 0..ATTEMPTS {
            // O_NONBLOCK: a FIFO someone put there must not hold up the start.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(path)
                .map_err(failed)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((mut file, Errno::EAGAIN)) => return Err(held(path, &mut file)),
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // The former owner may have removed the file after we opened it: then our lock is on a nameless file.
            if !is_same_file(path, &file) {
                continue;
            }
            // It stays as it is when it is something else.
            let mut pid_file = Self { path: path.to_owned(), file, ours: false };
            pid_file.write().map_err(failed)?;
            pid_file.ours = true;
            return Ok(pid_file);
        }
        Err(RunError::new(format!("pid file {}: it keeps disappearing while it is being locked", path.display())))
    }

    /// The file another process has passed on. Its lock belongs to the open file, so this process holds it too; the file
    /// stays that process's until [`Self::take_over`].
    ///
    /// # Errors
    /// The file is not locked by whoever passed it on, but by somebody else.
    pub(super) fn inherit(path: &Path, file: File) -> Result<Self, RunError> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { path: path.to_owned(), file, ours: false }),
            Err((mut file, Errno::EAGAIN)) => Err(held(path, &mut file)),
            Err((_, errno)) => Err(RunError::new(format!("pid file {}: cannot be locked: {errno}", path.display()))),
        }
    }

    /// Writes our process id into an inherited file, which is ours from here on.
    pub(super) fn take_over(&mut self) {
        self.ours = true;
        if let Err(error) = self.write() {
            warn!("pid file {} still names the process before: {error}", self.path.display());
        }
    }

    /// The locked file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Closes the file without removing or unlocking it: another process holds it too, and keeps it.
    pub(super) fn leave(mut self) {
        self.ours = false;
    }

    /// Dropping the lock unlocks the open file, which may be another process's as well: it gets one of its own to unlock.
    fn spare_the_lock(&mut self) {
        match File::open("/dev/null") {
            Ok(null) => *self.file = null,
            Err(error) => warn!("pid file {} is no longer locked: {error}", self.path.display()),
        }
    }

    /// Refuses a file that is not a pid file: it would be overwritten now and removed at the end.
    fn write(&mut self) -> io::Result<()> {
        let mut text = String::new();
        let read = (&*self.file).take(32).read_to_string(&mut text);
        if read.is_err() || !text.trim().bytes().all(|byte| byte.is_ascii_digit()) {
            let why = "it holds something else than a process id; choose another path, or remove it yourself";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        self.file.set_len(0)?;
        self.file.rewind()?;
        sandbox::give(&self.file)?;
        writeln!(self.file, "{}", process::id())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if !self.ours {
            self.spare_the_lock();
            return;
        }
        if !is_same_file(&self.path, &self.file) {
            return; // Someone replaced it: theirs to remove.
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!("pid file {} could not be removed: {error}", self.path.display());
        }
    }
}

fn held(path: &Path, file: &mut File) -> RunError {
    let mut text = String::new();
    let owner = match file.take(32).read_to_string(&mut text) {
        Ok(_) => text.trim().parse::<u32>().map_or_else(|_| String::new(), |pid| format!(" (process {pid})")),
        Err(_) => String::new(),
    };
    RunError::new(format!(
        "pid file {}: a running instance{owner} holds it; stop that one or choose another path",
        path.display()
    ))
}

fn is_same_file(path: &Path, file: &File) -> bool {
    match (std::fs::symlink_metadata(path).and_then(|_| std::fs::metadata(path)), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        for text in ["precious\n", "12 monkeys", "a long line that is no process id, whatever it may be\n", "\u{7f}"] {
            std::fs::write(&path, text).unwrap();
            let error = PidFile::create(&path).unwrap_err().to_string();
            assert!(error.contains("something else"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, "4194304\n").unwrap();
        drop(PidFile::create(&path).unwrap());
        assert!(!path.exists(), "a stale process id is taken over");
    }

    #[test]
    fn is_written_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_file_is_taken_over_and_cut_to_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "999999999999999999999\n").unwrap();
        let _file = PidFile::create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
    }

    #[test]
    fn a_lock_passed_on_outlives_who_left_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let first = PidFile::create(&path).unwrap();
        let mut second = PidFile::inherit(&path, first.file().try_clone().unwrap()).unwrap();
        first.leave();
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert!(error.contains("a running instance"), "{error}");
        std::fs::write(&path, "1\n").unwrap();
        second.take_over();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        let stranger = File::open(&path).unwrap();
        assert!(PidFile::inherit(&path, stranger).is_err(), "another open file has no lock");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_held_file_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let first = PidFile::create(&path).unwrap();
        let error = PidFile::create(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", process::id())), "{error}");
        assert!(path.exists());
        drop(first);
    }

    #[test]
    fn a_file_of_someone_else_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "7\n").unwrap();
        drop(file);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "7\n");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = PidFile::create(Path::new("/nonexistent-dir/pid")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent-dir/pid"), "{error}");
    }
}
