//! What a listener takes and how: both families, one device, Fast Open, Multipath TCP.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use common::cannot_run;
use common::deadline::{LONG, until};
use common::netns::{Chain, Netns, with_namespaces};
use common::peer::{Echo, Reserved, accept, backend, connect, echoes, with_deadlines};
use common::spliced::{Launcher, Spliced};
use common::unix::pattern;
use socket2::{Domain, Protocol, Socket, Type};

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn has_ipv6() -> bool {
    let found = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !found {
        cannot_run("IPv6 is switched off here");
    }
    found
}

#[test]
fn a_dual_stack_listener_takes_both_families_and_names_clients_by_their_own() {
    if !has_ipv6() {
        return;
    }
    let (port, echo) = (Reserved::on(address("[::]:0")), Echo::start(backend()));
    let number = port.address().port();
    for (v6only, v4_is_served) in [("off", true), ("on", false)] {
        let config = format!(
            "v6only: {v6only}\nforwards: [{{listen: \"[::]:{number}\", to: \"{}\", deny: 127.9.0.0/16}}]\n",
            echo.address()
        );
        let spliced = Launcher::config(&config).start();
        let v6 = connect(address(&format!("[::1]:{number}")));
        assert!(echoes(&v6, 1, LONG), "v6only {v6only}");
        let v4 = TcpStream::connect(("127.0.0.1", number));
        assert_eq!(v4.is_ok(), v4_is_served, "v6only {v6only}: {v4:?}");
        let mut sessions = 1;
        if let Ok(v4) = v4 {
            assert!(echoes(&v4, 2, LONG));
            drop(v4);
            // The mapped address is logged as the IPv4 address it is, and rules for IPv4 hold.
            until("the session's line", LONG, || !spliced.logged("client=127.0.0.1:").is_empty());
            let denied = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            denied.bind(&address("127.9.0.1:0").into()).expect("a local address");
            denied.connect(&address(&format!("127.0.0.1:{number}")).into()).expect("the handshake");
            spliced.ended("denied", 1);
            sessions += 1;
        }
        drop(v6);
        spliced.ended("done", sessions);
        spliced.finish();
    }
}

#[test]
fn a_dual_stack_listener_leaves_no_room_for_an_ipv4_one() {
    let text = "v6only: off\nforwards:\n- {listen: \"[::]:9000\", to: \"10.0.0.1:1\"}\n- {listen: \"127.0.0.1:9000\", to: \"10.0.0.1:1\"}\n";
    let outcome = Launcher::config(text).outcome();
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.text.contains("spliced.yaml:4:12: found listener 127.0.0.1:9000"), "{}", outcome.text);
}

#[test]
fn a_listener_on_a_device_hears_nobody_else() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let echo = chain.server.enter(|| Echo::start(chain.server.listen(Chain::BACK)));
        let config = format!("forwards: [{{listen: \"0.0.0.0:9000\", to: \"{}\", device: to_client}}]\n", Chain::BACK);
        let spliced = Launcher::config(&config).inside(&chain.forwarder).start();
        let client = chain.client.connect(Chain::FRONT);
        assert!(echoes(&client, 1, LONG));
        // The same address from elsewhere: by the other link, and by loopback.
        let refused = |from: &Netns, to: &str| from.enter(|| TcpStream::connect_timeout(&address(to), LONG).map(drop));
        for error in [refused(&chain.server, "10.0.0.1:9000"), refused(&chain.forwarder, "127.0.0.1:9000")] {
            assert_eq!(error.expect_err("nobody listens there").kind(), ErrorKind::ConnectionRefused);
        }
        drop((client, echo));
        spliced.finish();

        let config = config.replace("to_client", "eth7");
        let outcome = Launcher::config(&config).inside(&chain.forwarder).outcome();
        assert_eq!(outcome.code, Some(1), "{}", outcome.text);
        assert!(outcome.text.contains("device eth7") && outcome.text.contains("`ip link`"), "{}", outcome.text);
    });
}

/// Datagrams too.
#[test]
fn datagrams_come_by_the_device_alone() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let server = chain.server.enter(|| UdpSocket::bind(Chain::BACK)).expect("a free port");
        server.set_read_timeout(Some(LONG)).expect("a deadline");
        let config = format!(
            "udp_timeout: 300ms\nforwards: [{{listen: \"udp:0.0.0.0:9000\", to: \"{}\", device: to_client}}]\n",
            Chain::BACK
        );
        let spliced = Launcher::config(&config).inside(&chain.forwarder).start();
        let send = |from: &Netns, to: &str, text: &[u8]| {
            let socket = from.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a port");
            socket.send_to(text, address(to)).expect("sent");
        };
        // By loopback and by the other link first: had they been taken they would arrive first.
        send(&chain.forwarder, "127.0.0.1:9000", b"inside");
        send(&chain.server, "10.0.0.1:9000", b"behind");
        send(&chain.client, "10.0.1.1:9000", b"right");
        let mut text = [0; 16];
        let n = server.recv(&mut text).expect("a datagram");
        assert_eq!(&text[..n], b"right");
        assert_eq!(spliced.stats().number("/total/sessions_accepted"), 1);
        spliced.finish();
    });
}

/// A counter of `/proc/net/netstat`.
fn netstat(namespace: &Netns, name: &str) -> u64 {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/netstat")).expect("it is there");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let pair = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name);
    pair.unwrap_or_else(|| panic!("no {name}")).1.parse().expect("a number")
}

fn allow_fast_open(namespaces: &[&Netns], bits: u8) {
    for namespace in namespaces {
        let set = || fs::write("/proc/sys/net/ipv4/tcp_fastopen", bits.to_string());
        namespace.enter(set).expect("a namespace of our own");
    }
}

/// A client that sends its first bytes with the SYN, where it has been before.
fn fast_client(from: &Netns, to: SocketAddr, data: &[u8]) -> TcpStream {
    from.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let sent = socket.send_to_with_flags(data, &to.into(), libc::MSG_FASTOPEN).expect("connected");
        assert_eq!(sent, data.len());
        with_deadlines(socket.into())
    })
}

fn fast_chain(targets: &str) -> (Chain, Spliced) {
    let chain = Chain::new(true);
    allow_fast_open(&[&chain.client, &chain.forwarder, &chain.server], 3);
    // One worker, so that targets have their turns in order.
    let config = format!("workers: 1\nforwards: [{{listen: \"{}\", to: [{targets}], fast_open: on}}]\n", Chain::FRONT);
    let spliced = Launcher::config(&config).inside(&chain.forwarder).start();
    (chain, spliced)
}

/// From the second session on both handshakes carry the request, which arrives once and in order.
#[test]
fn fast_open_carries_the_first_bytes_on_both_sides() {
    with_namespaces(|| {
        let (chain, spliced) = fast_chain(&format!("\"{}\"", Chain::BACK));
        let listener = Socket::from(chain.server.listen(Chain::BACK));
        nix::sys::socket::setsockopt(&listener, Queue, &64).expect("TCP_FASTOPEN");
        let listener = std::net::TcpListener::from(listener);
        for size in [5, 1200, 1300, 100_000, 40, 3000] {
            let (up, down) = (pattern(size, size as usize), pattern(7, 777));
            let mut client = fast_client(&chain.client, Chain::FRONT, &up);
            let mut server = accept(&listener);
            let mut request = vec![0; up.len()];
            server.read_exact(&mut request).expect("the request");
            assert!(request == up, "{size} bytes arrive once and in order");
            server.write_all(&down).expect("an answer");
            drop(server);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("the answer");
            assert!(answer == down);
        }
        spliced.ended("done", 6);
        let stats = spliced.stats();
        assert_eq!(stats.up().all(), 5 + 1200 + 1300 + 100_000 + 40 + 3000);
        assert!(netstat(&chain.forwarder, "TCPFastOpenPassive") >= 5, "data came with SYNs");
        assert!(netstat(&chain.forwarder, "TCPFastOpenActive") >= 4, "and went on with SYNs");
        spliced.finish();
    });
}

#[derive(Debug, Clone, Copy)]
struct Queue;
nix::setsockopt_impl!(Queue, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, u32, nix::sys::socket::sockopt::SetStruct<u32>);

/// Bytes that went with a SYN nobody took go to the next target: none is lost, none comes twice.
#[test]
fn fast_open_loses_nothing_when_a_target_refuses() {
    with_namespaces(|| {
        let (chain, spliced) = fast_chain("\"10.0.0.2:9001\", \"10.0.0.2:9002\"");
        let taking = |port: u16| {
            let listener = Socket::from(chain.server.listen(SocketAddr::new(Chain::BACK.ip(), port)));
            nix::sys::socket::setsockopt(&listener, Queue, &64).expect("TCP_FASTOPEN");
            std::net::TcpListener::from(listener)
        };
        let request = pattern(9, 1000);
        let once = |listener: &std::net::TcpListener| {
            let _client = fast_client(&chain.client, Chain::FRONT, &request);
            let mut server = accept(listener);
            let mut got = vec![0; request.len()];
            server.read_exact(&mut got).expect("the request");
            assert!(got == request);
        };
        // Cookies of both targets are known after this.
        let (first, second) = (taking(9001), taking(9002));
        for _ in 0..2 {
            once(&first);
            once(&second);
        }
        spliced.stats_until("those have ended", |stats| stats.open() == 0);
        drop(first);
        for _ in 0..6 {
            once(&second);
        }
        let stats = spliced.stats_until("all have ended", |stats| stats.open() == 0);
        assert_eq!(stats.up().all(), 10 * 1000, "each byte is counted once");
        spliced.finish();
    });
}

/// A server that speaks first is no worse off: with nothing from the client the handshake is an ordinary one.
#[test]
fn fast_open_waits_for_no_client() {
    with_namespaces(|| {
        let (chain, spliced) = fast_chain(&format!("\"{}\"", Chain::BACK));
        let listener = chain.server.listen(Chain::BACK);
        let mut client = chain.client.connect(Chain::FRONT);
        let mut server = accept(&listener);
        server.write_all(b"220 hello").expect("a greeting");
        let mut greeting = [0; 9];
        client.read_exact(&mut greeting).expect("the greeting");
        drop((client, server));
        spliced.finish();
    });
}

#[test]
fn a_host_that_forbids_fast_open_is_told_of() {
    with_namespaces(|| {
        let namespace = Netns::new();
        allow_fast_open(&[&namespace], 0);
        let echo = namespace.enter(|| Echo::start(namespace.listen(address("127.0.0.1:9001"))));
        let config = "forwards: [{listen: \"127.0.0.1:9000\", to: \"127.0.0.1:9001\", fast_open: 16}]\n";
        let spliced = Launcher::config(config).inside(&namespace).start();
        let said = spliced.logged("fast_open: net.ipv4.tcp_fastopen lets nobody use TCP Fast Open");
        assert_eq!(said.len(), 1, "{}", spliced.text());
        let client = namespace.connect(address("127.0.0.1:9000"));
        assert!(echoes(&client, 1, LONG), "it works without");
        drop((client, echo));
        spliced.finish();
    });
}

/// Whether the peer of an accepted connection speaks MPTCP: then its socket is one.
fn is_mptcp(stream: &TcpStream) -> bool {
    socket2::SockRef::from(stream).protocol().ok().flatten() == Some(Protocol::MPTCP)
}

fn has_mptcp() -> bool {
    let found = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    if let Err(why) = &found {
        cannot_run(&format!("no Multipath TCP in this kernel: {why}"));
    }
    found.is_ok()
}

/// Both sides speak it; bytes arrive whole by every engine, and a plain TCP client is served as well.
#[test]
fn mptcp_on_both_sides() {
    if !has_mptcp() {
        return;
    }
    for engine in ["splice", "copy", "auto"] {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).expect("a socket");
        listener.bind(&address("127.0.0.1:0").into()).expect("a port");
        listener.listen(16).expect("it listens");
        let listener = std::net::TcpListener::from(listener);
        let (port, back) = (Reserved::loopback(), listener.local_addr().expect("bound"));
        let launcher = Launcher::forward(port.address(), back).option("--engine", engine).option("--mptcp", "on");
        // A plain socket is beside ours on the port, which MPTCP does not mind.
        let spliced = launcher.start();
        for protocol in [Protocol::MPTCP, Protocol::TCP] {
            let client = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).expect("a socket");
            client.connect(&port.address().into()).expect("connected");
            let client = with_deadlines(client.into());
            let server = accept(&listener);
            assert!(is_mptcp(&server), "the connection to the target is one of MPTCP");
            common::unix::exchange(&client.into(), &server.into(), 3 << 20, 2 << 20);
        }
        let stats = spliced.stats_until("all sessions have ended", |stats| stats.ends("done") == 2);
        assert_eq!((stats.up().all(), stats.down().all()), (6 << 20, 4 << 20));
        spliced.finish();
    }
}

/// A kernel without it, or with it switched off: TCP, said once.
#[test]
fn without_mptcp_tcp_is_used() {
    if !has_mptcp() {
        return;
    }
    with_namespaces(|| {
        let namespace = Netns::new();
        let off = || fs::write("/proc/sys/net/mptcp/enabled", "0");
        namespace.enter(off).expect("a namespace of our own");
        let echo = namespace.enter(|| Echo::start(namespace.listen(address("127.0.0.1:9001"))));
        let launcher = Launcher::forward(address("127.0.0.1:9000"), address("127.0.0.1:9001"));
        let spliced = launcher.option("--mptcp", "on").option("--workers", "2").inside(&namespace).start();
        for _ in 0..4 {
            let client = namespace.connect(address("127.0.0.1:9000"));
            assert!(echoes(&client, 1, Duration::from_secs(10)));
        }
        assert_eq!(spliced.says("no Multipath TCP").len(), 1, "{}", spliced.text());
        drop(echo);
        spliced.finish();
    });
}

/// The listener is in one namespace, the program and its targets in another: no route leads from one to the other.
#[test]
fn a_listener_in_another_network_namespace() {
    with_namespaces(|| {
        let (inside, outside) = (Netns::new(), Netns::new());
        let echo = outside.enter(|| Echo::start(outside.listen(address("127.0.0.1:9001"))));
        let config = |netns: &str, more: &str| {
            format!("forwards:\n- {{listen: \"127.0.0.1:9000\", to: \"127.0.0.1:9001\", netns: \"{netns}\"}}\n{more}")
        };
        let mut spliced = Launcher::config(&config(&inside.path(), "")).inside(&outside).start();
        let client = inside.connect(address("127.0.0.1:9000"));
        assert!(echoes(&client, 1, LONG));
        let elsewhere = outside.enter(|| TcpStream::connect("127.0.0.1:9000")).expect_err("nobody listens here");
        assert_eq!(elsewhere.kind(), ErrorKind::ConnectionRefused);
        // The rights are gone: a further listener is opened there all the same, one in another namespace is not.
        let more = format!("- {{listen: \"127.0.0.1:9005\", to: \"127.0.0.1:9001\", netns: \"{}\"}}\n", inside.path());
        spliced.replace_config(&config(&inside.path(), &more));
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(0), "{said}");
        assert!(echoes(&inside.connect(address("127.0.0.1:9005")), 3, LONG), "the one a reload has added");
        let third = Netns::new();
        let other =
            more + &format!("- {{listen: \"127.0.0.1:9006\", to: \"127.0.0.1:9001\", netns: \"{}\"}}\n", third.path());
        spliced.replace_config(&config(&inside.path(), &other));
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("network namespace ") && said.contains("restart it"), "{said}");
        assert!(echoes(&inside.connect(address("127.0.0.1:9005")), 4, LONG), "nothing has changed");
        assert!(echoes(&client, 2, LONG));
        drop(client);
        spliced.note_rest();
        spliced.finish();

        let outcome = Launcher::config(&config("no-such-namespace", "")).inside(&outside).outcome();
        assert_eq!(outcome.code, Some(1), "{}", outcome.text);
        assert!(outcome.text.contains("`ip netns list` names them"), "{}", outcome.text);
        drop(echo);
    });
}
