//! Files of unix sockets: a dead one is replaced, a live one is not, and ours goes when we do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use log::warn;
use nix::fcntl::{Flock, FlockArg};
use socket2::{Domain, SockAddr, Socket, Type};

/// How long, in steps, a start waits for another instance that starts in the same directory.
const LOCK_STEPS: u32 = 50;
const LOCK_STEP: Duration = Duration::from_millis(20);

/// The file of a bound socket. Removed when dropped, if it is ours to remove.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    ours: AtomicBool,
}

/// What stands in the way of a new socket.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// A file that is no socket.
    NoSocket,
    /// A socket somebody answers on.
    Answers,
    /// A socket somebody holds whose queue is full.
    Busy,
    /// A dead socket that cannot be removed.
    Stuck(io::Error),
    /// A socket that cannot be asked.
    Unknown(io::Error),
}

impl SocketFile {
    /// The file that is at `path` now; somebody else's to remove until [`Self::own`].
    ///
    /// # Errors
    /// What lstat(2) reports.
    pub(crate) fn found(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self::new(path, found.dev(), found.ino()))
    }

    /// The file with that device and inode; somebody else's to remove until [`Self::own`].
    pub(crate) fn new(path: &Path, device: u64, inode: u64) -> Self {
        Self { path: path.to_owned(), device, inode, ours: AtomicBool::new(false) }
    }

    /// From here on it is ours to remove.
    pub(crate) fn own(&self) {
        self.ours.store(true, Ordering::Relaxed);
    }

    /// Leaves the file where it is: another process answers on the socket.
    pub(crate) fn leave(&self) {
        self.ours.store(false, Ordering::Relaxed);
    }

    /// Device and inode of the file.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Its name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.ours.load(Ordering::Relaxed) {
            return;
        }
        match fs::symlink_metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == self.place() => {
                if let Err(error) = fs::remove_file(&self.path) {
                    warn!("socket {} could not be removed: {error}; the next start replaces it", self.path.display());
                }
            }
            _ => {} // Gone, or replaced by someone whose it is to remove.
        }
    }
}

/// Holds off other instances that start in the same directory: two that start together must not each find the other's
/// socket dead and replace it. Without the lock (a file system that has none, a stranger who keeps it) the start goes
/// on: it is a guard against a rare race, not a gate.
pub(crate) fn lock_directory(parent: &Path) -> Option<Flock<File>> {
    let mut directory = File::open(parent).ok()?;
    for _ in 0..LOCK_STEPS {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((file, nix::errno::Errno::EAGAIN)) => directory = file,
            Err(_) => return None,
        }
        thread::sleep(LOCK_STEP);
    }
    None
}

/// Looks for what stands in the way of a new socket at `path`; with `remove`, a dead socket is removed.
///
/// # Errors
/// The outer one is what lstat(2) reports.
pub(crate) fn look(path: &Path, remove: bool) -> io::Result<Result<(), Obstacle>> {
    let found = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ok(())),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Ok(Err(Obstacle::NoSocket));
    }
    Ok(match ask(path) {
        Ok(()) => Err(Obstacle::Answers),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Err(Obstacle::Busy),
            io::ErrorKind::NotFound => Ok(()),
            io::ErrorKind::ConnectionRefused if !remove => Ok(()),
            io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Obstacle::Stuck(error)),
                _ => Ok(()),
            },
            _ => Err(Obstacle::Unknown(error)),
        },
    })
}

/// Connects without waiting: a stopped instance with a full queue must not hold up the start.
fn ask(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// Binds a socket whose file has exactly that mode from the first moment on, or where none is given what the umask
/// leaves of it. It does not listen yet.
///
/// # Errors
/// What fchmod(2), bind(2) or chmod(2) reports.
pub(crate) fn bind(path: &Path, mode: Option<u32>) -> io::Result<(Socket, SocketFile)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if let Some(mode) = mode {
        restrict(&socket, mode)?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::found(path)?;
    file.own();
    if let Some(mode) = mode {
        set_mode(path, mode)?;
    }
    socket.set_nonblocking(true)?;
    Ok((socket, file))
}

/// Linux gives the file the mode of the socket's own inode, less the umask (`unix_bind_bsd` in net/unix/af_unix.c).
/// Elsewhere this fails or does nothing, and the chmod before listen does: until then a connect is refused.
fn restrict(socket: &Socket, mode: u32) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::stat::fchmod(socket, nix::sys::stat::Mode::from_bits_truncate(mode))?;
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, mode);
    Ok(())
}

/// Sets the mode of a socket's file where it is another.
///
/// # Errors
/// What stat(2) or chmod(2) reports.
pub(crate) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?.permissions().mode() & 0o7777;
    if found == mode { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(mode)) }
}
