//! One look-up of one host: the hosts file, then the name servers, then what else the system knows.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use super::exchange::{self, Failure};
use super::files::{self, Settings};
use super::message::{Answer, Kind, Service};
use super::{Entry, Place};
use crate::plan::{Host, Resolve, Resolving};

/// How long an answer without a time of its own holds: one of the hosts file, or of the system.
const UNTIMED: Duration = Duration::from_secs(30);
/// Places of one host that are used.
const MOST_PLACES: usize = 256;
/// Hosts of one service that are looked up.
const MOST_HOSTS: usize = 64;

/// What a look-up has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// In order, each once, never empty.
    pub(super) places: Vec<Place>,
    /// How long it holds, as the answers say.
    pub(super) holds: Duration,
}

/// Why there is none, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It is known that there is none.
    None(String),
    /// It could not be found out.
    Failed(Failure),
}

/// What one thread remembers between its look-ups.
#[derive(Debug)]
pub(super) struct Lookup {
    resolving: Resolving,
    /// What the last good look-up of each host has brought.
    last: HashMap<Host, Last>,
}

/// The last good addresses of a name, or of each host of a service: they stand in for a family, or a host, that fails.
type Last = HashMap<String, Vec<IpAddr>>;
type Addresses = (Vec<IpAddr>, Duration);

impl Trouble {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::None(text) => text,
            Self::Failed(failure) => &failure.text,
        }
    }
}

impl Lookup {
    pub(super) fn new(resolving: &Resolving) -> Self {
        Self { resolving: resolving.clone(), last: HashMap::new() }
    }

    /// Looks a host up. May take as long as the timeouts of the name servers come to.
    pub(super) fn look_up(&mut self, host: &Host) -> Result<Found, Trouble> {
        let mut last = self.last.remove(host).unwrap_or_default();
        let found = match host {
            Host::Ip(ip) => Ok((vec![Place::of(*ip)], Duration::MAX)),
            Host::Name(name) => {
                let found = self.addresses(name, &mut last);
                found.map(|(addresses, holds)| (addresses.into_iter().map(Place::of).collect(), holds))
            }
            Host::Service(name) => self.service(name, &mut last),
            Host::Unix(_) => Ok((Vec::new(), Duration::MAX)),
        };
        self.last.insert(host.clone(), last);
        let (mut places, holds) = found?;
        places.sort_unstable();
        places.dedup_by_key(|place| (place.ip, place.entry.map(|entry| entry.port)));
        places.truncate(MOST_PLACES);
        Ok(Found { places, holds })
    }

    fn addresses(&self, name: &str, last: &mut Last) -> Result<Addresses, Trouble> {
        if self.resolving.how == Resolve::System {
            return system(name);
        }
        let own = files::text(Path::new(files::HOSTS)).map(|text| files::hosts(&text, name)).unwrap_or_default();
        if !own.is_empty() {
            return Ok((own, UNTIMED));
        }
        if is_localhost(name) {
            return Ok((vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], UNTIMED));
        }
        let before = last.get(name).map_or(&[][..], Vec::as_slice);
        match self.by_servers(name, |settings, name| both_families(settings, name, before)) {
            Ok(found) => {
                last.insert(name.to_owned(), found.0.clone());
                Ok(found)
            }
            // Servers that were named are to be asked, and nobody else.
            Err(trouble) if !self.resolving.servers.is_empty() => Err(trouble),
            Err(Trouble::Failed(failure)) if failure.is_silent => system(name).map_err(|_| Trouble::Failed(failure)),
            // Names the system may know of otherwise: of containers, of the local network.
            Err(Trouble::None(text)) if !name.trim_end_matches('.').contains('.') || is_local(name) => {
                system(name).map_err(|_| Trouble::None(text))
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Asks the servers for each name a name may stand for. Whether a name exists must be known before the next one is
    /// asked for.
    fn by_servers<T>(
        &self,
        name: &str,
        ask: impl Fn(&Settings, &str) -> Result<Option<T>, Failure>,
    ) -> Result<T, Trouble> {
        let text = files::text(Path::new(files::RESOLV_CONF)).unwrap_or_default();
        let mut settings = Settings::parse(&text);
        if !self.resolving.servers.is_empty() {
            settings.servers.clone_from(&self.resolving.servers);
        }
        for candidate in settings.candidates(name) {
            match ask(&settings, &candidate) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(failure) => return Err(Trouble::Failed(failure)),
            }
        }
        Err(Trouble::None("the name servers know of none".to_owned()))
    }

    /// The hosts of a service with what its records say (RFC 2782).
    fn service(&self, name: &str, last: &mut Last) -> Result<(Vec<Place>, Duration), Trouble> {
        let ask = |settings: &Settings, name: &str| {
            let said = exchange::ask(settings, &[(name, Kind::Service)]).pop();
            match said.unwrap_or_else(|| Err(Failure { text: "no answer".to_owned(), is_silent: true }))? {
                Answer::Services(all, holds) => Ok(Some((all, holds))),
                _ => Ok(None),
            }
        };
        let (mut all, mut holds) = self.by_servers(name, ask)?;
        // A service without a host is one that is not offered.
        all.retain(|service| !service.host.is_empty() && service.port != 0);
        if all.is_empty() {
            return Err(Trouble::None("its records say that it is not offered".to_owned()));
        }
        let (mut places, mut trouble) = (Vec::new(), None);
        let hosts: BTreeSet<String> = all.iter().map(|service| service.host.clone()).collect();
        // Services whose hosts have a new name each time would have us remember all of them.
        last.retain(|name, _| name.strip_suffix('.').is_some_and(|host| hosts.contains(host)));
        for host in hosts.iter().take(MOST_HOSTS) {
            // A host's name in a record is complete.
            let name = format!("{host}.");
            let found = self.addresses(&name, last);
            let (addresses, time) = match (found, last.get(&name)) {
                (Ok(found), _) => found,
                (Err(Trouble::Failed(_)), Some(last)) => (last.clone(), UNTIMED),
                (Err(why), _) => {
                    trouble = Some(why);
                    continue;
                }
            };
            holds = holds.min(time);
            for service in all.iter().filter(|service| service.host == *host) {
                let entry = Some(entry(service, &all));
                places.extend(addresses.iter().map(|ip| Place { ip: *ip, entry }));
            }
        }
        match trouble {
            Some(trouble) if places.is_empty() => Err(trouble),
            Some(_) => Ok((places, holds.min(UNTIMED))),
            None => Ok((places, holds)),
        }
    }
}

/// The addresses of both families; the last ones of a family of which nothing can be learnt.
fn both_families(settings: &Settings, name: &str, last: &[IpAddr]) -> Result<Option<Addresses>, Failure> {
    let (mut all, mut holds, mut failed) = (Vec::new(), Duration::MAX, None);
    let families = [(name, Kind::V4), (name, Kind::V6)];
    for (said, (_, kind)) in exchange::ask(settings, &families).into_iter().zip(families) {
        match said {
            Ok(Answer::Addresses(addresses, time)) => {
                all.extend(addresses.iter().map(IpAddr::to_canonical));
                holds = holds.min(time);
            }
            Ok(_) => {}
            Err(failure) => failed = Some((kind, failure)),
        }
    }
    match failed {
        Some((_, failure)) if all.is_empty() => Err(failure),
        Some((kind, _)) => {
            all.extend(last.iter().filter(|ip| ip.is_ipv4() == (kind == Kind::V4)));
            Ok(Some((all, holds.min(UNTIMED))))
        }
        None => Ok((!all.is_empty()).then_some((all, holds))),
    }
}

fn entry(service: &Service, all: &[Service]) -> Entry {
    let before: BTreeSet<u16> = all.iter().map(|other| other.priority).filter(|p| *p < service.priority).collect();
    let level = u16::try_from(before.len()).unwrap_or(u16::MAX);
    // One without a weight is to have a very small chance beside those that have one, and an equal one among its like.
    Entry { level, port: service.port, weight: service.weight.max(1) }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

fn is_local(name: &str) -> bool {
    name.trim_end_matches('.').ends_with(".local")
}

/// getaddrinfo(3), with all the system is set up to ask.
fn system(name: &str) -> Result<Addresses, Trouble> {
    let failed = |e: io::Error| Trouble::Failed(Failure { text: format!("the system: {e}"), is_silent: false });
    let all: Vec<IpAddr> = (name, 0).to_socket_addrs().map_err(failed)?.map(|a| a.ip().to_canonical()).collect();
    if all.is_empty() {
        return Err(Trouble::None("the answer holds no address".to_owned()));
    }
    Ok((all, UNTIMED))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::thread;

    use simple_dns::rdata::{A, RData, SRV};
    use simple_dns::{CLASS, Name, Packet, ResourceRecord};

    use super::*;

    /// Answers so many questions: a service has one host, whose name is new each time, and every host has an address.
    fn serve(socket: &UdpSocket, questions: usize) {
        let (mut buffer, mut services) = ([0; 512], 0);
        for _ in 0..questions {
            let (read, client) = socket.recv_from(&mut buffer).unwrap();
            let question = Packet::parse(&buffer[..read]).unwrap();
            let mut answer = Packet::new_reply(question.id());
            let asked = question.questions[0].clone().into_owned();
            let name = asked.qname.clone();
            let target = format!("host-{services}.example");
            let data = match asked.qtype {
                simple_dns::QTYPE::TYPE(simple_dns::TYPE::SRV) => {
                    services += 1;
                    let target = Name::new_unchecked(&target).into_owned();
                    Some(RData::SRV(SRV { priority: 1, weight: 1, port: 80, target }))
                }
                simple_dns::QTYPE::TYPE(simple_dns::TYPE::A) => Some(RData::A(A { address: 0x0a00_0001 })),
                _ => None,
            };
            answer.answers.extend(data.map(|data| ResourceRecord::new(name, CLASS::IN, 1, data)));
            answer.questions.push(asked);
            socket.send_to(&answer.build_bytes_vec().unwrap(), client).unwrap();
        }
    }

    #[test]
    fn of_a_service_whose_hosts_are_new_each_time_only_the_present_ones_are_remembered() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let servers = vec![socket.local_addr().unwrap()];
        let answers = thread::spawn(move || serve(&socket, 20 * 3));
        let (mut lookup, host) = (
            Lookup::new(&Resolving { servers, ..Resolving::default() }),
            Host::Service("_web._tcp.example".to_owned()),
        );
        for _ in 0..20 {
            let found = lookup.look_up(&host).unwrap();
            assert_eq!(found.places.len(), 1, "{found:?}");
        }
        assert_eq!(lookup.last[&host].keys().collect::<Vec<_>>(), ["host-19.example."]);
        answers.join().unwrap();
    }

    #[test]
    fn priorities_become_levels_and_weights_stay() {
        let service = |priority, weight| Service { priority, weight, port: 80, host: "a".to_owned() };
        let all = [service(20, 0), service(10, 5), service(40, 1), service(10, 60000)];
        let entries: Vec<(u16, u16)> = all.iter().map(|one| entry(one, &all)).map(|e| (e.level, e.weight)).collect();
        assert_eq!(entries, [(1, 1), (0, 5), (2, 1), (0, 60000)]);
    }

    #[test]
    fn localhost_needs_no_server() {
        for how in [Resolve::Dns, Resolve::System] {
            let mut lookup = Lookup::new(&Resolving { how, ..Resolving::default() });
            let found = lookup.look_up(&Host::Name("localhost".to_owned())).unwrap();
            assert!(found.places.iter().all(|place| place.ip.is_loopback() && place.entry.is_none()));
            assert_eq!(found.holds, UNTIMED);
        }
    }
}
