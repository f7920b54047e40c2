//! Datagrams.

use std::fmt;
use std::time::Duration;

use super::Listen;

/// What carries bytes between two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// The datagrams of a forward. What one client sends from one port is a flow, which counts as a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    /// Where datagrams are taken, beside the TCP listeners of the forward; no address appears twice in a plan.
    pub listen: Vec<Listen>,
    /// A flow ends after so long without a datagram in either direction.
    pub timeout: Duration,
    /// It ends as soon as each datagram of the client was answered by so many of the target; `None` for the timeout alone.
    pub responses: Option<u32>,
    /// What the targets speak; `None` is what the listener speaks. Between the two kinds each datagram has two bytes
    /// with its length before it in the stream, the higher one first (as in RFC 1035, 4.2.2).
    pub targets: Option<Transport>,
}

impl Default for Udp {
    fn default() -> Self {
        Self { listen: Vec::new(), timeout: Self::TIMEOUT, responses: None, targets: None }
    }
}

impl Udp {
    /// `timeout` where nobody says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(60);

    /// Whether datagrams of clients are to go into a stream.
    #[must_use]
    pub fn into_stream(&self) -> bool {
        self.targets == Some(Transport::Tcp)
    }
}

impl Transport {
    /// What stands before an address that says so; TCP is what goes without saying.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Udp => "udp:",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}
