//! One check of one address by a datagram: ask, and wait for the answer. It is asked once; that a datagram gets lost now
//! and then is what several failed checks in a row are for.

use std::io::{self, ErrorKind};
use std::net::IpAddr;

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};

use super::probe::contains;
use crate::plan::{Check, Egress};
use crate::sys;
use crate::udp::doors::datagrams;
use crate::upstream::Endpoint;

/// Datagrams looked at for the answer, at most: whoever sends more than that answers something else.
const MOST_ANSWERS: u32 = 64;

/// A question that was asked.
#[derive(Debug)]
pub(super) struct Question {
    socket: UdpSocket,
    answers: u32,
    /// The beginning of the last answer.
    heard: String,
}

impl Question {
    /// Asks.
    ///
    /// # Errors
    /// What socket(2), bind(2), connect(2), epoll_ctl(2) and send(2) report.
    pub(super) fn ask(
        endpoint: &Endpoint,
        check: &Check,
        (sources, egress): (&[IpAddr], &Egress),
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let address = endpoint.place().with_port(check.port.unwrap_or(endpoint.ports().first));
        // The configuration lets no unix socket be a target of datagrams.
        let address = address.socket().ok_or(ErrorKind::Unsupported)?;
        let socket = datagrams(address)?;
        sys::set_egress(&socket, &Egress { transparent: false, ..egress.clone() }, address.is_ipv6())?;
        if let Some(source) = sources.iter().find(|source| source.is_ipv4() == address.is_ipv4()) {
            sys::bind_source(&socket, *source)?;
        }
        // From here on it hears its target alone, and what the target's host says of it.
        socket.connect(&address.into())?;
        let mut socket = UdpSocket::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE)?;
        socket.send(check.send.as_bytes())?;
        Ok(Self { socket, answers: 0, heard: String::new() })
    }

    /// Looks at what has come; what it came to, once it is over.
    pub(super) fn advance(&mut self, check: &Check) -> Option<Result<(), String>> {
        let mut datagram = [0; 4096];
        while self.answers < MOST_ANSWERS {
            match self.socket.recv(&mut datagram) {
                Ok(len) if contains(&datagram[..len], check.expect.as_bytes()) => return Some(Ok(())),
                Ok(len) => {
                    self.answers += 1;
                    self.heard = String::from_utf8_lossy(&datagram[..len]).chars().take(40).collect();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Some(Err(e.to_string())),
            }
        }
        // One datagram is a whole answer: what it lacks does not come later.
        let fails = || Err(format!("the answer was {:?}, without {:?}", self.heard, check.expect));
        (self.answers > 0).then(fails)
    }
}
