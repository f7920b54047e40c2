//! What a program says, kept in a file within bounds: its first and its last mebibyte.
//!
//! A peer that complains of every connection would fill the disk. What is between the two is counted and left out, and
//! the file says so.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes kept from the beginning.
pub(crate) const HEAD: usize = 1 << 20;
/// Bytes kept from the end.
pub(crate) const TAIL: usize = 1 << 20;
/// A file of earlier starts that has grown to this begins anew.
const FULL: u64 = 4 * (HEAD + TAIL) as u64;
/// How long the last words of a program that has ended may be on their way. Only one that left a process behind that
/// still holds its output takes longer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Takes the output of one program to a file, in a thread of its own that ends with the program's last writer.
#[derive(Debug)]
pub(crate) struct Output {
    tail: Arc<Mutex<Tail>>,
    /// Closed when all of it is in the file.
    over: Receiver<()>,
}

/// What came after the head.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// Bytes between head and tail.
    left_out: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(TAIL);
        self.bytes.drain(..over);
        self.left_out += over as u64;
    }
}

impl Output {
    /// Appends to a file what is written to the pipe it returns; and where in the file that begins.
    pub(crate) fn to(path: &Path) -> io::Result<(Self, PipeWriter, u64)> {
        let file = File::options().create(true).append(true).open(path)?;
        let mut begin = file.metadata()?.len();
        if begin >= FULL {
            file.set_len(0)?;
            begin = 0;
        }
        let (reader, writer) = io::pipe()?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let (end, over) = channel();
        let shared = Arc::clone(&tail);
        thread::Builder::new().name("output".to_owned()).stack_size(256 << 10).spawn(move || {
            keep(reader, file, &shared);
            drop::<std::sync::mpsc::Sender<()>>(end);
        })?;
        Ok((Self { tail, over }, writer, begin))
    }

    /// Waits until what an ended program said is in the file.
    pub(crate) fn settle(&self) {
        // Nothing is ever sent: it is over when the other side has gone.
        let _ = self.over.recv_timeout(LAST_WORDS);
    }

    /// The last bytes that are not in the file yet.
    pub(crate) fn last(&self, most: usize) -> Vec<u8> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.bytes.iter().skip(tail.bytes.len().saturating_sub(most)).copied().collect()
    }
}

/// A program is not held up by a disk that is full: what cannot be written is lost.
fn keep(mut reader: PipeReader, mut file: File, tail: &Mutex<Tail>) {
    let mut buffer = vec![0; 64 << 10];
    let mut room = HEAD;
    loop {
        let said = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => &buffer[..n],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let (head, rest) = said.split_at(said.len().min(room));
        room -= head.len();
        let _ = file.write_all(head);
        if !rest.is_empty() {
            tail.lock().unwrap_or_else(PoisonError::into_inner).push(rest);
        }
    }
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    let Tail { bytes, left_out } = std::mem::take(&mut *tail);
    if left_out > 0 {
        let _ = writeln!(file, "\n[lab: {left_out} bytes of output are left out here]");
    }
    let (first, second) = bytes.as_slices();
    let _ = file.write_all(first).and_then(|()| file.write_all(second));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_in_the_middle_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("output.txt");
        let (output, mut writer, begin) = Output::to(&path).unwrap();
        assert_eq!(begin, 0);
        let line = |n: usize| format!("line {n:>58}\n");
        let lines = 3 * (HEAD + TAIL) / 64;
        for n in 0..lines {
            writer.write_all(line(n).as_bytes()).unwrap();
        }
        drop(writer);
        output.settle();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept.len() < HEAD + TAIL + 100, "{} bytes", kept.len());
        assert!(kept.starts_with(&line(0)) && kept.ends_with(&line(lines - 1)));
        let left_out = lines * 64 - HEAD - TAIL;
        assert!(kept.contains(&format!("\n[lab: {left_out} bytes of output are left out here]\n")));
    }

    #[test]
    fn what_is_short_is_kept_as_it_is_and_a_full_file_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("output.txt");
        for (begin, expected) in [(0, "hello"), (5, "hellohello")] {
            let (output, mut writer, at) = Output::to(&path).unwrap();
            assert_eq!(at, begin);
            writer.write_all(b"hello").unwrap();
            drop(writer);
            output.settle();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
        File::options().write(true).open(&path).unwrap().set_len(FULL).unwrap();
        assert_eq!(Output::to(&path).unwrap().2, 0);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }
}
