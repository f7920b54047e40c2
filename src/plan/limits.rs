//! Limits on connections and bytes.

use std::fmt;

/// Limits of one forward beside the number of its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Open sessions of one source; `None` is no limit.
    pub max_per_source: Option<u64>,
    /// What happens to a connection that is one too many, or too early.
    pub when_full: WhenFull,
    /// New connections in a second.
    pub connection_rate: Option<Rate>,
    /// New connections of one source in a second.
    pub connection_rate_per_source: Option<Rate>,
    /// Bytes in a second, in each direction.
    pub rate: Option<Rate>,
    /// Bytes of one source in a second, in each direction.
    pub rate_per_source: Option<Rate>,
}

/// What happens to a connection while a limit of its forward or of the process is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WhenFull {
    /// It waits in the kernel's queue until there is room.
    #[default]
    Queue,
    /// It is accepted and reset at once.
    Refuse,
}

/// So much in a second, and how much of it may come at once after a time with less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Connections or bytes in a second, at least 1.
    pub per_second: u64,
    /// Connections or bytes at once, at least 1.
    pub burst: u64,
}

impl fmt::Display for WhenFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "queue",
            Self::Refuse => "refuse",
        })
    }
}
