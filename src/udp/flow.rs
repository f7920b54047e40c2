//! One client's datagrams.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use socket2::Socket;

use super::framing::Framing;
use crate::limits::Ticket;
use crate::plan::Forward;
use crate::stats::{Bytes, EndReason};
use crate::upstream::Lease;

/// A socket clients send to, as one worker sees it. It belongs to the fleet.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The socket.
    pub socket: Arc<Socket>,
    /// Its address.
    pub address: SocketAddr,
    /// Number of the edition that new flows belong to.
    pub forward: usize,
    /// Place of the port in its range.
    pub port_offset: u16,
    /// Flows that came by its address, of all workers.
    pub flows: Arc<AtomicUsize>,
    /// No flow begins here any more.
    pub closing: bool,
}

/// The client of a flow that comes as a stream.
#[derive(Debug)]
pub struct Client {
    /// Its connection.
    pub stream: Socket,
    /// Its datagrams.
    pub framing: Framing,
    /// The address it has connected to.
    pub listener: SocketAddr,
}

/// What tells flows apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The listener, as the worker numbers them.
    pub listener: usize,
    /// The client.
    pub client: SocketAddr,
    /// The address it sends to, where the listener is bound to none: replies have to come from there.
    pub local: Option<IpAddr>,
}

/// How a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEnd {
    /// Why.
    pub reason: EndReason,
    /// The kernel's error behind it.
    pub errno: Option<i32>,
}

/// What a flow that has no answer yet needs to go to another target.
#[derive(Debug, Default)]
pub struct Spare {
    /// Targets that have failed it, by the number of their address.
    pub tried: Vec<u32>,
    /// What the client has sent so far, as much as is kept.
    pub datagrams: Vec<Box<[u8]>>,
}

impl Spare {
    /// Datagrams that are kept, and bytes of all: enough for a question, or the first flight of a handshake.
    const MOST: (usize, usize) = (8, 16 * 1024);

    /// Keeps a copy of a datagram, if there is room.
    pub fn keep(&mut self, datagram: &[u8]) {
        let kept: usize = self.datagrams.iter().map(|kept| kept.len()).sum();
        if self.datagrams.len() < Self::MOST.0 && kept + datagram.len() <= Self::MOST.1 {
            self.datagrams.push(datagram.into());
        }
    }
}

/// What a client sends from one port, and what comes back.
#[derive(Debug)]
pub struct Flow {
    /// Connected to the target.
    pub socket: Socket,
    /// Datagrams of the target, where it speaks a stream.
    pub framing: Option<Box<Framing>>,
    /// The client, where it does. Then the number of the listener in the key means nothing.
    pub client: Option<Box<Client>>,
    /// Who.
    pub key: FlowKey,
    /// Number of the edition it began with.
    pub forward: usize,
    /// Where its datagrams go.
    pub target: SocketAddr,
    /// Its hold of the target; `None` in tests.
    pub lease: Option<Lease>,
    /// What limits per source count it as.
    pub ticket: Option<Box<Ticket>>,
    /// Its entry among our own connections; 0 for none.
    pub trace: u64,
    /// When it began, in microseconds of the worker's clock.
    pub opened_us: u64,
    /// When it last had a datagram.
    pub active_us: u64,
    /// Datagrams passed on to the target.
    pub requests: u64,
    /// Datagrams that came back.
    pub answers: u64,
    /// Bytes passed on.
    pub bytes: Bytes,
    /// Whether datagrams may leave joined, to the target and to the client.
    pub joins: [bool; 2],
    /// The target has sent something.
    pub was_answered: bool,
    /// How it gets to another target; `None` where there is no other, and once it was answered.
    pub spare: Option<Box<Spare>>,
    /// Datagrams, and their bytes, that its socket refused because of what an earlier one had met with. They are passed on
    /// by another target, or dropped.
    pub refused: (u64, u64),
    /// What the kernel had dropped of its answers so far.
    pub lost: Option<u32>,
    /// Its key stands among those to be looked at.
    pub queued: bool,
}

impl Flow {
    /// When it ends if nothing more comes, in milliseconds, and why.
    #[must_use]
    pub fn deadline(&self, forward: &Forward) -> (u64, EndReason) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2);
        let idle_ms = self.active_us / 1000 + millis(forward.udp.timeout);
        let connects = self.framing.as_ref().is_some_and(|framing| !framing.connected);
        match forward.timeouts.connect.map(|timeout| self.opened_us / 1000 + millis(timeout)) {
            Some(at_ms) if connects && at_ms < idle_ms => (at_ms, EndReason::ConnectTimeout),
            _ => (idle_ms, EndReason::Idle),
        }
    }

    /// Datagrams that wait for a stream to take them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let of_client = self.client.as_ref().map_or(0, |client| client.framing.waiting());
        of_client + self.framing.as_ref().map_or(0, |framing| framing.waiting())
    }

    /// Whether each of its datagrams has been answered as often as is expected.
    #[must_use]
    pub fn is_answered(&self, responses: Option<u32>) -> bool {
        responses.is_some_and(|each| self.answers >= self.requests.saturating_mul(u64::from(each)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_datagrams_are_kept_and_no_more_than_there_is_room_for() {
        let mut spare = Spare::default();
        [1, 16_000, 1000, 384].into_iter().for_each(|len| spare.keep(&vec![7; len]));
        assert_eq!(spare.datagrams.iter().map(|kept| kept.len()).collect::<Vec<_>>(), [1, 16_000]);
        let mut spare = Spare::default();
        (0..20).for_each(|_| spare.keep(b""));
        assert_eq!(spare.datagrams.len(), 8);
    }

    #[test]
    fn answers_are_counted_for_each_datagram() {
        let socket = || Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let flow = |requests, answers| Flow {
            socket: socket(),
            framing: None,
            client: None,
            key: FlowKey { listener: 0, client: address, local: None },
            forward: 0,
            target: address,
            lease: None,
            ticket: None,
            trace: 0,
            opened_us: 0,
            active_us: 5_000_000,
            requests,
            answers,
            bytes: Bytes::default(),
            joins: [true; 2],
            was_answered: false,
            spare: None,
            refused: (0, 0),
            lost: Some(0),
            queued: false,
        };
        assert!(!flow(1, 100).is_answered(None));
        assert!(flow(1, 0).is_answered(Some(0)), "none is expected");
        assert!(!flow(2, 1).is_answered(Some(1)));
        assert!(flow(2, 2).is_answered(Some(1)));
        assert!(!flow(2, 3).is_answered(Some(2)));
    }
}
