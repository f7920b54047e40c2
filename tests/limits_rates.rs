//! Rates: new connections and bytes per second, of a forward and of a source; what is over them waits or is refused; bytes
//! keep their path.

#![cfg(target_os = "linux")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, until};
use common::path::{Path, Via};
use common::pattern::{Pattern, exchange};
use common::peer::{Echo, Reserved, accept, backend, connect, connect_or_reset, echoes, with_deadlines};
use common::spliced::{Launcher, Spliced};
use socket2::{Domain, Socket, Type};

const MIB: u64 = 1 << 20;

/// Held by every test that measures: two at a time would measure each other.
static MEASURING: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MEASURING.lock().unwrap_or_else(PoisonError::into_inner)
}

common::scenarios!(
    also_direct: [],
    engines: [
        one_session_has_the_rate,
        fifty_sessions_share_the_rate,
        every_byte_arrives_under_a_rate,
        a_reset_goes_through_while_bytes_wait,
    ],
);

/// A path with options of the command line.
fn limited(via: Via, options: &[(&str, &str)]) -> Path {
    Path::with(via, backend(), |launcher| {
        options.iter().fold(launcher, |launcher, (name, value)| launcher.option(name, value))
    })
}

/// Bytes per second that arrive over several streams, all sending as fast as they can, from one end to the other.
fn throughput(pairs: &[(TcpStream, TcpStream)], time: Duration) -> Vec<f64> {
    let stop = AtomicBool::new(false);
    let counts: Vec<AtomicU64> = pairs.iter().map(|_| AtomicU64::new(0)).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for ((from, to), count) in pairs.iter().zip(&counts) {
            let stop = &stop;
            scope.spawn(move || {
                let block = vec![0x5a; 128 * 1024];
                let mut from = from;
                while !stop.load(Ordering::Relaxed) && from.write_all(&block).is_ok() {}
            });
            scope.spawn(move || {
                let mut block = vec![0; 128 * 1024];
                let mut to = to;
                while let Ok(n @ 1..) = to.read(&mut block) {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                }
            });
        }
        thread::park_timeout(time);
        let seconds = begun.elapsed().as_secs_f64();
        let rates = counts.iter().map(|count| count.load(Ordering::Relaxed) as f64 / seconds).collect();
        stop.store(true, Ordering::Relaxed);
        for (from, to) in pairs {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        }
        rates
    })
}

/// Measures until what is measured is within 5 % of what is allowed, a few times at most: tokens that nobody could use
/// while the machine did something else are lost. More than is allowed is a failure at once.
fn close_to(allowed: &[u64], mut measure: impl FnMut() -> Vec<f64>) {
    let mut seen = Vec::new();
    for _ in 0..5 {
        let rates = measure();
        assert_eq!(rates.len(), allowed.len());
        let off = |(rate, allowed): (&f64, &u64)| (rate / *allowed as f64 - 1.0) * 100.0;
        let off: Vec<f64> = rates.iter().zip(allowed).map(off).collect();
        seen.push(format!("{off:.1?} %"));
        assert!(off.iter().all(|off| *off <= 5.0), "more than {allowed:?} B/s: {seen:?} off");
        if off.iter().all(|off| *off >= -5.0) {
            eprintln!("{allowed:?} B/s: {seen:?} off");
            return;
        }
    }
    panic!("less than {allowed:?} B/s in every try: {seen:?} off");
}

fn one_session_has_the_rate(via: Via) {
    let _alone = alone();
    let path = limited(via, &[("--rate", "20MiB/s")]);
    // The two directions are limited apart from each other.
    close_to(&[20 * MIB; 2], || {
        let (client, server) = path.pair();
        let back = (server.try_clone().expect("a descriptor"), client.try_clone().expect("a descriptor"));
        throughput(&[(client, server), back], Duration::from_secs(3))
    });
    let spliced = path.spliced.as_ref().expect("in between");
    let stats = spliced.stats_until("it has ended", |stats| stats.open() == 0);
    assert!(stats.number("/total/rate_waits") > 0);
    for moved in [stats.up(), stats.down()] {
        let share = moved.splice as f64 / moved.all() as f64;
        assert!(if via.splices() { share > 0.95 } else { share == 0.0 }, "{moved:?}");
    }
    path.finish();
}

fn fifty_sessions_share_the_rate(via: Via) {
    let _alone = alone();
    let path = limited(via, &[("--rate", "20MiB/s"), ("--workers", "2")]);
    let spliced = path.spliced.as_ref().expect("in between");
    close_to(&[20 * MIB], || {
        let pairs: Vec<_> = (0..50).map(|_| path.pair()).collect();
        let before = spliced.process().cpu();
        let mut rates = throughput(&pairs, Duration::from_secs(3));
        let used = spliced.process().cpu() - before;
        rates.sort_by(f64::total_cmp);
        let (least, middle) = (rates[0], rates[25]);
        assert!(least >= 0.5 * middle, "the slowest has {least:.0} B/s, the one in the middle {middle:.0}");
        // A wait costs a wake-up, not a loop.
        assert!(used < Duration::from_millis(900), "{used:?} of CPU time in 3 s");
        vec![rates.iter().sum()]
    });
    spliced.stats_until("all have ended", |stats| stats.open() == 0);
    path.finish();
}

fn every_byte_arrives_under_a_rate(via: Via) {
    let _alone = alone();
    let path = limited(via, &[("--rate", "8MiB/s"), ("--rate-per-source", "4MiB/s burst 8MiB")]);
    let begun = Instant::now();
    let (up, down) = (10 * MIB + 4_321, 9 * MIB + 1);
    path.exchange(up, down);
    let took = begun.elapsed();
    // 8 MiB at once are allowed for the source, but not for the forward.
    assert!(took >= Duration::from_millis(900), "19 MiB in {took:?}");
    path.settled(up, down);
    path.ended("done", 1);
    // Small messages below the rate do not wait at all.
    let (mut client, mut server) = path.pair();
    let begun = Instant::now();
    for n in 0..=255 {
        client.write_all(&[n]).expect("send");
        let mut byte = [0];
        server.read_exact(&mut byte).expect("receive");
        assert_eq!(byte, [n]);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "256 small messages took {:?}", begun.elapsed());
    drop((client, server));
    path.finish();
}

fn a_reset_goes_through_while_bytes_wait(via: Via) {
    let path = limited(via, &[("--rate", "1KiB/s burst 1KiB")]);
    let (client, server) = path.pair();
    let pattern = Pattern::new(1);
    client.set_nonblocking(true).expect("non-blocking");
    pattern.send_now(&client, 0, MIB);
    let spliced = path.spliced.as_ref().expect("in between");
    spliced.stats_until("it waits", |stats| stats.number("/total/rate_waits") > 0);
    common::peer::reset(server);
    let begun = Instant::now();
    assert_eq!(common::peer::pending_error(&client), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(2), "the reset took {:?}", begun.elapsed());
    path.ended("reset_by_backend", 1);
    drop(client);
    path.finish();
}

/// A connection from a given address of this host; `None` when it was reset before connect(2) has told of its success.
fn connect_from(source: [u8; 4], to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(IpAddr::from(source), 0).into()).expect("all of 127.0.0.0/8 is local");
    match socket.connect(&to.into()) {
        Ok(()) => Some(with_deadlines(socket.into())),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
        Err(e) => panic!("connect to {to}: {e}"),
    }
}

#[test]
fn each_source_has_its_own_bytes() {
    let _alone = alone();
    let (port, backend) = (Reserved::loopback(), backend());
    let spliced = Launcher::forward(port.address(), backend.local_addr().expect("bound"))
        .option("--rate-per-source", "5MiB/s")
        .option("--engine", "splice")
        .start();
    close_to(&[5 * MIB; 2], || {
        let from = |last| connect_from([127, 0, 0, last], port.address()).expect("not refused");
        let pairs = [2, 3, 3, 3].map(|last| (from(last), accept(&backend)));
        let rates = throughput(&pairs, Duration::from_secs(3));
        // One session of one source, three of another.
        vec![rates[0], rates[1..].iter().sum()]
    });
    spliced.stats_until("all have ended", |stats| stats.open() == 0);
    until("both sources are forgotten", LONG, || spliced.stats().number("/sources") == 0);
    spliced.finish();
}

/// Clients that connect, exchange a byte and leave, as many as come through in a time.
fn storm(front: SocketAddr, clients: usize, time: Duration) -> (u64, u64) {
    let (served, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + time;
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while Instant::now() < end {
                    match connect_or_reset(front) {
                        Some(client) if echoes(&client, 1, LONG) => served.fetch_add(1, Ordering::Relaxed),
                        _ => refused.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
    });
    (served.into_inner(), refused.into_inner())
}

fn storm_limited(options: &[(&str, &str)]) -> (Spliced, u64, u64) {
    let _alone = alone();
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let launcher = Launcher::forward(port.address(), echo.address()).option("--workers", "4");
    let spliced = options.iter().fold(launcher, |launcher, (name, value)| launcher.option(name, value)).start();
    let (served, refused) = storm(port.address(), 8, Duration::from_secs(3));
    (spliced, served, refused)
}

#[test]
fn new_connections_over_the_rate_wait_their_turn() {
    let (spliced, served, refused) = storm_limited(&[("--connection-rate", "100/s burst 20")]);
    // Three seconds, the burst, and those that wait at the end; a busy machine uses up less.
    assert!((240..=340).contains(&served), "{served} connections at 100/s in 3 s");
    assert_eq!(refused, 0, "a queue refuses nobody");
    assert_eq!(spliced.stats().ends("rate"), 0);
    spliced.finish();
}

#[test]
fn new_connections_over_the_rate_are_refused_where_that_is_asked_for() {
    let options = [("--connection-rate", "100/s burst 20"), ("--when-full", "refuse")];
    let (spliced, served, refused) = storm_limited(&options);
    assert!((240..=325).contains(&served), "{served} connections at 100/s in 3 s");
    assert!(refused > 0);
    spliced.ended("rate", refused);
    spliced.finish();
}

#[test]
fn new_connections_of_one_source_are_refused_and_others_are_not() {
    let _alone = alone();
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address())
        .option("--connection-rate-per-source", "1/s burst 5")
        .option("--connection-rate", "1000/s")
        .start();
    let serves = |last: u8| {
        (0..20)
            .filter(|_| connect_from([127, 0, 0, last], port.address()).is_some_and(|client| echoes(&client, 1, LONG)))
            .count()
    };
    for last in [2, 3] {
        let begun = Instant::now();
        let served = serves(last);
        let more = usize::try_from(begun.elapsed().as_secs()).expect("few") + 1;
        assert!((5..=5 + more).contains(&served), "{served} of 20 from one source");
    }
    let stats = spliced.stats_until("all have ended", |stats| stats.open() == 0);
    assert!(stats.ends("rate") >= 20, "{}", stats.0);
    until("both sources are forgotten once their buckets are full", LONG, || spliced.stats().number("/sources") == 0);
    spliced.finish();
}

#[test]
fn nothing_waits_below_a_rate() {
    let (port, backend) = (Reserved::loopback(), backend());
    let spliced = Launcher::forward(port.address(), backend.local_addr().expect("bound"))
        .option("--rate", "10GiB/s")
        .option("--connection-rate", "100000/s")
        .start();
    for _ in 0..100 {
        let client = connect(port.address());
        let server = accept(&backend);
        exchange(&client, &server, 10_000, 10_000);
    }
    let stats = spliced.stats_until("all have ended", |stats| stats.open() == 0);
    assert_eq!((stats.number("/total/rate_waits"), stats.ends("done")), (0, 100));
    spliced.finish();
}
