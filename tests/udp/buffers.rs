//! What waits for us in the kernel: how much may, and that what finds no room is counted.

#![cfg(all(target_os = "linux", not(spliced_portable)))]

use crate::common;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use common::deadline::{LONG, until};
use common::netns::{Netns, with_namespaces};
use common::spliced::{Launcher, ordinary_user};
use common::stats::Stats;
use common::udp::{self, Echo, ask, client};
use nix::sys::signal::Signal;

fn config(listen: SocketAddr, to: SocketAddr, more: &str) -> String {
    format!("workers: 2\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: \"{to}\"{more}}}\n")
}

/// Receive and send buffers of every socket bound there, as the kernel has them: twice what was given.
fn buffers(listen: SocketAddr) -> Vec<(usize, usize)> {
    let output = Command::new("ss").args(["-Huanm"]).output().expect("iproute2 is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |line: &str, key: &str| {
        let at = line.find(key).unwrap_or_else(|| panic!("{key} in {line}")) + key.len();
        line[at..].split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let lines = text.replace("\n\t", " ");
    let own = lines.lines().filter(|line| line.split_whitespace().nth(3) == Some(&listen.to_string()));
    own.map(|line| (number(line, ",rb"), number(line, ",tb"))).collect()
}

fn limit(name: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).expect("the kernel has it");
    text.trim().parse().expect("a number")
}

const SAID: &str = "have a receive buffer of ";

#[test]
fn listeners_have_large_buffers_or_it_is_said_why_not() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = Launcher::config(&config(listen, echo.address(), "")).start();
    let most = 4 << 20;
    match spliced.logged(SAID).as_slice() {
        [] => assert_eq!(buffers(listen), [(2 * most, 2 * most); 2]),
        [line] => {
            assert!(line.contains("net.core.rmem_max=4194304") && line.contains("instead of 4096 KiB"), "{line}");
            assert!(buffers(listen).iter().all(|(receive, _)| *receive == 2 * limit("rmem_max")));
        }
        several => panic!("once: {several:?}"),
    }
    // A reload of the rest changes nothing, also where the rights that gave them are gone.
    let before = buffers(listen);
    spliced.reload_with(&config(listen, echo.address(), ", udp_timeout: 7s"));
    assert_eq!(buffers(listen), before);
    spliced.reload_with(&config(listen, echo.address(), ", receive_buffer: 16KiB, send_buffer: 32KiB"));
    assert_eq!(buffers(listen), [(32 << 10, 64 << 10); 2]);
    assert_eq!(ask(&client(listen), b"x"), b"x");
}

#[test]
fn without_the_right_it_is_said_that_the_kernel_gave_less() {
    let (echo, listen) = (Echo::start(), udp::address());
    let launcher = Launcher::config(&config(listen, echo.address(), ", receive_buffer: 512MiB"));
    let is_root = nix::unistd::geteuid().is_root();
    let launcher = if is_root { launcher.user(ordinary_user()) } else { launcher };
    let spliced = launcher.start();
    let said = spliced.logged(SAID);
    assert_eq!(said.len(), 1, "once for a forward: {}", spliced.text());
    let given = limit("rmem_max") / 1024;
    assert!(said[0].contains(&format!("of {given} KiB instead of 524288 KiB")), "{}", said[0]);
    assert!(said[0].contains("WARN"), "it was asked for: {}", said[0]);
    assert_eq!(ask(&client(listen), b"x"), b"x");
}

/// What the kernel says it had no room for, over every socket with that port.
fn dropped(namespace: &Netns, listen: SocketAddr) -> u64 {
    let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/udp")).expect("the kernel has it");
    let port = format!(":{:04X}", listen.port());
    let own = text.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    own.map(|line| line.split_whitespace().last().and_then(|drops| drops.parse::<u64>().ok()).expect("a number")).sum()
}

/// Exactly: in a namespace of its own, where nobody else's datagram comes by, and without answers, for which the flow's
/// own socket has as little room, and whose loss counts as well.
#[test]
fn what_finds_the_queue_full_is_counted() {
    with_namespaces(|| {
        let namespace = Netns::new();
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (sink, client) = namespace.enter(|| {
            let bind = || UdpSocket::bind(loopback(0)).expect("a loopback port");
            (bind(), bind())
        });
        let listen = loopback(9000);
        let text = config(listen, sink.local_addr().expect("bound"), ", receive_buffer: 16KiB");
        let spliced = Launcher::config(&text).inside(&namespace).start();
        client.connect(listen).expect("an address");
        client.send(b"before").expect("sent");
        let counts = |stats: &Stats| {
            let datagrams = |name: &str| stats.number(&format!("/total/datagrams/{name}"));
            (datagrams("client_to_backend"), datagrams("drops/socket"))
        };
        spliced.stats_until("it is passed on", |stats| counts(stats) == (1, 0));
        let status = format!("/proc/{}/stat", spliced.stats().number("/pid"));
        spliced.signal(Signal::SIGSTOP);
        until("it has stopped", LONG, || std::fs::read_to_string(&status).expect("it is there").contains(") T "));
        (0..300).for_each(|_| _ = client.send(&[7; 1000]).expect("sent"));
        spliced.signal(Signal::SIGCONT);
        let lost = dropped(&namespace, listen);
        assert!(lost > 200, "{lost}");
        spliced.stats_until("what had room is passed on", |stats| counts(stats) == (301 - lost, 0));
        // The next one that has room brings the count along: the kernel notes it as it queues a datagram.
        client.send(b"one more").expect("sent");
        spliced.stats_until("each is passed on or counted", |stats| counts(stats) == (302 - lost, lost));
        assert_eq!(dropped(&namespace, listen), lost);
        let (_, table) = spliced.ask("stats", &[]);
        assert!(table.contains(&format!("  drops            socket {lost}")), "{table}");
    });
}
