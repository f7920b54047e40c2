//! What datagrams to a target carry beside bytes: a mark, a device. Each is seen by the kernel's own packet filter, in
//! network namespaces.

use crate::common;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use common::deadline::LONG;
use common::netns::{Chain, Netns, link, with_namespaces};
use common::spliced::{Launcher, Spliced};
use common::udp::{ask, receive};

/// Datagrams of a test: several of one client, and several clients.
const CLIENTS: u64 = 3;
const EACH: u64 = 4;

/// Packets a rule with this text has counted.
fn counted(namespace: &Netns, rule: &str) -> u64 {
    let output = namespace.enter(|| Command::new("nft").args(["list", "ruleset"]).output()).expect("nft runs");
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = rules.lines().find(|line| line.contains(rule)).unwrap_or_else(|| panic!("no {rule:?} in {rules}"));
    let count = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {line:?}"))
}

fn start(chain: &Chain, to: SocketAddr, more: &str) -> Spliced {
    let text =
        format!("workers: 2\nforwards:\n  - {{ name: dns, listen: \"udp:{}\", to: \"{to}\"{more} }}\n", Chain::FRONT);
    Launcher::config(&text).inside(&chain.forwarder).start()
}

/// Questions of several clients, each answered.
fn exchange(chain: &Chain, server: &UdpSocket) {
    for client in 0..CLIENTS {
        let asking = chain.client.enter(|| UdpSocket::bind("10.0.1.2:0")).expect("our own address");
        asking.set_read_timeout(Some(LONG)).expect("a deadline");
        asking.connect(Chain::FRONT).expect("an address");
        for number in 0..EACH {
            let question = format!("{client} asks {number}");
            asking.send(question.as_bytes()).expect("sent");
            let mut heard = [0; 64];
            let (bytes, from) = server.recv_from(&mut heard).expect("it arrives");
            assert_eq!(&heard[..bytes], question.as_bytes());
            server.send_to(&heard[..bytes], from).expect("answered");
            assert_eq!(receive(&asking), question.as_bytes());
        }
    }
}

fn server(chain: &Chain, at: SocketAddr) -> UdpSocket {
    let socket = chain.server.enter(|| UdpSocket::bind(at)).expect("our own address");
    socket.set_read_timeout(Some(LONG)).expect("a deadline");
    socket
}

fn filter(namespace: &Netns, rules: &[&str]) {
    namespace.nft(&["add table ip see", "add chain ip see out { type filter hook output priority 0; }"]);
    rules.iter().for_each(|rule| namespace.nft(&[&format!("add rule ip see out {rule} counter accept")]));
}

#[test]
fn datagrams_to_the_target_have_the_mark_and_answers_have_none() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let (marked, unmarked) = ("udp dport 9001 meta mark 0x00000007", "udp dport 9001 meta mark != 0x00000007");
        let (answers, others) = ("udp sport 9000 meta mark 0x00000000", "udp sport 9000 meta mark != 0x00000000");
        filter(&chain.forwarder, &[marked, unmarked, answers, others]);
        let count = || [marked, unmarked, answers, others].map(|rule| counted(&chain.forwarder, rule));
        let server = server(&chain, Chain::BACK);
        let all = CLIENTS * EACH;
        let spliced = start(&chain, Chain::BACK, "");
        exchange(&chain, &server);
        assert_eq!(count(), [0, all, all, 0]);
        drop(spliced);
        let spliced = start(&chain, Chain::BACK, ", mark: 0x7");
        exchange(&chain, &server);
        assert_eq!(count(), [all, all, 2 * all, 0]);
        assert_eq!(spliced.stats().number("/total/datagrams/client_to_backend"), all);
    });
}

/// Two ways lead to the target, and routing prefers the first.
#[test]
fn a_device_is_the_way_datagrams_take() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let ip = |last: u8| [10, 0, 3, last].into();
        link((&chain.server, "eth1", ip(2), 24), (&chain.forwarder, "to_other", ip(1), 24));
        let far = SocketAddr::from(([10, 9, 0, 2], 9001));
        chain.server.line("ip address add 10.9.0.2/32 dev lo");
        chain.forwarder.line("ip route add 10.9.0.2 via 10.0.0.2 dev to_server metric 10");
        chain.forwarder.line("ip route add 10.9.0.2 via 10.0.3.2 dev to_other metric 20");
        chain.forwarder.enter(|| {
            // Answers come by the way that routing would not take.
            for device in ["all", "to_other"] {
                let place = format!("/proc/sys/net/ipv4/conf/{device}/rp_filter");
                fs::write(place, "0").expect("a namespace of our own");
            }
        });
        let ways = ["oifname \"to_server\" udp dport 9001", "oifname \"to_other\" udp dport 9001"];
        filter(&chain.forwarder, &ways);
        let count = || ways.map(|rule| counted(&chain.forwarder, rule));
        let server = server(&chain, far);
        let all = CLIENTS * EACH;
        for (more, expected) in
            [("", [all, 0]), (", bind_device: to_other", [all, all]), (", bind_device: to_server", [2 * all, all])]
        {
            let _spliced = start(&chain, far, more);
            exchange(&chain, &server);
            assert_eq!(count(), expected, "{more}");
        }
    });
}

/// A flow for which there is no device yet is dropped and counted; the next datagram finds it.
#[test]
fn a_device_that_is_not_there_yet_counts_once_it_is() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let server = server(&chain, Chain::BACK);
        let spliced = start(&chain, Chain::BACK, ", bind_device: late0");
        assert_eq!(spliced.says("there is no device \"late0\" yet").len(), 1, "{}", spliced.text());
        let asking = chain.client.enter(|| UdpSocket::bind("10.0.1.2:0")).expect("our own address");
        asking.set_read_timeout(Some(LONG)).expect("a deadline");
        asking.connect(Chain::FRONT).expect("an address");
        asking.send(b"too early").expect("sent");
        spliced.stats_until("it is dropped", |stats| stats.number("/total/datagrams/drops/unreachable") == 1);
        chain.forwarder.line("ip link set to_server down");
        chain.forwarder.line("ip link set to_server name late0");
        chain.forwarder.line("ip link set late0 up");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut heard = [0; 64];
                let (bytes, from) = server.recv_from(&mut heard).expect("it arrives");
                server.send_to(&heard[..bytes], from).expect("answered");
            });
            assert_eq!(ask(&asking, b"in time"), b"in time");
        });
    });
}
