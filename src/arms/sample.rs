//! Counters of one arm in one worker, and the measured turns among them.

use std::time::Duration;

use super::Random;
use crate::stats::{Bytes, Counter, Histogram, Sum};
use crate::sys;

/// One turn in so many is measured, on average.
///
/// Measuring reads the thread's CPU clock twice. Each reading is a real system call, for the vDSO does not serve
/// `CLOCK_THREAD_CPUTIME_ID`. On a virtual machine with Linux 6.18 both together took 520 to 690 ns in an optimised
/// build, and with the countdown 11 to 12 ns spread over all turns; the cheapest turn there is, one `send` and one
/// `recv` of a byte, took 2950 to 4100 ns. That is 0.3 to 0.4 % of the smallest messages, and of bulk data, whose turns
/// took 50 µs and more, 0.02 %. The test `what_measuring_costs` shows the same numbers for another machine; run it
/// with `--release`, for without optimisation the countdown costs as much as the clock.
pub const EVERY: u32 = 64;

/// Counters of one arm in one worker; only that worker writes them.
#[derive(Debug, Default)]
pub struct ArmStats {
    /// Sessions dealt to it; those that access rules refuse are not dealt at all.
    pub sessions: Counter,
    /// Its sessions open now (gauge).
    pub open: Counter,
    /// Bytes written to the backend through a pipe.
    pub up_splice: Counter,
    /// Bytes written to the backend from memory.
    pub up_copy: Counter,
    /// Bytes written to the client through a pipe.
    pub down_splice: Counter,
    /// Bytes written to the client from memory.
    pub down_copy: Counter,
    /// System calls that moved its bytes or tried to: recv, send, splice, shutdown. What all arms share (accept,
    /// connect, epoll_wait, close) is not in it.
    pub calls: Counter,
    /// From accept to the backend's first byte.
    pub first_byte: Times,
    /// From accept to the end.
    pub session: Times,
    /// Measured turns.
    pub(super) turns: Counter,
    /// Sessions with a measured turn.
    pub(super) measured: Counter,
    /// Bytes delivered in measured turns.
    pub(super) bytes: Counter,
    /// Nanoseconds of CPU time in measured turns.
    pub(super) cpu_ns: Counter,
    /// Over sessions, with X bytes and Y nanoseconds in all measured turns of one: ΣX², ΣY² and ΣXY.
    pub(super) bytes_squared: Sum,
    pub(super) cpu_squared: Sum,
    pub(super) products: Sum,
}

/// Times with what an interval around their mean takes.
#[derive(Debug, Default)]
pub struct Times {
    pub(super) histogram: Histogram,
    /// Σt², in µs².
    pub(super) squares: Sum,
}

/// The measured turns of one session together.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sampled {
    turns: u64,
    bytes: f64,
    cpu_ns: f64,
}

impl Times {
    /// Counts one time.
    pub fn record(&self, time: Duration) {
        self.histogram.record(time);
        let us = time.as_secs_f64() * 1e6;
        self.squares.add(us * us);
    }
}

impl ArmStats {
    /// Counts what a session of this arm did in a turn.
    pub fn moved(&self, before: Bytes, after: Bytes, calls: u32) {
        let (up, down) = (after.client_to_backend, after.backend_to_client);
        let (up_before, down_before) = (before.client_to_backend, before.backend_to_client);
        self.up_splice.add(up.splice - up_before.splice);
        self.up_copy.add(up.copy - up_before.copy);
        self.down_splice.add(down.splice - down_before.splice);
        self.down_copy.add(down.copy - down_before.copy);
        self.calls.add(u64::from(calls));
    }

    /// Counts a measured turn of the session whose measured turns are `session`.
    ///
    /// The sums over sessions are kept up to date without waiting for a session's end: a session that had X and now
    /// has X + x adds (X + x)² − X² to ΣX².
    pub fn measured(&self, session: &mut Sampled, bytes: u64, cpu_ns: u64) {
        let (x, y) = (bytes as f64, cpu_ns as f64);
        self.turns.add(1);
        if session.turns == 0 {
            self.measured.add(1);
        }
        self.bytes.add(bytes);
        self.cpu_ns.add(cpu_ns);
        self.bytes_squared.add(x * (2.0 * session.bytes + x));
        self.cpu_squared.add(y * (2.0 * session.cpu_ns + y));
        self.products.add(session.bytes * y + session.cpu_ns * x + x * y);
        *session = Sampled { turns: session.turns + 1, bytes: session.bytes + x, cpu_ns: session.cpu_ns + y };
    }
}

/// Chooses the turns of a worker that are measured, and measures them.
///
/// The distance to the next one is random too: with a fixed one, sessions that take turns in a rhythm would be measured
/// always or never.
#[derive(Debug)]
pub struct Sampler {
    random: Random,
    /// Turns until the next measured one, that one included.
    left: u32,
    /// What measuring nothing shows.
    overhead_ns: u64,
}

impl Sampler {
    /// Finds out what the clock itself costs, which takes some microseconds.
    #[must_use]
    pub fn new(random: Random) -> Self {
        let nothing = || {
            let begun = sys::thread_cpu_ns();
            sys::thread_cpu_ns().saturating_sub(begun)
        };
        let overhead_ns = (0..32).map(|_| nothing()).min().unwrap_or(0);
        let mut sampler = Self { random, left: 0, overhead_ns };
        sampler.left = sampler.distance();
        sampler
    }

    /// From 1 to twice [`EVERY`] less 1, each as likely, so that the mean is [`EVERY`].
    fn distance(&mut self) -> u32 {
        1 + self.random.below(2 * EVERY - 1)
    }

    /// Whether the turn that begins now is measured: then the thread's CPU time.
    pub fn begin(&mut self) -> Option<u64> {
        self.left -= 1;
        if self.left > 0 {
            return None;
        }
        self.left = self.distance();
        Some(sys::thread_cpu_ns())
    }

    /// Nanoseconds of CPU time since `begun`, without those of the clock itself.
    #[must_use]
    pub fn end(&self, begun: u64) -> u64 {
        sys::thread_cpu_ns().saturating_sub(begun).saturating_sub(self.overhead_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use super::*;
    use crate::arms::Moments;
    use crate::stats::PathBytes;

    #[test]
    fn one_turn_in_64_is_measured_whatever_the_rhythm() {
        let mut sampler = Sampler::new(Random::seeded(1));
        // Two sessions that alternate: both must be measured.
        let mut measured = [0u32; 2];
        for turn in 0..256_000 {
            measured[turn % 2] += u32::from(sampler.begin().is_some());
        }
        assert!(measured.iter().all(|n| (1800..2200).contains(n)), "{measured:?} of 2000 each");
    }

    #[test]
    fn sums_over_sessions_are_what_the_sessions_add_up_to() {
        let stats = ArmStats::default();
        let mut sessions = [Sampled::default(), Sampled::default()];
        for (session, bytes, cpu_ns) in [(0, 10, 7), (1, 100, 30), (0, 5, 2), (1, 0, 4), (0, 1, 1)] {
            stats.measured(&mut sessions[session], bytes, cpu_ns);
        }
        let mut moments = Moments::default();
        moments.add(&stats);
        // 16 bytes in 10 ns, 100 bytes in 34 ns.
        let expected = Moments {
            turns: 5,
            sessions: 2,
            bytes: 116.0,
            cpu_ns: 44.0,
            bytes_squared: 256.0 + 10_000.0,
            cpu_squared: 100.0 + 1156.0,
            products: 160.0 + 3400.0,
        };
        assert_eq!(moments, expected);
    }

    #[test]
    fn bytes_of_a_turn_go_to_their_path() {
        let at = |n| Bytes {
            client_to_backend: PathBytes { splice: n, copy: 2 * n },
            backend_to_client: PathBytes { splice: 3 * n, copy: 4 * n },
        };
        let stats = ArmStats::default();
        stats.moved(at(1), at(11), 3);
        stats.moved(at(11), at(11), 2);
        let read = [&stats.up_splice, &stats.up_copy, &stats.down_splice, &stats.down_copy, &stats.calls];
        assert_eq!(read.map(Counter::get), [10, 20, 30, 40, 5]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn work_takes_cpu_time() {
        let sampler = Sampler::new(Random::seeded(1));
        let (begun, deadline) = (sys::thread_cpu_ns(), Instant::now() + Duration::from_secs(30));
        let mut n = 0u64;
        while sampler.end(begun) < 1_000_000 {
            n = std::hint::black_box(n + 1);
            assert!(Instant::now() < deadline, "the CPU clock stands still");
        }
    }

    /// Shows what measuring costs; there is nothing to assert, for no machine is like another.
    #[test]
    #[ignore = "a measurement for people"]
    fn what_measuring_costs() {
        const TURNS: u32 = 20_000;
        /// Nanoseconds of CPU time of one turn: the least of ten tries, for whatever else runs only adds to it.
        fn each(mut turn: impl FnMut()) -> f64 {
            let of = |_| {
                let begun = sys::thread_cpu_ns();
                (0..TURNS).for_each(|_| turn());
                sys::thread_cpu_ns() - begun
            };
            (0..10).map(of).min().unwrap_or(0) as f64 / f64::from(TURNS)
        }
        let mut sampler = Sampler::new(Random::unforeseen());
        let both = each(|| _ = std::hint::black_box(sampler.end(sys::thread_cpu_ns())));
        let spread = each(|| {
            if let Some(begun) = sampler.begin() {
                std::hint::black_box(sampler.end(begun));
            }
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.set_nodelay(true).unwrap();
        let turn = each(|| {
            near.write_all(b"x").unwrap();
            far.read_exact(&mut [0]).unwrap();
        });
        let share = spread / turn * 100.0;
        println!(
            "two clocks {both:.0} ns, over all turns {spread:.1} ns each; send and recv {turn:.0} ns: {share:.2} %"
        );
    }
}
