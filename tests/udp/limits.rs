//! Who may send datagrams, and how much: rules and limits hold for flows as for sessions, and each drop is counted by its
//! cause, also in the metrics.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use common::deadline::LONG;
use common::peer::Reserved;
use common::spliced::{Launcher, Spliced};
use common::udp::{self, Echo, ask, is_silent};

/// `top` are keys of the process, `more` of the forward.
fn run(top: &str, listen: SocketAddr, to: SocketAddr, more: &str) -> Spliced {
    let text = format!("workers: 2\n{top}forwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: \"{to}\"{more}}}\n");
    Launcher::config(&text).start()
}

fn client_from(ip: [u8; 4], to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::from(ip)), 0)).expect("a loopback address");
    socket.set_read_timeout(Some(LONG)).expect("a deadline");
    socket.connect(to).expect("an address");
    socket
}

fn dropped(spliced: &Spliced, cause: &str, count: u64) {
    let place = format!("/total/datagrams/drops/{cause}");
    spliced.stats_until(&format!("{count} dropped: {cause}"), |stats| stats.number(&place) == count);
}

#[test]
fn only_who_is_allowed_has_flows_and_a_reload_changes_who() {
    let (echo, listen) = (Echo::start(), udp::address());
    let top = "deny: [127.0.0.66]\n";
    let spliced = run(top, listen, echo.address(), ", allow: [127.0.0.0/25]");
    let (near, far, denied) = (
        client_from([127, 0, 0, 7], listen),
        client_from([127, 0, 0, 200], listen),
        client_from([127, 0, 0, 66], listen),
    );
    assert_eq!(ask(&near, b"x"), b"x");
    far.send(b"x").expect("sent");
    dropped(&spliced, "not_allowed", 1);
    denied.send(b"x").expect("sent");
    dropped(&spliced, "denied", 1);
    assert!(is_silent(&far, Duration::from_millis(30)) && is_silent(&denied, Duration::from_millis(30)));
    assert_eq!(spliced.stats().number("/total/sessions_accepted"), 1);
    spliced.reload_with(&format!(
        "workers: 2\n{top}forwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: \"{}\", allow: [127.0.0.128/25]}}\n",
        echo.address()
    ));
    assert_eq!(ask(&far, b"now"), b"now");
    // The flow that was there goes on by the rules it began with; another one of that address does not begin.
    assert_eq!(ask(&near, b"still"), b"still");
    client_from([127, 0, 0, 7], listen).send(b"x").expect("sent");
    dropped(&spliced, "not_allowed", 2);
}

#[test]
fn a_rule_file_keeps_clients_out() {
    let (echo, listen) = (Echo::start(), udp::address());
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("deny");
    std::fs::write(&file, "# who is kept out\n127.0.9.0/24\n").expect("written");
    let spliced = run("", listen, echo.address(), &format!(", deny_file: {}", file.display()));
    client_from([127, 0, 9, 3], listen).send(b"x").expect("sent");
    dropped(&spliced, "denied", 1);
    assert_eq!(ask(&client_from([127, 0, 8, 3], listen), b"x"), b"x");
}

#[test]
fn new_flows_a_second_are_limited_for_all_and_for_each_source() {
    for key in ["connection_rate", "connection_rate_per_source"] {
        let (echo, listen) = (Echo::start(), udp::address());
        let spliced = run("", listen, echo.address(), &format!(", {key}: 1/s"));
        let clients: Vec<UdpSocket> = (0..8).map(|_| client_from([127, 0, 0, 1], listen)).collect();
        clients.iter().for_each(|client| _ = client.send(b"x").expect("sent"));
        let stats = spliced.stats_until("each is a flow or dropped", |stats| {
            stats.number("/total/sessions_accepted") + stats.number("/total/datagrams/drops/rate") == 8
        });
        assert!(stats.number("/total/datagrams/drops/rate") >= 4, "{key}: {}", stats.0["total"]);
        if key == "connection_rate_per_source" {
            assert_eq!(ask(&client_from([127, 0, 0, 2], listen), b"x"), b"x", "another source");
        }
    }
}

/// What the backend sees of a datagram: the class it came with.
#[test]
fn datagrams_carry_the_class_that_is_configured() {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
    use std::os::fd::AsRawFd;

    let (backend, listen) = (UdpSocket::bind("127.0.0.1:0").expect("a port"), udp::address());
    backend.set_read_timeout(Some(LONG)).expect("a deadline");
    setsockopt(&backend, sockopt::IpRecvTos, &true).expect("Linux has it");
    let _spliced = run("", listen, backend.local_addr().expect("bound"), ", dscp: 46");
    client_from([127, 0, 0, 1], listen).send(b"x").expect("sent");
    let (mut bytes, mut space) = ([0; 8], nix::cmsg_space!(libc::c_int));
    let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
    let message =
        recvmsg::<()>(backend.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).expect("a datagram");
    let class = message.cmsgs().expect("whole").find_map(|control| match control {
        ControlMessageOwned::Ipv4Tos(class) => Some(class),
        _ => None,
    });
    assert_eq!(class, Some(46 << 2));
}

#[test]
fn flows_count_in_the_limit_of_the_process_and_metrics_tell_why_datagrams_were_dropped() {
    let (echo, listen, page) = (Echo::start(), udp::address(), Reserved::loopback());
    let top = format!("max_connections: 2\nmetrics: \"{}\"\n", page.address());
    let spliced = run(&top, listen, echo.address(), ", deny: [127.0.0.66], udp_timeout: 2s");
    let clients: Vec<UdpSocket> = (0..2).map(|_| client_from([127, 0, 0, 1], listen)).collect();
    clients.iter().for_each(|client| assert_eq!(ask(client, b"x"), b"x"));
    client_from([127, 0, 0, 1], listen).send(b"x").expect("sent");
    dropped(&spliced, "limit", 1);
    client_from([127, 0, 0, 66], listen).send(b"x").expect("sent");
    dropped(&spliced, "denied", 1);
    let mut stream = TcpStream::connect(page.address()).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("taken");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("a page");
    for (cause, count) in [("limit", 1), ("denied", 1), ("socket", 0), ("not_allowed", 0)] {
        let line = format!("spliced_datagram_drops_total{{forward=\"dns\",cause=\"{cause}\"}} {count}\n");
        assert!(text.contains(&line), "{line} in {text}");
    }
    assert!(text.contains("spliced_datagrams_total{"), "{text}");
    // A flow that ends makes room for another one.
    spliced.stats_until("they end", |stats| stats.ends("idle") == 2);
    assert_eq!(ask(&client_from([127, 0, 0, 1], listen), b"x"), b"x");
}
