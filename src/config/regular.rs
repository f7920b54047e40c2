//! Files that are read while others wait for it, and again later: regular ones. A FIFO holds up who opens it until
//! somebody writes, a device may have no end, and neither says the same twice.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a regular file to read it.
///
/// # Errors
/// What stat(2) or open(2) reports, or what the file is instead.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: with some devices that alone does something.
    insist(&std::fs::metadata(path)?)?;
    // It may be another one by now, which is to hold up nobody either.
    let file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        // Somebody has a lease on it, and gives it back in a moment (fcntl(2)).
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => File::open(path)?,
        result => result?,
    };
    insist(&file.metadata()?)?;
    Ok(file)
}

fn insist(found: &Metadata) -> io::Result<()> {
    match what(found.file_type()) {
        None => Ok(()),
        Some(what) => Err(io::Error::new(
            if found.is_dir() { io::ErrorKind::IsADirectory } else { io::ErrorKind::InvalidInput },
            format!("it is {what}, and only a regular file can be read again: write what it says into one"),
        )),
    }
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
