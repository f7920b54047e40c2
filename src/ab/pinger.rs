//! Sends a message, waits until it comes back, and again: latency and cost of small exchanges.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::hello::{Hello, Kind};
use super::pattern::{self, Pattern};
use super::source::{connect, explain};
use super::spawn_small;

/// What a [`Pinger`] sends and where.
#[derive(Debug, Clone)]
pub struct PingConfig {
    /// Where the connections go; a [`super::sink::Backend`] must be behind it.
    pub target: SocketAddr,
    /// Connections, one thread each, one message under way on each.
    pub connections: u32,
    /// Bytes of a message, at most [`super::hello::LONGEST_EXCHANGE`].
    pub size: u32,
    /// Number of this measurement; seeds the pattern.
    pub run: u64,
    /// A connection without an answer for so long is broken.
    pub stall: Duration,
}

/// Connections being used.
#[derive(Debug)]
pub struct Pinger {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<ConnectionEnd>>,
}

#[derive(Debug)]
struct Shared {
    pattern: Pattern,
    stop: AtomicBool,
    /// Raised by [`Pinger::mark`]: times of an earlier epoch are forgotten.
    epoch: AtomicU64,
    exchanges: AtomicU64,
}

#[derive(Debug)]
struct ConnectionEnd {
    exchanges: u64,
    times: Histogram<u64>,
    error: Option<String>,
}

/// What all connections saw together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PingReport {
    /// Messages that came back whole and right, warm-up included.
    pub exchanges: u64,
    /// Round trips since the last [`Pinger::mark`].
    pub times: Latency,
    /// One line for every connection that broke.
    pub errors: Vec<String>,
}

/// Round-trip times in µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_us: f64,
    /// 99 % took no longer.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl Pinger {
    /// Connects everything, then starts the exchanges.
    ///
    /// # Errors
    /// A connection that cannot be made, or a thread that cannot be started; nothing goes on running then.
    pub fn start(config: &PingConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            pattern: Pattern::new(config.size as usize),
            stop: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
        });
        let sockets: Vec<TcpStream> =
            (0..config.connections).map(|_| connect(config.target, config.stall)).collect::<io::Result<_>>()?;
        let mut pinger = Self { shared, threads: Vec::with_capacity(sockets.len()) };
        for (stream, socket) in (0..).zip(sockets) {
            let kind = Kind::Echo { size: config.size };
            let hello = Hello { kind, run: config.run, stream, seed: pattern::seed(config.run, stream) };
            let shared = Arc::clone(&pinger.shared);
            let size = config.size as usize;
            match spawn_small(&format!("ping {stream}"), move || shared.run_connection(&socket, &hello, size)) {
                Ok(thread) => pinger.threads.push(thread),
                Err(error) => {
                    pinger.shared.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(pinger)
    }

    /// Exchanges so far, all connections together.
    #[must_use]
    pub fn exchanges(&self) -> u64 {
        self.shared.exchanges.load(Ordering::Relaxed)
    }

    /// Forgets the times measured so far; for the end of the warm-up.
    pub fn mark(&self) {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets every connection finish its exchange and close, and sums up.
    #[must_use]
    pub fn finish(self) -> PingReport {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut times = new_histogram();
        let mut report = PingReport::default();
        for (number, thread) in self.threads.into_iter().enumerate() {
            let Ok(end) = thread.join() else {
                report.errors.push(format!("connection {number}: its thread panicked"));
                continue;
            };
            report.exchanges += end.exchanges;
            if times.add(&end.times).is_err() {
                report.errors.push(format!("connection {number}: its times do not fit the histogram"));
            }
            if let Some(error) = end.error {
                report.errors.push(format!("connection {number}: {error}"));
            }
        }
        report.times = Latency::of(&times);
        report
    }
}

impl Shared {
    fn run_connection(&self, socket: &TcpStream, hello: &Hello, size: usize) -> ConnectionEnd {
        let mut end = ConnectionEnd { exchanges: 0, times: new_histogram(), error: None };
        let result = self.exchange(socket, hello, size, &mut end);
        end.error = result.err().map(|error| format!("after {} exchanges: {}", end.exchanges, explain(&error)));
        end
    }

    fn exchange(&self, mut socket: &TcpStream, hello: &Hello, size: usize, end: &mut ConnectionEnd) -> io::Result<()> {
        socket.write_all(&hello.encode())?;
        let mut answer = vec![0; size];
        let mut offset = 0;
        let mut epoch = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let message = self.pattern.bytes(hello.seed, offset, size);
            let now = self.epoch.load(Ordering::Relaxed);
            if now != epoch {
                epoch = now;
                end.times.reset();
            }
            let begun = Instant::now();
            socket.write_all(message)?;
            socket.read_exact(&mut answer)?;
            let ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.pattern
                .verify(hello.seed, offset, &answer)
                .map_err(|mismatch| io::Error::other(mismatch.to_string()))?;
            end.times.saturating_record(ns.max(1));
            end.exchanges += 1;
            self.exchanges.fetch_add(1, Ordering::Relaxed);
            offset += size as u64;
        }
        socket.shutdown(Shutdown::Write)?;
        match socket.read(&mut answer)? {
            0 => Ok(()),
            n => Err(io::Error::other(format!("{n} bytes came back that were never sent"))),
        }
    }
}

impl Latency {
    fn of(times: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        Self {
            count: times.len(),
            p50_us: us(times.value_at_quantile(0.5)),
            p99_us: us(times.value_at_quantile(0.99)),
            max_us: us(times.max()),
        }
    }
}

/// Sends back every message of `size` bytes until the end of the stream, counting bytes in `echoed`.
///
/// A message is read whole before it is answered, so that the two ends never wait for each other to read.
///
/// # Errors
/// A reset, or an end in the middle of a message.
pub(super) fn echo(mut socket: &TcpStream, size: usize, echoed: &mut u64) -> io::Result<()> {
    let mut message = vec![0; size];
    loop {
        let mut have = 0;
        while have < size {
            match socket.read(&mut message[have..]) {
                Ok(0) if have == 0 => return Ok(()),
                Ok(0) => {
                    return Err(io::Error::other(format!("the stream ended {have} bytes into a message of {size}")));
                }
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        socket.write_all(&message)?;
        *echoed += size as u64;
    }
}

/// 1 ns to 10 minutes, two significant digits (an error of at most 1 %): some 30 KiB a connection.
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 2).expect("the bounds are in order and the digits 0 to 5")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut all = new_histogram();
        for part in 0..4u64 {
            let mut one = new_histogram();
            for us in (part..10_000).step_by(4) {
                one.saturating_record((us + 1) * 1000);
            }
            all.add(&one).expect("same bounds");
        }
        let latency = Latency::of(&all);
        assert_eq!(latency.count, 10_000);
        for (got, want) in [(latency.p50_us, 5000.0), (latency.p99_us, 9900.0), (latency.max_us, 10_000.0)] {
            assert!((got - want).abs() / want < 0.01, "{got} is not {want}");
        }
    }

    #[test]
    fn no_time_is_too_long_or_absent() {
        let mut times = new_histogram();
        assert_eq!(Latency::of(&times), Latency::default());
        times.saturating_record(u64::MAX);
        assert!(Latency::of(&times).max_us >= 600e6);
    }
}
