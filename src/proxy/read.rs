//! A header at the beginning of a stream, in pieces of any size.

use std::io::{self, ErrorKind};

use super::parse::{parse, whole_length};
use super::{FIXED_V2, Fault, Header, MOST_V1, SIGNATURE_V1, SIGNATURE_V2};

/// Where a header is read from.
pub trait Source {
    /// Shows the next bytes and leaves them where they are; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` when there are none yet.
    fn peek(&mut self, room: &mut [u8]) -> io::Result<usize>;
    /// Takes the next bytes; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` when there are none yet.
    fn take(&mut self, room: &mut [u8]) -> io::Result<usize>;
}

/// How far a header has come.
#[derive(Debug)]
pub enum Outcome {
    /// It is whole, and taken from the stream to its last byte.
    Header(Header),
    /// What has come is no header from its first bytes on. Unless one was required they are still in the stream.
    Other,
    /// More bytes must come.
    Wait,
    /// The stream has ended in it, or before it.
    Ended,
    /// It is none.
    Bad(Fault),
    /// Reading failed.
    Failed(io::Error),
}

/// How a header is read.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// There must be one, so the first bytes may be taken whatever they are.
    pub required: bool,
    /// The stream has ended behind what it has now, which bytes that are only looked at cannot tell.
    pub ended: bool,
}

/// What has been taken of a header so far: bytes that belong to it if it is one.
#[derive(Debug, Default)]
pub struct Reader {
    taken: Vec<u8>,
}

enum Begins {
    V1,
    V2,
    Other,
    /// Too few bytes to tell.
    Perhaps,
}

fn begins(bytes: &[u8]) -> Begins {
    if bytes.starts_with(SIGNATURE_V2) {
        Begins::V2
    } else if bytes.starts_with(SIGNATURE_V1) {
        Begins::V1
    } else if SIGNATURE_V2.starts_with(bytes) || SIGNATURE_V1.starts_with(bytes) {
        Begins::Perhaps
    } else {
        Begins::Other
    }
}

impl Reader {
    /// Whether nothing has been taken from the stream yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Takes what there is of the header, and nothing behind it.
    pub fn advance(&mut self, source: &mut impl Source, how: How) -> Outcome {
        loop {
            let step = match begins(&self.taken) {
                Begins::V1 => self.line(source),
                Begins::V2 => self.block(source),
                Begins::Perhaps | Begins::Other => self.signature(source, how),
            };
            match step {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Outcome::Wait,
                Err(e) => return Outcome::Failed(e),
            }
        }
    }

    /// Unless a header must come, nothing is taken until it is known to be one.
    fn signature(&mut self, source: &mut impl Source, how: How) -> io::Result<Option<Outcome>> {
        let mut room = [0; FIXED_V2];
        let before = self.taken.len();
        room[..before].copy_from_slice(&self.taken);
        let seen = source.peek(&mut room[before..])?;
        let all = &room[..before + seen];
        match begins(all) {
            _ if seen == 0 => Ok(Some(Outcome::Ended)),
            Begins::Other => Ok(Some(Outcome::Other)),
            // An urgent byte hides what is behind it until what is before it has been taken.
            Begins::Perhaps if how.required => self.take(source, seen),
            Begins::Perhaps if how.ended => Ok(Some(Outcome::Ended)),
            Begins::Perhaps => Ok(Some(Outcome::Wait)),
            Begins::V1 => self.line(source),
            Begins::V2 => match all.first_chunk::<FIXED_V2>().map(whole_length) {
                None => self.take(source, seen),
                Some(Ok(whole)) => self.take(source, whole - before),
                Some(Err(fault)) => Ok(Some(Outcome::Bad(fault))),
            },
        }
    }

    /// The next bytes of a line, up to its end.
    fn line(&mut self, source: &mut impl Source) -> io::Result<Option<Outcome>> {
        if self.taken.ends_with(b"\n") {
            return Ok(Some(self.whole()));
        }
        let mut room = [0; MOST_V1];
        let left = MOST_V1 - self.taken.len();
        if left == 0 {
            return Ok(Some(Outcome::Bad(Fault::TooLong)));
        }
        let seen = source.peek(&mut room[..left])?;
        let end = room[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |at| at + 1);
        if seen == 0 { Ok(Some(Outcome::Ended)) } else { self.take(source, end) }
    }

    /// The next bytes of a header that says how long it is.
    fn block(&mut self, source: &mut impl Source) -> io::Result<Option<Outcome>> {
        let whole = match self.taken.first_chunk::<FIXED_V2>().map(whole_length) {
            None => FIXED_V2,
            Some(Ok(whole)) if whole == self.taken.len() => return Ok(Some(self.whole())),
            Some(Ok(whole)) => whole,
            Some(Err(fault)) => return Ok(Some(Outcome::Bad(fault))),
        };
        self.take(source, whole - self.taken.len())
    }

    fn whole(&self) -> Outcome {
        parse(&self.taken).map_or_else(Outcome::Bad, Outcome::Header)
    }

    /// Takes at most so many bytes, which is more than none.
    fn take(&mut self, source: &mut impl Source, most: usize) -> io::Result<Option<Outcome>> {
        let before = self.taken.len();
        self.taken.resize(before + most, 0);
        let result = source.take(&mut self.taken[before..]);
        self.taken.truncate(before + result.as_ref().map_or(0, |taken| *taken));
        Ok(if result? == 0 { Some(Outcome::Ended) } else { None })
    }
}
