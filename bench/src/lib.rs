//! What the benchmarks of spliced share: sockets over loopback, and the forwarder's own data path between them.
//!
//! The benchmarks are in `benches`, one file per subject; `README.md` says how to run, read and extend them.

mod link;
mod mover;
pub mod table;

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
