//! The PROXY protocol: the header of a listed proxy says who the client is, everything else about the bytes stays as it
//! was. `proxy_rules.rs` has what becomes of who sends none, and of what is no header.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};

use common::deadline::{LONG, until};
use common::peer::{Reserved, accept, backend, connect, end_of};
use common::proxy::{Setup, V1, end, from, read, read_to_end, v2 as header_v2, v2_tcp4};
use common::spliced::Launcher;
use ppp::v2;
use socket2::SockRef;

const MIB: u64 = 1 << 20;

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
    let unix = header_v2(0x21, 0x31, &[0; 216]);
    for header in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"PROXY UNKNOWN ::1 ::1 1 2 x\r\n",
        &header_v2(0x20, 0, &[]),
        &header_v2(0x20, 0x11, &[1; 40]),
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
