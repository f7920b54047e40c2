//! The PROXY header in front of a session: the one a client begins with, and the one its target is told.
//!
//! Both go through user space, and only they do: what is behind the first stays in the kernel until the backend is
//! connected and has been sent the second.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;

use super::{Connecting, Connector, End, Phase, Session, Side, Step, blame};
use crate::address::Address;
use crate::arms::ArmIndex;
use crate::proxy::{self, Fault, Header, How, Outcome, Reader, Source, Version};
use crate::pump::{Choice, Pump};
use crate::stats::EndReason;
use crate::sys;
use crate::upstream::Hop;

/// A client that has not said yet who it is.
#[derive(Debug)]
pub struct Awaiting {
    reader: Reader,
    /// When it must have done so, in milliseconds of the worker's clock.
    pub(super) until_ms: u64,
    /// How it came to us.
    hop: Hop,
    /// Place of the listener's port in its range.
    port_offset: u16,
}

/// What the header said, as far as the session still needs it.
#[derive(Debug)]
pub(super) struct Introduction {
    /// The connection's own peer.
    peer: Address,
    header: Header,
}

/// A header on its way to the backend.
#[derive(Debug)]
pub(super) struct Announcing {
    bytes: Vec<u8>,
    sent: usize,
    /// When connecting should be over; 0 is never.
    pub(super) give_up_ms: u64,
}

/// What is to be done with a client whose header was awaited.
#[derive(Debug)]
pub enum Awaited {
    /// Wait for more of it.
    More,
    /// It has come.
    Introduced,
    /// It sends none.
    Silent,
    /// It is over.
    End(End),
}

impl Awaiting {
    /// Nothing read yet.
    #[must_use]
    pub fn new(until_ms: u64, port_offset: u16, hop: Hop) -> Self {
        Self { reader: Reader::default(), until_ms, hop, port_offset }
    }
}

/// The client's socket as a source of bytes, none of which is taken before its time.
struct Stream<'a>(&'a Socket);

impl Stream<'_> {
    fn recv(&self, room: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        recv(self.0.as_raw_fd(), room, flags).map_err(|errno: Errno| errno.into())
    }
}

impl Source for Stream<'_> {
    fn peek(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.recv(room, MsgFlags::MSG_PEEK)
    }

    fn take(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.recv(room, MsgFlags::empty())
    }
}

impl Session {
    /// Whether it waits for the client's header.
    #[must_use]
    pub fn awaits_header(&self) -> bool {
        matches!(self.phase, Phase::Awaiting(_))
    }

    /// Who brought the client's address.
    #[must_use]
    pub fn proxy(&self) -> Option<Address> {
        self.introduction.as_ref().map(|introduction| introduction.peer)
    }

    /// Place of the listener's port in its range, and how the client came to us, until it is known who it is.
    #[must_use]
    pub fn arrival(&self) -> Option<(u16, Hop)> {
        match &self.phase {
            Phase::Awaiting(awaiting) => Some((awaiting.port_offset, awaiting.hop)),
            _ => None,
        }
    }

    /// Bytes of this session move as that arm says.
    pub fn deal_to(&mut self, arm: ArmIndex, choice: Choice) {
        self.arm = Some(arm);
        (self.up.pump, self.down.pump) = (Pump::new(choice), Pump::new(choice));
    }

    /// Reads what there is of the client's header. `required` says that there must be one.
    pub fn read_header(&mut self, required: bool) -> Awaited {
        if let Some(e) = self.failed(Side::Client) {
            return Awaited::End(End { reason: blame(Side::Client, &e), errno: e.raw_os_error() });
        }
        let Phase::Awaiting(awaiting) = &mut self.phase else { return Awaited::Silent };
        let how = How { required, ended: self.client_ready.read_closed };
        let outcome = awaiting.reader.advance(&mut Stream(&self.client), how);
        let untouched = awaiting.reader.is_empty();
        match outcome {
            Outcome::Wait => Awaited::More,
            Outcome::Header(header) => {
                // What it says of the connection replaces what the connection says of itself; the fields stay either way.
                let peer = self.origin.client;
                self.origin.client = header.addresses.map_or(peer, |(source, _)| source.into());
                self.introduction = Some(Box::new(Introduction { peer, header }));
                Awaited::Introduced
            }
            Outcome::Other if !required => Awaited::Silent,
            Outcome::Ended if !required && untouched => Awaited::Silent,
            Outcome::Other => Awaited::End(End::of(EndReason::ProxyInvalid)),
            Outcome::Ended => Awaited::End(End::of(EndReason::ProxyTruncated)),
            Outcome::Bad(fault) => Awaited::End(End::of(match fault {
                Fault::Invalid => EndReason::ProxyInvalid,
                Fault::TooLong => EndReason::ProxyTooLong,
                Fault::Checksum => EndReason::ProxyChecksum,
            })),
            Outcome::Failed(e) => Awaited::End(End { reason: blame(Side::Client, &e), errno: e.raw_os_error() }),
        }
    }

    /// The time for a header is over: what becomes of the client.
    #[must_use]
    pub fn header_overdue(&self, required: bool) -> Awaited {
        match &self.phase {
            Phase::Awaiting(awaiting) if required || !awaiting.reader.is_empty() => {
                Awaited::End(End::of(EndReason::ProxyTimeout))
            }
            _ => Awaited::Silent,
        }
    }

    /// It is known who the client is: from here on it connects.
    pub fn begin_to_connect(&mut self, connecting: Connecting) {
        self.phase = Phase::Connecting(Box::new(connecting));
        // Its bytes may have come together with the header, whose event has been used up.
        self.client_ready.readable = true;
    }

    /// Begins to tell the connected backend who the client is.
    pub(super) fn announce(&mut self, version: Version, give_up_ms: u64, by: &Connector<'_>) -> Step {
        let known = self.introduction.take();
        let said = known.as_ref().map(|known| &known.header);
        let addresses = said.and_then(|header| header.addresses).or_else(|| {
            let [local, original] = sys::meant_for(&self.client);
            // A unix socket's client is UNKNOWN, or LOCAL: there is nothing to say of it.
            Some((self.origin.client.socket()?, original.or(local)?))
        });
        let header = Header {
            addresses,
            tlvs: said.map(|header| header.tlvs.clone()).unwrap_or_default(),
            has_checksum: said.is_some_and(|header| header.has_checksum),
        };
        self.introduction = known;
        let bytes = proxy::encode(version, &header);
        self.phase = Phase::Announcing(Box::new(Announcing { bytes, sent: 0, give_up_ms }));
        self.go_on_announcing(by)
    }

    /// Sends what is left of the header; the session is open once all of it is.
    pub(super) fn go_on_announcing(&mut self, by: &Connector<'_>) -> Step {
        let (Phase::Announcing(announcing), Some(backend)) = (&mut self.phase, &self.backend) else {
            return Step::Again;
        };
        while announcing.sent < announcing.bytes.len() {
            match backend.send_with_flags(&announcing.bytes[announcing.sent..], sys::SEND_FLAGS) {
                Ok(sent) => announcing.sent += sent,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.backend_ready.writable = false;
                    return Step::Wait;
                }
                Err(e) => return Step::End(End { reason: blame(Side::Backend, &e), errno: e.raw_os_error() }),
            }
        }
        by.stats.proxy_sent.add(1);
        self.phase = Phase::Open;
        self.active_us = by.now_us;
        Step::Again
    }
}
