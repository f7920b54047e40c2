//! The PROXY protocol: who may send a header, and who must; what is no header is closed, counted by its cause, and leaves
//! nothing behind.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::deadline::{LONG, until};
use common::pattern::Pattern;
use common::peer::{Reserved, accept, backend, connect, connect_or_reset, end_of, reset};
use common::proxy::{SIGNATURE, Setup, V1, end, from, read, v2_tcp4};
use common::spliced::Launcher;

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
    let example = include_str!("../../examples/client.yaml");
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
