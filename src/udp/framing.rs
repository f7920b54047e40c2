//! Datagrams in a stream: before each stand two bytes with its length, the higher one first, as DNS has it over TCP
//! (RFC 1035, 4.2.2).

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::Socket;

use crate::sys;

/// Bytes of a length.
pub const HEADER: usize = 2;
/// Bytes that may wait for a stream that takes none: several of the largest datagrams, and some thousand small ones.
const MOST_WAITING: usize = 512 * 1024;
/// Datagrams a read is to bring at the most, as far as that can be told by those before: the shortest have two bytes in
/// the stream, and each costs as much as one of many.
pub const MANY: usize = 256;
/// Bytes of the first read, and the fewest of any.
const FIRST_READ: usize = 16 * 1024;
const LEAST_READ: usize = 2048;
/// A buffer that was larger once is given up when it is empty.
const KEPT: usize = 16 * 1024;

/// What one stream holds of datagrams that are not through yet.
#[derive(Debug, Default)]
pub struct Framing {
    /// Whether the handshake is over, and bytes may be written.
    pub connected: bool,
    /// The other side has ended its half.
    pub ended: bool,
    /// Framed datagrams, the first of which may have left in part.
    out: Vec<u8>,
    /// Bytes of `out` that have left.
    left: usize,
    /// Lengths, with their header, of those of which the last byte has not left.
    lengths: VecDeque<usize>,
    /// Bytes of the first of them that have left.
    of_first: usize,
    /// The beginning of a datagram that has not come whole.
    partial: Vec<u8>,
    /// Bytes the next read may bring; 0 before the first one.
    next_read: usize,
}

/// Datagrams that have left by a stream.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// How many.
    pub datagrams: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// System calls.
    pub calls: u64,
}

impl Framing {
    /// Of a stream whose handshake is over.
    #[must_use]
    pub fn connected() -> Self {
        Self { connected: true, ..Self::default() }
    }

    /// Adds a datagram to what is to leave; false when there is no room for it, or when it is longer than a header can
    /// say.
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let Ok(length) = u16::try_from(datagram.len()) else { return false };
        if self.out.len() - self.left + HEADER + datagram.len() > MOST_WAITING {
            return false;
        }
        if self.left > 0 && self.out.len() + HEADER + datagram.len() > MOST_WAITING {
            self.out.drain(..self.left);
            self.left = 0;
        }
        self.out.extend_from_slice(&length.to_be_bytes());
        self.out.extend_from_slice(datagram);
        self.lengths.push_back(HEADER + datagram.len());
        true
    }

    /// Datagrams that have not left.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lengths.len()
    }

    /// Writes as much as the stream takes.
    ///
    /// # Errors
    /// What send(2) reports, but for a stream that takes nothing now.
    pub fn flush(&mut self, stream: &Socket, left: &mut Left) -> io::Result<()> {
        while self.connected && self.left < self.out.len() {
            left.calls += 1;
            match send(stream.as_raw_fd(), &self.out[self.left..], MsgFlags::from_bits_truncate(sys::SEND_FLAGS)) {
                Ok(bytes) => self.note_left(bytes, left),
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if self.left == self.out.len() {
            self.left = 0;
            self.out.clear();
            if self.out.capacity() > KEPT {
                self.out = Vec::new();
            }
        }
        Ok(())
    }

    fn note_left(&mut self, bytes: usize, left: &mut Left) {
        self.left += bytes;
        self.of_first += bytes;
        while let Some(first) = self.lengths.front().copied().filter(|first| *first <= self.of_first) {
            self.of_first -= first;
            self.lengths.pop_front();
            left.datagrams += 1;
            left.bytes += (first - HEADER) as u64;
        }
    }

    /// Reads once into `room`, which has more than the longest datagram with its header, and says where in it whole
    /// datagrams are.
    ///
    /// # Errors
    /// What recv(2) reports.
    pub fn read(&mut self, stream: &Socket, room: &mut [u8], found: &mut Vec<Range<usize>>) -> io::Result<()> {
        let before = self.partial.len();
        room[..before].copy_from_slice(&self.partial);
        let most = if self.next_read == 0 { FIRST_READ } else { self.next_read };
        let end = room.len().min(before + most);
        let bytes = recv(stream.as_raw_fd(), &mut room[before..end], MsgFlags::empty())?;
        self.ended = bytes == 0;
        let all = before + bytes;
        let rest = split(&room[..all], found);
        self.next_read = rest.checked_div(found.len()).map_or(room.len(), |each| (each * MANY).max(LEAST_READ));
        self.partial.clear();
        self.partial.extend_from_slice(&room[rest..all]);
        if self.partial.is_empty() && self.partial.capacity() > KEPT {
            self.partial = Vec::new();
        }
        Ok(())
    }

    /// Whether a datagram has begun to come and its end is missing.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        !self.partial.is_empty()
    }
}

/// Finds whole datagrams; returns where the rest begins.
fn split(bytes: &[u8], found: &mut Vec<Range<usize>>) -> usize {
    let mut at = 0;
    while let Some([high, low]) = bytes.get(at..at + HEADER) {
        let (start, length) = (at + HEADER, usize::from(u16::from_be_bytes([*high, *low])));
        if bytes.len() < start + length {
            break;
        }
        found.push(start..start + length);
        at = start + length;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Socket, Socket) {
        let (a, b) = Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    fn read_all(from: &mut Framing, stream: &Socket, datagrams: &mut Vec<Vec<u8>>) {
        let mut room = vec![0; super::super::batch::SLOT];
        let mut found = Vec::new();
        while from.read(stream, &mut room, &mut found).is_ok() {
            datagrams.extend(found.drain(..).map(|range| room[range].to_vec()));
            if from.ended {
                return;
            }
        }
    }

    #[test]
    fn a_stream_that_takes_nothing_has_bounded_room() {
        let (near, far) = pair();
        let mut out = Framing::connected();
        let (mut left, mut pushed) = (Left::default(), 0);
        while out.push(&[7; 1000]) {
            out.flush(&near, &mut left).unwrap();
            pushed += 1;
            assert!(pushed < 10_000);
        }
        assert_eq!(left.datagrams + out.waiting() as u64, pushed);
        assert!(out.out.len() <= MOST_WAITING);
        let (mut inward, mut datagrams) = (Framing::default(), Vec::new());
        while out.waiting() > 0 {
            read_all(&mut inward, &far, &mut datagrams);
            out.flush(&near, &mut left).unwrap();
        }
        read_all(&mut inward, &far, &mut datagrams);
        assert_eq!((datagrams.len() as u64, left.bytes), (pushed, pushed * 1000));
        assert!(datagrams.iter().all(|datagram| datagram == &[7; 1000]));
        assert!(!out.push(&vec![0; 65_536]), "no header can say so");
    }

    proptest! {
        #[test]
        fn datagrams_come_out_as_they_went_in(
            sizes in prop::collection::vec(prop_oneof![0usize..5, 0usize..2000, Just(65_535)], 0..20),
            cuts in prop::collection::vec(1usize..70_000, 1..8),
        ) {
            let (near, far) = pair();
            let mut stream = Vec::new();
            for (seed, size) in sizes.iter().enumerate() {
                stream.extend_from_slice(&(*size as u16).to_be_bytes());
                stream.extend(std::iter::repeat_n(seed as u8, *size));
            }
            let (mut inward, mut datagrams, mut cuts) = (Framing::default(), Vec::new(), cuts.into_iter().cycle());
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let piece = cuts.next().unwrap().min(rest.len());
                let sent = near.send(&rest[..piece]).unwrap_or(0);
                rest = &rest[sent..];
                read_all(&mut inward, &far, &mut datagrams);
            }
            let expected: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(seed, size)| vec![seed as u8; *size]).collect();
            prop_assert!(datagrams == expected);
            prop_assert!(!inward.is_cut());
        }
    }
}
