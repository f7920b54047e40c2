//! Where clients connect.

use std::fmt;
use std::net::IpAddr;

use super::{Ports, RunAs};
use crate::address::Address;
pub use crate::address::Place as Local;

/// One listening address with one port or a range of ports, or one unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Where.
    pub local: Local,
    /// First and last port, both included; [`Ports::NONE`] for a unix socket.
    pub ports: Ports,
}

/// Options of listening sockets alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenOptions {
    /// An IPv6 address takes no IPv4 clients (`IPV6_V6ONLY`).
    pub v6_only: bool,
    /// Only clients that come by this network interface (`SO_BINDTODEVICE`); `None` by any.
    pub device: Option<String>,
    /// The network namespace the sockets are opened in: a name below `/run/netns`, or a path; `None` is our own.
    pub netns: Option<String>,
    /// Permission bits of the files of unix sockets; `None` is what the umask leaves of 0777.
    pub unix_mode: Option<u32>,
    /// Who owns the files of unix sockets; `None` is who the process becomes.
    pub unix_owner: Option<RunAs>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { v6_only: true, device: None, netns: None, unix_mode: None, unix_owner: None }
    }
}

impl Listen {
    /// The address; `None` for a unix socket.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        if let Local::Ip(ip) = self.local { Some(ip) } else { None }
    }

    /// Every address, the range expanded, with the place of the port in it.
    pub fn addresses(&self) -> impl Iterator<Item = (Address, u16)> {
        (0..self.ports.len() as u16).map(|offset| (self.address(offset), offset))
    }

    /// The address with that place in the range of ports.
    pub(super) fn address(&self, offset: u16) -> Address {
        self.local.with_port(self.ports.first + offset)
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

#[cfg(test)]
mod tests {
    use crate::config::{Lookup, Overrides, parse};

    #[test]
    fn addresses_are_found_by_their_place() {
        let text = "forwards: [{listen: [\"127.0.0.1:1-3\", \"unix:@a\", \"[::1]:9\"], to: \"10.0.0.1:80\"}]";
        let plan = parse("FILE", text, &Overrides::default(), &Lookup::fixed()).unwrap();
        let forward = &plan.forwards[0];
        let all: Vec<_> = forward.addresses().map(|(address, _)| address).collect();
        assert_eq!(all.len(), 5);
        assert_eq!((0..).map_while(|index| forward.address(index)).collect::<Vec<_>>(), all);
        assert_eq!((forward.address(5), forward.address(usize::MAX)), (None, None));
    }
}
