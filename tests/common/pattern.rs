//! Bytes that can be made and checked at any place of a stream without keeping the stream.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// A prime, so that losing, doubling or moving any whole number of pages, segments or buffers shows.
const PERIOD: usize = 1_048_573;

/// The largest single write and read.
const STEP: usize = 128 * 1024;

/// A small generator of random numbers (splitmix64), seeded by `SPLICED_SEED` or the clock.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Seeded by the run's seed and a number of the test's own.
    pub(crate) fn new(salt: u64) -> Self {
        Self(seed() ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The seed of this run, printed once; set `SPLICED_SEED` to repeat a run.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = match std::env::var("SPLICED_SEED") {
            Ok(text) => text.parse().expect("SPLICED_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| u64::from(t.subsec_nanos())),
        };
        // Past the test runner's capture, so that it can be read and repeated in any case.
        let _ = writeln!(io::stderr(), "SPLICED_SEED={seed}");
        seed
    })
}

/// An endless stream of bytes, known at every place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pattern {
    /// All streams are the same block of random bytes, each from a place of its own.
    block: &'static [u8],
    start: u64,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// A FIN.
    Clean,
    /// A reset, or writing into a stream that was reset.
    Reset,
}

impl Pattern {
    /// The stream with that number.
    pub(crate) fn new(number: u64) -> Self {
        static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
        let block = BLOCK.get_or_init(|| {
            let mut random = Random::new(0);
            let mut block = Vec::with_capacity(PERIOD + STEP + 8);
            while block.len() < PERIOD {
                block.extend_from_slice(&random.next().to_le_bytes());
            }
            block.truncate(PERIOD);
            // The start again, so that every step is one slice.
            block.extend_from_within(..STEP);
            block
        });
        Self { block, start: Random::new(number).below(PERIOD as u64) }
    }

    /// Up to `len` bytes of the stream from `place`, at most one step.
    pub(crate) fn at(&self, place: u64, len: u64) -> &[u8] {
        let start = usize::try_from((self.start + place) % PERIOD as u64).expect("below the period");
        let len = usize::try_from(len).unwrap_or(STEP).min(STEP);
        &self.block[start..start + len]
    }

    /// Writes the bytes from place `from` up to `to`.
    pub(crate) fn send(&self, mut stream: &TcpStream, from: u64, to: u64) -> io::Result<()> {
        let mut place = from;
        while place < to {
            let step = self.at(place, to - place);
            stream.write_all(step)?;
            place += step.len() as u64;
        }
        Ok(())
    }

    /// Writes what a non-blocking stream takes at once of the bytes from place `from` up to `to`.
    pub(crate) fn send_now(&self, mut stream: &TcpStream, from: u64, to: u64) -> u64 {
        let mut place = from;
        while place < to {
            match stream.write(self.at(place, to - place)) {
                Ok(n) => place += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("send at {place}: {e}"),
            }
        }
        place - from
    }

    /// Writes from place 0 for as long as the stream takes bytes: until nothing more goes for the socket's write
    /// timeout, or an error. Returns how many went and the error, if there was one.
    pub(crate) fn send_all_it_takes(&self, mut stream: &TcpStream, at_most: u64) -> (u64, Option<io::Error>) {
        let mut place = 0;
        while place < at_most {
            match stream.write(self.at(place, at_most - place)) {
                Ok(n) => place += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return (place, None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return (place, Some(e)),
            }
        }
        (place, None)
    }

    /// Reads and compares the bytes from place `from` up to `to`.
    ///
    /// # Panics
    /// When the stream ends before, stalls past the socket's read timeout, or a byte differs.
    pub(crate) fn expect(&self, stream: &TcpStream, from: u64, to: u64) {
        let mut place = from;
        let mut buffer = vec![0; STEP];
        while place < to {
            let want = usize::try_from(to - place).unwrap_or(STEP).min(STEP);
            match self.step(stream, &mut buffer[..want], place) {
                Ok(0) => panic!("the stream ended after {place} of {to} bytes"),
                Ok(n) => place += n,
                Err(e) => panic!("after {place} of {to} bytes: {e}"),
            }
        }
    }

    /// As [`Self::expect`], then the stream must end with a FIN.
    pub(crate) fn expect_whole(&self, stream: &TcpStream, from: u64, to: u64) {
        self.expect(stream, from, to);
        let (more, end) = self.expect_prefix(stream, to);
        assert_eq!((more, end), (0, StreamEnd::Clean), "bytes past the end at {to}, and how it ended");
    }

    /// Reads and compares what comes from place `from` on until the stream ends; returns how much came and how it
    /// ended.
    pub(crate) fn expect_prefix(&self, stream: &TcpStream, from: u64) -> (u64, StreamEnd) {
        let mut place = from;
        let mut buffer = vec![0; STEP];
        loop {
            match self.step(stream, &mut buffer, place) {
                Ok(0) => return (place - from, StreamEnd::Clean),
                Ok(n) => place += n,
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return (place - from, StreamEnd::Reset),
                Err(e) => panic!("after {place} bytes: {e}"),
            }
        }
    }

    /// One read and comparison.
    fn step(&self, mut stream: &TcpStream, buffer: &mut [u8], place: u64) -> io::Result<u64> {
        let n = loop {
            match stream.read(buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "the stream stalled past the deadline"));
                }
                other => break other?,
            }
        };
        let want = self.at(place, n as u64);
        if buffer[..n] != *want {
            let first = buffer.iter().zip(want).position(|(a, b)| a != b).unwrap_or(0);
            panic!(
                "byte {} of the stream differs: {:#04x}, not {:#04x}",
                place + first as u64,
                buffer[first],
                want[first]
            );
        }
        Ok(n as u64)
    }
}

/// Sends `up` and `down` bytes at the same time, each followed by a FIN, and checks both streams whole.
pub(crate) fn exchange(client: &TcpStream, server: &TcpStream, up: u64, down: u64) {
    let (upward, downward) = (Pattern::new(up), Pattern::new(!down));
    let send = |stream: &TcpStream, pattern: &Pattern, len: u64| {
        pattern.send(stream, 0, len).expect("send");
        stream.shutdown(Shutdown::Write).expect("half-close");
    };
    thread::scope(|scope| {
        scope.spawn(|| send(client, &upward, up));
        scope.spawn(|| send(server, &downward, down));
        scope.spawn(|| upward.expect_whole(server, 0, up));
        downward.expect_whole(client, 0, down);
    });
}
