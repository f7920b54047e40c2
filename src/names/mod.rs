//! Where names lead: looked up off the data path, again whenever an answer runs out.
//!
//! In reading order: `message` is the format of questions and answers, `exchange` the talk with name servers, `files` what
//! /etc says, `lookup` one look-up of one host, `watch` the threads that repeat it.
//!
//! The last good answer is kept until there is another good one: a name server that is down, or that has lost a name,
//! changes nothing.

mod exchange;
mod files;
mod lookup;
mod message;
mod watch;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use self::message::any_answer;
pub use self::watch::{Known, NameView, Resolver, names};

/// One address a name or a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address.
    pub ip: IpAddr,
    /// What the record of a service says of it; `None` for the address of a name.
    pub entry: Option<Entry>,
}

/// What the record of a service says (RFC 2782).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// How many better priorities there are: 0 is used first.
    pub level: u16,
    /// The port.
    pub port: u16,
    /// Its share among those of its level, at least 1.
    pub weight: u16,
}

impl Place {
    /// An address of a name.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        Self { ip, entry: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some(entry) => SocketAddr::new(self.ip, entry.port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}
