//! The forwarder's own data path between the two connections of a [`Link`], one message at a time.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use spliced::flow::{Flow, Progress};
use spliced::plan::Engine;
use spliced::pump::{Choice, Direction, Lane, Pump, Pumps, Ready};
use spliced::stats::{ForwardStats, PathBytes};
use spliced::sys::pipes::{PipeBudget, PipePool};

use crate::link::{Link, patience};

/// What the sockets are asked to hold, in bytes: more than the largest message, so that it can wait as a whole.
const SOCKET_BUFFER: usize = 4 << 20;
/// Bytes of one turn. As in a session it is more than any message: a message is moved within one turn.
const TURN: usize = 2 << 20;

/// One direction of a session as a worker drives it, and the time it takes.
#[derive(Debug)]
pub struct Mover {
    link: Link,
    flow: Flow,
    pump: Pump,
    pumps: Pumps,
    source_ready: Ready,
    target_ready: Ready,
    bytes: PathBytes,
    stats: Box<ForwardStats>,
    copy_buffer: usize,
    /// The largest part of a message that the sockets have room for, in bytes.
    room: usize,
    received: Vec<u8>,
    messages: u64,
    parted: u64,
}

/// Why there is nothing to measure.
#[derive(Debug)]
pub enum NotHere {
    /// This build or this user has no pipe of that size.
    NoPipe {
        /// Bytes wanted.
        wanted: usize,
        /// Bytes the largest pipe would have; 0: none at all.
        possible: usize,
    },
    /// A system call failed.
    Io(io::Error),
}

impl Mover {
    /// A lane with an engine of its own. Its pool holds a pipe of `pipe_size` bytes already, as a busy worker's does;
    /// `copy_buffer` is the size of the scratch buffer.
    ///
    /// # Errors
    /// [`NotHere`].
    pub fn new(engine: Engine, pipe_size: usize, copy_buffer: usize) -> Result<Self, NotHere> {
        let pool = if engine == Engine::Copy { None } else { Some(warm_pool(pipe_size)?) };
        let link = Link::new(SOCKET_BUFFER)?;
        let room = link.room()?;
        Ok(Self {
            link,
            flow: Flow::default(),
            pump: Pump::new(Choice::new(engine)),
            pumps: Pumps::new(copy_buffer, pool.into_iter().collect(), Arc::new(AtomicBool::new(false))),
            source_ready: Ready::default(),
            target_ready: Ready::default(),
            bytes: PathBytes::default(),
            stats: Box::default(),
            copy_buffer,
            room,
            received: Vec::new(),
            messages: 0,
            parted: 0,
        })
    }

    /// Moves one message and returns the time its turns took. Not in it: the peers' writing and reading, and the poller.
    ///
    /// The whole message waits in the source when the clock starts, unless this host's socket buffers are too small for
    /// it or their memory is short: then it is moved in parts, see [`Mover::parted_percent`].
    ///
    /// # Errors
    /// What a socket reports, [`io::ErrorKind::TimedOut`] if bytes get stuck, or [`io::ErrorKind::InvalidData`] if
    /// other bytes come out than went in.
    pub fn carry(&mut self, message: &[u8]) -> io::Result<Duration> {
        let (mut time, mut turns) = (Duration::ZERO, 0);
        for part in message.chunks(self.room) {
            let (mut put, mut received, mut start) = (0, 0, Instant::now());
            self.received.resize(part.len(), 0);
            while received < part.len() {
                put += self.link.put(&part[put..])?;
                if self.pump.is_idle() && self.link.arrived(put - received)? == 0 {
                    patience(start)?;
                    continue;
                }
                let before = self.delivered();
                time += self.turn()?;
                turns += 1;
                let end = received + usize::try_from(self.delivered() - before).unwrap_or(usize::MAX);
                let Some(arrived) = self.received.get_mut(received..end) else {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes came out than went in"));
                };
                if arrived.is_empty() {
                    patience(start)?;
                    continue;
                }
                self.link.take(arrived)?;
                (received, start) = (end, Instant::now());
            }
            if self.received != part {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "other bytes came out than went in"));
            }
        }
        self.messages += 1;
        self.parted += u64::from(turns > 1);
        Ok(time)
    }

    /// One turn, as after an event that says: readable here, writable there.
    fn turn(&mut self) -> io::Result<Duration> {
        (self.source_ready.readable, self.target_ready.writable) = (true, true);
        let mut lane = Lane {
            pump: &mut self.pump,
            pumps: &mut self.pumps,
            source: &self.link.source,
            target: &self.link.target,
            source_ready: &mut self.source_ready,
            target_ready: &mut self.target_ready,
            bytes: &mut self.bytes,
            stats: &self.stats,
            direction: Direction::Up,
            copy_buffer: self.copy_buffer,
            pool: 0,
            last: false,
            allowance: usize::MAX,
            calls: 0,
        };
        let start = Instant::now();
        let progress = self.flow.advance(&mut lane, TURN);
        let time = start.elapsed();
        match progress {
            Progress::Blocked | Progress::Yield => Ok(time),
            Progress::Done => Err(io::ErrorKind::UnexpectedEof.into()),
            Progress::SourceFailed(e) | Progress::TargetFailed(e) => Err(e),
        }
    }

    /// Bytes moved so far, by path.
    #[must_use]
    pub fn bytes(&self) -> PathBytes {
        self.bytes
    }

    /// How much of that went through a pipe, in percent; 0 while nothing was moved.
    #[must_use]
    pub fn spliced_percent(&self) -> f64 {
        self.bytes.splice as f64 * 100.0 / self.delivered().max(1) as f64
    }

    /// How many messages took more than one turn, in percent; 0 while none was moved. Their times are too long.
    #[must_use]
    pub fn parted_percent(&self) -> f64 {
        self.parted as f64 * 100.0 / self.messages.max(1) as f64
    }

    fn delivered(&self) -> u64 {
        self.bytes.splice + self.bytes.copy
    }
}

/// A pool with one idle pipe of exactly that size.
fn warm_pool(wanted: usize) -> Result<PipePool, NotHere> {
    let mut pool = PipeBudget::detect(Some(wanted), 1).pool();
    let possible = if pool.limit() == 0 { 0 } else { pool.size() };
    match pool.get() {
        Ok(pipe) if possible == wanted => {
            pool.put(pipe);
            // A pipe that came out smaller than the pool asked for makes it ask for less.
            if pool.size() == wanted { Ok(pool) } else { Err(NotHere::NoPipe { wanted, possible: pool.size() }) }
        }
        _ => Err(NotHere::NoPipe { wanted, possible }),
    }
}

impl From<io::Error> for NotHere {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPipe { wanted, possible: 0 } => write!(f, "no pipe of {wanted} bytes: there are none here"),
            Self::NoPipe { wanted, possible } => {
                write!(f, "no pipe of {wanted} bytes: at most {possible} here; see fs.pipe-max-size and pipe(7)")
            }
            Self::Io(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for NotHere {}

#[cfg(test)]
mod tests {
    use spliced::sys::HAS_SPLICE;

    use super::*;
    use crate::{MESSAGES, message};

    /// Every size through one lane, so that each starts where another has left it.
    fn all_sizes(mover: &mut Mover) -> u64 {
        for (_, size) in MESSAGES {
            assert!(mover.carry(&message(size)).unwrap() > Duration::ZERO);
        }
        MESSAGES.iter().map(|(_, size)| *size as u64).sum()
    }

    #[test]
    fn copy_copies_every_byte() {
        let mut mover = Mover::new(Engine::Copy, 0, 64 << 10).unwrap();
        let sum = all_sizes(&mut mover);
        assert_eq!(mover.bytes(), PathBytes { splice: 0, copy: sum });
    }

    #[test]
    fn splice_splices_every_byte_or_says_that_it_cannot() {
        match Mover::new(Engine::Splice, 64 << 10, 64 << 10) {
            Ok(mut mover) => {
                let sum = all_sizes(&mut mover);
                assert_eq!(mover.bytes(), PathBytes { splice: sum, copy: 0 });
            }
            Err(e) if HAS_SPLICE => panic!("{e}"),
            Err(e) => assert!(e.to_string().contains("no pipe"), "{e}"),
        }
    }

    #[test]
    fn a_pipe_larger_than_any_is_refused_by_name() {
        let error = Mover::new(Engine::Splice, 1 << 40, 64 << 10).unwrap_err().to_string();
        assert!(error.contains("1099511627776"), "{error}");
    }
}
