//! How bytes move.

use std::fmt;

/// How bytes move between the sockets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Engine {
    /// Decides per direction: copy for small messages, splice for bursts.
    #[default]
    Auto,
    /// Always through a pipe, as long as the kernel gives one.
    Splice,
    /// Always `recv` and `send` through the worker's scratch buffer.
    Copy,
}

/// One side of a live A/B.
///
/// Two arms may come to the same (`copy` beside `copy-64KiB`): such a comparison with nothing to find shows how far
/// chance alone goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    /// `splice`, `auto`, `copy`, `copy-64KiB` …: unique in its forward.
    pub name: String,
    /// How bytes of its sessions move.
    pub engine: Engine,
    /// Bytes one read may take when it copies: 1 KiB to 16 MiB.
    pub copy_buffer: usize,
    /// Its share of new sessions relative to the other arms: 1 to 1000.
    pub share: u32,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Splice => "splice",
            Self::Copy => "copy",
        })
    }
}
