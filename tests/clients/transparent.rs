//! What a connection to a target carries beside bytes: the client's own address, a mark, a device, a class of service.
//! Each is seen by the kernel's own routing and packet filter, in network namespaces.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use common::deadline::until;
use common::netns::{Chain, Netns, with_namespaces};
use common::pattern::exchange;
use common::peer::{Reserved, accept, backend};
use common::spliced::{Launcher, Spliced, ordinary_user};

const MIB: u64 = 1 << 20;
/// `CAP_NET_ADMIN` of include/uapi/linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;

/// Answers to the clients' addresses come back to this host: those of connections that are ours, by their socket.
const BY_SOCKET: [&str; 3] = [
    "add table inet spliced",
    "add chain inet spliced prerouting { type filter hook prerouting priority mangle; }",
    "add rule inet spliced prerouting meta l4proto tcp socket transparent 1 meta mark set 0x51 accept",
];

/// What the packet filter of a namespace says.
fn filter(namespace: &Netns) -> String {
    let output = namespace.enter(|| Command::new("nft").args(["list", "ruleset"]).output()).expect("nft runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Packets a rule with this text has counted.
fn counted(namespace: &Netns, rule: &str) -> u64 {
    let rules = filter(namespace);
    let line = rules.lines().find(|line| line.contains(rule)).unwrap_or_else(|| panic!("no {rule:?} in {rules}"));
    let count = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {line:?}"))
}

fn config(chain: &Chain, options: &str) -> Spliced {
    run(chain, Chain::FRONT, Chain::BACK, options)
}

fn run(chain: &Chain, listen: SocketAddr, to: SocketAddr, options: &str) -> Spliced {
    let text = format!("workers: 2\nforwards:\n  - {{ name: it, listen: \"{listen}\", to: \"{to}\", {options} }}\n");
    Launcher::config(&text).inside(&chain.forwarder).start()
}

/// A session through the chain whose target sees the client's own address.
fn seen(chain: &Chain, listen: SocketAddr, to: SocketAddr, more: &str) {
    let spliced = run(chain, listen, to, &format!("transparent: on, {more}"));
    for thread in spliced.process().threads() {
        let needed = thread.name == "main" || thread.name.starts_with("worker-");
        let kept = if needed { NET_ADMIN } else { 0 };
        assert_eq!(thread.capabilities("CapEff"), kept, "{}", thread.name);
    }
    let server = chain.server.listen(to);
    for _ in 0..5 {
        let client = chain.client.connect(listen);
        let arrived = accept(&server);
        let (from, client_ip) = (arrived.peer_addr().expect("connected"), client.local_addr().expect("connected").ip());
        assert_eq!(from.ip(), client_ip, "the target sees the client");
        exchange(&client, &arrived, MIB, MIB);
    }
    spliced.ended("done", 5);
    let stats = spliced.stats();
    assert_eq!((stats.up().all(), stats.down().all()), (5 * MIB, 5 * MIB));
    spliced.finish();
}

#[test]
fn the_target_sees_the_clients_address() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        chain.server.line("ip route add default via 10.0.0.1");
        chain.forwarder.nft(&BY_SOCKET);
        chain.forwarder.line("ip rule add fwmark 0x51 lookup 81");
        chain.forwarder.line("ip route add local 0.0.0.0/0 dev lo table 81");
        seen(&chain, Chain::FRONT, Chain::BACK, "engine: auto");
    });
}

#[test]
fn a_rule_for_the_servers_device_does_as_well() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        chain.server.line("ip route add default via 10.0.0.1");
        chain.forwarder.line("ip rule add iif to_server lookup 81");
        chain.forwarder.line("ip route add local 0.0.0.0/0 dev lo table 81");
        seen(&chain, Chain::FRONT, Chain::BACK, "engine: auto");
    });
}

#[test]
fn the_target_sees_the_clients_ipv6_address() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (namespace, ip, device) in [
            (&chain.client, "fd00:1::2", "eth0"),
            (&chain.forwarder, "fd00:1::1", "to_client"),
            (&chain.forwarder, "fd00::1", "to_server"),
            (&chain.server, "fd00::2", "eth0"),
        ] {
            namespace.line(&format!("ip address add {ip}/64 dev {device} nodad"));
        }
        chain.server.line("ip -6 route add default via fd00::1");
        chain.forwarder.line("ip -6 rule add iif to_server lookup 81");
        chain.forwarder.line("ip -6 route add local ::/0 dev lo table 81");
        // Neighbours are found out by packets to ourselves, which the rule must not change.
        chain.forwarder.line("ip -6 rule add to fd00::/64 priority 1 lookup local");
        chain.forwarder.line("ip -6 rule add to fe80::/10 priority 2 lookup local");
        chain.forwarder.line("ip -6 rule add to ff00::/8 priority 3 lookup local");
        seen(&chain, address("[fd00:1::1]:9000"), address("[fd00::2]:9001"), "engine: auto");
    });
}

#[test]
fn with_a_header_it_is_the_address_in_it() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        chain.server.line("ip route add default via 10.0.0.1");
        chain.forwarder.line("ip rule add iif to_server lookup 81");
        chain.forwarder.line("ip route add local 0.0.0.0/0 dev lo table 81");
        let spliced = config(&chain, "transparent: on, accept_proxy: [10.0.1.2], send_proxy: v1");
        let server = chain.server.listen(Chain::BACK);
        let client = chain.client.connect(Chain::FRONT);
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
        std::io::Write::write_all(&mut &client, line).expect("a header");
        let arrived = accept(&server);
        assert_eq!(arrived.peer_addr().expect("connected").ip(), IpAddr::from([192, 0, 2, 7]));
        let mut header = vec![0; line.len()];
        std::io::Read::read_exact(&mut &arrived, &mut header).expect("the header");
        assert_eq!(header, line);
        exchange(&client, &arrived, MIB, MIB);
        spliced.finish();
    });
}

#[test]
fn a_mark_takes_the_route_made_for_it() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        // The only way there is for marked packets.
        let far = SocketAddr::from(([10, 9, 0, 2], 9001));
        chain.server.line("ip address add 10.9.0.2/32 dev lo");
        chain.forwarder.line("ip rule add fwmark 0x7 lookup 82");
        chain.forwarder.line("ip route add 10.9.0.2 via 10.0.0.2 dev to_server table 82");
        let server = chain.server.listen(far);
        let unmarked = run(&chain, Chain::FRONT, far, "engine: auto");
        chain.client.is_turned_away(Chain::FRONT);
        unmarked.ended("connect_failed", 1);
        unmarked.finish();
        let spliced = run(&chain, Chain::FRONT, far, "mark: 0x7");
        let client = chain.client.connect(Chain::FRONT);
        exchange(&client, &accept(&server), MIB, MIB);
        drop(client);
        spliced.finish();
    });
}

#[test]
fn a_device_is_the_only_way_out() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let server = chain.server.listen(Chain::BACK);
        let spliced = config(&chain, "bind_device: to_server");
        let client = chain.client.connect(Chain::FRONT);
        exchange(&client, &accept(&server), MIB, MIB);
        drop(client);
        spliced.finish();
        let wrong = config(&chain, "bind_device: to_client, connect_timeout: 300ms");
        chain.client.is_turned_away(Chain::FRONT);
        wrong.stats_until("it has ended", |stats| stats.ends("connect_timeout") + stats.ends("connect_failed") == 1);
        wrong.finish();
        // One that is not there yet is worth a line, and counts once it is.
        let early = config(&chain, "bind_device: late0, connect_timeout: 1s");
        assert_eq!(early.says("there is no device \"late0\" yet").len(), 1, "{}", early.text());
        chain.client.is_turned_away(Chain::FRONT);
        early.ended("connect_failed", 1);
        early.finish();
    });
}

#[test]
fn packets_to_both_sides_have_their_class() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        for namespace in [&chain.client, &chain.server] {
            namespace.nft(&[
                "add table ip see",
                "add chain ip see input { type filter hook input priority 0; }",
                "add rule ip see input tcp flags & (fin|ack) != 0 ip dscp ef counter accept",
                "add rule ip see input tcp flags & (fin|ack) != 0 ip dscp != ef counter accept",
            ]);
        }
        let server = chain.server.listen(Chain::BACK);
        let text = |dscp: &str| {
            format!(
                "workers: 2\nforwards: [{{ name: it, listen: \"{}\", to: \"{}\", dscp: {dscp} }}]\n",
                Chain::FRONT,
                Chain::BACK
            )
        };
        let spliced = Launcher::config(&text("ef")).inside(&chain.forwarder).start();
        let session = || {
            let client = chain.client.connect(Chain::FRONT);
            exchange(&client, &accept(&server), MIB, MIB);
            drop(client);
            spliced.stats_until("it has ended", |stats| stats.open() == 0);
        };
        session();
        for namespace in [&chain.client, &chain.server] {
            until("packets were counted", common::deadline::LONG, || counted(namespace, "ip dscp ef") > 10);
            assert_eq!(counted(namespace, "ip dscp != ef"), 0, "{}", filter(namespace));
        }
        // Listeners that stay learn it too.
        spliced.reload_with(&text("none"));
        let before = counted(&chain.client, "ip dscp ef");
        session();
        assert_eq!(counted(&chain.client, "ip dscp ef"), before);
        assert!(counted(&chain.server, "ip dscp != ef") > 10);
        spliced.finish();
    });
}

#[test]
fn without_the_right_it_does_not_start_and_says_why() {
    let (listen, backend) = (Reserved::loopback(), backend());
    let to = backend.local_addr().expect("bound");
    for (option, value, name) in
        [("--transparent", "on", "transparent (IP_TRANSPARENT)"), ("--mark", "7", "mark (SO_MARK)")]
    {
        let mut launcher = Launcher::forward(listen.address(), to).option(option, value);
        if nix::unistd::geteuid().is_root() {
            listen.give_to(ordinary_user());
            launcher = launcher.user(ordinary_user());
        }
        let outcome = launcher.outcome();
        assert_eq!(outcome.code, Some(1), "{}", outcome.text);
        for part in [name, "Operation not permitted", "CAP_NET_ADMIN", "AmbientCapabilities="] {
            assert!(outcome.text.contains(part), "{part}: {}", outcome.text);
        }
    }
}

#[test]
fn a_reload_that_needs_a_right_that_was_given_up_changes_nothing() {
    let (listen, backend) = (Reserved::loopback(), backend());
    let to = backend.local_addr().expect("bound");
    let text = |mark: &str| {
        format!("workers: 2\nforwards: [{{ listen: \"{}\", to: \"{to}\", mark: {mark} }}]\n", listen.address())
    };
    let spliced = Launcher::config(&text("none")).start();
    spliced.replace_config(&text("7"));
    let (code, said) = spliced.reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("keep_capabilities: auto,net_admin"), "{said}");
    let client = common::peer::connect(listen.address());
    exchange(&client, &accept(&backend), MIB, MIB);
    drop(client);
    spliced.finish();
    if nix::unistd::geteuid().is_root() {
        // As it says.
        let kept = format!("keep_capabilities: auto,net_admin\n{}", text("none"));
        let spliced = Launcher::config(&kept).start();
        let said = spliced.reload_with(&format!("keep_capabilities: auto,net_admin\n{}", text("7")));
        assert!(said.contains("mark none -> 7"), "{said}");
        let client = common::peer::connect(listen.address());
        exchange(&client, &accept(&backend), MIB, MIB);
        drop(client);
        spliced.finish();
    }
}
