//! What a new process says on standard error before it is ready: passed on, and kept for the reason of a failure.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use crate::session_log::Stderr;

/// Lines kept for a reason, and bytes of each.
const LINES: usize = 5;
const LINE: usize = 400;
/// Bytes passed on in all: a program that is not ours may have no end of them.
const PASSED_ON: usize = 256 * 1024;

/// Reads lines from a source that does not block.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    lines: VecDeque<String>,
    /// The line that is not yet complete.
    begun: Vec<u8>,
    passed_on: usize,
}

impl LastWords {
    /// Reads what is there; true when the source has ended.
    pub(super) fn read(&mut self, mut source: impl Read) -> bool {
        let mut chunk = [0; 4096];
        // Bounded, so that a program that only writes leaves us time for others.
        for _ in 0..64 {
            match source.read(&mut chunk) {
                Ok(0) => return true,
                Ok(n) => self.take(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        false
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = PASSED_ON - self.passed_on;
        let passed = &bytes[..bytes.len().min(room)];
        self.passed_on += passed.len();
        let _ = Stderr.write_all(passed);
        for byte in bytes {
            if *byte == b'\n' {
                self.end_line();
            } else if self.begun.len() < LINE {
                self.begun.push(*byte);
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.begun);
        let line = String::from_utf8_lossy(&line);
        // Into a log line goes no control character, whoever wrote it.
        let line: String = line.trim().chars().filter(|c| !c.is_control()).collect();
        if line.is_empty() {
            return;
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The last lines in one; empty when there were none.
    pub(super) fn join(&mut self) -> String {
        self.end_line();
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that are not passed on: standard error is the test runner's.
    fn kept() -> LastWords {
        LastWords { passed_on: PASSED_ON, ..LastWords::default() }
    }

    #[test]
    fn the_last_lines_are_kept_bounded_and_clean() {
        let mut words = kept();
        let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
        assert!(words.read(text.as_bytes()));
        assert!(words.read(&b"\n\x1b[31mred\x07\xff and no end"[..]));
        assert_eq!(words.join(), "line 16 | line 17 | line 18 | line 19 | [31mred\u{fffd} and no end");
        let mut words = kept();
        words.read(&[b'x'; 100_000][..]);
        assert_eq!(words.join().len(), LINE);
        assert_eq!(kept().join(), "");
    }

    #[test]
    fn an_endless_writer_gets_no_endless_attention() {
        let mut words = kept();
        assert!(!words.read(io::repeat(b'x')));
    }
}
