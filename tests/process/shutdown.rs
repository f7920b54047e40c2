//! SIGTERM and SIGINT: stop accepting, finish sessions up to the drain time, exit 0; the second signal exits at once.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, throughout, until};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::{backend, end_of, reset};
use common::spliced::Spliced;
use nix::sys::signal::Signal;

/// Connections are refused, which also says that the signal has arrived. What was accepted before is reset, so that
/// no session is left of it.
fn refuses_connections(path: &Path) {
    until("new connections are refused", LONG, || match TcpStream::connect(path.front()) {
        Ok(early) => {
            reset(early);
            false
        }
        Err(e) => e.kind() == ErrorKind::ConnectionRefused,
    });
}

fn exits_clean(mut spliced: Spliced, within: Duration) {
    let status = spliced.wait(within);
    assert_eq!(status.code(), Some(0), "{}", spliced.text());
    assert!(spliced.logged("panicked").is_empty(), "{}", spliced.text());
}

/// Catches a shutdown that cuts sessions, and one that goes on accepting.
fn drains(signal: Signal) {
    let mut path = Path::new(Via::AUTO);
    let (client, server) = path.pair();
    let pattern = Pattern::new(1);
    pattern.send(&client, 0, 100).expect("send");
    pattern.expect(&server, 0, 100);
    let mut spliced = path.spliced.take().expect("in between");
    spliced.signal(signal);
    refuses_connections(&path);
    until("a line tells of the open session", LONG, || {
        spliced.logged("draining").iter().any(|line| line.contains("1 session"))
    });
    // The session goes on as if nothing had happened, both ways and to both ends.
    pattern.send(&server, 0, 200_000).expect("send");
    pattern.expect(&client, 0, 200_000);
    pattern.send(&client, 100, 200_000).expect("send");
    pattern.expect(&server, 100, 200_000);
    throughout("it waits for the session", Duration::from_millis(300), || {
        if spliced.runs() { Ok(()) } else { Err("it has ended".to_owned()) }
    });
    assert!(spliced.stats().0["draining"].as_bool() == Some(true), "the counters say that it drains");
    drop(client);
    pattern.expect_whole(&server, 200_000, 200_000);
    drop(server);
    exits_clean(spliced, Duration::from_secs(3));
}

#[test]
fn sigterm_drains() {
    drains(Signal::SIGTERM);
}

#[test]
fn sigint_drains() {
    drains(Signal::SIGINT);
}

#[test]
fn bulk_under_way_arrives_whole() {
    for via in [Via::AUTO, Via::COPY] {
        let mut path = Path::new(via);
        let (client, server) = path.pair();
        let spliced = path.spliced.take().expect("in between");
        let pattern = Pattern::new(1);
        let len = 40 << 20;
        thread::scope(|scope| {
            scope.spawn(|| {
                pattern.send(&client, 0, len).expect("send");
                client.shutdown(Shutdown::Write).expect("half-close");
            });
            pattern.expect(&server, 0, len / 4);
            spliced.signal(Signal::SIGTERM);
            refuses_connections(&path);
            pattern.expect_whole(&server, len / 4, len);
        });
        drop((client, server));
        exits_clean(spliced, Duration::from_secs(3));
    }
}

#[test]
fn with_nothing_open_it_ends_at_once() {
    let path = Path::new(Via::AUTO);
    let spliced = path.spliced.expect("in between");
    spliced.signal(Signal::SIGTERM);
    exits_clean(spliced, Duration::from_secs(2));
}

/// A session that does not end is cut when the time is over, and its peers must not take that for a clean end.
#[test]
fn the_drain_time_ends_what_is_left() {
    let mut path = Path::configured(Via::AUTO, backend(), "timeouts: { drain: 1s }");
    let (client, server) = path.pair();
    let spliced = path.spliced.take().expect("in between");
    let start = Instant::now();
    spliced.signal(Signal::SIGTERM);
    assert_eq!(end_of(&client), Err(ErrorKind::ConnectionReset), "the client's end");
    assert_eq!(end_of(&server), Err(ErrorKind::ConnectionReset), "the backend's end");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900), "the drain time is 1 s, sessions were cut after {took:?}");
    assert!(took <= Duration::from_secs(4), "the drain time is 1 s, sessions were cut after {took:?}");
    exits_clean(spliced, Duration::from_secs(3));
}

/// The default drain time is 30 s; the second signal does not wait for it.
#[test]
fn the_second_signal_ends_it_at_once() {
    let mut path = Path::new(Via::AUTO);
    let (client, server) = path.pair();
    let mut spliced = path.spliced.take().expect("in between");
    spliced.signal(Signal::SIGTERM);
    refuses_connections(&path);
    assert!(spliced.runs(), "the first signal waits for the session");
    spliced.signal(Signal::SIGTERM);
    let status = spliced.wait(Duration::from_secs(3));
    assert_eq!(status.code(), Some(0), "{}", spliced.text());
    assert_eq!(end_of(&client), Err(ErrorKind::ConnectionReset), "the client's end");
    assert_eq!(end_of(&server), Err(ErrorKind::ConnectionReset), "the backend's end");
}

/// The two signals need not be the same.
#[test]
fn an_interrupt_after_a_sigterm_is_the_second_signal() {
    let mut path = Path::new(Via::AUTO);
    let _ends = path.pair();
    let mut spliced = path.spliced.take().expect("in between");
    spliced.signal(Signal::SIGTERM);
    refuses_connections(&path);
    spliced.signal(Signal::SIGINT);
    spliced.wait(Duration::from_secs(3));
}
