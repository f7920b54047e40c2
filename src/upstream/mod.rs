//! Where a session goes: the targets of one forward as one worker sees them.

mod resolve;
mod source;
mod trace;

use std::net::{IpAddr, SocketAddr};

pub use self::resolve::{Resolver, names};
pub use self::source::SourcePool;
pub use self::trace::{Hop, Trace};
use crate::endpoint::{Endpoint, UnixName};
use crate::plan::{Forward, Host, Ports};

/// Targets with their addresses. Every worker has its own, so that choosing takes no lock.
#[derive(Debug)]
pub struct Upstreams {
    targets: Vec<Upstream>,
}

#[derive(Debug)]
struct Upstream {
    /// `None` for a literal address.
    name: Option<String>,
    /// Empty for a unix socket, which is its own and only address.
    addresses: Vec<IpAddr>,
    unix: Option<UnixName>,
    ports: Ports,
    weight: i64,
    /// Smooth weighted round robin: grows by `weight` a pick, the largest wins and pays the sum of all weights.
    credit: i64,
}

impl Upstreams {
    /// The targets of a forward; names have no address until [`resolved`](Self::resolved) says so.
    #[must_use]
    pub fn new(forward: &Forward) -> Self {
        let targets = forward
            .targets
            .iter()
            .map(|target| Upstream {
                name: if let Host::Name(name) = &target.host { Some(name.clone()) } else { None },
                addresses: match &target.host {
                    Host::Ip(ip) => vec![*ip],
                    Host::Name(_) | Host::Unix(_) => Vec::new(),
                },
                unix: if let Host::Unix(name) = target.host { Some(name) } else { None },
                ports: target.ports,
                weight: i64::from(target.weight),
                credit: 0,
            })
            .collect();
        Self { targets }
    }

    /// The addresses of a name, for every target that has it. Sessions that are connected keep theirs.
    pub fn resolved(&mut self, name: &str, addresses: &[IpAddr]) {
        for target in self.targets.iter_mut().filter(|target| target.name.as_deref() == Some(name)) {
            target.addresses = addresses.to_vec();
        }
    }

    /// The target a new session begins with.
    pub fn pick(&mut self) -> u32 {
        if self.targets.len() == 1 {
            return 0;
        }
        let sum: i64 = self.targets.iter().map(|t| t.weight).sum();
        for target in &mut self.targets {
            target.credit += target.weight;
        }
        let best = (0..self.targets.len()).max_by_key(|&i| (self.targets[i].credit, std::cmp::Reverse(i))).unwrap_or(0);
        self.targets[best].credit -= sum;
        best as u32
    }

    /// The address of the given attempt (from 0): every address of the first target, then of the next one.
    /// `port_offset` is the listener's place in its range.
    #[must_use]
    pub fn candidate(&self, first: u32, attempt: u32, port_offset: u16) -> Option<Endpoint> {
        let (first, mut attempt) = (first as usize, attempt as usize);
        for step in 0..self.targets.len() {
            let target = &self.targets[(first + step) % self.targets.len()];
            if let (Some(name), 0) = (target.unix, attempt) {
                return Some(Endpoint::Unix(name));
            }
            if let Some(ip) = target.addresses.get(attempt) {
                let port = if target.ports.len() > 1 { target.ports.first + port_offset } else { target.ports.first };
                return Some(SocketAddr::new(*ip, port).into());
            }
            attempt -= target.candidates();
        }
        None
    }

    /// How many attempts there are.
    #[must_use]
    pub fn candidates(&self) -> u32 {
        self.targets.iter().map(|t| t.candidates() as u32).sum()
    }
}

impl Upstream {
    fn candidates(&self) -> usize {
        self.addresses.len() + usize::from(self.unix.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn upstreams(weights: &[i64]) -> Upstreams {
        let target = |(i, weight): (usize, &i64)| Upstream {
            name: Some("db".into()),
            addresses: vec![Ipv4Addr::new(10, 0, 0, i as u8).into(), Ipv4Addr::new(10, 0, 1, i as u8).into()],
            unix: None,
            ports: Ports { first: 80, last: 82 },
            weight: *weight,
            credit: 0,
        };
        Upstreams { targets: weights.iter().enumerate().map(target).collect() }
    }

    #[test]
    fn picks_follow_the_weights_and_do_not_clump() {
        let mut upstreams = upstreams(&[5, 1, 1]);
        let picks: Vec<u32> = (0..7).map(|_| upstreams.pick()).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn every_address_is_tried_once_from_the_picked_target_on() {
        let upstreams = upstreams(&[1, 1, 1]);
        let tried: Vec<String> =
            (0..).map_while(|attempt| upstreams.candidate(1, attempt, 2)).map(|a| a.to_string()).collect();
        assert_eq!(tried, ["10.0.0.1:82", "10.0.1.1:82", "10.0.0.2:82", "10.0.1.2:82", "10.0.0.0:82", "10.0.1.0:82"]);
        assert_eq!(upstreams.candidates(), 6);
    }

    #[test]
    fn a_name_has_no_candidate_until_it_is_resolved() {
        let mut upstreams = upstreams(&[1]);
        upstreams.resolved("db", &[]);
        assert_eq!(upstreams.candidate(0, 0, 0), None);
        upstreams.resolved("other", &["::2".parse().unwrap()]);
        assert_eq!(upstreams.candidate(0, 0, 0), None);
        upstreams.resolved("db", &["::1".parse().unwrap()]);
        assert_eq!(upstreams.candidate(0, 0, 0), Some("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn a_unix_socket_is_one_candidate_among_others() {
        let mut upstreams = upstreams(&[1, 1]);
        upstreams.targets[0].unix = Some(UnixName::new("/run/db").unwrap());
        upstreams.targets[0].addresses.clear();
        let tried: Vec<String> =
            (0..).map_while(|attempt| upstreams.candidate(0, attempt, 0)).map(|a| a.to_string()).collect();
        assert_eq!(tried, ["unix:/run/db", "10.0.0.1:80", "10.0.1.1:80"]);
        assert_eq!(upstreams.candidates(), 3);
    }
}
