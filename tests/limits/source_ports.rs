//! Local ports run out: counted by that name, and a pool of source addresses goes round it.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::net::{SocketAddr, TcpStream};

use common::deadline::{LONG, until};
use common::netns::{Netns, with_namespaces};
use common::peer::{Echo, accept, echoes};
use common::spliced::{Launcher, Spliced};

const FRONT: &str = "10.9.0.1:9000";
const BACK: &str = "10.9.0.2:9001";
/// Ports for outgoing connections.
const PORTS: usize = 4;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Loopback with some addresses of its own.
fn namespace() -> Netns {
    let namespace = Netns::new();
    for last in 1..=6 {
        namespace.line(&format!("ip address add 10.9.0.{last}/32 dev lo"));
    }
    namespace
}

/// From here on whoever connects without a port of its own finds only [`PORTS`] for each of its addresses.
fn few_ports(namespace: &Netns) {
    let range = format!("50000 {}", 50000 + PORTS - 1);
    namespace.enter(|| fs::write("/proc/sys/net/ipv4/ip_local_port_range", range)).expect("a namespace of our own");
}

/// A client with a port of its own, outside of that range.
fn client(namespace: &Netns, port: u16) -> TcpStream {
    try_client(namespace, port).expect("a connection")
}

/// The same; `None` when it was reset before connect(2) has told of its success.
fn try_client(namespace: &Netns, port: u16) -> Option<TcpStream> {
    namespace.enter(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([10, 9, 0, 6], port)).into()).expect("a port of its own");
        match socket.connect_timeout(&address(FRONT).into(), LONG) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
            result => result.expect("a connection"),
        }
        Some(common::peer::with_deadlines(socket.into()))
    })
}

fn run(namespace: &Netns, sources: &str) -> (Echo, Spliced) {
    let echo = namespace.enter(|| Echo::start(namespace.listen(address(BACK))));
    few_ports(namespace);
    let text =
        format!("workers: 1\nforwards: [{{ name: test, listen: \"{FRONT}\", to: \"{BACK}\", source: {sources} }}]\n");
    let spliced = Launcher::config(&text).inside(namespace).start();
    (echo, spliced)
}

/// Opens sessions until one is closed without a byte; how many were served, with their clients.
fn until_refused(namespace: &Netns, most: usize) -> Vec<TcpStream> {
    let mut served = Vec::new();
    for port in (20_000u16..).take(most) {
        let Some(client) = try_client(namespace, port).filter(|client| echoes(client, 1, LONG)) else { return served };
        served.push(client);
    }
    served
}

#[test]
fn a_lack_of_ports_has_a_name_of_its_own() {
    with_namespaces(|| {
        for sources in ["none", "10.9.0.3"] {
            let namespace = namespace();
            let (_echo, spliced) = run(&namespace, sources);
            let mut served = until_refused(&namespace, 3 * PORTS);
            assert_eq!(served.len(), PORTS, "source {sources}");
            spliced.ended("no_ports", 1);
            until("the session log says so", LONG, || !spliced.logged("reason=no_ports").is_empty());
            // A port that is free again is used again.
            common::peer::reset(served.pop().expect("some are served"));
            spliced.stats_until("one has ended", |stats| stats.open() == PORTS as u64 - 1);
            let next = client(&namespace, 30_000);
            assert!(echoes(&next, 2, LONG));
            drop((served, next));
            spliced.finish();
        }
    });
}

#[test]
fn a_pool_of_source_addresses_has_the_ports_of_all() {
    with_namespaces(|| {
        let namespace = namespace();
        let (_echo, spliced) = run(&namespace, "[10.9.0.3, 10.9.0.4, 10.9.0.5]");
        let mut served = until_refused(&namespace, 5 * PORTS);
        assert_eq!(served.len(), 3 * PORTS, "as many as three addresses have ports");
        assert!(served.iter().all(|client| echoes(client, 2, LONG)));
        spliced.ended("no_ports", 1);
        // They came in turn: every third has the same address. Where that alone has ports, whose turn it is does not matter.
        for session in [6, 3, 0] {
            common::peer::reset(served.remove(session));
        }
        spliced.stats_until("three have ended", |stats| stats.open() == 3 * PORTS as u64 - 3);
        served.extend((30_000..30_003).map(|port| client(&namespace, port)));
        assert!(served.iter().all(|client| echoes(client, 3, LONG)));
        spliced.ended("no_ports", 1);
        drop(served);
        spliced.finish();
    });
}

#[test]
fn source_addresses_take_turns() {
    with_namespaces(|| {
        let namespace = namespace();
        let backend = namespace.listen(address(BACK));
        let spliced = Launcher::forward(address(FRONT), address(BACK))
            .option("--source", "10.9.0.3,10.9.0.4")
            .option("--workers", "1")
            .inside(&namespace)
            .start();
        let mut seen = [0, 0];
        for port in 20_000..20_010 {
            let client = client(&namespace, port);
            let server = accept(&backend);
            match server.peer_addr().expect("connected").ip().to_string().as_str() {
                "10.9.0.3" => seen[0] += 1,
                "10.9.0.4" => seen[1] += 1,
                other => panic!("a connection from {other}"),
            }
            drop((client, server));
        }
        assert_eq!(seen, [5, 5]);
        spliced.finish();
    });
}

/// An address that the host does not have is no reason to fail while others do.
#[test]
fn an_address_the_host_lacks_is_passed_over_and_told_of() {
    with_namespaces(|| {
        let namespace = namespace();
        let (_echo, spliced) = run(&namespace, "[192.0.2.77, 10.9.0.3]");
        let clients: Vec<_> = (20_000..20_004).map(|port| client(&namespace, port)).collect();
        assert!(clients.iter().all(|client| echoes(client, 1, LONG)));
        let lines = spliced.logged("cannot connect from source 192.0.2.77").len();
        assert_eq!(lines, 1, "one line, not one for each session");
        drop(clients);
        spliced.finish();
    });
}
