//! Lists of networks from files: as many as there may be, found in the time of a few comparisons.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

/// A file and the networks it held when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetFile {
    /// The file.
    pub path: PathBuf,
    /// What it held.
    pub nets: Arc<NetSet>,
}

/// A set of addresses as sorted ranges that neither touch nor overlap; both ends of a range belong to it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct NetSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    summary: Summary,
}

/// What tells one set from another without its ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Networks as they were written.
    pub written: u64,
    /// Of the addresses in it.
    pub fingerprint: u32,
}

impl NetSet {
    /// A set that is only told from others: it contains nothing.
    #[must_use]
    pub fn of(summary: Summary) -> Self {
        Self { summary, ..Self::default() }
    }

    /// What tells it from others.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Whether it has that address, in its IPv4 form where it has one.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => within(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => within(&self.v6, ip.to_bits()),
        }
    }
}

fn within<T: Copy + Ord>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= value);
    after.checked_sub(1).is_some_and(|at| value <= ranges[at].1)
}

/// Sorts ranges and joins those that overlap or touch.
fn joined<T: Copy + Ord>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut out: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if next(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out.into()
}

impl FromIterator<IpNet> for NetSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (mut v4, mut v6, mut written) = (Vec::new(), Vec::new(), 0);
        for net in nets {
            written += 1;
            match net {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        let v4 = joined(v4, |last: u32| last.checked_add(1));
        let v6 = joined(v6, |last: u128| last.checked_add(1));
        // FNV-1a, the same in every version of this program.
        let mut hash = 0x811c_9dc5_u32;
        let mut add = |bytes: &[u8]| {
            hash = bytes.iter().fold(hash, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        };
        v4.iter().for_each(|(first, last)| [*first, *last].iter().for_each(|end| add(&end.to_be_bytes())));
        v6.iter().for_each(|(first, last)| [*first, *last].iter().for_each(|end| add(&end.to_be_bytes())));
        Self { v4, v6, summary: Summary { written, fingerprint: hash } }
    }
}

impl fmt::Debug for NetSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetSet({})", self.summary)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} networks, {:08x}", self.written, self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(nets: &[&str]) -> NetSet {
        nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn ranges_join_and_both_ends_belong() {
        let nets = set(&["10.0.0.0/9", "10.128.0.0/9", "10.1.2.3/32", "::/0", "255.255.255.255/32", "0.0.0.0/32"]);
        assert_eq!((nets.v4.len(), nets.v6.len(), nets.summary.written), (3, 1, 6));
        for (ip, is_in) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("9.255.255.255", false),
            ("11.0.0.0", false),
            ("0.0.0.0", true),
            ("0.0.0.1", false),
            ("255.255.255.255", true),
            ("::", true),
            ("ffff::1", true),
        ] {
            assert_eq!(nets.contains(ip.parse().unwrap()), is_in, "{ip}");
        }
        assert!(!NetSet::default().contains("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_the_same_set_has_one_fingerprint() {
        assert_eq!(set(&["10.0.0.0/8"]).summary.fingerprint, set(&["10.128.0.0/9", "10.0.0.0/9"]).summary.fingerprint);
        assert_ne!(set(&["10.0.0.0/8"]), set(&["10.0.0.0/9"]));
    }

    /// As the promise is "well under a microsecond", a build without optimisation and a busy machine get ten.
    #[test]
    fn a_hundred_thousand_networks_take_no_time() {
        let nets: NetSet = (0..100_000u32)
            .map(|i| IpNet::new(std::net::Ipv4Addr::from_bits(i * 40_000).into(), 25).unwrap())
            .collect();
        let start = std::time::Instant::now();
        let found = (0..100_000u32).filter(|i| nets.contains(std::net::Ipv4Addr::from_bits(i * 42_949).into())).count();
        let took = start.elapsed();
        assert!(found > 0 && took < std::time::Duration::from_secs(1), "{took:?}");
    }

    proptest! {
        #[test]
        fn it_has_what_one_of_its_networks_has(nets in prop::collection::vec((any::<u16>(), 0u8..=32), 0..40), ips in prop::collection::vec(any::<u16>(), 50)) {
            // Few different bits, so that networks meet.
            let spread = |bits: u16| IpAddr::from((u32::from(bits) << 16 | 0xff).to_be_bytes());
            let nets: Vec<IpNet> = nets.into_iter().map(|(bits, len)| IpNet::new(spread(bits), len).unwrap()).collect();
            let set: NetSet = nets.iter().copied().collect();
            for ip in ips.into_iter().map(spread) {
                prop_assert_eq!(set.contains(ip), nets.iter().any(|net| net.contains(&ip)), "{}", ip);
            }
        }
    }
}
