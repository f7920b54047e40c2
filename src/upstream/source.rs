//! Local addresses of connections to the targets.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;

/// The source addresses of one forward in one worker: each takes its turn, so that together they have as many ports
/// towards a target as each has alone, times their number.
#[derive(Debug, Default)]
pub struct SourcePool {
    addresses: Box<[IpAddr]>,
    next: Cell<usize>,
    /// An address that this host lacks was told of.
    told: Cell<bool>,
}

impl SourcePool {
    /// These addresses, beginning with one that `worker` chooses, so that not all workers begin with the same.
    #[must_use]
    pub fn new(addresses: &[IpAddr], worker: usize) -> Self {
        Self { addresses: addresses.into(), next: Cell::new(worker), told: Cell::new(false) }
    }

    /// Whether the kernel chooses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The addresses to try for one connection, in order: those of the target's family, from the one whose turn it is.
    pub fn turn(&self, target: IpAddr) -> impl Iterator<Item = IpAddr> {
        let first = self.next.get();
        self.next.set(first.wrapping_add(1));
        let all = self.addresses.len();
        let in_turn = (0..all).map(move |step| self.addresses[(first % all + step) % all]);
        in_turn.filter(move |source| source.is_ipv4() == target.is_ipv4())
    }

    /// Says once that binding to an address has failed: unlike a lack of ports, that is a matter of configuration.
    pub fn lacks(&self, source: IpAddr, error: &io::Error) {
        if !self.told.replace(true) {
            log::error!(
                "cannot connect from source {source}: {error}; `ip address` lists the addresses of this host; the next \
                 source is tried"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_takes_its_turn_and_the_others_follow() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let pool = SourcePool::new(&[ip("10.0.0.1"), ip("fd00::1"), ip("10.0.0.2"), ip("10.0.0.3")], 3);
        let turns: Vec<Vec<String>> =
            (0..3).map(|_| pool.turn(ip("192.0.2.1")).map(|ip| ip.to_string()).collect()).collect();
        assert_eq!(
            turns,
            [
                ["10.0.0.3", "10.0.0.1", "10.0.0.2"],
                ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
                ["10.0.0.2", "10.0.0.3", "10.0.0.1"]
            ]
        );
        assert_eq!(pool.turn(ip("::1")).collect::<Vec<_>>(), [ip("fd00::1")]);
        assert!(SourcePool::new(&[], 0).is_empty());
    }
}
