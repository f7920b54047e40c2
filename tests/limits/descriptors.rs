//! Out of descriptors: no spin, one line, and service resumes by itself, queued connections included.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::deadline::{LONG, throughout, until};
use common::peer::{Echo, Reserved, backend, connect, echoes, metrics_address};
use common::shortage::{NO_MORE, UsedUp};
use common::spliced::{Launcher, Spliced, can_inject};
use common::stats::Stats;
use nix::sys::signal::Signal;

/// The soft and hard limit of a running process.
fn limits(spliced: &Spliced) -> (String, String) {
    let text = fs::read_to_string(format!("/proc/{}/limits", spliced.process().0)).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the kernel's limits");
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().expect("the soft limit"), words.next().expect("the hard limit"))
}

#[test]
fn the_soft_limit_is_raised_at_the_start() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address())
        .through(["sh", "-c", "ulimit -S -n 64 && exec \"$0\" \"$@\""])
        .start();
    let (soft, hard) = limits(&spliced);
    assert_eq!(soft, hard, "soft and hard limit");
    assert_ne!(soft, "64");
    spliced.finish();
}

#[test]
fn service_survives_and_resumes() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).descriptors(64).start();
    // As many as fit are served, the others wait; nobody is turned away.
    let mut clients = UsedUp::with_waiting(10, port.address());
    let process = spliced.process();
    let before = process.cpu();
    throughout("no spin without descriptors", Duration::from_secs(1), || {
        let used = process.cpu() - before;
        if used <= Duration::from_millis(50) { Ok(()) } else { Err(format!("{used:?} of CPU time")) }
    });
    assert!(clients.served.iter().all(|client| echoes(client, 2, LONG)), "open sessions go on");
    assert_eq!(spliced.says(NO_MORE).len(), 1, "one line, not one for each try");
    // Room for the rest, one at a time.
    clients.serve_all();
    drop(clients);
    assert_eq!(spliced.stats().ends("no_descriptors"), 0, "nobody was turned away");
    let lines = spliced.logged(NO_MORE).len();
    assert!(lines <= 3, "{lines} lines in a few seconds about one shortage");
    spliced.finish();
}

#[test]
fn a_queued_connection_is_served_soon_after_descriptors_come_back() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).descriptors(64).start();
    let mut clients = UsedUp::with_waiting(1, port.address());
    let freed = Instant::now();
    clients.relieve(4);
    until("the queued connection is served", LONG, || clients.is_one_answered());
    // The promise is 100 ms; the rest is for a machine that does much else.
    assert!(freed.elapsed() < Duration::from_secs(2), "it waited {:?}", freed.elapsed());
    drop(clients);
    spliced.finish();
}

/// Each number is once odd and once even for the sessions, whatever else the process holds. A client that was taken
/// without a descriptor for its backend would be ended after the time a connect may take.
#[test]
fn no_client_is_taken_without_a_descriptor_for_its_backend_and_questions_are_answered() {
    for limit in [64_u8, 65] {
        let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
        let address = metrics_address();
        let spliced = Launcher::forward(port.address(), echo.address())
            .option("--connect-timeout", "100ms")
            .option("--metrics", address.to_string())
            .descriptors(limit.into())
            .start();
        let mut clients = UsedUp::with_waiting(8, port.address());
        throughout("out of descriptors", Duration::from_secs(1), || {
            // One question, not tried again.
            let stats = Stats::ask(spliced.control()).map_err(|e| format!("no statistics: {e}"))?;
            if page(address).is_none_or(|page| !page.contains("spliced_")) {
                return Err("no metrics".to_owned());
            }
            match stats.ends("no_descriptors") {
                0 => Ok(()),
                _ => Err(format!("limit {limit}: {}", stats.0)),
            }
        });
        clients.serve_all();
        drop(clients);
        assert_eq!(spliced.stats().ends("no_descriptors"), 0, "nobody was turned away");
        spliced.finish();
    }
}

/// What the metrics endpoint answers.
fn page(address: SocketAddr) -> Option<String> {
    let mut stream = connect(address);
    let mut answer = String::new();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What the kernel says when the whole system is out of descriptors or memory, which a test must not bring about.
#[test]
fn other_shortages_are_waited_out() {
    if !can_inject() {
        return;
    }
    for errno in ["ENFILE", "ENOBUFS", "ENOMEM"] {
        let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
        let mut spliced = Launcher::forward(port.address(), echo.address())
            .inject(&[&format!("accept4:error={errno}:when=1..4")])
            .start();
        let client = connect(port.address());
        assert!(echoes(&client, 3, LONG), "served after {errno} is over");
        assert_eq!(spliced.says(NO_MORE).len(), 1, "{errno}: one line");
        assert!(spliced.trace().contains(&format!("{errno} ")), "nothing was injected");
        drop(client);
        spliced.ended("done", 1);
        // What it held at its start says nothing: the shortage began before, and with it the control thread gave up its
        // own spare descriptors.
        spliced.signal(Signal::SIGTERM);
        assert_eq!(spliced.wait(LONG).code(), Some(0), "{errno}");
    }
}

#[test]
fn a_lasting_shortage_is_not_tried_in_a_spin() {
    if !can_inject() {
        return;
    }
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced =
        Launcher::forward(port.address(), echo.address()).inject(&["accept4:error=ENFILE"]).start_without_control();
    let client = connect(port.address());
    until("the first try", LONG, || spliced.trace().contains("ENFILE"));
    // Two workers and the control socket, each at most every 10 ms, and at least every 100 ms: so soon is it served
    // again. A quarter of that is enough on a busy machine.
    let tries = || spliced.trace().matches("INJECTED").count();
    throughout("few tries", Duration::from_secs(1), || {
        let tries = tries();
        if tries <= 300 { Ok(()) } else { Err(format!("{tries} tries")) }
    });
    assert!(tries() >= 3, "{} tries in a second", tries());
    assert_eq!(spliced.says(NO_MORE).len(), 1, "one line");
    drop(client);
}
