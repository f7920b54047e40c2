//! One check of one address, by what the target speaks.

use std::io;

use mio::{Registry, Token};

use super::Checked;
use super::probe::Probe;
use super::question::Question;
use crate::plan::{Check, Transport};
use crate::upstream::Endpoint;

/// A check under way.
#[derive(Debug)]
pub(super) enum Inquiry {
    /// By a connection.
    Stream(Probe),
    /// By a datagram.
    Datagram(Question),
}

impl Inquiry {
    /// Begins one.
    ///
    /// # Errors
    /// What the system calls report that make and connect a socket, or send by it.
    pub(super) fn begin(endpoint: &Endpoint, of: &Checked, registry: &Registry, token: Token) -> io::Result<Self> {
        let by = (&of.sources[..], &of.egress);
        match of.transport {
            Transport::Tcp => Probe::begin(endpoint, &of.check, by, registry, token).map(Self::Stream),
            Transport::Udp => Question::ask(endpoint, &of.check, by, registry, token).map(Self::Datagram),
        }
    }

    /// What has not happened, should its time be over now.
    pub(super) fn waits_for(&self) -> &'static str {
        match self {
            Self::Stream(probe) => probe.waits_for(),
            Self::Datagram(_) => "not the expected answer",
        }
    }

    /// Goes on as far as the socket allows; what it came to, once it is over.
    pub(super) fn advance(&mut self, check: &Check) -> Option<Result<(), String>> {
        match self {
            Self::Stream(probe) => probe.advance(check),
            Self::Datagram(question) => question.advance(check),
        }
    }
}
