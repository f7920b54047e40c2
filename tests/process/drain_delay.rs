//! `drain_delay`: after SIGTERM balancers hear at once that this host is not ready, and nobody is refused until they
//! have had the time to act on it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually, until};
use common::peer::{Echo, Reserved, backend, connect, echoes, metrics_address, reset};
use common::spliced::{Launcher, Spliced};
use nix::sys::signal::Signal;

/// The status a path has.
fn status(metrics: SocketAddr, path: &str) -> u16 {
    let mut stream = connect(metrics);
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

fn start(delay: &str) -> (Reserved, Echo, SocketAddr, Spliced) {
    let (port, echo, metrics) = (Reserved::loopback(), Echo::start(backend()), metrics_address());
    let (listen, to) = (port.address(), echo.address());
    let config =
        format!("drain_delay: {delay}\nmetrics: {metrics}\nforwards: [{{ listen: \"{listen}\", to: \"{to}\" }}]");
    let spliced = Launcher::config(&config).start();
    assert_eq!(status(metrics, "/readyz"), 200);
    (port, echo, metrics, spliced)
}

fn not_ready(metrics: SocketAddr) {
    eventually("it is not ready", LONG, || match status(metrics, "/readyz") {
        503 => Ok(()),
        other => Err(format!("{other}")),
    });
}

fn is_refused(to: SocketAddr) -> bool {
    match TcpStream::connect(to) {
        Ok(early) => {
            reset(early);
            false
        }
        Err(e) => e.kind() == ErrorKind::ConnectionRefused,
    }
}

#[test]
fn who_comes_in_the_delay_is_served() {
    let (port, _echo, metrics, mut spliced) = start("1h");
    let early = connect(port.address());
    assert!(echoes(&early, 1, LONG));
    spliced.signal(Signal::SIGTERM);
    not_ready(metrics);
    assert_eq!(status(metrics, "/healthz"), 200);
    assert!(spliced.stats().0["draining"].as_bool().unwrap());
    let late: Vec<TcpStream> = (0..20).map(|_| connect(port.address())).collect();
    assert!(late.iter().all(|client| echoes(client, 2, LONG)), "nobody is refused yet");
    assert!(echoes(&early, 3, LONG));
    let (code, said) = spliced.ask("reload", &[]);
    assert!(code != Some(0) && said.contains("on its way to its end"), "{said}");

    // The second signal ends the delay and begins the drain; it does not cut sessions.
    spliced.signal(Signal::SIGTERM);
    until("new connections are refused", LONG, || is_refused(port.address()));
    assert_eq!(status(metrics, "/readyz"), 503);
    assert!(late.iter().all(|client| echoes(client, 4, LONG)) && echoes(&early, 5, LONG));
    assert!(spliced.runs());
    drop((early, late));
    assert_eq!(spliced.wait(LONG).code(), Some(0), "{}", spliced.text());
}

#[test]
fn after_the_delay_it_drains_by_itself() {
    let (port, _echo, metrics, mut spliced) = start("1500ms");
    let client = connect(port.address());
    let signalled = Instant::now();
    spliced.signal(Signal::SIGTERM);
    not_ready(metrics);
    let mut served = 0;
    until("new connections are refused", LONG, || {
        let refused = is_refused(port.address());
        served += u32::from(!refused);
        refused
    });
    let took = signalled.elapsed();
    assert!(took >= Duration::from_millis(1500) && served > 0, "refused after {took:?}, {served} were served");
    assert!(echoes(&client, 1, LONG), "its session goes on");
    assert!(spliced.logged("draining: ").iter().any(|line| line.contains("open")), "{}", spliced.text());
    drop(client);
    assert_eq!(spliced.wait(LONG).code(), Some(0), "{}", spliced.text());
}

/// Without the option nothing has changed: who comes after the signal is refused.
#[test]
fn the_default_is_no_delay() {
    let (port, _echo, _metrics, mut spliced) = start("0s");
    let client = connect(port.address());
    assert!(echoes(&client, 1, LONG));
    spliced.signal(Signal::SIGTERM);
    until("new connections are refused", LONG, || is_refused(port.address()));
    assert!(spliced.logged("not ready any more").is_empty(), "{}", spliced.text());
    drop(client);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
}
