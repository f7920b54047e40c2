//! Who the client is, and what a connection to a target shows of it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::proxy::Version;

/// From whom a PROXY header is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxy {
    /// Networks of the proxies; nobody else's header is read. Never empty.
    pub from: Vec<IpNet>,
    /// How long a header may take from accept on.
    pub timeout: Duration,
    /// A connection without one is refused, and so is everybody who is not listed. Otherwise a listed source may leave
    /// it out, and all others are clients like any.
    pub required: bool,
}

/// What connections to the targets carry beside the client's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Egress {
    /// The PROXY header in front of them.
    pub send_proxy: Option<Version>,
    /// They come from the client's own address (`IP_TRANSPARENT`).
    pub transparent: bool,
    /// Their packets have this mark (`SO_MARK`).
    pub mark: Option<u32>,
    /// They leave through this device (`SO_BINDTODEVICE`).
    pub device: Option<String>,
    /// Their sockets are made in this network namespace: a name below `/run/netns`, or a path; `None` is our own.
    pub netns: Option<String>,
}

impl AcceptProxy {
    /// `timeout` where nobody says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(3);

    /// Whether that peer may say who its client is.
    #[must_use]
    pub fn lists(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.from.iter().any(|net| net.contains(&peer))
    }
}

impl Egress {
    /// Whether their sockets differ from others at all.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.is_privileged() || self.device.is_some()
    }

    /// Whether the kernel lets only a process with `CAP_NET_ADMIN` make such connections.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        self.transparent || self.mark.is_some()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}
