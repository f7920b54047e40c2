//! Our own generators against our own servers, with and without a forwarder in between.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lab::load::{Bulk, Exchange, HoldKind, Load, Outcome, Server, Sessions, Stream, iperf3, set_program};
use lab::place::{Place, Wiring};
use lab::{peers, tools};

mod common;

/// Everything on this host, nothing in between.
fn direct() -> Wiring {
    set_program(Path::new(env!("CARGO_BIN_EXE_lab")));
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let (listen, server_addr): (SocketAddr, SocketAddr) = (free().expect("a port"), free().expect("a port"));
    let here = Place::here;
    let more = Vec::new();
    Wiring { client: here(), forwarder: here(), server: here(), listen, server_addr, target: server_addr, more }
}

/// Held while a load runs: what is timed here is timed on a machine that does nothing else of ours.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(load: &Load, wiring: &Wiring) -> io::Result<(Outcome, Server)> {
    let _alone = alone();
    let out = tempfile::tempdir()?;
    let server = load.serve(wiring, out.path())?;
    let outcome = load.prepare(wiring, out.path())?.run()?;
    Ok((outcome, server))
}

#[test]
fn exchanges_are_counted_and_timed() {
    let load = Load::Exchange(Exchange { connections: 5, request: 64, reply: 200, rate: None, seconds: 0.3 });
    let (outcome, server) = run(&load, &direct()).unwrap();
    let (piece, count) = outcome.pieces.unwrap();
    assert_eq!(piece, "exchange");
    assert!(count > 100, "{outcome:?}");
    assert_eq!(outcome.bytes, count * 264);
    let latency = outcome.latency.unwrap();
    assert_eq!(latency.count, count);
    assert_eq!(latency.buckets.iter().map(|(_, n)| n).sum::<u64>(), count);
    assert!(latency.p50_us > 1.0 && latency.p50_us <= latency.p999_us && latency.p999_us <= latency.max_us);
    let per_second = outcome.samples["exchanges_per_second"];
    assert!((per_second - count as f64 / 0.3).abs() / per_second < 0.5, "{per_second} of {count} in 0.3 s");
    assert!(outcome.samples["generator_busy_share"] > 0.01);
    let Server::Own(mut server) = server else { panic!("another server") };
    let counts = server.counts().unwrap();
    assert_eq!((counts.accepted, counts.broken), (5, 0));
}

#[test]
fn exchanges_come_at_their_pace_whatever_the_connections() {
    for connections in [1, 7, 300] {
        let load = Load::Exchange(Exchange { connections, request: 64, reply: 64, rate: Some(1000.0), seconds: 0.5 });
        let (outcome, server) = run(&load, &direct()).unwrap();
        let per_second = outcome.samples["exchanges_per_second"];
        // Without a pace it would be tens of thousands; a machine that is busy with other things makes it fewer.
        assert!((600.0..1010.0).contains(&per_second), "{connections}: {outcome:?}");
        let Server::Own(mut server) = server else { panic!("another server") };
        assert_eq!(server.counts().unwrap().accepted, connections as u64);
    }
}

#[test]
fn long_answers_come_whole() {
    let load = Load::Exchange(Exchange { connections: 3, request: 100_000, reply: 300_000, rate: None, seconds: 0.2 });
    let (outcome, _server) = run(&load, &direct()).unwrap();
    assert!(outcome.pieces.unwrap().1 > 3, "{outcome:?}");
    assert!(!outcome.samples.contains_key("load_errors"), "{outcome:?}");
}

#[test]
fn connections_are_made_for_each_exchange() {
    let load = Load::Connect(Exchange { connections: 4, request: 1, reply: 1, rate: None, seconds: 0.3 });
    let (outcome, server) = run(&load, &direct()).unwrap();
    let (piece, count) = outcome.pieces.unwrap();
    assert_eq!(piece, "connection");
    assert!(count > 50, "{outcome:?}");
    assert!(!outcome.samples.contains_key("load_errors"), "{:?}", outcome.notes);
    let Server::Own(mut server) = server else { panic!("another server") };
    assert_eq!(server.counts().unwrap().accepted, count, "each one was a connection of its own");
}

#[test]
fn hundreds_of_bulk_streams_are_verified() {
    let load = Load::Bulk(Bulk { streams: 200, message: 128 * 1024, seconds: 0.5 });
    let (outcome, server) = run(&load, &direct()).unwrap();
    assert_eq!(outcome.samples["streams"], 200.0, "{:?}", outcome.notes);
    assert!(outcome.bytes > 10_000_000, "{outcome:?}");
    assert!(outcome.samples["slowest_stream_bytes"] > 0.0);
    let Server::Own(mut server) = server else { panic!("another server") };
    let counts = server.counts().unwrap();
    assert_eq!((counts.bytes, counts.broken), (outcome.bytes, 0), "what was confirmed is what was received");
}

#[test]
fn chunks_arrive_at_their_pace() {
    let load = Load::Stream(Stream { streams: 50, rate: 20.0, chunk: 40, seconds: 1.0 });
    let (outcome, _server) = run(&load, &direct()).unwrap();
    let samples = &outcome.samples;
    assert!((900.0..1100.0).contains(&samples["chunks_per_second"]), "{samples:?}");
    assert!((45_000.0..55_000.0).contains(&samples["gap_us_p50"]), "{samples:?}");
    assert!(samples["first_byte_us_p50"] > 1.0 && samples["first_byte_us_cold"] > 1.0, "{samples:?}");
    assert!(samples["delay_us_p50"] > 0.5 && samples["delay_us_p50"] < 20_000.0, "{samples:?}");
}

#[test]
fn sessions_grow_and_come_to_rest() {
    let wiring = direct();
    let _alone = alone();
    let mut idle = Sessions::start(&wiring, HoldKind::Idle, false).unwrap();
    for total in [0, 10, 150] {
        let held = idle.grow(total).unwrap();
        assert_eq!((held.open, held.failed, held.written), (total as u64, 0, 0), "{held:?}");
    }
    drop(idle);
    let mut stalled = Sessions::start(&direct(), HoldKind::Stalled, false).unwrap();
    let held = stalled.grow(3).unwrap();
    assert_eq!((held.open, held.failed), (3, 0));
    assert!(held.written > 3 * 64 * 1024, "{held:?}");
    assert_eq!(stalled.grow(3).unwrap().written, held.written, "nothing moves any more");
}

#[test]
fn a_target_that_is_not_there_is_an_error() {
    let load = Load::Exchange(Exchange { connections: 2, request: 1, reply: 1, rate: None, seconds: 0.1 });
    let out = tempfile::tempdir().unwrap();
    let error = load.prepare(&direct(), out.path()).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn iperf3_reports_what_arrived() {
    if tools::IPERF3.find().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI has to install iperf3");
        eprintln!("skipped: iperf3 is not installed; {}", tools::IPERF3.how);
        return;
    }
    for direction in [iperf3::Direction::Up, iperf3::Direction::Reverse, iperf3::Direction::Both] {
        let settings = iperf3::Settings { streams: 2, seconds: 1, direction, rate: Some(200_000_000), message: None };
        let (outcome, server) = run(&Load::Iperf3(settings), &direct()).unwrap();
        let directions = if direction == iperf3::Direction::Both { 2.0 } else { 1.0 };
        let rate = outcome.samples["gbit_per_second"] / directions;
        assert!((0.15..0.25).contains(&rate), "{direction:?}: {outcome:?}");
        assert!(outcome.samples["generator_busy_share"] > 0.0);
        server.stop().unwrap();
    }
}

/// What a forwarder is known to be unable to do, at which load, and why that is its own fault.
const UNABLE: [(&str, &str, &str); 1] =
    [("oi", "connect", "it stops serving when short connections are made and closed fast, a fault of its own")];

/// Every forwarder that is installed carries exchanges, half a thousand connections one after the other, and bulk.
/// spliced stands among them as any other forwarder would, by its command line, and has no excuse.
#[test]
fn installed_peers_forward() {
    let own = format!("spliced={} forward {{listen}} {{target}}", common::spliced().display());
    let (found, missing) = peers::find_all(&[own.parse().unwrap()]);
    for miss in missing {
        eprintln!("skipped: {}: {}", miss.name, miss.how);
    }
    assert!(found.iter().any(|peer| peer.name == "spliced"), "{found:?}");
    assert!(UNABLE.iter().all(|(name, ..)| *name != "spliced"), "spliced has no excuse");
    let mut failures = Vec::new();
    // The kernel's own need namespaces.
    for peer in found.iter().filter(|peer| peer.kind == lab::results::Kind::Peer) {
        for (name, load) in [
            ("exchange", Load::Exchange(Exchange { connections: 4, request: 64, reply: 64, rate: None, seconds: 0.2 })),
            ("connect", Load::Connect(Exchange { connections: 4, request: 1, reply: 1, rate: None, seconds: 0.2 })),
            ("bulk", Load::Bulk(Bulk { streams: 4, message: 65_536, seconds: 0.2 })),
        ] {
            let Err(error) = carries(peer, &load) else { continue };
            match UNABLE.iter().find(|unable| (unable.0, unable.1) == (peer.name.as_str(), name)) {
                Some((.., why)) => eprintln!("known: {} under {name}: {error}; {why}", peer.name),
                None => failures.push(format!("{} under {name}: {error}", peer.name)),
            }
        }
    }
    assert_eq!(failures, [""; 0]);
}

/// Carries a load through a forwarder, and has both ends and the meters agree that it was carried.
fn carries(peer: &peers::Peer, load: &Load) -> Result<(), String> {
    let _alone = alone();
    let told = |error: io::Error| error.to_string();
    let mut wiring = direct();
    wiring.target = wiring.listen;
    let out = tempfile::tempdir().map_err(told)?;
    let server = load.serve(&wiring, out.path()).map_err(told)?;
    let mut running = peer.start(&wiring, out.path()).map_err(told)?;
    let mut ready = load.prepare(&wiring, out.path()).map_err(told)?;
    let meter = lab::sample::Meter::start(&running.tree(), peer.accounting, &wiring).map_err(told)?;
    let outcome = ready.run().map_err(told)?;
    let used = meter.finish().map_err(told)?;
    let want = |right: bool, what: &dyn std::fmt::Debug| if right { Ok(()) } else { Err(format!("{what:?}")) };
    want(!outcome.samples.contains_key("load_errors"), &outcome.notes)?;
    want(outcome.bytes > 0, &outcome)?;
    let (forwarder, machine) = (used.forwarder.seconds(), used.machine.seconds());
    want(forwarder > 0.001 && forwarder < machine, &used)?;
    drop(ready);
    running.check().map_err(told)?;
    let tree = running.tree();
    running.stop().map_err(told)?;
    want(tree.pids().is_empty(), &("left behind", tree.pids()))?;
    server.stop().map_err(told)
}
