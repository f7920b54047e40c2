//! Recognises a connection that comes from one of our own forwards, so that a circle ends.
//!
//! A circle that shows in the configuration is refused when it is loaded. One made by address translation, a name or
//! another program's help shows only here: a client whose address is the local address of one of our own connections
//! to a backend. Each such hop is counted, as a time-to-live would; the same forward again, or too many hops, is a loop.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries; a newer connection takes the place of an older one with the same hash. A circle is always found sooner or
/// later, because its newest connection is looked up at once.
const ENTRIES: usize = 4096;
/// So many of our own forwards in a row are a circle.
const MOST_HOPS: u8 = 8;

/// The local addresses of our connections to backends, shared by all workers, without a lock.
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
    /// Remembers a connection to a backend, made for a session that came by `hop` to `forward`. The value returned
    /// is for [`forget`](Self::forget).
    pub fn remember(&self, local: SocketAddr, hop: Hop, forward: usize) -> u64 {
        let hash = self.hash(local);
        // 40 bits of hash, 16 of the forward, 8 of the hops, which are never 0 here: 0 stays "no entry".
        let entry = hash << 24 | (forward as u64 & 0xffff) << 8 | u64::from(hop.count.saturating_add(1));
        self.entries[slot(hash)].store(entry, Ordering::Release);
        entry
    }

    /// Forgets what [`remember`](Self::remember) returned, unless a newer connection has taken its place.
    pub fn forget(&self, entry: u64) {
        if entry != 0 {
            let _ = self.entries[slot(entry >> 24)].compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// How a client came to us.
    #[must_use]
    pub fn look_up(&self, client: SocketAddr) -> Hop {
        let hash = self.hash(client);
        let entry = self.entries[slot(hash)].load(Ordering::Acquire);
        if entry == 0 || entry >> 24 != hash {
            return Hop::default();
        }
        Hop { count: entry as u8, forward: (entry >> 8) as u16 }
    }

    fn hash(&self, address: SocketAddr) -> u64 {
        self.hasher.hash_one((address.ip().to_canonical(), address.port())) >> 24
    }
}

fn slot(hash: u64) -> usize {
    hash as usize % ENTRIES
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

    #[test]
    fn a_client_is_recognised_until_it_is_forgotten() {
        let trace = Trace::default();
        let local: SocketAddr = "127.0.0.1:40000".parse().unwrap();
        let entry = trace.remember(local, Hop::default(), 3);
        let hop = trace.look_up(local);
        assert!(hop.is_loop(3));
        assert!(!hop.is_loop(4), "a chain of two forwards is no circle");
        assert!(!trace.look_up("127.0.0.1:40001".parse().unwrap()).is_loop(3));
        assert!(!trace.look_up("127.0.0.2:40000".parse().unwrap()).is_loop(3));
        trace.forget(entry);
        assert_eq!(trace.look_up(local), Hop::default());
    }

    #[test]
    fn a_circle_of_two_ends_by_its_length() {
        let trace = Trace::default();
        let mut hop = Hop::default();
        for step in 0..100u16 {
            if hop.is_loop(usize::from(step % 2) + 1) {
                assert!(step <= u16::from(MOST_HOPS));
                return;
            }
            let local = SocketAddr::from(([127, 0, 0, 1], 30000 + step));
            trace.remember(local, hop, usize::from(step % 2) + 7);
            hop = trace.look_up(local);
        }
        panic!("the circle was not found");
    }

    #[test]
    fn an_ipv4_client_on_an_ipv6_socket_is_the_same_client() {
        let trace = Trace::default();
        trace.remember("127.0.0.1:5".parse().unwrap(), Hop::default(), 0);
        assert!(trace.look_up("[::ffff:127.0.0.1]:5".parse().unwrap()).is_loop(0));
    }
}
