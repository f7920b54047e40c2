//! Addresses, host names, port ranges and access patterns.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, ToSocketAddrs};
use std::path::Path;

use super::error::{found, quoted};
use super::nets;
use crate::address::UnixName;
use crate::plan::{Host, Listen, Local, Pattern, Ports, RunAs, Transport};
use crate::sandbox;

pub(super) const LISTEN: &str = "ADDRESS:PORT or HOST:PORT, a port or a range such as 9000-9010 (0.0.0.0:9000, [::]:9000, localhost:9000), with udp: before it for datagrams, or unix:/PATH or unix:@NAME";
pub(super) const TARGET: &str = "ADDRESS:PORT or HOST:PORT, a port or a range such as 9000-9010 (10.0.0.2:9001, [fd00::2]:9001, db.example:5432), or srv:NAME, or unix:/PATH or unix:@NAME";
pub(super) const SERVICE: &str = "the name of a service without a port, such as _web._tcp.example.com";
pub(super) const PORT: &str = "a port from 1 to 65535, or a range such as 9000-9010";
pub(super) const PATTERN: &str =
    "an address (10.0.0.1), a network (10.0.0.0/8, fd00::/8), or a text with * and ? (192.168.*.1?)";
const HOST: &str = "an IPv4 or IPv6 address, or a host name";

/// What reading a configuration may ask the host for. Tests and fuzzers bring their own answers.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    /// Addresses of a host name.
    pub names: fn(&str) -> io::Result<Vec<IpAddr>>,
    /// The text of `/etc/services`, or what stands in for it.
    pub services: fn() -> io::Result<String>,
    /// Addresses of the local interfaces.
    pub local: fn() -> Vec<IpAddr>,
    /// The text of a file with networks.
    pub lists: fn(&Path) -> io::Result<String>,
    /// Whether there is that user; otherwise why not.
    pub user: fn(&RunAs) -> Result<(), String>,
}

impl Lookup {
    /// Asks this host: its resolver, `/etc/services`, its interfaces.
    #[must_use]
    pub fn host() -> Self {
        Self {
            names: resolve,
            services: || std::fs::read_to_string("/etc/services"),
            local: interfaces,
            lists: nets::text_of,
            user,
        }
    }

    /// The same for a process that runs: who it is does not change any more, so no user is looked up.
    #[must_use]
    pub fn running() -> Self {
        Self { user: |_| Ok(()), ..Self::host() }
    }

    /// Knows `localhost`, two services, the loopback addresses, empty lists of networks and every user, always the same and without asking anybody.
    #[must_use]
    pub fn fixed() -> Self {
        fn names(name: &str) -> io::Result<Vec<IpAddr>> {
            match name {
                "localhost" => Ok(vec![IpAddr::from([127, 0, 0, 1])]),
                _ => Err(io::Error::new(io::ErrorKind::NotFound, "unknown name")),
            }
        }
        Self {
            names,
            services: || Ok("ssh 22/tcp\nhttp 80/tcp www # web\ntftp 69/udp\n".to_owned()),
            local: || vec![IpAddr::from([127, 0, 0, 1]), IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::from([10, 0, 1, 1])],
            lists: |_| Ok(String::new()),
            user: |_| Ok(()),
        }
    }
}

fn user(run_as: &RunAs) -> Result<(), String> {
    let why = |error: io::Error| {
        let text = error.to_string();
        text.strip_prefix(&format!("user {run_as}: ")).map_or_else(|| text.clone(), str::to_owned)
    };
    sandbox::find_user(run_as).map(|_| ()).map_err(why)
}

fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

fn interfaces() -> Vec<IpAddr> {
    let Ok(list) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    list.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    })
    .collect()
}

/// A host without its port: a literal address or a name that could exist.
pub(super) fn host(text: &str) -> Result<Host, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(ip.to_canonical()));
    }
    if text.contains('%') {
        return Err(format!("found {}, an address with a zone; allowed: {HOST} without a zone", quoted(text)));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    // A last label of digits is meant as an IPv4 address, and no top-level domain looks like that.
    let last_is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || last_is_number || !name.split('.').all(label) {
        return Err(format!("found {}, which is no address; allowed: {HOST}", quoted(text)));
    }
    Ok(Host::Name(text.to_ascii_lowercase()))
}

/// The name of a service, which says its ports itself.
pub(super) fn service(text: &str) -> Result<Host, String> {
    match host(text) {
        Ok(Host::Name(name)) => Ok(Host::Service(name)),
        _ => Err(found(text, SERVICE)),
    }
}

/// One port of decimal digits, or what is found instead.
fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = if digits { text.parse::<u16>().ok() } else { None };
    let instead = || if digits { format!("port {}", &text[..text.len().min(20)]) } else { quoted(text) };
    number.filter(|port| *port != 0).ok_or_else(instead)
}

/// A port or a range, both ends included, or what is found instead.
fn port_range(text: &str) -> Result<Ports, String> {
    let Some((first, last)) = text.split_once('-') else { return port(text).map(Ports::one) };
    let (first, last) = (port(first)?, port(last)?);
    if last < first {
        return Err(format!("ports {first}-{last}, the last below the first"));
    }
    Ok(Ports { first, last })
}

/// A port or a range, both ends included.
pub(super) fn ports(text: &str) -> Result<Ports, String> {
    port_range(text).map_err(|instead| format!("found {instead}; allowed: {PORT}"))
}

/// `HOST:PORTS`, with brackets around IPv6.
fn host_and_ports(text: &str, allowed: &str) -> Result<(Host, Ports), String> {
    if text.starts_with("unix:") {
        let why = "a unix socket is neither for datagrams nor has it tcp: before it";
        return Err(format!("found {}: {why}; allowed: {allowed}", quoted(text)));
    }
    let (host_text, ports_text) = if let Some(rest) = text.strip_prefix('[') {
        let (inner, after) = rest.split_once(']').ok_or_else(|| found(text, allowed))?;
        if !inner.contains(':') {
            return Err(format!("found {}, brackets without an IPv6 address; allowed: {allowed}", quoted(text)));
        }
        (
            inner,
            after
                .strip_prefix(':')
                .ok_or_else(|| format!("found {} without a port; allowed: {allowed}", quoted(text)))?,
        )
    } else {
        let (host, ports) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("found {} without a port; allowed: {allowed}", quoted(text)))?;
        if host.contains(':') {
            return Err(format!("found {}, an IPv6 address without brackets; allowed: {allowed}", quoted(text)));
        }
        (host, ports)
    };
    if host_text.is_empty() || host_text == "*" {
        return Err(format!(
            "found {} (write 0.0.0.0:{ports} for every IPv4 address, [::]:{ports} for every IPv6 one); allowed: {allowed}",
            quoted(text),
            ports = if ports(ports_text).is_ok() { ports_text } else { "PORT" },
        ));
    }
    let in_address = |instead| format!("found {instead} in {}; allowed: {PORT}", quoted(text));
    Ok((host(host_text)?, port_range(ports_text).map_err(in_address)?))
}

/// What `tcp:` or `udp:` before an address says, and the address.
fn transport(text: &str) -> (Option<Transport>, &str) {
    for (scheme, transport) in [("tcp:", Transport::Tcp), ("udp:", Transport::Udp)] {
        if let Some(address) = text.strip_prefix(scheme) {
            return (Some(transport), address);
        }
    }
    (None, text)
}

/// Where to send sessions, and by what where that is written; names stay names.
pub(super) fn target(text: &str) -> Result<(Option<Transport>, Host, Ports), String> {
    if let Some(name) = unix(text, TARGET) {
        return name.map(|name| (None, Host::Unix(name), Ports::NONE));
    }
    let (transport, address) = transport(text);
    if let Some(name) = address.strip_prefix("srv:") {
        return service(name).map(|host| (transport, host, Ports::BY_RECORD));
    }
    host_and_ports(address, TARGET).map(|(host, ports)| (transport, host, ports))
}

/// Where to listen, and for what; a name becomes each of its addresses.
pub(super) fn listen(text: &str, lookup: &Lookup) -> Result<(Transport, Vec<Listen>), String> {
    if let Some(name) = unix(text, LISTEN) {
        let listens = name.map(|name| vec![Listen { local: Local::Unix(name), ports: Ports::NONE }]);
        return listens.map(|listens| (Transport::Tcp, listens));
    }
    let (transport, address) = transport(text);
    let (host, ports) = host_and_ports(address, LISTEN)?;
    let listens = addresses(host, lookup)?.into_iter().map(|ip| Listen { local: Local::Ip(ip), ports }).collect();
    Ok((transport.unwrap_or(Transport::Tcp), listens))
}

/// The name behind `unix:`, where the text begins so.
fn unix(text: &str, allowed: &str) -> Option<Result<UnixName, String>> {
    let name = UnixName::new(text.strip_prefix("unix:")?);
    Some(name.map_err(|why| format!("found {}, {why}; allowed: {allowed}", quoted(text))))
}

/// Every address of a host to listen on or to connect from, each once.
pub(super) fn addresses(host: Host, lookup: &Lookup) -> Result<Vec<IpAddr>, String> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![ip]),
        Host::Name(name) | Host::Service(name) => name,
        Host::Unix(name) => return Err(format!("found {name}; allowed: {HOST}")),
    };
    let fault = |why: &str| format!("found host name {}, which has no address ({why}); allowed: {HOST}", quoted(&name));
    let mut known: Vec<IpAddr> = Vec::new();
    for ip in (lookup.names)(&name).map_err(|error| fault(&error.to_string()))? {
        if !known.contains(&ip.to_canonical()) {
            known.push(ip.to_canonical());
        }
    }
    // localhost is ::1 too in most hosts files, also where IPv6 is switched off and no bind to it can succeed.
    if known.iter().any(IpAddr::is_ipv4) && !(lookup.local)().iter().any(IpAddr::is_ipv6) {
        known.retain(IpAddr::is_ipv4);
    }
    if known.is_empty() { Err(fault("the answer is empty")) } else { Ok(known) }
}

/// Who may connect: an address, a network, or rinetd's text with `*` and `?`.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Pattern::Net(ip.to_canonical().into()));
    }
    if let Ok(net) = bare.parse::<ipnet::IpNet>() {
        return Ok(Pattern::Net(net.trunc()));
    }
    let known = |b: u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b':' | b'*' | b'?');
    if !bare.bytes().all(known) || !bare.contains(['*', '?']) || bare.len() > 64 {
        return Err(found(text, PATTERN));
    }
    let lower = bare.to_ascii_lowercase();
    // Clients are matched in their IPv4 form, so a pattern for mapped ones must be too.
    let unmapped = lower.strip_prefix("::ffff:").filter(|rest| rest.contains('.'));
    Ok(Pattern::Text(unmapped.unwrap_or(&lower).to_owned()))
}

/// Services by name and transport, from the text of `/etc/services` (services(5)).
#[derive(Debug)]
pub(super) struct Services(HashMap<(String, Transport), u16>);

impl Services {
    pub(super) fn parse(text: &str) -> Self {
        let mut known = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
            let Some((port, transport)) = port.split_once('/') else { continue };
            let transport = match transport {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                _ => continue,
            };
            let Ok(port) = port.parse::<u16>() else { continue };
            for name in std::iter::once(name).chain(words) {
                known.entry((name.to_owned(), transport)).or_insert(port);
            }
        }
        Self(known)
    }

    pub(super) fn port(&self, name: &str, transport: Transport) -> Option<u16> {
        self.0.get(&(name.to_owned(), transport)).copied().filter(|port| *port != 0)
    }
}

#[cfg(test)]
mod tests;
