//! Backends that refuse, that do not answer and that cannot be reached.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::deadline::until;
use common::netns::{Netns, with_namespaces};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::{FullBackend, Reserved, accept, backend, connect, connect_or_reset, end_of, timed};
use common::spliced::{Launcher, Spliced};

/// What the promise allows between a refusal and the closed client.
const SOON: Duration = Duration::from_secs(1);

/// A forward to several targets, tried in their order.
fn to_targets(port: &Reserved, targets: &[SocketAddr], lines: &str) -> Spliced {
    let list: Vec<_> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    let forward = format!("{{ name: test, listen: \"{}\", to: [{}] }}", port.address(), list.join(", "));
    Launcher::config(&format!("{lines}\nforwards: [{forward}]\n")).start()
}

/// The client's connection ends, by FIN or by reset, without a byte.
fn closed(client: &Option<TcpStream>) {
    if let Some(client) = client {
        let _ = end_of(client);
    }
}

#[test]
fn a_refused_client_is_closed_and_the_reason_logged_and_counted() {
    let (port, nobody) = (Reserved::loopback(), Reserved::loopback());
    let spliced = Launcher::forward(port.address(), nobody.address()).start();
    let client = connect_or_reset(port.address());
    timed("the client is closed", SOON, || closed(&client));
    spliced.ended("refused", 1);
    until("a line says refused", SOON, || !spliced.logged("refused").is_empty());
    let target = nobody.address().to_string();
    assert!(spliced.logged("refused").iter().any(|line| line.contains(&target)), "the line names {target}");
    drop(client);
    spliced.finish();
}

#[test]
fn many_refused_at_once_leave_nothing_behind() {
    let (port, nobody) = (Reserved::loopback(), Reserved::loopback());
    let spliced = Launcher::forward(port.address(), nobody.address()).start();
    let clients: Vec<_> = (0..200).map(|_| connect_or_reset(port.address())).collect();
    for client in clients.iter().flatten() {
        // Some have sent something already, which must not keep them open.
        let _ = Pattern::new(1).send(client, 0, 100);
    }
    timed("all clients are closed", SOON * 5, || clients.iter().for_each(closed));
    spliced.ended("refused", 200);
    drop(clients);
    spliced.finish();
}

#[test]
fn the_next_target_takes_over_from_one_that_refuses() {
    let (port, nobody, backend) = (Reserved::loopback(), Reserved::loopback(), backend());
    let live = backend.local_addr().expect("bound");
    let spliced = to_targets(&port, &[nobody.address(), live], "");
    let pattern = Pattern::new(1);
    for _ in 0..20 {
        let client = connect(port.address());
        // Sent before there is a backend: must reach the target that takes the connection, once.
        pattern.send(&client, 0, 5000).expect("send");
        let server = accept(&backend);
        pattern.expect(&server, 0, 5000);
        drop(client);
        pattern.expect_whole(&server, 5000, 5000);
    }
    spliced.ended("done", 20);
    assert_eq!(spliced.stats().ends("refused"), 0, "a session that was served is not refused");
    spliced.finish();
}

#[test]
fn all_targets_refuse() {
    let (port, one, other) = (Reserved::loopback(), Reserved::loopback(), Reserved::loopback());
    let spliced = to_targets(&port, &[one.address(), other.address()], "");
    let client = connect_or_reset(port.address());
    timed("the client is closed", SOON, || closed(&client));
    spliced.ended("refused", 1);
    drop(client);
    spliced.finish();
}

#[test]
fn a_backend_that_does_not_answer_ends_in_the_connect_timeout() {
    let full = FullBackend::new();
    let path = Path::configured(Via::AUTO, full.try_clone(), "timeouts: { connect: 700ms }");
    let start = Instant::now();
    let clients: Vec<_> = (0..10).map(|_| Some(path.connect())).collect();
    for client in &clients {
        closed(client);
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(650), "the timeout is 700 ms, it ended after {took:?}");
    assert!(took <= Duration::from_millis(2700), "the timeout is 700 ms, it ended after {took:?}");
    path.ended("connect_timeout", 10);
    // The slots are free and the next client is served.
    path.spliced.as_ref().expect("in between").back_at_start();
    full.open();
    let (client, mut server) = path.pair();
    drop((client, clients));
    assert_eq!(server.read(&mut [0]).expect("a clean end"), 0);
    drop(server);
    path.finish();
}

#[test]
fn a_target_without_a_route_is_a_failed_connect() {
    with_namespaces(|| {
        let island = Netns::new();
        let front = SocketAddr::from(([127, 0, 0, 1], 9000));
        // An address kept for documentation; the namespace has no route to anything but itself.
        let nowhere = SocketAddr::from(([192, 0, 2, 1], 9001));
        let spliced = Launcher::forward(front, nowhere).inside(&island).start();
        let client = island.enter(|| connect_or_reset(front));
        timed("the client is closed", SOON, || closed(&client));
        spliced.ended("connect_failed", 1);
        drop(client);
        spliced.finish();
    });
}
