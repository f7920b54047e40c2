//! Checks across values: what no single value shows.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::address::Lookup;
use super::draft::Marks;
use super::error::{Fault, Mark, quoted};
use super::target;
use crate::address::{Address, UnixName};
use crate::plan::{Forward, Host, Listen, ListenOptions, Plan, Target, Transport};

/// Most ports all listeners may have together: the ports of one address, and about what descriptors allow.
const MOST_PORTS: usize = 65_536;
/// Most targets one forward may have: together with the ports it bounds the work of looking for loops.
const MOST_TARGETS: usize = 256;
/// How long names of targets may be looked up at start, just to find loops; they are found while running as well.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks a plan; `marks` has one entry per forward.
pub(super) fn check(plan: &Plan, marks: &[Marks], lookup: &Lookup) -> Result<(), Fault> {
    for (forward, marks) in plan.forwards.iter().zip(marks) {
        ranges(forward, marks)?;
        target::each_once(&forward.targets, &marks.targets)?;
        source(forward, marks)?;
        streams(forward, marks)?;
        datagrams(forward, marks)?;
        questions(forward, marks)?;
        namespace(forward, marks)?;
    }
    // Two forwards on one address have one default name too, and the address is what to complain about.
    let sockets = Sockets::of(plan, marks)?;
    names(plan, marks)?;
    metrics(plan, marks, &sockets)?;
    loops(plan, marks, &sockets, lookup)
}

fn names(plan: &Plan, marks: &[Marks]) -> Result<(), Fault> {
    let mut seen = HashSet::new();
    for (forward, marks) in plan.forwards.iter().zip(marks) {
        if !seen.insert(forward.name.as_str()) {
            let name = quoted(&forward.name);
            let message = format!("found name {name} for a second forward; allowed: a name of its own for each");
            return Err(Fault::new(marks.name, message));
        }
    }
    Ok(())
}

/// What is said in a stream, or of one, has no place among datagrams.
fn datagrams(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    let Some(mark) = marks.udp.first() else { return Ok(()) };
    let egress = &forward.egress;
    let stray = [
        ("accept_proxy", forward.accept_proxy.is_some()),
        ("send_proxy", egress.send_proxy.is_some()),
        ("transparent", egress.transparent),
    ];
    match stray.into_iter().find(|(_, is)| *is) {
        Some((key, _)) => {
            let message =
                format!("found {key} in a forward that listens to datagrams; allowed: a forward of its own for udp:");
            Err(Fault::new(*mark, message))
        }
        None => Ok(()),
    }
}

/// Who takes datagrams says nothing before it is asked something it answers.
fn questions(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    let Some(check) = forward.balancing.check.as_ref().filter(|_| forward.checked_by() == Transport::Udp) else {
        return Ok(());
    };
    if !check.send.is_empty() && !check.expect.is_empty() {
        return Ok(());
    }
    let message = "found a check of targets that take datagrams without send or expect; allowed: both, such as check: {send: \
                   \"PING\", expect: \"PONG\"}";
    Err(Fault::new(marks.udp.first().copied().unwrap_or(marks.name), message))
}

/// A range goes to one port, or to a range of the same length.
fn ranges(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if let Some(mark) = marks.targets.get(MOST_TARGETS) {
        let message = format!("found more than {MOST_TARGETS} targets in one forward; allowed: at most {MOST_TARGETS}");
        return Err(Fault::new(*mark, message));
    }
    for (target, mark) in forward.targets.iter().zip(&marks.targets) {
        for listen in forward.listen.iter().chain(&forward.udp.listen) {
            if target.ports.len() != 1 && target.ports.len() != listen.ports.len() {
                let message = format!(
                    "found a target of {} ports for the listener {listen} of {}; allowed: one port, or as many as the listener has",
                    target.ports.len(),
                    listen.ports.len(),
                );
                return Err(Fault::new(*mark, message));
            }
        }
    }
    Ok(())
}

/// Connections leave from an address of the target's family.
fn source(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if forward.sources.is_empty() {
        return Ok(());
    }
    if forward.egress.transparent {
        let message =
            "found transparent together with source; allowed: one of them, as both say where connections come from";
        return Err(Fault::new(marks.name, message));
    }
    for (target, mark) in forward.targets.iter().zip(&marks.targets) {
        if let Host::Ip(ip) = target.host
            && !forward.sources.iter().any(|source| source.is_ipv4() == ip.is_ipv4())
        {
            let sources: Vec<String> = forward.sources.iter().map(ToString::to_string).collect();
            let sources = sources.join(", ");
            let message =
                format!("found target {target} for connections from source {sources}; allowed: both IPv4 or both IPv6");
            return Err(Fault::new(*mark, message));
        }
    }
    Ok(())
}

/// Only TCP connections are made in another network namespace. A unix socket with a file is the same in all of them.
fn namespace(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if forward.egress.netns.is_none() {
        return Ok(());
    }
    let has_unix = |target: &Target| matches!(target.host, Host::Unix(_));
    if let Some(at) = forward.targets.iter().position(has_unix) {
        let message = format!(
            "found target {} with to_netns; allowed: targets with an address and a port, as a unix socket with a file is \
             the same in all network namespaces",
            forward.targets[at]
        );
        return Err(Fault::new(marks.targets[at], message));
    }
    let to_datagrams = forward.udp.targets == Some(Transport::Udp);
    match marks.udp.first().or(marks.targets.first().filter(|_| to_datagrams)) {
        Some(mark) => {
            let message = "found to_netns in a forward with datagrams; allowed: to_netns for TCP on both sides, and for \
                           datagrams a spliced of its own in that namespace (ip netns exec)";
            Err(Fault::new(*mark, message))
        }
        None => Ok(()),
    }
}

/// A unix socket is a stream.
fn streams(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if forward.udp.listen.is_empty() && forward.udp.targets.is_none() {
        return Ok(());
    }
    let targets = forward.targets.iter().zip(&marks.targets).filter(|(target, _)| matches!(target.host, Host::Unix(_)));
    let targets = targets.map(|(target, mark)| (format!("target {target} for a listener of datagrams"), mark));
    let listens = forward.listen.iter().zip(&marks.listen).filter(|(listen, _)| listen.ip().is_none());
    let listens = listens.filter(|_| forward.udp.targets == Some(Transport::Udp));
    let listens = listens.map(|(listen, mark)| (format!("listener {listen} for a target of datagrams"), mark));
    match targets.chain(listens).next() {
        Some((what, mark)) => Err(Fault::new(*mark, format!("found {what}; allowed: an address and a port"))),
        None => Ok(()),
    }
}

/// One listening port, or unix socket.
#[derive(Debug, Clone, Copy)]
struct Socket {
    transport: Transport,
    forward: usize,
    listen: usize,
    at: Address,
    /// Place of the port in its range.
    offset: u16,
}

/// Every listening port of a plan, by address.
#[derive(Debug)]
struct Sockets {
    all: Vec<Socket>,
    at: HashMap<(Transport, Address), usize>,
    /// Those for streams on `[::]` that take IPv4 clients too, by port.
    dual: HashMap<u16, usize>,
}

/// The listeners of a forward that speak this, and their marks.
fn listens<'a>(forward: &'a Forward, marks: &'a Marks, transport: Transport) -> (&'a [Listen], &'a [Mark]) {
    match transport {
        Transport::Tcp => (&forward.listen, &marks.listen),
        Transport::Udp => (&forward.udp.listen, &marks.udp),
    }
}

impl Socket {
    fn listen<'p>(&self, plan: &'p Plan) -> &'p Listen {
        let forward = &plan.forwards[self.forward];
        let list = if self.transport == Transport::Udp { &forward.udp.listen } else { &forward.listen };
        &list[self.listen]
    }
}

/// Whether a listener takes the clients of both families.
fn is_dual(options: &ListenOptions, transport: Transport, at: SocketAddr) -> bool {
    transport == Transport::Tcp && !options.v6_only && at.is_ipv6() && at.ip().is_unspecified()
}

/// The wildcard address of a family with the same port.
fn wildcard(like: SocketAddr) -> Address {
    let ip = if like.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, like.port()).into()
}

impl Sockets {
    /// Collects the ports; a port another forward listens on, also through a wildcard address, is a fault.
    fn of(plan: &Plan, marks: &[Marks]) -> Result<Self, Fault> {
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

    fn taken(&self, plan: &Plan, earlier: usize, address: Address, mark: Mark) -> Fault {
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
    fn reached(&self, transport: Transport, ip: IpAddr, port: u16, local: &HashSet<IpAddr>) -> Option<usize> {
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

/// The metrics endpoint is a listener too.
fn metrics(plan: &Plan, marks: &[Marks], sockets: &Sockets) -> Result<(), Fault> {
    let Some(metrics) = plan.metrics else { return Ok(()) };
    let clash = sockets.all.iter().filter(|socket| socket.transport == Transport::Tcp).find(|socket| {
        let Some(at) = socket.at.socket() else { return false };
        let is_dual = is_dual(&plan.forwards[socket.forward].listen_options, socket.transport, at);
        let same_family = at.is_ipv4() == metrics.is_ipv4() || is_dual;
        let any = at.ip().is_unspecified() || metrics.ip().is_unspecified();
        at.port() == metrics.port() && (at.ip() == metrics.ip() || (same_family && any))
    });
    match clash {
        None => Ok(()),
        Some(socket) => Err(Fault::new(
            marks[socket.forward].listen[socket.listen],
            format!(
                "found a listener on {metrics}, which is the address of metrics; allowed: an address of its own for each"
            ),
        )),
    }
}

/// Follows every target that is one of our own listeners; a way that comes back to where it began is a loop.
fn loops(plan: &Plan, marks: &[Marks], sockets: &Sockets, lookup: &Lookup) -> Result<(), Fault> {
    let mut ways = Ways::new(plan, sockets, lookup);
    let ways: Vec<Vec<(usize, usize)>> = sockets.all.iter().map(|socket| ways.from(*socket)).collect();
    // Depth first without recursion: a chain may be as long as there are ports.
    let mut state = vec![Visit::New; sockets.all.len()];
    for start in 0..sockets.all.len() {
        let mut path = if state[start] == Visit::New { vec![(start, 0)] } else { Vec::new() };
        while let Some((socket, next)) = path.last_mut() {
            let (at, way) = (*socket, *next);
            state[at] = Visit::Open;
            *next += 1;
            let Some((target, reached)) = ways[at].get(way) else {
                state[at] = Visit::Done;
                path.pop();
                continue;
            };
            match state[*reached] {
                Visit::Done => {}
                Visit::New => path.push((*reached, 0)),
                Visit::Open => {
                    let mark = marks[sockets.all[at].forward].targets[*target];
                    return Err(loop_fault(plan, sockets, &path, *reached, mark));
                }
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}

/// Where sessions go on from a socket, as far as that is one of our own.
struct Ways<'p> {
    plan: &'p Plan,
    sockets: &'p Sockets,
    ports: HashSet<u16>,
    local: HashSet<IpAddr>,
    lookup: &'p Lookup,
    names: HashMap<&'p str, Vec<IpAddr>>,
    /// Listening unix sockets by where their files are.
    files: HashMap<PathBuf, usize>,
    begun: Instant,
}

impl<'p> Ways<'p> {
    fn new(plan: &'p Plan, sockets: &'p Sockets, lookup: &'p Lookup) -> Self {
        let ports = sockets.all.iter().filter_map(|socket| Some(socket.at.socket()?.port())).collect();
        let (local, names) = ((lookup.local)().into_iter().collect(), HashMap::new());
        let file = |(index, socket): (usize, &Socket)| match socket.at {
            Address::Unix(name) => Some((name.real_path()?, index)),
            _ => None,
        };
        let files = sockets.all.iter().enumerate().filter_map(file).collect();
        Self { plan, sockets, ports, local, lookup, names, files, begun: Instant::now() }
    }

    /// The listener with that name, or with another one for the same file.
    fn unix(&self, name: UnixName) -> Option<usize> {
        let listed = self.sockets.at.get(&(Transport::Tcp, Address::Unix(name)));
        listed.or_else(|| self.files.get(&name.real_path()?)).copied()
    }

    /// The sockets reached from this one, each with the index of the target that leads there.
    fn from(&mut self, socket: Socket) -> Vec<(usize, usize)> {
        let plan = self.plan;
        let forward = &plan.forwards[socket.forward];
        let transport = forward.udp.targets.unwrap_or(socket.transport);
        // Another network namespace has addresses of its own.
        let here =
            |at: &usize| plan.forwards[self.sockets.all[*at].forward].listen_options.netns == forward.egress.netns;
        let mut ways = Vec::new();
        for (index, target) in forward.targets.iter().enumerate() {
            let port = if target.ports.len() == 1 { target.ports.first } else { target.ports.first + socket.offset };
            if let Host::Unix(name) = target.host {
                ways.extend(self.unix(name).map(|reached| (index, reached)));
                continue;
            }
            // A name costs a question to the resolver, so it is asked only where the port makes a loop possible.
            if !self.ports.contains(&port) {
                continue;
            }
            let reached = |ip: &IpAddr| {
                self.sockets.reached(transport, *ip, port, &self.local).filter(&here).map(|at| (index, at))
            };
            match &target.host {
                Host::Unix(_) => {}
                Host::Ip(ip) => ways.extend(reached(ip)),
                // Where its records lead is known only while running.
                Host::Service(_) => {}
                Host::Name(name) => {
                    let late = self.begun.elapsed() > PATIENCE;
                    let ask = || if late { Vec::new() } else { (self.lookup.names)(name).unwrap_or_default() };
                    let known = self.names.entry(name).or_insert_with(ask);
                    ways.extend(known.iter().filter_map(|ip| reached(&ip.to_canonical())));
                }
            }
        }
        ways
    }
}

fn loop_fault(plan: &Plan, sockets: &Sockets, path: &[(usize, usize)], back_to: usize, mark: Mark) -> Fault {
    let from = path.iter().position(|(socket, _)| *socket == back_to).unwrap_or(0);
    let name = |socket: usize| quoted(&plan.forwards[sockets.all[socket].forward].name);
    let round: Vec<String> = path[from..].iter().map(|(socket, _)| name(*socket)).collect();
    let back_to = &sockets.all[back_to];
    let address = format!("{}{}", back_to.transport.scheme(), back_to.at);
    let message = if round.len() == 1 {
        format!("found a loop: forward {} leads back to its own listener {address}", round[0])
    } else {
        let shown =
            if round.len() > 4 { format!("{} … {}", round[0], round[round.len() - 1]) } else { round.join(" → ") };
        format!("found a loop: {shown} leads back to listener {address}")
    };
    Fault::new(mark, format!("{message}; allowed: targets that end outside of this process"))
}
