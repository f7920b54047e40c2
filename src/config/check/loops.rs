//! Ways that come back to where they began.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::sockets::{Socket, Sockets};
use crate::address::{Address, UnixName};
use crate::config::address::Lookup;
use crate::config::draft::Marks;
use crate::config::error::{Fault, Mark, quoted};
use crate::plan::{Host, Plan, Transport};

/// How long names of targets may be looked up at start, just to find loops; they are found while running as well.
const PATIENCE: Duration = Duration::from_secs(2);

/// Follows every target that is one of our own listeners; a way that comes back to where it began is a loop.
pub(super) fn loops(plan: &Plan, marks: &[Marks], sockets: &Sockets, lookup: &Lookup) -> Result<(), Fault> {
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
