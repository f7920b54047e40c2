//! Where lines go. A sink never fails: what it could not write it counts, and it says so once until it works again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use log::{info, warn};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::stderr;

/// The target of session lines in the program's own log, for filters such as `RUST_LOG=spliced::session=off`.
pub(super) const TARGET: &str = "spliced::session";

/// Opens a log file for appending.
///
/// # Errors
/// The error of open(2), with the path in its message.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    // O_NONBLOCK, so that a FIFO nobody reads is an error here and does not hang the start; taken back below, so that
    // the log thread waits for a slow reader.
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(named)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).map_err(|errno| named(errno.into()))?;
    crate::sandbox::give(&file).map_err(named)?;
    Ok(file)
}

/// Where lines go.
#[derive(Debug)]
pub(super) struct Sink {
    output: Output,
    /// The last write may have stopped within a line.
    torn: bool,
    failing: bool,
}

#[derive(Debug)]
enum Output {
    File {
        path: PathBuf,
        file: File,
    },
    /// Through the program's own log, with its time and level.
    Logger,
    /// Bare lines.
    StandardError,
}

impl Sink {
    pub(super) fn file(path: PathBuf, file: File) -> Self {
        Self::new(Output::File { path, file })
    }

    pub(super) fn logger() -> Self {
        Self::new(Output::Logger)
    }

    pub(super) fn standard_error() -> Self {
        Self::new(Output::StandardError)
    }

    fn new(output: Output) -> Self {
        Self { output, torn: false, failing: false }
    }

    /// Goes on in another file.
    pub(super) fn replace(&mut self, new: File) {
        if let Output::File { file, .. } = &mut self.output {
            *file = new;
            self.torn = false;
        }
    }

    /// Writes whole lines and returns how many were lost.
    pub(super) fn write(&mut self, lines: &str) -> u64 {
        if lines.is_empty() {
            return 0;
        }
        let result = match &mut self.output {
            Output::File { file, .. } => append(file, &mut self.torn, lines.as_bytes()),
            Output::Logger => {
                for line in lines.lines() {
                    stderr::wait();
                    info!(target: TARGET, "{line}");
                }
                return 0;
            }
            Output::StandardError => append(&mut PatientStderr, &mut self.torn, lines.as_bytes()),
        };
        self.report(result)
    }

    fn report(&mut self, result: Result<(), (u64, io::Error)>) -> u64 {
        match result {
            Ok(()) => {
                if std::mem::replace(&mut self.failing, false) {
                    info!("session log: written again");
                }
                0
            }
            Err((lost, error)) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let name = match &self.output {
                        Output::File { path, .. } => path.display().to_string(),
                        _ => "standard error".to_owned(),
                    };
                    warn!("session log {name}: {error}; lines are lost and counted until it can be written again");
                }
                lost
            }
        }
    }
}

/// Standard error for a thread that may wait, but not while it holds the lock that everybody else needs.
struct PatientStderr;

impl Write for PatientStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        stderr::wait();
        io::stderr().lock().write(stderr::piece(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `lines`, or says how many of them did not make it. A line an earlier error cut off is ended first, so
/// that the next one stands alone.
fn append(out: &mut impl Write, torn: &mut bool, lines: &[u8]) -> Result<(), (u64, io::Error)> {
    let count = |rest: &[u8]| rest.iter().filter(|byte| **byte == b'\n').count() as u64;
    if *torn {
        write_all(out, b"\n").map_err(|(_, error)| (count(lines), error))?;
    }
    // So it stays when the write panics.
    *torn = true;
    let result = write_all(out, lines);
    *torn = result.as_ref().is_err_and(|(written, _)| *written > 0 && lines[written - 1] != b'\n');
    result.map_err(|(written, error)| (count(&lines[written..]), error))
}

/// Like [`Write::write_all`], but says how much was written before an error.
fn write_all(out: &mut impl Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with little room.
    #[derive(Default)]
    struct Disk {
        data: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= n;
            self.data.extend_from_slice(&bytes[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_lines_and_tears_none_of_the_later_ones() {
        let mut disk = Disk { room: 9, ..Disk::default() };
        let mut torn = false;
        assert_eq!(append(&mut disk, &mut torn, b"one\ntwo\nthree\n").unwrap_err().0, 1);
        assert!(torn);
        assert_eq!(append(&mut disk, &mut torn, b"four\nfive\n").unwrap_err().0, 2);
        disk.room = 100;
        append(&mut disk, &mut torn, b"six\n").unwrap();
        assert_eq!(String::from_utf8(disk.data).unwrap(), "one\ntwo\nt\nsix\n");
    }

    /// Takes a part and panics.
    struct Panicking<'a>(&'a mut Vec<u8>);

    impl Write for Panicking<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(self.0.is_empty(), "asked to");
            self.0.extend_from_slice(&bytes[..6]);
            Ok(6)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_within_a_line_tears_none_of_the_later_ones() {
        let (mut data, mut torn) = (Vec::new(), false);
        let panicked = crate::panics::caught(|| append(&mut Panicking(&mut data), &mut torn, b"one\ntwo\n"));
        assert_eq!(panicked.unwrap_err(), "asked to");
        append(&mut data, &mut torn, b"three\n").unwrap();
        assert_eq!(String::from_utf8(data).unwrap(), "one\ntw\nthree\n");
    }

    #[test]
    fn a_full_device_never_fails() {
        if !Path::new("/dev/full").exists() {
            return; // Only Linux has one.
        }
        let mut sink = Sink::file("/dev/full".into(), open(Path::new("/dev/full")).unwrap());
        assert_eq!(sink.write("a\nb\n"), 2);
        assert_eq!(sink.write("c\n"), 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        sink.replace(open(&path).unwrap());
        assert_eq!(sink.write("d\n"), 0);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "d\n");
    }

    #[test]
    fn an_error_names_the_file() {
        let error = open(Path::new("/nonexistent/log")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/log"), "{error}");
    }
}
