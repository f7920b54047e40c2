//! A storm of clients that nobody has a descriptor for: no CPU, one line, and service again as soon as there is one.

#![cfg(target_os = "linux")]

mod common;

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, until};
use common::peer::{Echo, Reserved, backend, connect, echoes};
use common::spliced::Launcher;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// What the line says.
const NO_MORE: &str = " descriptors are allowed (ulimit -n";
const ROUNDS: u8 = 40;
const PER_ROUND: usize = 500;

/// Begins a connection and does not wait for it; from an address of its own for every round, so that ports suffice.
fn begin(round: u8, to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 1, round], 0)).into()).expect("all of 127.0.0.0/8 is local");
    // It goes without a trace when it is dropped.
    socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    let _ = socket.connect(&to.into());
    socket
}

#[test]
fn twenty_thousand_clients_and_no_descriptor() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(4096)), hard).expect("up to the hard limit");
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).descriptors(64).start();
    // As many sessions as fit, and some clients in the queue that stay.
    let mut served: Vec<TcpStream> = Vec::new();
    let mut waiting: Vec<TcpStream> = Vec::new();
    while waiting.len() < 8 {
        let client = connect(port.address());
        let within = if waiting.is_empty() { Duration::from_secs(1) } else { Duration::from_millis(10) };
        if echoes(&client, 1, within) {
            served.push(client)
        } else {
            waiting.push(client)
        }
        assert!(served.len() < 60, "64 descriptors were never used up");
    }
    // Descriptors run out for good now: pooled pipes have been given up.
    let process = spliced.process();
    let (before, begun) = (process.cpu(), Instant::now());
    for round in 1..=ROUNDS {
        let clients: Vec<Socket> = (0..PER_ROUND).map(|_| begin(round, port.address())).collect();
        assert!(served.iter().all(|client| echoes(client, round, LONG)), "open sessions go on");
        drop(clients);
        // In 8 seconds altogether: the promise is a share of time, and a flood of no time at all would be none.
        let next = begun + Duration::from_millis(200) * u32::from(round);
        thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    let (used, took) = (process.cpu() - before, begun.elapsed());
    eprintln!("{used:?} of CPU time in {took:?} for {} clients", usize::from(ROUNDS) * PER_ROUND);
    assert!(used < took / 20, "{used:?} of CPU time in {took:?}");
    assert_eq!(spliced.logged(NO_MORE).len(), 1, "one line, not one for each try or client");
    // Relief: the first who waits is served, though thousands have come after it.
    let freed = Instant::now();
    served.truncate(served.len() - 4);
    until("a queued client is served", LONG, || waiting.iter().any(answered));
    // The promise is 100 ms; the rest is for a busy machine.
    assert!(freed.elapsed() < Duration::from_millis(400), "it waited {:?}", freed.elapsed());
    until("every queued client is served", LONG, || {
        served.pop();
        waiting.retain(|client| !answered(client));
        waiting.is_empty()
    });
    assert_eq!(spliced.stats().ends("no_descriptors"), 0, "nobody was turned away");
    drop(served);
    spliced.finish();
}

/// The byte sent while waiting has come back; it stays to be seen again.
fn answered(client: &TcpStream) -> bool {
    client.set_read_timeout(Some(Duration::from_millis(1))).expect("a short deadline");
    client.peek(&mut [0]).is_ok_and(|n| n == 1)
}
