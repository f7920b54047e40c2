//! Every listening port of a plan, and what reaches it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::Address;
use crate::config::draft::Marks;
use crate::config::error::{Fault, Mark, quoted};
use crate::plan::{Forward, Listen, ListenOptions, Plan, Transport};

/// Most ports all listeners may have together: the ports of one address, and about what descriptors allow.
const MOST_PORTS: usize = 65_536;

/// One listening port, or unix socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Socket {
    pub(super) transport: Transport,
    pub(super) forward: usize,
    pub(super) listen: usize,
    pub(super) at: Address,
    /// Place of the port in its range.
    pub(super) offset: u16,
}

/// Every listening port of a plan, by address.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) all: Vec<Socket>,
    pub(super) at: HashMap<(Transport, Address), usize>,
    /// Those for streams on `[::]` that take IPv4 clients too, by port.
    pub(super) dual: HashMap<u16, usize>,
}

/// The listeners of a forward that speak this, and their marks.
pub(super) fn listens<'a>(forward: &'a Forward, marks: &'a Marks, transport: Transport) -> (&'a [Listen], &'a [Mark]) {
    match transport {
        Transport::Tcp => (&forward.listen, &marks.listen),
        Transport::Udp => (&forward.udp.listen, &marks.udp),
    }
}

impl Socket {
    pub(super) fn listen<'p>(&self, plan: &'p Plan) -> &'p Listen {
        let forward = &plan.forwards[self.forward];
        let list = if self.transport == Transport::Udp { &forward.udp.listen } else { &forward.listen };
        &list[self.listen]
    }
}

/// Whether a listener takes the clients of both families.
pub(super) fn is_dual(options: &ListenOptions, transport: Transport, at: SocketAddr) -> bool {
    transport == Transport::Tcp && !options.v6_only && at.is_ipv6() && at.ip().is_unspecified()
}

/// The wildcard address of a family with the same port.
pub(super) fn wildcard(like: SocketAddr) -> Address {
    let ip = if like.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, like.port()).into()
}

impl Sockets {
    /// Collects the ports; a port another forward listens on, also through a wildcard address, is a fault.
    pub(super) fn of(plan: &Plan, marks: &[Marks]) -> Result<Self, Fault> {
        let mut sockets = Self { all: Vec::new(), at: HashMap::new(), dual: HashMap::new() };
        // Any one socket of a family and port, for the wildcard that comes after it.
        let mut of_family: HashMap<(Transport, bool, u16), usize> = HashMap::new();
        let all = plan.forwards.iter().zip(marks).enumerate();
        let all = all.flat_map(|forward| [(Transport::Tcp, forward), (Transport::Udp, forward)]);
        for (transport, (forward, (planned, marks))) in all {
            let options = &planned.listen_options;
            let (planned, marks) = listens(planned, marks, transport);
            for (listen, at) in planned.iter().enumerate() {
                let mark = marks[listen];
                if sockets.all.len() + at.ports.len() > MOST_PORTS {
                    let message =
                        format!("found more than {MOST_PORTS} listening ports in all; allowed: at most {MOST_PORTS}");
                    return Err(Fault::new(mark, message));
                }
                for (at, offset) in at.addresses() {
                    let mut earlier = sockets.at.get(&(transport, at)).copied();
                    if let Address::Ip(ip) = at {
                        let of = |v4: bool, takes_all: bool| {
                            of_family.get(&(transport, v4, ip.port())).filter(|_| takes_all)
                        };
                        let is_dual = is_dual(options, transport, ip);
                        let covered = of(ip.is_ipv4(), ip.ip().is_unspecified()).or_else(|| of(true, is_dual));
                        let streams = transport == Transport::Tcp;
                        let by_both = sockets.dual.get(&ip.port()).filter(|_| ip.is_ipv4() && streams);
                        let wildcard = || sockets.at.get(&(transport, wildcard(ip))).or(by_both).or(covered).copied();
                        earlier = earlier.or_else(wildcard);
                        if is_dual {
                            sockets.dual.insert(ip.port(), sockets.all.len());
                        }
                        of_family.insert((transport, ip.is_ipv4(), ip.port()), sockets.all.len());
                    }
                    if let Some(earlier) = earlier {
                        return Err(sockets.taken(plan, earlier, at, mark));
                    }
                    sockets.at.insert((transport, at), sockets.all.len());
                    sockets.all.push(Socket { transport, forward, listen, at, offset });
                }
            }
        }
        Ok(sockets)
    }

    pub(super) fn taken(&self, plan: &Plan, earlier: usize, address: Address, mark: Mark) -> Fault {
        let owner = &plan.forwards[self.all[earlier].forward];
        let other = self.all[earlier].listen(plan);
        let scheme = self.all[earlier].transport.scheme();
        let message = format!(
            "found listener {scheme}{address}, but forward {} listens on {scheme}{other} already; allowed: one forward for each address",
            quoted(&owner.name)
        );
        Fault::new(mark, message)
    }

    /// The socket a connection or a datagram to this address would reach, if it is one of ours.
    pub(super) fn reached(
        &self,
        transport: Transport,
        ip: IpAddr,
        port: u16,
        local: &HashSet<IpAddr>,
    ) -> Option<usize> {
        // Connecting to the wildcard address reaches the loopback one (ip(7), and the same for IPv6).
        let ip = match ip {
            IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            _ => ip,
        };
        let address = SocketAddr::new(ip, port);
        if let Some(exact) = self.at.get(&(transport, address.into())) {
            return Some(*exact);
        }
        let is_local = ip.is_loopback() || local.contains(&ip);
        let dual = self.dual.get(&port).filter(|_| ip.is_ipv4() && transport == Transport::Tcp);
        self.at.get(&(transport, wildcard(address))).or(dual).copied().filter(|_| is_local)
    }
}
