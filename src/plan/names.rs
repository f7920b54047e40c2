//! How names are looked up.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// How names are looked up, for all forwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolving {
    /// Who asks.
    pub how: Resolve,
    /// Name servers; empty takes those of /etc/resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// From one look-up to the next; `None` as long as the answer holds.
    pub interval: Option<Duration>,
    /// The shortest and the longest time an answer is taken to hold.
    pub least: Duration,
    /// See `least`, which is never above it.
    pub most: Duration,
}

/// Who asks for names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolve {
    /// This process, of the hosts file and of name servers; the system where these cannot know.
    #[default]
    Dns,
    /// The C library, as the system is set up. It does not tell how long its answers hold.
    System,
}

impl Default for Resolving {
    fn default() -> Self {
        Self {
            how: Resolve::default(),
            servers: Vec::new(),
            interval: None,
            least: Duration::from_secs(1),
            most: Duration::from_secs(3600),
        }
    }
}

impl fmt::Display for Resolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::System => "system",
        })
    }
}
