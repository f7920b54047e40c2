//! Where clients connect.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Ports, RunAs};
use crate::endpoint::{Endpoint, UnixName};

/// One listening address with one port or a range of ports, or one unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Where.
    pub local: Local,
    /// First and last port, both included; [`Ports::NONE`] for a unix socket.
    pub ports: Ports,
}

/// What is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Local {
    /// A local address; host names are resolved while the plan is made.
    Ip(IpAddr),
    /// A unix socket.
    Unix(UnixName),
}

/// Options of listening sockets alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListenOptions {
    /// Permission bits of the files of unix sockets; `None` is what the umask leaves of 0777.
    pub unix_mode: Option<u32>,
    /// Who owns the files of unix sockets; `None` is who the process becomes.
    pub unix_owner: Option<RunAs>,
}

impl Listen {
    /// The address; `None` for a unix socket.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        if let Local::Ip(ip) = self.local { Some(ip) } else { None }
    }

    /// Every address, the range expanded, with the place of the port in it.
    pub fn addresses(&self) -> impl Iterator<Item = (Endpoint, u16)> {
        let Self { local, ports } = *self;
        (0..ports.len() as u16).map(move |offset| {
            let address = match local {
                Local::Ip(ip) => Endpoint::Ip(SocketAddr::new(ip, ports.first + offset)),
                Local::Unix(name) => Endpoint::Unix(name),
            };
            (address, offset)
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local {
            Local::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.ports),
            Local::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.ports),
            Local::Unix(name) => name.fmt(f),
        }
    }
}
