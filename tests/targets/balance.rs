//! Several targets: who gets which share of the sessions.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually, until};
use common::peer::{Reserved, connect, connect_or_reset, end_of, with_deadlines};
use common::spliced::{Launcher, Spliced};
use common::target::{Number, Target, ask, hold, request, shares};
use socket2::{Domain, Socket, Type};

/// A configuration with one forward; each target has an address and what else is said of it.
fn config(port: &Reserved, targets: &[(&Target, &str)], options: &str) -> String {
    let list: Vec<_> = targets
        .iter()
        .map(|(target, more)| format!("{{ to: \"{}\", {more} }}", target.address()).replace(",  }", " }"))
        .collect();
    format!("{options}\nforwards: [{{ name: test, listen: \"{}\", to: [{}] }}]\n", port.address(), list.join(", "))
}

fn up(count: Number) -> Vec<Target> {
    (0..count).map(Target::up).collect()
}

fn start(port: &Reserved, targets: &[(&Target, &str)], options: &str) -> Spliced {
    Launcher::config(&config(port, targets, options)).start()
}

/// The target that answers a client with that address.
fn ask_from(client: [u8; 4], address: SocketAddr) -> Number {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::from(client), 0)).into()).expect("all of 127.0.0.0/8 is ours");
    socket.connect(&address.into()).expect("connect");
    request(&with_deadlines(TcpStream::from(socket)), LONG).expect("an answer")
}

/// A counter of a target.
fn counter(spliced: &Spliced, target: usize, name: &str) -> u64 {
    spliced.stats().number(&format!("/forwards/0/targets/{target}/{name}"))
}

#[test]
fn shares_follow_the_weights() {
    let (port, targets) = (Reserved::loopback(), up(3));
    let weighted = [(&targets[0], "weight: 3"), (&targets[1], ""), (&targets[2], "weight: 2")];
    let spliced = start(&port, &weighted, "workers: 1");
    let got = shares::<3>((0..60).map(|_| ask(port.address()).expect("an answer")));
    assert_eq!(got, [30, 10, 20]);
    spliced.ended("done", 60);
    for (target, connects) in got.iter().enumerate() {
        assert_eq!(counter(&spliced, target, "connects"), *connects as u64);
        assert_eq!(counter(&spliced, target, "sessions_open"), 0);
    }
    spliced.finish();
}

#[test]
fn the_fewest_connections_are_counted_over_all_workers() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let weighted = [(&targets[0], ""), (&targets[1], "weight: 3")];
    let spliced = start(&port, &weighted, "workers: 4\nbalance: least_connections");
    let held: Vec<_> = (0..24).map(|_| hold(port.address())).collect();
    assert_eq!(shares::<2>(held.iter().map(|held| held.1)), [6, 18]);
    // Whoever has lost its sessions gets the next ones.
    let (gone, kept): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.1 == 1);
    drop(gone);
    until("they have ended", LONG, || counter(&spliced, 1, "sessions_open") == 0);
    let more: Vec<_> = (0..18).map(|_| hold(port.address())).collect();
    assert_eq!(shares::<2>(more.iter().map(|held| held.1)), [0, 18]);
    drop((kept, more));
    spliced.finish();
}

#[test]
fn two_at_random_keep_the_load_even() {
    let (port, targets) = (Reserved::loopback(), up(3));
    let all: Vec<_> = targets.iter().map(|target| (target, "")).collect();
    let spliced = start(&port, &all, "workers: 2\nbalance: random_two");
    let held: Vec<_> = (0..60).map(|_| hold(port.address())).collect();
    let got = shares::<3>(held.iter().map(|held| held.1));
    // The fullest of three never wins against either of the others: it can lead by little.
    assert!(got.iter().all(|share| (16..=24).contains(share)), "{got:?}");
    drop(held);
    spliced.finish();
}

#[test]
fn a_client_keeps_its_target_and_a_new_target_moves_its_share() {
    let (port, targets) = (Reserved::loopback(), up(5));
    let all: Vec<_> = targets.iter().map(|target| (target, "")).collect();
    let options = "workers: 2\nbalance: source_hash";
    let spliced = start(&port, &all[..4], options);
    let clients: Vec<[u8; 4]> = (0..200).map(|n| [127, 0, 1 + n / 100, 1 + n % 100]).collect();
    let ask_all = || clients.iter().map(|client| ask_from(*client, port.address())).collect::<Vec<_>>();
    let before = ask_all();
    assert_eq!(ask_all(), before, "the same client, the same target");
    let got = shares::<4>(before.iter().copied());
    assert!(got.iter().all(|share| (25..=80).contains(share)), "{got:?}");
    spliced.reload_with(&config(&port, &all, options));
    let after = ask_all();
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.iter().all(|(_, after)| **after == 4), "only to the new one: {moved:?}");
    // A fifth, give or take five standard deviations.
    assert!((12..=68).contains(&moved.len()), "{} of 200 moved", moved.len());
    spliced.reload_with(&config(&port, &all[..4], options));
    assert_eq!(ask_all(), before, "and back again");
    spliced.finish();
}

#[test]
fn a_backup_serves_only_while_no_other_can() {
    let (port, mut targets) = (Reserved::loopback(), up(3));
    let roles = [(&targets[0], ""), (&targets[1], "backup: true"), (&targets[2], "")];
    let spliced = start(&port, &roles, "workers: 2\nhealth: { fails: 1, eject: 300ms, eject_max: 300ms }");
    let ask_many = || shares::<3>((0..20).map(|_| ask(port.address()).expect("an answer")));
    assert_eq!(ask_many()[1], 0);
    targets[0].kill();
    assert_eq!(ask_many(), [0, 0, 20]);
    targets[2].kill();
    assert_eq!(ask_many(), [0, 20, 0]);
    targets[0].start();
    eventually("the target serves again", LONG, || {
        if ask(port.address()) == Ok(0) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    until("and the backup rests", LONG, || ask_many() == [20, 0, 0]);
    spliced.finish();
}

#[test]
fn a_client_waits_while_all_targets_are_full() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let full = [(&targets[0], "max_connections: 2"), (&targets[1], "max_connections: 1")];
    let spliced = start(&port, &full, "workers: 3");
    let mut held: Vec<_> = (0..3).map(|_| hold(port.address())).collect();
    assert_eq!(shares::<2>(held.iter().map(|held| held.1)), [2, 1]);
    let waiting: Vec<_> = (0..3).map(|_| connect(port.address())).collect();
    spliced.stats_until("they wait", |stats| stats.open() == 6);
    assert_eq!(request(&waiting[0], Duration::from_millis(300)), Err(common::target::Lost::Late));
    // What was sent while waiting is answered when there is room, and the room of one target is that of its sessions.
    let (stream, number) = held.remove(0);
    drop(stream);
    let served = eventually("one of them is served", LONG, || {
        counter(&spliced, usize::from(number), "connects")
            .checked_sub(if number == 0 { 3 } else { 2 })
            .ok_or_else(|| "no".to_owned())
    });
    assert_eq!(served, 0, "one and no more");
    drop(held);
    for stream in &waiting[1..] {
        assert!(request(stream, LONG).is_ok());
    }
    drop(waiting);
    spliced.finish();
}

#[test]
fn a_client_that_waits_in_vain_is_told_within_the_connect_timeout() {
    let (port, targets) = (Reserved::loopback(), up(1));
    let spliced = start(&port, &[(&targets[0], "max_connections: 1")], "timeouts: { connect: 400ms }");
    let held = hold(port.address());
    let begun = Instant::now();
    let waiting = connect(port.address());
    assert!(end_of(&waiting).is_err(), "it is reset");
    assert!((Duration::from_millis(350)..Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    spliced.ended("limit", 1);
    drop((held, waiting));
    spliced.finish();
}

#[test]
fn a_client_is_refused_while_all_targets_are_full() {
    let (port, targets) = (Reserved::loopback(), up(1));
    let spliced = start(&port, &[(&targets[0], "max_connections: 1")], "when_full: refuse");
    let held = hold(port.address());
    let begun = Instant::now();
    let refused = connect_or_reset(port.address());
    assert!(refused.as_ref().is_none_or(|stream| end_of(stream).is_err()));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    spliced.ended("limit", 1);
    drop((held, refused));
    until("the next one is served", LONG, || ask(port.address()) == Ok(0));
    spliced.finish();
}

#[test]
fn a_target_that_is_added_begins_slowly() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let both = [(&targets[0], ""), (&targets[1], "slow_start: 1h")];
    let spliced = start(&port, &both[..1], "workers: 1");
    assert_eq!(ask(port.address()), Ok(0));
    spliced.reload_with(&config(&port, &both, "workers: 1"));
    // A second or two of an hour are no share at all yet.
    let got = shares::<2>((0..50).map(|_| ask(port.address()).expect("an answer")));
    assert!(got[1] <= 1, "{got:?}");
    let soon = [(&targets[0], ""), (&targets[1], "slow_start: 1s")];
    spliced.reload_with(&config(&port, &soon, "workers: 1"));
    until("it has its whole share", LONG, || {
        shares::<2>((0..10).map(|_| ask(port.address()).expect("an answer"))) == [5, 5]
    });
    spliced.finish();
}
