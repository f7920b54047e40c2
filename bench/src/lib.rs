//! What the benchmarks of spliced share: sockets over loopback, and the forwarder's own data path between them.
//!
//! The benchmarks are in `benches`, one file per subject; `README.md` says how to run, read and extend them.

mod link;
mod mover;
pub mod table;

use std::time::Duration;

use spliced::plan::Engine;
use spliced::sys::HAS_SPLICE;

pub use self::link::{Link, patience};
pub use self::mover::{Mover, NotHere};

/// Message sizes in bytes, with the names they have in benchmark ids: from one byte over an Ethernet segment's payload
/// to what a bulk sender has queued.
pub const MESSAGES: [(&str, usize); 9] = [
    ("1B", 1),
    ("64B", 64),
    ("1448B", 1448),
    ("4KiB", 4 << 10),
    ("8KiB", 8 << 10),
    ("16KiB", 16 << 10),
    ("64KiB", 64 << 10),
    ("128KiB", 128 << 10),
    ("1MiB", 1 << 20),
];

/// Sequences of message sizes in bytes, each repeated for ever, with their names: what `auto` makes of changes.
pub const MIXES: [(&str, &[usize]); 4] = [
    ("64B+16KiB", &[64, 16 << 10]),
    ("64B+64KiB", &[64, 64 << 10]),
    ("64B+1MiB", &[64, 1 << 20]),
    ("20x64B+4x64KiB", &{
        let mut sizes = [64; 24];
        (sizes[20], sizes[21], sizes[22], sizes[23]) = (64 << 10, 64 << 10, 64 << 10, 64 << 10);
        sizes
    }),
];

/// Pipe sizes in bytes, with the names they have in benchmark ids.
pub const PIPES: [(&str, usize); 3] = [("64KiB", 64 << 10), ("256KiB", 256 << 10), ("1MiB", 1 << 20)];

/// The scratch buffer spliced has unless told otherwise, in bytes.
pub const COPY_BUFFER: usize = 64 << 10;

/// A way to move bytes that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name in benchmark ids.
    pub name: String,
    /// The engine.
    pub engine: Engine,
    /// Bytes of its pipe; 0 where it has none.
    pub pipe_size: usize,
}

/// The time all of these would have taken had nothing interfered: the slowest tenth is taken for disturbed, and counts
/// as much as the mean of the others. What happens more often than that, by the code's own doing, stays in.
#[must_use]
pub fn undisturbed(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    let kept = times.len() - times.len() / 10;
    let mean = times[..kept].iter().sum::<Duration>().as_secs_f64() / kept.max(1) as f64;
    Duration::from_secs_f64(mean * times.len() as f64)
}

/// A message of that many bytes.
#[must_use]
pub fn message(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// What is measured in this build: copy first, which the others are compared with.
#[must_use]
pub fn engines() -> Vec<Candidate> {
    let mut engines = vec![Candidate { name: "copy-64KiB".to_owned(), engine: Engine::Copy, pipe_size: 0 }];
    if HAS_SPLICE {
        let splice =
            |(name, pipe_size)| Candidate { name: format!("splice-{name}"), engine: Engine::Splice, pipe_size };
        engines.extend(PIPES.map(splice));
        let (name, pipe_size) = PIPES[PIPES.len() - 1];
        engines.push(Candidate { name: format!("auto-{name}"), engine: Engine::Auto, pipe_size });
    }
    engines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_disturbance_does_not_count_and_a_frequent_cost_does() {
        let ms = Duration::from_millis;
        assert_eq!(undisturbed(Vec::new()), Duration::ZERO);
        assert_eq!(undisturbed(vec![ms(7)]), ms(7));
        let mut times = vec![ms(2); 10];
        times[3] = ms(900);
        assert_eq!(undisturbed(times), ms(20));
        // Two of the ten slow ones are left out: 34 ms in 18 iterations.
        assert_eq!(undisturbed([ms(1), ms(3)].repeat(10)).as_micros(), 34_000 * 20 / 18);
    }
}
