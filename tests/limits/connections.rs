//! `max_connections` and `max_connections_per_source`: exactly so many, over all workers and listeners; the next waits or
//! is refused, as configured; a slot is used again at once.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, throughout, until};
use common::peer::{Echo, Reserved, backend, connect, connect_or_reset, echoes, with_deadlines};
use common::spliced::{Launcher, Spliced};
use socket2::{Domain, Socket, Type};

/// A forward as YAML in one line.
fn forward(name: &str, listen: &[&Reserved], to: &Echo, more: &str) -> String {
    let listen: Vec<_> = listen.iter().map(|port| format!("\"{}\"", port.address())).collect();
    format!("  - {{ name: {name}, listen: [{}], to: \"{}\"{more} }}\n", listen.join(", "), to.address())
}

/// Four workers, so that what is exact is exact over all of them.
fn run(lines: &str, forwards: &[String]) -> Spliced {
    Launcher::config(&format!("workers: 4\n{lines}\nforwards:\n{}", forwards.concat())).start()
}

/// A connection from a given address; `None` when it was reset before connect(2) has told of its success.
fn connect_from(source: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("a local address");
    match socket.connect(&to.into()) {
        Ok(()) => Some(with_deadlines(socket.into())),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
        Err(e) => panic!("connect to {to}: {e}"),
    }
}

/// Whether the connection was reset without a byte, which a queued one is not.
fn is_reset(mut client: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(client.read(&mut byte), Err(e) if e.kind() == ErrorKind::ConnectionReset)
}

/// Sends a byte from each and says which have had it back.
fn served(clients: &[TcpStream]) -> Vec<bool> {
    for mut client in clients {
        client.write_all(&[7]).expect("a byte is taken by the kernel in any case");
    }
    clients.iter().map(answered).collect()
}

/// The byte sent has come back; it stays to be seen again.
fn answered(client: &TcpStream) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(1))).expect("a short deadline");
    client.peek(&mut [0]).is_ok_and(|n| n == 1)
}

fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|flag| **flag).count()
}

/// Exactly `most` of many clients are served, and stay the only ones.
fn exactly(spliced: &Spliced, clients: &[TcpStream], most: usize) {
    let mut flags = served(clients);
    until(&format!("{most} are served"), LONG, || {
        flags = clients.iter().map(answered).collect();
        count(&flags) >= most
    });
    throughout("no more than that", Duration::from_millis(500), || {
        let now = count(&clients.iter().map(answered).collect::<Vec<_>>());
        let open = spliced.stats().open();
        // A session on its way from one worker to another is counted by neither.
        if now == most && open <= most as u64 { Ok(()) } else { Err(format!("{now} served, {open} open")) }
    });
}

#[test]
fn exactly_as_many_as_a_forward_may_have_and_the_others_wait_for_a_slot() {
    let (a, b, echo) = (Reserved::loopback(), Reserved::loopback(), Echo::start(backend()));
    let spliced = run("", &[forward("few", &[&a, &b], &echo, ", max_connections: 5")]);
    // Over both listeners, from many ports, so that every worker has connections in its queues.
    let mut clients: Vec<TcpStream> =
        (0..40).map(|n| connect(if n % 2 == 0 { a.address() } else { b.address() })).collect();
    exactly(&spliced, &clients, 5);
    // One after the other, each as soon as a slot is free; none is refused.
    while !clients.is_empty() {
        let done = clients.iter().position(answered).expect("somebody is served");
        clients.swap_remove(done);
        let most = clients.len().min(5);
        until("the slot is used again", LONG, || count(&clients.iter().map(answered).collect::<Vec<_>>()) >= most);
        assert!(spliced.stats().open() <= 5, "more sessions than slots");
    }
    let stats = spliced.stats_until("all have ended", |stats| stats.open() == 0);
    assert_eq!((stats.ends("limit"), stats.number("/total/sessions_accepted")), (0, 40));
    spliced.finish();
}

#[test]
fn the_limit_of_the_process_is_for_all_forwards_together() {
    let (a, b, echo) = (Reserved::loopback(), Reserved::loopback(), Echo::start(backend()));
    let forwards = [forward("a", &[&a], &echo, ""), forward("b", &[&b], &echo, ", max_connections: 2")];
    let spliced = run("max_connections: 6", &forwards);
    let mut clients: Vec<TcpStream> = (0..10).map(|_| connect(b.address())).collect();
    exactly(&spliced, &clients, 2);
    clients.extend((0..10).map(|_| connect(a.address())));
    exactly(&spliced, &clients, 6);
    drop(clients);
    spliced.stats_until("all have ended", |stats| stats.number("/total/sessions_accepted") == 20 && stats.open() == 0);
    spliced.finish();
}

#[test]
fn a_freed_slot_reaches_the_next_client_at_once_and_nobody_polls_for_it() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = run("max_connections: 1", &[forward("one", &[&port], &echo, "")]);
    let first = connect(port.address());
    assert!(echoes(&first, 1, LONG));
    // Whichever worker's queue they are in.
    let mut waiting: Vec<TcpStream> = (0..16).map(|_| connect(port.address())).collect();
    served(&waiting);
    until("every worker that has somebody waits", LONG, || {
        let stats = spliced.stats();
        let paused = stats.0["workers"].as_array().expect("workers").iter().filter(|w| w["accept_paused"] == true);
        paused.count() >= 2
    });
    let turns = |spliced: &Spliced| -> u64 {
        let stats = spliced.stats();
        (0..4).map(|worker| stats.number(&format!("/workers/{worker}/turns"))).sum()
    };
    let (before, begun) = (turns(&spliced), Instant::now());
    thread::park_timeout(Duration::from_secs(2));
    let (turned, seconds) = (turns(&spliced) - before, begun.elapsed().as_secs() + 1);
    assert!(turned <= 4 * 2 * seconds, "{turned} turns of 4 full workers in {seconds} s");
    let mut slowest = Duration::ZERO;
    drop(first);
    while !waiting.is_empty() {
        let freed = Instant::now();
        until("the next one is served", LONG, || waiting.iter().any(answered));
        slowest = slowest.max(freed.elapsed());
        let done = waiting.iter().position(answered).expect("found a moment ago");
        waiting.swap_remove(done);
    }
    // Some milliseconds here; a worker that looked only now and then would need far longer.
    assert!(slowest < Duration::from_millis(300), "a slot was free for {slowest:?} while somebody waited");
    spliced.finish();
}

#[test]
fn where_full_means_refuse_one_too_many_is_reset_at_once_and_counted() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let options = ", max_connections: 3, when_full: refuse";
    let spliced = run("", &[forward("few", &[&port], &echo, options)]);
    let mut clients: Vec<TcpStream> = (0..3).map(|_| connect(port.address())).collect();
    assert!(clients.iter().all(|client| echoes(client, 1, LONG)));
    for _ in 0..20 {
        let begun = Instant::now();
        assert!(connect_or_reset(port.address()).is_none_or(|client| is_reset(&client)));
        assert!(begun.elapsed() < Duration::from_secs(1), "refused after {:?}", begun.elapsed());
    }
    spliced.ended("limit", 20);
    until("the session log says so", LONG, || !spliced.logged("reason=limit").is_empty());
    assert!(clients.iter().all(|client| echoes(client, 2, LONG)), "open sessions go on");
    // A slot that is free again is used again, and no earlier.
    clients.pop();
    spliced.stats_until("one has ended", |stats| stats.open() == 2);
    let next = connect(port.address());
    assert!(echoes(&next, 3, LONG));
    assert!(connect_or_reset(port.address()).is_none_or(|client| is_reset(&client)));
    drop((clients, next));
    spliced.ended("limit", 21);
    spliced.finish();
}

#[test]
fn a_forward_that_refuses_and_one_that_queues_share_the_limit_of_the_process() {
    let (a, b, echo) = (Reserved::loopback(), Reserved::loopback(), Echo::start(backend()));
    let forwards = [forward("refuses", &[&a], &echo, ", when_full: refuse"), forward("queues", &[&b], &echo, "")];
    let spliced = run("max_connections: 2", &forwards);
    let clients = [connect(a.address()), connect(b.address())];
    assert!(clients.iter().all(|client| echoes(client, 1, LONG)));
    let waiting = connect(b.address());
    assert!(connect_or_reset(a.address()).is_none_or(|client| is_reset(&client)));
    assert!(!echoes(&waiting, 1, Duration::from_millis(200)));
    drop(clients);
    until("the one that waited is served", LONG, || answered(&waiting));
    drop(waiting);
    spliced.ended("limit", 1);
    spliced.finish();
}

#[test]
fn each_source_has_its_own_number_of_sessions() {
    let (a, b, echo) = (Reserved::loopback(), Reserved::loopback(), Echo::start(backend()));
    let forwards = [forward("a", &[&a], &echo, ", max_connections_per_source: 2"), forward("b", &[&b], &echo, "")];
    let spliced = run("max_connections_per_source: 3", &forwards);
    let try_from = |source: [u8; 4], to: &Reserved| {
        connect_from(source.into(), to.address()).filter(|client| echoes(client, 1, LONG))
    };
    for source in [[127, 0, 0, 2], [127, 0, 0, 3]] {
        let mut clients: Vec<TcpStream> = (0..2).filter_map(|_| try_from(source, &a)).collect();
        assert_eq!(clients.len(), 2);
        assert!(try_from(source, &a).is_none(), "a third one of the forward");
        clients.extend(try_from(source, &b));
        assert_eq!(clients.len(), 3);
        assert!(try_from(source, &b).is_none(), "a fourth one of the process");
        // A place that is free again is used again.
        clients.remove(0);
        spliced.stats_until("one has ended", |stats| stats.open() == 2);
        assert!(try_from(source, &a).is_some());
        drop(clients);
        spliced.stats_until("all have ended", |stats| stats.open() == 0);
    }
    spliced.ended("limit", 4);
    spliced.finish();
}

#[test]
fn a_network_of_ipv6_is_one_source() {
    use common::netns::{Netns, with_namespaces};
    with_namespaces(|| {
        let namespace = Netns::new();
        for address in ["fd00:0:0:1::1/64", "fd00:0:0:1::2/64", "fd00:0:0:2::1/64"] {
            namespace.line(&format!("ip address add {address} dev lo nodad"));
        }
        let echo = namespace.enter(|| Echo::start(backend()));
        let front: SocketAddr = "[::1]:9000".parse().expect("an address");
        let spliced = Launcher::forward(front, echo.address())
            .option("--max-connections-per-source", "1")
            .inside(&namespace)
            .start();
        let from = |source: &str| {
            let source = source.parse().expect("an address");
            namespace.enter(|| connect_from(source, front))
        };
        let first = from("fd00:0:0:1::1").expect("the first one");
        assert!(echoes(&first, 1, LONG));
        assert!(from("fd00:0:0:1::2").is_none_or(|client| is_reset(&client)), "another address of the same network");
        let other = from("fd00:0:0:2::1").expect("another network");
        assert!(echoes(&other, 1, LONG));
        drop((first, other));
        spliced.finish();
    });
}

#[test]
fn a_limit_without_descriptors_for_it_is_said_with_numbers() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced =
        Launcher::forward(port.address(), echo.address()).option("--max-connections", "1000").descriptors(128).start();
    let lines = spliced.logged("max_connections of 1000 needs 20");
    assert_eq!(lines.len(), 1, "{}", spliced.text());
    assert!(lines[0].contains("128 are allowed: about 3"), "{lines:?}");
    spliced.finish();
    let enough = Launcher::forward(port.address(), echo.address()).option("--max-connections", "100").start();
    assert!(enough.logged("max_connections").is_empty(), "{}", enough.text());
    enough.finish();
}
