//! Recognises a connection that comes from one of our own forwards, so that a circle ends.
//!
//! A circle that shows in the configuration is refused when it is loaded. One made by address translation or a name
//! shows only here: a connection we accept is one we have made ourselves. Its client's address is then the local address
//! of our connection to a backend, and the address it was meant for is that backend's. Both must agree, because the
//! kernel gives one local port to several connections as long as they lead to different places. Each such hop is
//! counted, as a time-to-live would; the same forward again, or too many hops, is a loop.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries; a newer connection takes the place of an older one with the same hash. A circle is always found sooner or
/// later, because its newest connection is looked up at once.
const ENTRIES: u64 = 4096;
/// So many of our own forwards in a row are a circle.
const MOST_HOPS: u8 = 8;

/// Our connections to backends, shared by all workers, without a lock.
#[derive(Debug)]
pub struct Trace {
    hasher: RandomState,
    entries: Box<[AtomicU64]>,
}

/// What led to a session: how many of our own forwards in a row, and the last one. 0 hops: an ordinary client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hop {
    count: u8,
    forward: u16,
}

impl Default for Trace {
    fn default() -> Self {
        Self { hasher: RandomState::new(), entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Trace {
    /// Remembers a connection from `local` to `target`, made for a session that came by `hop` to `forward`. The value
    /// returned is for [`forget`](Self::forget).
    pub fn remember(&self, local: SocketAddr, target: SocketAddr, hop: Hop, forward: usize) -> u64 {
        let local = self.hash(local);
        // 20 bits for each end, 16 of the forward, 8 of the hops, which are never 0 here: 0 stays "no entry".
        let entry = local << 44
            | self.hash(target) << 24
            | (forward as u64 & 0xffff) << 8
            | u64::from(hop.count.saturating_add(1));
        self.entry(local).store(entry, Ordering::Release);
        entry
    }

    /// Forgets what [`remember`](Self::remember) returned, unless a newer connection has taken its place.
    pub fn forget(&self, entry: u64) {
        if entry != 0 {
            let _ = self.entry(entry >> 44).compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// How a client came to us. `meant_for` gives the addresses the client may have connected to; it is asked only
    /// when the client's own address is known here.
    pub fn look_up(&self, client: SocketAddr, meant_for: impl FnOnce() -> [Option<SocketAddr>; 2]) -> Hop {
        let client = self.hash(client);
        let entry = self.entry(client).load(Ordering::Acquire);
        if entry == 0 || entry >> 44 != client {
            return Hop::default();
        }
        let is_target = |address: SocketAddr| self.hash(address) == entry >> 24 & 0xf_ffff;
        if !meant_for().into_iter().flatten().any(is_target) {
            return Hop::default();
        }
        Hop { count: entry as u8, forward: (entry >> 8) as u16 }
    }

    /// 20 bits. Who connects to no address in particular comes to this host (`ip_route_output_key_hash_rcu` in
    /// net/ipv4/route.c, `__ip6_datagram_connect` in net/ipv6/datagram.c).
    fn hash(&self, address: SocketAddr) -> u64 {
        let ip = match address.ip().to_canonical() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        self.hasher.hash_one((ip, address.port())) >> 44
    }

    fn entry(&self, local: u64) -> &AtomicU64 {
        &self.entries[(local % ENTRIES) as usize]
    }
}

impl Hop {
    /// Whether a session that came by this hop to `forward` goes round in a circle.
    #[must_use]
    pub fn is_loop(self, forward: usize) -> bool {
        self.count > 0 && (usize::from(self.forward) == forward & 0xffff || self.count >= MOST_HOPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_is_recognised_until_it_is_forgotten() {
        let trace = Trace::default();
        let (local, target) = (address("127.0.0.1:40000"), address("10.0.0.1:80"));
        let look_up = |client, meant_for| trace.look_up(client, || [None, Some(meant_for)]);
        let entry = trace.remember(local, target, Hop::default(), 3);
        let hop = look_up(local, target);
        assert!(hop.is_loop(3));
        assert!(!hop.is_loop(4), "a chain of two forwards is no circle");
        assert!(!look_up(address("127.0.0.1:40001"), target).is_loop(3));
        assert!(!look_up(address("127.0.0.2:40000"), target).is_loop(3));
        trace.forget(entry);
        assert_eq!(look_up(local, target), Hop::default());
    }

    #[test]
    fn a_stranger_with_the_same_port_to_another_place_is_no_circle() {
        let trace = Trace::default();
        let local = address("127.0.0.1:40000");
        trace.remember(local, address("127.0.0.1:9001"), Hop::default(), 0);
        let hop = trace.look_up(local, || [Some(address("127.0.0.1:9000")), None]);
        assert_eq!(hop, Hop::default());
    }

    #[test]
    fn a_circle_of_two_ends_by_its_length() {
        let trace = Trace::default();
        let target = address("10.0.0.1:80");
        let mut hop = Hop::default();
        for step in 0..100u16 {
            if hop.is_loop(usize::from(step % 2) + 1) {
                assert!(step <= u16::from(MOST_HOPS));
                return;
            }
            let local = SocketAddr::from(([127, 0, 0, 1], 30000 + step));
            trace.remember(local, target, hop, usize::from(step % 2) + 7);
            hop = trace.look_up(local, || [Some(target), None]);
        }
        panic!("the circle was not found");
    }

    #[test]
    fn an_ipv4_client_on_an_ipv6_socket_is_the_same_client() {
        let trace = Trace::default();
        let target = address("127.0.0.1:80");
        trace.remember(address("127.0.0.1:5"), target, Hop::default(), 0);
        assert!(trace.look_up(address("[::ffff:127.0.0.1]:5"), || [Some(target), None]).is_loop(0));
    }
}
