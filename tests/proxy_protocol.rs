//! The PROXY protocol: the header of a listed proxy says who the client is, everything else about the bytes stays as it
//! was; what is no header is closed, counted by its cause, and leaves nothing behind.

#![cfg(target_os = "linux")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use common::deadline::{LONG, until};
use common::pattern::Pattern;
use common::peer::{Reserved, accept, backend, connect, connect_or_reset, end_of, reset};
use common::spliced::{Launcher, Spliced};
use ppp::v2;
use socket2::SockRef;

const MIB: u64 = 1 << 20;
const V1: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A forward with a backend of the test's own.
struct Setup {
    spliced: Spliced,
    listen: Reserved,
    backend: TcpListener,
}

impl Setup {
    /// `options` are lines of the forward, `{}`-style.
    fn new(options: &str) -> Self {
        Self::with("", options)
    }

    fn with(top: &str, options: &str) -> Self {
        let (listen, backend) = (Reserved::loopback(), backend());
        let to = backend.local_addr().expect("bound");
        let text = format!(
            "workers: 2\n{top}\nforwards:\n  - {{ name: it, listen: \"{}\", to: \"{to}\", {options} }}\n",
            listen.address()
        );
        Self { spliced: Launcher::config(&text).start(), listen, backend }
    }

    fn connect(&self) -> TcpStream {
        connect(self.listen.address())
    }

    fn accept(&self) -> TcpStream {
        accept(&self.backend)
    }

    /// A client that begins with these bytes, and the backend's end of its session.
    fn pair(&self, begin: &[u8]) -> (TcpStream, TcpStream) {
        let mut client = self.connect();
        client.write_all(begin).expect("a few bytes");
        (client, self.accept())
    }
}

/// Version 2 with a block of addresses and fields.
fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let len = u16::try_from(block.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, block].concat()
}

/// From 192.0.2.7:40000 to 198.51.100.1:443, with these fields.
fn v2_tcp4(fields: &[u8]) -> Vec<u8> {
    let addresses = [192, 0, 2, 7, 198, 51, 100, 1, 0x9c, 0x40, 0x01, 0xbb];
    v2(0x21, 0x11, &[&addresses, fields].concat())
}

/// A client of another address, by version 1.
fn from(client: &str) -> String {
    format!("PROXY TCP4 {client} 198.51.100.1 40000 443\r\n")
}

fn read(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("so many bytes");
    bytes
}

fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a clean end");
    bytes
}

/// The end of the other side's sending, then of ours.
fn end(client: &TcpStream, server: &TcpStream) {
    client.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(end_of(server), Ok(()));
    server.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(end_of(client), Ok(()));
}

#[test]
fn cut_at_every_byte_nothing_of_the_payload_is_lost() {
    let setup = Setup::new("accept_proxy: [127.0.0.1], send_proxy: v1");
    let payload = b"\r\nPROXY \r\n\r\n\0\r\nQUIT\n and the rest";
    let mut sessions = 0;
    for header in [V1.as_bytes().to_vec(), v2_tcp4(&[0xe0, 0, 3, 1, 2, 3])] {
        let all = [&header[..], payload].concat();
        for cut in 1..all.len() {
            let mut client = setup.connect();
            client.write_all(&all[..cut]).expect("a few bytes");
            if cut % 4 == 0 {
                // The first part has arrived and been looked at.
                setup.spliced.stats_until("it was accepted", |stats| stats.open() == 1);
            }
            client.write_all(&all[cut..]).expect("a few bytes");
            client.shutdown(Shutdown::Write).expect("half-close");
            let server = setup.accept();
            assert_eq!(read_to_end(&server), [V1.as_bytes(), payload].concat(), "cut at {cut}");
            drop(server);
            assert_eq!(end_of(&client), Ok(()));
            sessions += 1;
        }
    }
    setup.spliced.ended("done", sessions);
    let stats = setup.spliced.stats();
    assert_eq!(stats.up().all(), sessions * payload.len() as u64, "headers are no payload");
    assert_eq!((stats.number("/total/proxy_received"), stats.number("/total/proxy_sent")), (sessions, sessions));
    setup.spliced.finish();
}

#[test]
fn header_payload_and_end_in_one_segment() {
    let setup = Setup::new("accept_proxy: [127.0.0.1]");
    for round in 0..20 {
        let mut client = setup.connect();
        SockRef::from(&client).set_tcp_cork(true).expect("TCP_CORK");
        client.write_all(&[&v2_tcp4(&[])[..], b"all of it"].concat()).expect("a few bytes");
        client.shutdown(Shutdown::Write).expect("half-close");
        let mut server = setup.accept();
        assert_eq!(read_to_end(&server), b"all of it", "round {round}");
        // The other direction is still open.
        server.write_all(b"the answer").expect("a few bytes");
        drop(server);
        assert_eq!(read_to_end(&client), b"the answer");
    }
    setup.spliced.ended("done", 20);
    setup.spliced.finish();
}

#[test]
fn what_is_behind_the_header_is_spliced() {
    let engine = if cfg!(spliced_portable) { "copy" } else { "splice" };
    for version in ["v1", "v2"] {
        let setup = Setup::new(&format!("accept_proxy: [127.0.0.0/8], send_proxy: {version}, engine: {engine}"));
        let (mut client, server) = setup.pair(&v2_tcp4(&[]));
        let header = if version == "v1" { V1.as_bytes().to_vec() } else { v2_tcp4(&[]) };
        assert_eq!(read(&server, header.len()), header);
        common::pattern::exchange(&client, &server, 8 * MIB, 3 * MIB);
        client.flush().expect("nothing is left");
        setup.spliced.ended("done", 1);
        let stats = setup.spliced.stats();
        assert_eq!((stats.up().all(), stats.down().all()), (8 * MIB, 3 * MIB));
        if engine == "splice" {
            assert_eq!((stats.up().copy, stats.down().copy), (0, 0), "not one byte went through user space");
        }
        setup.spliced.finish();
    }
}

#[test]
fn an_urgent_byte_right_behind_the_header() {
    let setup = Setup::new("accept_proxy: [127.0.0.1]");
    for header in [V1.as_bytes().to_vec(), v2_tcp4(&[])] {
        let mut client = setup.connect();
        client.write_all(&header).expect("a header");
        SockRef::from(&client).send_out_of_band(b"!").expect("an urgent byte");
        client.write_all(b"and more").expect("a few bytes");
        let server = setup.accept();
        SockRef::from(&server).set_out_of_band_inline(true).expect("SO_OOBINLINE");
        assert_eq!(read(&server, 9), b"!and more");
        end(&client, &server);
        // The mark within the header.
        let client = setup.connect();
        SockRef::from(&client).send_out_of_band(&header[..10]).expect("urgent bytes");
        (&client).write_all(&header[10..]).expect("the rest");
        (&client).write_all(b"payload").expect("a few bytes");
        let server = setup.accept();
        assert_eq!(read(&server, 7), b"payload");
        end(&client, &server);
    }
    setup.spliced.ended("done", 4);
    setup.spliced.finish();
}

#[test]
fn the_log_the_rules_and_the_limits_go_by_the_header() {
    let setup = Setup::new("accept_proxy: [127.0.0.1], max_connections_per_source: 1, deny: [203.0.113.0/24]");
    let (client, server) = setup.pair(V1.as_bytes());
    let (other, other_server) = setup.pair(from("192.0.2.8").as_bytes());
    // The same source once more, and one that is denied.
    for (header, reason) in [(V1.to_owned(), "limit"), (from("203.0.113.9"), "denied")] {
        let mut refused = setup.connect();
        refused.write_all(header.as_bytes()).expect("a header");
        assert_eq!(end_of(&refused), Err(ErrorKind::ConnectionReset), "{reason}");
        setup.spliced.ended(reason, 1);
    }
    end(&client, &server);
    end(&other, &other_server);
    let peer = client.local_addr().expect("connected");
    until("the log has it", LONG, || {
        let line = format!("client=192.0.2.7:40000 proxy={peer} listener={} ", setup.listen.address());
        !setup.spliced.logged(&line).is_empty()
    });
    // Its slot is free again.
    let (client, server) = setup.pair(V1.as_bytes());
    end(&client, &server);
    setup.spliced.finish();
}

#[test]
fn a_proxy_that_speaks_for_itself_is_the_client() {
    let setup = Setup::new("accept_proxy: [127.0.0.1], send_proxy: v1");
    let unix = v2(0x21, 0x31, &[0; 216]);
    for header in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY UNKNOWN ::1 ::1 1 2 x\r\n",
        &v2(0x20, 0, &[]),
        &v2(0x20, 0x11, &[1; 40]),
        &unix,
    ] {
        let (client, server) = setup.pair(header);
        let (from, to) = (client.local_addr().expect("connected"), setup.listen.address());
        let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), to.port());
        assert_eq!(read(&server, line.len()), line.as_bytes());
        end(&client, &server);
    }
    setup.spliced.finish();
}

#[test]
fn fields_are_passed_on_with_a_checksum_of_their_own() {
    let setup = Setup::new("accept_proxy: [127.0.0.1], send_proxy: v2");
    // An authority, padding, a checksum over what we have written, a field of our own.
    let fields = |sum: u32| {
        [&[0x02, 0, 4][..], b"host", &[0x04, 0, 2, 0, 0, 0x03, 0, 4], &sum.to_be_bytes(), &[0xe1, 0, 1, 9]].concat()
    };
    let sum = crc32c(&v2_tcp4(&fields(0)));
    let (client, server) = setup.pair(&v2_tcp4(&fields(sum)));
    let received = read(&server, 16 + 12 + 7 + 4 + 7);
    let header = v2::Header::try_from(&received[..]).expect("a header");
    let found: Vec<(u8, Vec<u8>)> = header
        .tlvs()
        .map(|field| field.map(|field| (field.kind, field.value.into_owned())).expect("a field"))
        .collect();
    let kinds: Vec<u8> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x02, 0xe1, 0x03]);
    assert_eq!((&found[0].1[..], &found[1].1[..]), (&b"host"[..], &[9][..]));
    let mut zeroed = received.clone();
    let at = zeroed.len() - 4;
    zeroed[at..].fill(0);
    assert_eq!(found[2].1, crc32c(&zeroed).to_be_bytes());
    end(&client, &server);
    // One that does not hold.
    let mut wrong = setup.connect();
    wrong.write_all(&v2_tcp4(&fields(sum ^ 1))).expect("a header");
    assert_eq!(end_of(&wrong), Err(ErrorKind::ConnectionReset));
    setup.spliced.ended("proxy_checksum", 1);
    setup.spliced.finish();
}

/// Castagnoli's polynomial, another way round than the program's.
fn crc32c(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256)
        .map(|n| (0..8).fold(n, |c: u32, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 }))
        .collect();
    !bytes.iter().fold(u32::MAX, |crc, byte| (crc >> 8) ^ table[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

#[test]
fn the_target_is_told_who_connected_where() {
    for (ip, version) in [("127.0.0.1", "v1"), ("127.0.0.1", "v2"), ("::1", "v1"), ("::1", "v2")] {
        let listen = Reserved::on(SocketAddr::new(ip.parse().expect("an address"), 0));
        let backend = backend();
        let spliced = Launcher::forward(listen.address(), backend.local_addr().expect("bound"))
            .option("--send-proxy", version)
            .start();
        let client = connect(listen.address());
        let mut server = accept(&backend);
        // A server that speaks first has the header before it does.
        let (from, to) = (client.local_addr().expect("connected"), listen.address());
        if version == "v1" {
            let family = if ip.contains(':') { "TCP6" } else { "TCP4" };
            let line = format!("PROXY {family} {ip} {ip} {} {}\r\n", from.port(), to.port());
            assert_eq!(read(&server, line.len()), line.as_bytes());
        } else {
            let received = read(&server, if ip.contains(':') { 52 } else { 28 });
            let header = v2::Header::try_from(&received[..]).expect("a header");
            let (source, destination) = match header.addresses {
                v2::Addresses::IPv4(a) => {
                    ((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())
                }
                v2::Addresses::IPv6(a) => {
                    ((a.source_address, a.source_port).into(), (a.destination_address, a.destination_port).into())
                }
                other => panic!("{other:?}"),
            };
            assert_eq!((source, destination), (from, to));
        }
        server.write_all(b"220 ready").expect("a few bytes");
        assert_eq!(read(&client, 9), b"220 ready");
        end(&client, &server);
        spliced.finish();
    }
}

#[test]
fn only_listed_sources_and_only_with_a_header() {
    let setup = Setup::new("accept_proxy: [10.0.0.0/8]");
    if let Some(stranger) = connect_or_reset(setup.listen.address()) {
        assert_eq!(end_of(&stranger), Err(ErrorKind::ConnectionReset));
    }
    setup.spliced.ended("proxy_unlisted", 1);
    setup.spliced.finish();
    // Where it is optional, a stranger is a client like any, and what looks like a header is payload.
    let setup = Setup::new("accept_proxy: { from: [10.0.0.0/8], required: false }");
    let (client, server) = setup.pair(V1.as_bytes());
    assert_eq!(read(&server, V1.len()), V1.as_bytes());
    end(&client, &server);
    let peer = client.local_addr().expect("connected");
    until("the log has the peer", LONG, || !setup.spliced.logged(&format!("client={peer} listener=")).is_empty());
    setup.spliced.finish();
}

#[test]
fn an_optional_header_may_be_missing() {
    let setup = Setup::new("accept_proxy: { from: [127.0.0.1], timeout: 150ms, required: false }");
    // Bytes that are none, also such as begin like one; the end at once; silence.
    for begin in [&b"GET / HTTP/1.1\r\n"[..], b"PROXZ", b"\r\n\r\nx"] {
        let (client, server) = setup.pair(begin);
        assert_eq!(read(&server, begin.len()), begin);
        end(&client, &server);
    }
    let client = setup.connect();
    end(&client, &{
        client.shutdown(Shutdown::Write).expect("half-close");
        setup.accept()
    });
    let client = setup.connect();
    let mut server = setup.accept();
    server.write_all(b"220 ready").expect("a few bytes");
    assert_eq!(read(&client, 9), b"220 ready");
    end(&client, &server);
    let (client, server) = setup.pair(V1.as_bytes());
    end(&client, &server);
    setup.spliced.ended("done", 6);
    assert_eq!(setup.spliced.stats().number("/total/proxy_received"), 1);
    setup.spliced.finish();
}

#[test]
fn thousands_of_bad_headers_are_counted_by_cause_and_leave_nothing() {
    let setup = Setup::with(
        "max_connections: 300",
        "accept_proxy: { from: [127.0.0.1], timeout: 400ms }, connection_rate_per_source: 1000000/s",
    );
    let long_line = format!("PROXY UNKNOWN {}", "x".repeat(200));
    let long_block = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
    let causes: [(&[u8], bool, &str); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n", false, "proxy_invalid"),
        (b"PROXY TCP4 1.2.3.4 nonsense 1 2\r\n", false, "proxy_invalid"),
        (long_line.as_bytes(), false, "proxy_too_long"),
        (&long_block, false, "proxy_too_long"),
        (&V1.as_bytes()[..20], true, "proxy_truncated"),
        (&long_block[..14], true, "proxy_truncated"),
        (b"", true, "proxy_truncated"),
    ];
    for round in 0..400 {
        for (bytes, ends, _) in causes {
            let mut client = setup.connect();
            client.write_all(bytes).unwrap_or_else(|e| panic!("round {round}: {e}"));
            if ends {
                client.shutdown(Shutdown::Write).expect("half-close");
            }
            assert_eq!(end_of(&client), Err(ErrorKind::ConnectionReset), "round {round}");
        }
    }
    for (reason, count) in [("proxy_invalid", 800), ("proxy_too_long", 800), ("proxy_truncated", 1200)] {
        setup.spliced.ended(reason, count);
    }
    // Slow ones hold no more than their slot, and not for longer than they may.
    let slow: Vec<TcpStream> = (0..100)
        .map(|i| {
            let mut client = setup.connect();
            client.write_all(&V1.as_bytes()[..i % 30]).expect("a few bytes");
            client
        })
        .collect();
    slow.iter().for_each(|client| assert_eq!(end_of(client), Err(ErrorKind::ConnectionReset)));
    setup.spliced.ended("proxy_timeout", 100);
    // One that is reset while its header is awaited.
    let mut client = setup.connect();
    client.write_all(b"PROXY ").expect("a few bytes");
    setup.spliced.stats_until("it is there", |stats| stats.open() == 1);
    reset(client);
    setup.spliced.ended("reset_by_client", 1);
    // And the next one is served.
    let (client, server) = setup.pair(V1.as_bytes());
    end(&client, &server);
    setup.spliced.finish();
}

#[test]
fn a_header_that_comes_byte_by_byte_in_time() {
    let setup = Setup::new("accept_proxy: [127.0.0.1]");
    let mut client = setup.connect();
    for byte in v2_tcp4(&[0xe0, 0, 1, 1]) {
        client.write_all(&[byte]).expect("a byte");
        thread::yield_now();
    }
    client.write_all(b"x").expect("a byte");
    let server = setup.accept();
    assert_eq!(read(&server, 1), b"x");
    end(&client, &server);
    setup.spliced.finish();
}

#[test]
fn a_header_of_four_kilobytes_passes_small_buffers() {
    let setup = Setup::new("accept_proxy: [127.0.0.1], send_proxy: v2, receive_buffer: 1KiB, send_buffer: 1KiB");
    let most = 4096 - 16 - 12 - 3;
    let fields = [&[0xe0, (most >> 8) as u8, most as u8][..], &vec![7; most]].concat();
    let header = v2_tcp4(&fields);
    assert_eq!(header.len(), 4096);
    let (client, server) = setup.pair(&header);
    assert_eq!(read(&server, 4096), header);
    Pattern::new(1).send(&client, 0, 100_000).expect("send");
    client.shutdown(Shutdown::Write).expect("half-close");
    Pattern::new(1).expect_whole(&server, 0, 100_000);
    drop(server);
    assert_eq!(end_of(&client), Ok(()));
    setup.spliced.finish();
}

#[test]
fn a_reload_changes_who_may_send_a_header() {
    let setup = Setup::new("accept_proxy: [127.0.0.1]");
    let to = setup.backend.local_addr().expect("bound");
    let text = |options: &str| {
        format!(
            "workers: 2\nforwards:\n  - {{ name: it, listen: \"{}\", to: \"{to}\", {options} }}\n",
            setup.listen.address()
        )
    };
    let waiting = setup.connect();
    setup.spliced.stats_until("it waits", |stats| stats.open() == 1);
    let said = setup.spliced.reload_with(&text("send_proxy: v1"));
    assert!(said.contains("send_proxy off -> v1"), "{said}");
    assert!(said.contains("accept_proxy {from: [127.0.0.1], timeout: 3s, required: true} -> none"), "{said}");
    // Who waits goes on under the rules it began with.
    (&waiting).write_all(V1.as_bytes()).expect("a header");
    let server = setup.accept();
    (&waiting).write_all(b"x").expect("a byte");
    assert_eq!(read(&server, 1), b"x", "no header to a target that was to have none");
    end(&waiting, &server);
    let (client, server) = setup.pair(b"y");
    let line = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\ny",
        client.local_addr().expect("connected").port(),
        setup.listen.address().port()
    );
    assert_eq!(read(&server, line.len()), line.as_bytes());
    end(&client, &server);
    setup.spliced.finish();
}

#[test]
fn clients_of_a_target_that_is_gone_end_as_ever() {
    let (listen, gone) = (Reserved::loopback(), Reserved::on((Ipv4Addr::LOCALHOST, 0).into()));
    let spliced = Launcher::forward(listen.address(), gone.address())
        .option("--accept-proxy", "127.0.0.1 timeout 5s")
        .option("--send-proxy", "v2")
        .start();
    let mut client = connect(listen.address());
    client.write_all(V1.as_bytes()).expect("a header");
    assert_eq!(end_of(&client), Err(ErrorKind::ConnectionReset));
    spliced.ended("refused", 1);
    assert_eq!(spliced.stats().number("/total/proxy_sent"), 0);
    spliced.finish();
}

#[test]
fn waiting_for_a_header_keeps_no_drain_from_its_end() {
    let mut setup = Setup::new("accept_proxy: { from: [127.0.0.1], timeout: 200ms }");
    let client = setup.connect();
    setup.spliced.stats_until("it waits", |stats| stats.open() == 1);
    setup.spliced.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(end_of(&client), Err(ErrorKind::ConnectionReset));
    assert_eq!(setup.spliced.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn the_example_runs() {
    let example = include_str!("../examples/client.yaml");
    let (first, second, backend) = (Reserved::loopback(), Reserved::loopback(), backend());
    let to = backend.local_addr().expect("bound").to_string();
    let mut text = example.to_owned();
    for (from, into) in [
        ("127.0.0.1:8443", &first.address().to_string()),
        ("127.0.0.1:8080", &second.address().to_string()),
        ("10.0.0.2:443", &to),
        ("10.0.0.2:80", &to),
        ("10.1.0.0/24", &"127.0.0.0/8".to_owned()),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, into);
    }
    let spliced = Launcher::config(&text).start();
    let mut client = connect(first.address());
    client.write_all(from("198.51.100.9").as_bytes()).expect("a header");
    let server = accept(&backend);
    assert_eq!(read(&server, 28)[16..20], [198, 51, 100, 9]);
    end(&client, &server);
    let mut denied = connect(first.address());
    denied.write_all(V1.as_bytes()).expect("a header");
    assert_eq!(end_of(&denied), Err(ErrorKind::ConnectionReset));
    let mut client = connect(second.address());
    client.write_all(b"GET /").expect("a few bytes");
    let server = accept(&backend);
    assert_eq!(read(&server, 5), b"GET /");
    end(&client, &server);
    spliced.ended("denied", 1);
    spliced.finish();
}
