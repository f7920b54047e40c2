//! Datagrams pass as they are, both ways, for each client by a flow of its own; what is not passed on is counted.

#![cfg(target_os = "linux")]

use crate::common;

#[cfg(not(spliced_portable))]
use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::deadline::{LONG, until};
use common::spliced::{Launcher, Spliced};
use common::stats::Stats;
use common::udp::{self, Echo, ask, client, is_silent, receive};
use common::upgraded::Installed;

/// One forward; `more` are further keys of it.
fn run(listen: SocketAddr, to: SocketAddr, more: &str) -> Spliced {
    Launcher::config(&config(listen, to, more)).start()
}

fn config(listen: SocketAddr, to: SocketAddr, more: &str) -> String {
    format!("workers: 2\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: \"{to}\"{more}}}\n")
}

fn datagrams(stats: &Stats, what: &str) -> u64 {
    stats.number(&format!("/total/datagrams/{what}"))
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ at >> 8 ^ seed) as u8).collect()
}

#[test]
fn every_size_arrives_as_it_was_sent() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = run(listen, echo.address(), "");
    let client = client(listen);
    let sizes = [0, 1, 2, 511, 512, 1200, 1472, 1473, 9000, 16_384, 32_768, 65_000, 65_506, 65_507];
    for (seed, len) in sizes.into_iter().enumerate() {
        let question = pattern(len, seed);
        assert!(ask(&client, &question) == question, "{len} bytes");
    }
    let bytes = sizes.iter().sum::<usize>() as u64;
    let all = sizes.len() as u64;
    let stats =
        spliced.stats_until("both directions are counted", |stats| datagrams(stats, "backend_to_client") == all);
    assert_eq!((stats.up().copy, stats.down().copy), (bytes, bytes));
    assert_eq!((stats.up().splice, stats.down().splice), (0, 0));
    assert_eq!(datagrams(&stats, "client_to_backend"), all);
    assert_eq!((stats.open(), stats.number("/total/sessions_accepted")), (1, 1));
    // What does not fit a datagram is the client's own error already.
    assert!(client.send(&[0; 65_508]).is_err());
}

#[test]
fn the_command_line_takes_datagrams() {
    let (echo, listen) = (Echo::start(), udp::address());
    let addresses = [format!("udp:{listen}"), format!("udp:{}", echo.address())];
    let spliced = Launcher::with_arguments([&["forward".to_owned()], &addresses[..]].concat()).start();
    assert_eq!(ask(&client(listen), b"hello"), b"hello");
    let said = format!("listening on udp:{listen}, forward \"udp:{listen}\", to {}", echo.address());
    assert!(!spliced.says(&said).is_empty(), "{}", spliced.text());
}

#[test]
fn each_client_has_a_flow_and_its_own_answers() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = run(listen, echo.address(), "");
    let clients: Vec<UdpSocket> = (0..200).map(|_| client(listen)).collect();
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            client.send(&pattern(100 + number, round)).expect("sent");
        }
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(receive(client), pattern(100 + number, round), "client {number}");
        }
    }
    let stats = spliced.stats_until("all is counted", |stats| datagrams(stats, "backend_to_client") == 600);
    assert_eq!((stats.open(), stats.number("/total/sessions_accepted")), (200, 200));
    assert_eq!(stats.number("/total/datagrams/drops/no_room"), 0);
}

#[test]
fn a_flow_ends_after_its_timeout_and_not_before() {
    let (echo, listen) = (Echo::start(), udp::address());
    let log = tempfile::tempdir().expect("a directory");
    let file = log.path().join("sessions");
    let text = config(listen, echo.address(), ", udp_timeout: 1500ms");
    let spliced = Launcher::config(&format!("log_file: {}\nlog_format: json\n{text}", file.display())).start();
    let client = client(listen);
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < Duration::from_secs(3) {
        last = Instant::now();
        assert_eq!(ask(&client, b"still here"), b"still here");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(spliced.stats().number("/total/sessions_accepted"), 1, "it lasted as long as it had datagrams");
    let stats = spliced.stats_until("the flow ends", |stats| stats.open() == 0);
    assert!(last.elapsed() >= Duration::from_millis(1490), "{:?}", last.elapsed());
    assert_eq!(stats.ends("idle"), 1);
    let mut line = String::new();
    until("the session log has it", LONG, || {
        line = std::fs::read_to_string(&file).unwrap_or_default();
        line.contains('\n')
    });
    let record: serde_json::Value = serde_json::from_str(line.lines().next().expect("a line")).expect("JSON");
    assert_eq!(record["protocol"], "udp");
    assert_eq!(record["listener"], listen.to_string());
    assert_eq!(record["client"], client.local_addr().expect("bound").to_string());
    assert_eq!(record["target"], echo.address().to_string());
    assert_eq!(record["reason"], "idle");
    assert!(record["bytes"]["client_to_backend"]["copy"].as_u64().is_some_and(|bytes| bytes >= 100));
}

#[test]
fn a_flow_ends_with_the_responses_that_are_expected() {
    let (echo, listen) = (Echo::answering(2), udp::address());
    let spliced = run(listen, echo.address(), ", udp_responses: 2");
    let client = client(listen);
    for round in 1..=5 {
        assert_eq!(ask(&client, b"x"), b"x");
        assert_eq!(receive(&client), b"x");
        spliced.stats_until("the flow ends at once", |stats| stats.ends("done") == round && stats.open() == 0);
    }
    drop((spliced, client));
    let listen = udp::address();
    let none = run(listen, echo.address(), ", udp_responses: 0");
    let client = common::udp::client(listen);
    client.send(b"no answer wanted").expect("sent");
    let stats = none.stats_until("it ends with the datagram", |stats| stats.ends("done") == 1);
    assert_eq!((stats.open(), datagrams(&stats, "client_to_backend")), (0, 1));
}

#[test]
fn no_more_flows_than_the_forward_may_have() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = run(listen, echo.address(), ", max_connections: 3, udp_timeout: 3s");
    let clients: Vec<UdpSocket> = (0..5).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| _ = client.send(b"x").expect("sent"));
    let stats = spliced.stats_until("two are dropped", |stats| stats.number("/total/datagrams/drops/limit") == 2);
    assert_eq!((stats.open(), stats.number("/total/sessions_accepted")), (3, 3));
    spliced.stats_until("three are answered", |stats| datagrams(stats, "backend_to_client") == 3);
    let served = clients.iter().filter(|client| !is_silent(client, Duration::from_millis(50))).count();
    assert_eq!(served, 3);
    spliced.stats_until("all end", |stats| stats.open() == 0);
    assert_eq!(ask(&clients[4], b"again"), b"again", "there is room again");
}

#[test]
fn sources_have_limits_and_rules_of_their_own() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = run(listen, echo.address(), ", max_connections_per_source: 2, deny: [\"127.0.0.9\"]");
    let clients: Vec<UdpSocket> = (0..3).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| _ = client.send(b"x").expect("sent"));
    spliced.stats_until("one is dropped", |stats| stats.number("/total/datagrams/drops/limit") == 1);
    let other = UdpSocket::bind("127.0.0.2:0").expect("a loopback address");
    other.set_read_timeout(Some(LONG)).expect("a deadline");
    other.connect(listen).expect("an address");
    assert_eq!(ask(&other, b"another source"), b"another source");
    let denied = UdpSocket::bind("127.0.0.9:0").expect("a loopback address");
    denied.connect(listen).expect("an address");
    for _ in 0..3 {
        denied.send(b"let me in").expect("sent");
    }
    let stats = spliced.stats_until("they are counted", |stats| stats.number("/total/datagrams/drops/denied") == 3);
    assert_eq!((stats.open(), stats.number("/total/sessions_accepted")), (3, 3), "no flow for the denied");
    assert!(is_silent(&denied, Duration::from_millis(50)));
}

#[test]
fn a_target_that_refuses_ends_the_flow() {
    let (nobody, listen) = (udp::address(), udp::address());
    let spliced = run(listen, nobody, "");
    let client = client(listen);
    client.send(b"anybody there").expect("sent");
    let stats = spliced.stats_until("it ends", |stats| stats.ends("refused") == 1);
    assert_eq!(stats.open(), 0);
    // The next datagram begins anew, and arrives once there is somebody.
    let backend = UdpSocket::bind(nobody).expect("free until now");
    backend.set_read_timeout(Some(LONG)).expect("a deadline");
    client.send(b"again").expect("sent");
    let mut datagram = [0; 16];
    let (bytes, from) = backend.recv_from(&mut datagram).expect("it arrives");
    assert_eq!(&datagram[..bytes], b"again");
    backend.send_to(b"yes", from).expect("sent");
    assert_eq!(receive(&client), b"yes");
}

#[cfg(not(spliced_portable))]
#[test]
fn answers_come_from_the_address_the_client_has_sent_to() {
    let (echo, port) = (Echo::start(), udp::port());
    let spliced = run(SocketAddr::from(([0, 0, 0, 0], port)), echo.address(), "");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a loopback port");
    client.set_read_timeout(Some(LONG)).expect("a deadline");
    for address in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.1.2.3"] {
        let to: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        client.send_to(address.as_bytes(), to).expect("sent");
        let mut answer = [0; 32];
        let (bytes, from) = client.recv_from(&mut answer).expect("an answer");
        assert_eq!((&answer[..bytes], from), (address.as_bytes(), to));
    }
    let stats = spliced.stats();
    assert_eq!(stats.number("/total/sessions_accepted"), 3, "a flow for each address the client sends to");
}

#[cfg(not(spliced_portable))]
#[test]
fn joined_datagrams_are_taken_and_sent_as_one_and_stay_what_they_are() {
    use nix::sys::socket::{setsockopt, sockopt};

    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = run(listen, echo.address(), ", receive_buffer: 4MiB");
    let client = client(listen);
    // What is sent at once leaves as datagrams of 1000 bytes each, and crosses loopback as one packet.
    setsockopt(&client, sockopt::UdpGsoSegment, &1000).expect("a kernel from 4.18 on");
    let mut expected = HashSet::new();
    for round in 0..10 {
        let all: Vec<u8> = (0..30).flat_map(|n| pattern(1000, round * 31 + n)).chain(pattern(77, round)).collect();
        expected.extend(all.chunks(1000).map(<[u8]>::to_vec));
        client.send(&all).expect("sent");
        let answers: Vec<Vec<u8>> = (0..31).map(|_| receive(&client)).collect();
        assert!(answers.concat() == all, "in order and whole");
        assert!(answers.iter().all(|answer| expected.contains(answer)), "boundaries are kept");
    }
    let stats = spliced.stats_until("all is counted", |stats| datagrams(stats, "backend_to_client") == 310);
    assert_eq!(datagrams(&stats, "client_to_backend"), 310);
    assert_eq!(datagrams(&stats, "joined"), 310, "they came as one, 31 at a time");
    assert!(datagrams(&stats, "segmented") >= 310, "and left as one: {}", stats.0["total"]["datagrams"]);
    assert!(datagrams(&stats, "sends") < 310);
}

#[test]
fn a_flow_survives_a_reload_that_does_not_concern_it() {
    let (echo, listen, other) = (Echo::start(), udp::address(), udp::address());
    let first = config(listen, echo.address(), "");
    let spliced = Launcher::config(&first).start();
    let client = client(listen);
    assert_eq!(ask(&client, b"before"), b"before");
    let more = format!("{first}  - {{name: more, listen: \"udp:{other}\", to: \"{}\"}}\n", echo.address());
    let said = spliced.reload_with(&more);
    assert!(
        said.contains(&format!("+ forward \"more\" listen udp:{other}")) && said.contains("= 1 unchanged"),
        "{said}"
    );
    assert_eq!(ask(&client, b"after"), b"after");
    assert_eq!(ask(&common::udp::client(other), b"new"), b"new");
    let stats = spliced.stats();
    assert_eq!(stats.number("/forwards/0/sessions_accepted"), 1, "the same flow");
    // One that is taken away goes on with the flows it has, and no other begins.
    spliced.reload_with(&format!(
        "workers: 2\nforwards:\n  - {{name: more, listen: \"udp:{other}\", to: \"{}\"}}\n",
        echo.address()
    ));
    assert_eq!(ask(&client, b"still"), b"still");
    let late = common::udp::client(listen);
    // One client for each worker at least, whichever of them the kernel gives a client to: also a worker that has no flow
    // there counts what it drops.
    let others: Vec<UdpSocket> = (0..9).map(|_| common::udp::client(listen)).collect();
    others.iter().chain([&late]).for_each(|client| _ = client.send(b"too late").expect("sent"));
    spliced.stats_until("all are dropped", |stats| stats.number("/total/datagrams/drops/drain") == 10);
    assert_eq!(spliced.stats().open(), 2);
    // It is there no more once it has no flow.
    assert!(UdpSocket::bind(listen).is_err());
    // And comes back.
    spliced.reload_with(&more);
    assert_eq!(ask(&late, b"not any more"), b"not any more");
    assert_eq!(ask(&client, b"once more"), b"once more");
}

#[test]
fn an_address_that_is_removed_is_free_once_its_flows_have_ended() {
    let (echo, listen, other) = (Echo::start(), udp::address(), udp::address());
    let spliced = run(listen, echo.address(), ", udp_timeout: 3s");
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
    spliced.reload_with(&config(other, echo.address(), ""));
    clients.iter().for_each(|client| assert_eq!(ask(client, b"y"), b"y", "flows go on"));
    spliced.stats_until("they end", |stats| stats.ends("idle") == 10);
    until("the address is free", LONG, || UdpSocket::bind(listen).is_ok());
    assert_eq!(ask(&common::udp::client(other), b"z"), b"z");
}

#[test]
fn the_end_waits_for_flows_as_long_as_it_may() {
    let (echo, listen) = (Echo::start(), udp::address());
    let text = config(listen, echo.address(), ", udp_timeout: 3s");
    let mut spliced = Launcher::config(&text).start();
    let client = client(listen);
    assert_eq!(ask(&client, b"x"), b"x");
    spliced.signal(nix::sys::signal::Signal::SIGTERM);
    until("new clients are turned away", LONG, || {
        let _ = common::udp::client(listen).send(b"x");
        !spliced.logged("drain").is_empty() || !spliced.logged("SIGTERM").is_empty()
    });
    client.send(b"still served").expect("sent");
    assert_eq!(receive(&client), b"still served");
    assert!(spliced.wait(LONG).success());
}

#[test]
fn bytes_per_second_are_kept_to_by_dropping() {
    let (echo, listen) = (Echo::start(), udp::address());
    // A tenth of a second's worth is 10 datagrams of 1 KiB.
    let spliced = run(listen, echo.address(), ", rate: 100KiB/s");
    let client = client(listen);
    let question = pattern(1024, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        // Far more than may pass, also where this thread is seldom let run.
        (0..20).for_each(|_| _ = client.send(&question).expect("sent"));
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let stats = spliced.stats();
    let seconds = begun.elapsed().as_secs_f64();
    let passed = datagrams(&stats, "client_to_backend") as f64;
    assert!(passed >= 50.0 && passed <= 100.0 * seconds + 15.0, "{passed} in {seconds} s");
    assert!(stats.number("/total/datagrams/drops/rate") > 100);
    let (_, table) = spliced.ask("stats", &[]);
    assert!(table.contains("  datagrams ") && table.contains("  drops            rate "), "{table}");
}

#[test]
fn a_new_process_takes_the_sockets_over_and_nothing_is_lost() {
    let (echo, listen) = (Echo::start(), udp::address());
    let installed = Installed::new();
    let mut upgraded = installed.start(Launcher::config(&config(listen, echo.address(), ", udp_timeout: 2s")));
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(listen)).collect();
    let ask_all = |round: usize| {
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(ask(client, &pattern(100, number + round)), pattern(100, number + round), "round {round}");
        }
    };
    ask_all(0);
    let (stop, asking) = (AtomicBool::new(false), client(listen));
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(ask(&asking, b"all the time"), b"all the time");
                asked += 1;
            }
            asked
        });
        upgraded.upgrade();
        ask_all(1);
        stop.store(true, Ordering::Relaxed);
        assert!(asker.join().expect("every question was answered") > 0);
    });
    // A worker of the old one may have taken some before it was told.
    until("the new process has them all", LONG, || {
        ask_all(2);
        assert_eq!(ask(&asking, b"and one more"), b"and one more");
        Stats::ask(upgraded.spliced.control()).expect("the new process answers").open() == 21
    });
    upgraded.finish();
}

#[test]
fn a_second_process_cannot_take_the_address() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = run(listen, echo.address(), "");
    let second = Launcher::config(&config(listen, echo.address(), "")).outcome();
    assert_eq!(second.code, Some(1), "{}", second.text);
    assert!(second.text.contains(&format!("cannot listen on {listen}")), "{}", second.text);
    assert_eq!(ask(&client(listen), b"x"), b"x");
    let foreign = UdpSocket::bind(listen).expect_err("it is taken");
    assert_eq!(foreign.kind(), ErrorKind::AddrInUse);
    drop(spliced);
}

#[test]
fn without_descriptors_datagrams_are_dropped_and_nothing_spins() {
    let (echo, listen) = (Echo::start(), udp::address());
    let text = config(listen, echo.address(), ", udp_timeout: 30s");
    let spliced = Launcher::config(&text).descriptors(64).start();
    let clients: Vec<UdpSocket> = (0..80).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| _ = client.send(b"x").expect("sent"));
    let stats = spliced.stats_until("each is a flow or dropped", |stats| {
        let drops = ["limit", "no_descriptors"].map(|cause| stats.number(&format!("/total/datagrams/drops/{cause}")));
        stats.number("/total/sessions_accepted") + drops.iter().sum::<u64>() == 80
    });
    assert!(stats.open() >= 5 && stats.open() <= 32, "{}", stats.open());
    let turns = |stats: &Stats| stats.number("/workers/0/turns") + stats.number("/workers/1/turns");
    let before = turns(&spliced.stats());
    assert!(is_silent(&client(listen), Duration::from_millis(500)));
    assert!(turns(&spliced.stats()) - before < 50, "it sleeps");
}
