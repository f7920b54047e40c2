//! A target that does not take a connection costs the client nothing but time.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::pattern::Pattern;
use common::peer::{FullBackend, Reserved, accept, backend, connect, connect_or_reset, end_of};
use common::spliced::{Launcher, Spliced};

fn start(port: &Reserved, targets: &[SocketAddr], options: &str) -> Spliced {
    let list: Vec<_> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    let to = list.join(", ");
    let forward = format!("{{ name: test, listen: \"{}\", to: [{to}] }}", port.address());
    Launcher::config(&format!("workers: 1\n{options}\nforwards: [{forward}]\n")).start()
}

/// Sends before there is a backend, and sees at the backend that every byte comes once.
fn whole_through(port: &Reserved, listener: &std::net::TcpListener) {
    let pattern = Pattern::new(1);
    let client = connect(port.address());
    pattern.send(&client, 0, 50_000).expect("send");
    let server = accept(listener);
    pattern.expect(&server, 0, 50_000);
    drop(client);
    pattern.expect_whole(&server, 50_000, 50_000);
}

#[test]
fn a_target_that_does_not_answer_is_given_its_time_and_no_more() {
    let (port, full, live) = (Reserved::loopback(), FullBackend::new(), backend());
    let targets = [full.try_clone().local_addr().expect("bound"), live.local_addr().expect("bound")];
    let options = "health: none\ntimeouts: { connect: 20s, connect_attempt: 300ms }";
    let spliced = start(&port, &targets, options);
    let begun = Instant::now();
    for _ in 0..4 {
        whole_through(&port, &live);
    }
    // Two of the four began with the one that does not answer.
    let took = begun.elapsed();
    assert!((Duration::from_millis(550)..Duration::from_secs(5)).contains(&took), "{took:?}");
    spliced.ended("done", 4);
    let stats = spliced.stats();
    assert_eq!(stats.number("/total/retries"), 2);
    assert_eq!(stats.number("/forwards/0/targets/0/failures"), 2);
    assert_eq!(stats.number("/forwards/0/targets/1/failures"), 0);
    drop(full);
    spliced.finish();
}

#[test]
fn retries_are_bounded_by_their_number() {
    let (port, dead, live) = (Reserved::loopback(), [(); 2].map(|()| Reserved::loopback()), backend());
    let targets = [dead[0].address(), dead[1].address(), live.local_addr().expect("bound")];
    for (retries, refused) in [("0", 2), ("1", 1), ("2", 0), ("all", 0)] {
        let spliced = start(&port, &targets, &format!("health: none\nretries: {retries}"));
        // One client for each target to begin with.
        let mut served = 0;
        for turn in 0..3 {
            let client = connect_or_reset(port.address());
            let is_refused = matches!((retries, turn), ("0", 0 | 1) | ("1", 0));
            if is_refused {
                assert!(
                    client.as_ref().is_none_or(|client| end_of(client).is_err()),
                    "retries {retries}, client {turn}"
                );
                continue;
            }
            client.as_ref().expect("it is served").write_all(b"x").expect("send");
            drop(accept(&live));
            served += 1;
        }
        assert_eq!(served, 3 - refused);
        spliced.ended("refused", refused);
        spliced.finish();
    }
}

#[test]
fn all_attempts_together_are_bounded_by_the_connect_timeout() {
    let (port, full) = (Reserved::loopback(), [(); 3].map(|()| FullBackend::new()));
    let targets = [0, 1, 2].map(|at: usize| full[at].try_clone().local_addr().expect("bound"));
    let spliced = start(&port, &targets, "timeouts: { connect: 700ms, connect_attempt: 500ms }");
    let begun = Instant::now();
    let client = connect(port.address());
    assert!(end_of(&client).is_err(), "it is reset");
    let took = begun.elapsed();
    assert!((Duration::from_millis(650)..Duration::from_secs(4)).contains(&took), "{took:?}");
    spliced.ended("connect_timeout", 1);
    assert_eq!(spliced.stats().number("/total/retries"), 1);
    drop((client, full));
    spliced.finish();
}

#[test]
fn a_single_target_is_given_up_after_the_time_of_an_attempt() {
    let (port, full) = (Reserved::loopback(), FullBackend::new());
    let target = full.try_clone().local_addr().expect("bound");
    let spliced = start(&port, &[target], "timeouts: { connect: 20s, connect_attempt: 300ms }");
    let begun = Instant::now();
    let client = connect(port.address());
    assert!(end_of(&client).is_err(), "it is reset");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    spliced.ended("connect_timeout", 1);
    drop((client, full));
    spliced.finish();
}
