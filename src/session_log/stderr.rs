//! Standard error that holds nobody up.
//!
//! A pipe whose reader has stopped blocks the thread that writes to it, and every other one that wants to log after
//! it: with a plain logger, workers would stop moving bytes and signals would not be answered.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::panics;

/// Bytes a writable pipe takes without blocking: PIPE_BUF, see pipe(7).
const PIECE: usize = 4096;

/// Lines dropped since standard error last took one.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Standard error as a target of the program's log: a message it does not take at once is dropped, and the number of
/// dropped lines is said as soon as it takes some again. Writing never fails.
#[derive(Debug, Default, Clone, Copy)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        // Locked over the look and the write, so that no other thread fills the room that was seen.
        let mut stderr = io::stderr().lock();
        // A panic in here would poison the logger's own lock, and panic in every thread that logs after it.
        if panics::caught(|| write_or_drop(&mut stderr, message)).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_or_drop(out: &mut (impl Write + AsFd), message: &[u8]) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    if dropped > 0 && is_writable(out, PollTimeout::ZERO) {
        let note = format!("{dropped} lines were dropped here: standard error was not read\n");
        if out.write_all(note.as_bytes()).is_ok() {
            DROPPED.fetch_sub(dropped, Ordering::Relaxed);
        }
    }
    for piece in message.chunks(PIECE) {
        // An error is final for this message: there is nobody left to tell.
        if !is_writable(out, PollTimeout::ZERO) || out.write_all(piece).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
    }
}

/// Waits, without a lock, until standard error takes [`PIECE`] bytes. For a thread that may wait.
pub(super) fn wait() {
    is_writable(&io::stderr(), PollTimeout::NONE);
}

/// True also where writing fails at once: that does not block either.
fn is_writable(out: &impl AsFd, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) => return false,
            _ => return true,
        }
    }
}

/// The first bytes of some lines that fit a pipe with room, ending with a line where one ends there.
pub(super) fn piece(lines: &[u8]) -> &[u8] {
    let Some(first) = lines.get(..PIECE) else { return lines };
    match first.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &first[..=end],
        None => first,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Read, pipe};

    use super::*;

    /// Fills a pipe up to the last page.
    fn fill(out: &mut PipeWriter) -> usize {
        let mut filled = 0;
        while is_writable(out, PollTimeout::ZERO) {
            filled += out.write(&[b'x'; PIECE]).unwrap();
        }
        filled
    }

    #[test]
    fn a_full_pipe_drops_and_says_how_much_once_it_takes_more() {
        let (mut reader, mut writer) = pipe().unwrap();
        write_or_drop(&mut writer, b"before\n");
        let filled = fill(&mut writer);
        for _ in 0..3 {
            write_or_drop(&mut writer, b"lost\n"); // Would block for ever otherwise.
        }
        let mut text = vec![0; "before\n".len() + filled];
        reader.read_exact(&mut text).unwrap();
        write_or_drop(&mut writer, b"after\n");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "3 lines were dropped here: standard error was not read\nafter\n");
        // A reader that has gone away is no error.
        let (reader, mut writer) = pipe().unwrap();
        drop(reader);
        write_or_drop(&mut writer, b"nobody\n");
        DROPPED.store(0, Ordering::Relaxed);
    }

    #[test]
    fn pieces_end_with_a_line() {
        assert_eq!(piece(b"a\nb"), b"a\nb");
        let line = [&[b'x'; 1400][..], b"\n"].concat();
        assert_eq!(piece(&line.repeat(10)), line.repeat(2));
        assert_eq!(piece(&[b'x'; 5000]), [b'x'; PIECE]);
    }
}
