//! Reloads under a storm of connections: nobody is refused, reset or left without an answer, streams go on, and nothing is
//! left over after a hundred of them.

#![cfg(target_os = "linux")]

use crate::common;

use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, until};
use common::netns::{Chain, Netns, with_namespaces};
use common::pattern::{Pattern, StreamEnd};
use common::peer::{accept, with_deadlines};
use common::spliced::{Launcher, Spliced};
use nix::sys::signal::Signal;
use socket2::SockRef;

/// Between two reloads.
const PAUSE: Duration = Duration::from_millis(200);
const CLIENTS: usize = 4;

/// Addresses that every configuration has, on forwards of different names and with different settings.
const ALWAYS: [u16; 3] = [9000, 9001, 9002];
/// One that comes and goes.
const SOMETIMES: u16 = 9003;
/// A range whose ports have one listener each.
const RANGE: u16 = 9100;
const BACKEND: u16 = 8000;

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The configurations in turn: forwards change their target, engine and limits, listeners move between them, come and go,
/// and so do workers.
fn text(turn: usize) -> String {
    let to = local(BACKEND);
    let workers = [2, 1, 4, 3][turn % 4];
    let engine = ["auto", "splice", "copy"][turn % 3];
    let moved =
        |forward: usize| if turn % 2 == forward { format!(", \"127.0.0.1:{}\"", ALWAYS[2]) } else { String::new() };
    let mut forwards = format!(
        "  - {{ name: a, listen: [\"127.0.0.1:9000\"{}], to: \"{to}\", engine: {engine} }}\n\
         \x20 - {{ name: b, listen: [\"127.0.0.1:9001\"{}], to: \"{to}\", idle_timeout: {}m }}\n\
         \x20 - {{ name: range, listen: \"127.0.0.1:{RANGE}-{}\", to: \"{to}\", max_connections: {} }}\n",
        moved(0),
        moved(1),
        turn % 5 + 1,
        RANGE + 19,
        1000 + turn % 2,
    );
    // Away for longer than a listener that is given up stays open, and for less.
    if turn % 12 < 4 || turn % 24 == 6 {
        forwards +=
            &format!("  - {{ name: sometimes{}, listen: \"127.0.0.1:{SOMETIMES}\", to: \"{to}\" }}\n", turn / 12);
    }
    format!("workers: {workers}\ngather: {}\nlog_format: json\nforwards:\n{forwards}", ["off", "on"][turn / 2 % 2])
}

/// Asks the control socket for a reload and returns once it is in effect.
fn reload(spliced: &Spliced, turn: usize) {
    spliced.replace_config(&text(turn));
    let mut stream = UnixStream::connect(spliced.control()).expect("it answers");
    stream.set_read_timeout(Some(LONG)).expect("a deadline");
    stream.write_all(b"reload\n").expect("it answers");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("\"result\":\"ok\""), "{answer}");
}

/// What a client's connection came to.
fn exchange(port: u16) -> Result<(), String> {
    exchange_with(local(port))
}

fn exchange_with(address: SocketAddr) -> Result<(), String> {
    let mut stream = with_deadlines(TcpStream::connect_timeout(&address, LONG).map_err(|e| match e.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        _ => format!("connect: {e}"),
    })?);
    let mut back = [0];
    stream.write_all(&[7]).map_err(|e| format!("write: {e}"))?;
    match stream.read(&mut back) {
        Ok(1) if back == [7] => {}
        Ok(n) => return Err(format!("an empty answer ({n} bytes)")),
        Err(e) => return Err(format!("read: {e}")),
    }
    stream.shutdown(Shutdown::Write).map_err(|e| format!("shutdown: {e}"))?;
    match stream.read(&mut back) {
        Ok(0) => Ok(()),
        Ok(_) => Err("more than was sent".to_owned()),
        Err(e) => Err(format!("end: {e}")),
    }
}

/// A backend that sends one byte back, on a few threads; and streams that are longer on another port.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let listener = SockRef::from(listener);
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else { continue };
        let mut stream = with_deadlines(stream.into());
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
    }
}

/// The kernel's counts of connections a listener had no room for.
fn dropped(spliced: &Spliced) -> Vec<u64> {
    let text = fs::read_to_string(format!("/proc/{}/net/netstat", spliced.process().0)).expect("the process runs");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let counts: HashMap<&str, &str> = names.split(' ').zip(values.split(' ')).collect();
    ["ListenOverflows", "ListenDrops"].map(|name| counts[name].parse().expect("a number")).into()
}

/// Sockets that listen on a port, one for each worker and those that are given up.
fn listeners(spliced: &Spliced, port: u16) -> usize {
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", spliced.process().0)).expect("the process runs");
    let listen = |line: &&str| line.contains(&format!(":{port:04X} 00000000:0000 0A "));
    table.lines().filter(listen).count()
}

/// A stream that goes on until it is told to stop; how much of it there was.
fn long_stream(from: &TcpStream, to: &TcpStream, number: u64, stop: &AtomicBool) -> u64 {
    let pattern = Pattern::new(number);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                pattern.send(from, sent, sent + 20_000).expect("the stream takes bytes");
                sent += 20_000;
                thread::park_timeout(Duration::from_millis(2));
            }
            from.shutdown(Shutdown::Write).expect("half-close");
            sent
        });
        let received = pattern.expect_prefix(to, 0);
        let sent = sender.join().expect("no panic");
        assert_eq!(received, (sent, StreamEnd::Clean), "stream {number}: what came and how it ended");
        sent
    })
}

/// Connections of [`nobody_notices`]; CONTRIBUTING.md says when to ask for more.
fn connections() -> u64 {
    let text = std::env::var("SPLICED_STORM_CONNECTIONS").ok();
    text.map_or(5_000, |text| text.parse().expect("SPLICED_STORM_CONNECTIONS is a number"))
}

/// At least so many reloads, however few the connections.
const RELOADS: usize = 15;

#[test]
fn nobody_notices() {
    with_namespaces(|| {
        let connections = connections();
        let here = Netns::new();
        let backend = here.listen(local(BACKEND));
        let streams = here.listen(local(BACKEND + 1));
        SockRef::from(&backend).set_read_timeout(Some(Duration::from_millis(50))).expect("SO_RCVTIMEO");
        let config = |turn: usize| {
            format!(
                "{}  - {{ name: streams, listen: \"127.0.0.1:9009\", to: \"{}\" }}\n",
                text(turn),
                local(BACKEND + 1)
            )
        };
        let mut spliced = Launcher::config(&config(0)).inside(&here).start();
        let pairs: Vec<_> = (0..4).map(|_| (here.connect(local(9009)), accept(&streams))).collect();
        let before = dropped(&spliced);
        let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (done, sometimes) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..2 * CLIENTS {
                scope.spawn(|| serve(&backend, &over));
            }
            // The forward of the streams is removed by the first reload; they go on.
            let streams: Vec<_> = pairs
                .iter()
                .enumerate()
                .map(|(i, (client, server))| {
                    let stop = &stop;
                    let (from, to) = if i % 2 == 0 { (client, server) } else { (server, client) };
                    scope.spawn(move || long_stream(from, to, i as u64, stop))
                })
                .collect();
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (here, stop, done) = (&here, &stop, &done);
                    scope.spawn(move || {
                        here.enter(|| {
                            for i in client.. {
                                let port = if i % 4 == 3 { RANGE + (i % 20) as u16 } else { ALWAYS[i % 3] };
                                exchange(port).unwrap_or_else(|e| panic!("connection {i} to port {port}: {e}"));
                                done.fetch_add(1, Ordering::Relaxed);
                                if stop.load(Ordering::Relaxed) {
                                    return;
                                }
                            }
                        })
                    })
                })
                .collect();
            // Where nobody may be listening a connection is refused, or it is a whole one.
            let guest = scope.spawn(|| {
                here.enter(|| {
                    while !stop.load(Ordering::Relaxed) {
                        match exchange(SOMETIMES) {
                            Ok(()) => _ = sometimes.fetch_add(1, Ordering::Relaxed),
                            Err(e) if e == "refused" => thread::park_timeout(Duration::from_millis(1)),
                            Err(e) => panic!("a connection that was made to port {SOMETIMES}: {e}"),
                        }
                    }
                })
            });
            let mut turn = 0;
            while turn < RELOADS || done.load(Ordering::Relaxed) < connections {
                let next = Instant::now() + PAUSE;
                turn += 1;
                match turn % 5 {
                    0 => {
                        spliced.replace_config(&text(turn));
                        spliced.signal(Signal::SIGHUP);
                        let taken = 1 + turn as u64;
                        spliced.stats_until("it is reloaded", |stats| stats.number("/reloads/generation") == taken);
                    }
                    _ => reload(&spliced, turn),
                }
                if clients.iter().any(|client| client.is_finished()) {
                    break;
                }
                thread::park_timeout(next.saturating_duration_since(Instant::now()));
            }
            stop.store(true, Ordering::Relaxed);
            let failed = clients.into_iter().filter_map(|client| client.join().err()).count();
            guest.join().expect("the guest of a port that comes and goes");
            let lengths: Vec<u64> =
                streams.into_iter().map(|stream| stream.join().expect("the stream is whole")).collect();
            over.store(true, Ordering::Relaxed);
            assert_eq!(failed, 0, "clients that failed after {turn} reloads");
            assert!(lengths.iter().all(|length| *length > 100_000), "{lengths:?}");
            let sometimes = sometimes.load(Ordering::Relaxed);
            assert!(sometimes > 0, "the port that comes and goes was there");
            eprintln!(
                "{} connections, {sometimes} to a port that comes and goes, {turn} reloads, streams of {lengths:?} bytes",
                done.load(Ordering::Relaxed)
            );
        });
        drop(pairs);
        assert_eq!(dropped(&spliced), before, "ListenOverflows, ListenDrops");
        let stats = spliced.stats_until("every session has ended", |stats| stats.open() == 0);
        let ends = &stats.0["total"]["ends"];
        for bad in ["worker_panic", "refused", "error", "reset_by_backend", "connect_timeout", "drain"] {
            assert_eq!(ends[bad], 0, "{bad} in {ends}");
        }
        let total = 4 + done.load(Ordering::Relaxed) + sometimes.load(Ordering::Relaxed);
        assert_eq!(stats.number("/total/sessions_accepted"), total);
        // One more with as many workers as at most, and it is at rest.
        reload(&spliced, 2);
        until("workers that were to leave have left", LONG, || {
            spliced.stats().0["workers"].as_array().is_some_and(|w| w.len() == 4)
        });
        until("listeners that were given up are closed", LONG, || listeners(&spliced, SOMETIMES) == 4);
        spliced.note_rest();
        spliced.finish();
    });
}

/// Whoever gets a connection is served, however often and however soon an address goes and comes back.
#[test]
fn a_listener_that_closes_on_a_network_cuts_nobody() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let backend = chain.server.listen(Chain::BACK);
        SockRef::from(&backend).set_read_timeout(Some(Duration::from_millis(50))).expect("SO_RCVTIMEO");
        let with = format!(
            "workers: 2\nlog_format: json\nforwards:\n  - {{ name: stays, listen: \"10.0.1.1:9001\", to: \"{}\" }}\n",
            Chain::BACK
        );
        let without = with.clone();
        let with = with + &format!("  - {{ name: web, listen: \"{}\", to: \"{}\" }}\n", Chain::FRONT, Chain::BACK);
        let spliced = Launcher::config(&with).inside(&chain.forwarder).start();
        let (stop, over, served) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            (0..4).for_each(|_| _ = scope.spawn(|| serve(&backend, &over)));
            let (client, stop, served) = (&chain.client, &stop, &served);
            let guest = move || {
                while !stop.load(Ordering::Relaxed) {
                    match exchange_with(Chain::FRONT) {
                        Ok(()) => _ = served.fetch_add(1, Ordering::Relaxed),
                        Err(e) if e == "refused" => thread::park_timeout(Duration::from_millis(1)),
                        Err(e) => panic!("a connection that was made: {e}"),
                    }
                }
            };
            let guests: Vec<_> = (0..3).map(|_| scope.spawn(move || client.enter(guest))).collect();
            for pause_ms in [100, 100, 1300, 100, 300, 1, 1300, 100, 10, 1, 1200, 100] {
                for text in [&without, &with] {
                    spliced.reload_with(text);
                    let before = served.load(Ordering::Relaxed);
                    thread::park_timeout(Duration::from_millis(pause_ms));
                    if text == &with {
                        until("it serves again", LONG, || served.load(Ordering::Relaxed) > before);
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
            guests.into_iter().for_each(|guest| guest.join().expect("a guest that nobody cuts"));
            over.store(true, Ordering::Relaxed);
        });
        let stats = spliced.stats_until("every session has ended", |stats| stats.open() == 0);
        let served = served.load(Ordering::Relaxed);
        assert_eq!((stats.number("/total/sessions_accepted"), stats.ends("done")), (served, served));
        spliced.finish();
    });
}

#[test]
fn a_hundred_reloads_leave_nothing_behind() {
    with_namespaces(|| {
        let here = Netns::new();
        let backend = here.listen(local(BACKEND));
        SockRef::from(&backend).set_read_timeout(Some(Duration::from_millis(50))).expect("SO_RCVTIMEO");
        let mut spliced = Launcher::config(&text(0)).inside(&here).start();
        let over = AtomicBool::new(false);
        // One round of all there is, so that every address and worker has been there once.
        let round = |from: usize| (from..from + 12).for_each(|turn| reload(&spliced, turn));
        let used = |spliced: &Spliced| (spliced.process().descriptors().all, spliced.process().threads().len());
        thread::scope(|scope| {
            scope.spawn(|| serve(&backend, &over));
            let visit = |turn: usize| {
                reload(&spliced, turn);
                here.enter(|| ALWAYS.iter().for_each(|port| exchange(*port).expect("an exchange")));
            };
            (0..24).for_each(visit);
            round(0);
            over.store(true, Ordering::Relaxed);
        });
        let settle = |spliced: &mut Spliced| {
            reload(spliced, 2);
            until("listeners that were given up are closed", LONG, || listeners(spliced, SOMETIMES) == 4);
            spliced.note_rest();
            used(spliced)
        };
        let before = settle(&mut spliced);
        let memory = spliced.process().anonymous_memory();
        (0..100).for_each(|turn| reload(&spliced, turn));
        reload(&spliced, 2);
        until("descriptors and threads are what they were", LONG, || {
            spliced.stats();
            used(&spliced) == before
        });
        let grown = spliced.process().anonymous_memory().saturating_sub(memory);
        assert!(grown < 512 * 1024, "{grown} bytes more after a hundred reloads");
        let stats = spliced.stats();
        assert_eq!(stats.number("/reloads/failed"), 0);
        assert_eq!(stats.number("/total/sessions_accepted"), 24 * 3);
        spliced.finish();
    });
}
