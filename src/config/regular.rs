//! Files that are read while others wait for it, and again later: regular ones. A FIFO holds up who opens it until
//! somebody writes, a device may have no end, and neither says the same twice.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;

/// How long who has a lease on the file may take to give it back; the kernel's own limit may be anything.
const LEASE_LIMIT: Duration = Duration::from_secs(5);
/// From a try to the next one.
const LEASE_PAUSE: Duration = Duration::from_millis(10);

/// Opens a regular file to read it.
///
/// # Errors
/// What stat(2) or open(2) reports, or what the file is instead.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: with some devices that alone does something.
    insist(&std::fs::metadata(path)?)?;
    // It may be another one by now, which is to hold up nobody either.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = patiently(|| options.open(path), LEASE_LIMIT)?;
    insist(&file.metadata()?)?;
    Ok(file)
}

/// Tries again while somebody has a lease on the file: a try asks them for it (fcntl(2), F_SETLEASE).
fn patiently(open: impl Fn() -> io::Result<File>, limit: Duration) -> io::Result<File> {
    let until = Instant::now() + limit;
    loop {
        match open() {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) if Instant::now() < until => thread::sleep(LEASE_PAUSE),
            Err(e) => {
                let why = "another process holds a lease on it, and has not given it back within";
                return Err(io::Error::new(e.kind(), format!("{why} {limit:?}: try again, or end that process")));
            }
            opened => return opened,
        }
    }
}

fn insist(found: &Metadata) -> io::Result<()> {
    match what(found.file_type()) {
        None => Ok(()),
        // It ends, and always says the same: what people write for "no list".
        Some(_) if is_null(found) => Ok(()),
        Some(what) => Err(io::Error::new(
            if found.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput },
            format!("it is {what}, and only a regular file can be read again: write what it says into one"),
        )),
    }
}

fn is_null(found: &Metadata) -> bool {
    let is_it = |null: Metadata| null.rdev() == found.rdev();
    found.file_type().is_char_device() && std::fs::metadata("/dev/null").is_ok_and(is_it)
}

fn what(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() => None,
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn of_all_devices_only_the_empty_one_is_read() {
        assert!(open(Path::new("/dev/null")).is_ok());
        let zero = open(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(zero.contains("it is a device"), "{zero}");
    }

    #[test]
    fn a_lease_is_waited_for_but_not_for_ever() {
        let (tries, long) = (Cell::new(0), Duration::from_secs(60));
        let given_back = || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(io::ErrorKind::WouldBlock.into()) } else { File::open("/dev/null") }
        };
        assert!(patiently(given_back, long).is_ok());
        assert_eq!(tries.get(), 3);
        let kept = patiently(|| Err(io::ErrorKind::WouldBlock.into()), Duration::ZERO).unwrap_err().to_string();
        assert!(kept.contains("a lease on it"), "{kept}");
        let other = patiently(|| Err(io::ErrorKind::NotFound.into()), long).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::NotFound);
    }
}
