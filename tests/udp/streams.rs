//! Datagrams to a target that speaks a stream, and streams to one that takes datagrams: two bytes of length before each.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use common::deadline::LONG;
use common::peer::Reserved;
use common::spliced::{Launcher, Spliced};
use common::udp::{self, Echo, ask, client, receive};

fn run(listen: &str, to: &str, more: &str) -> Spliced {
    let text = format!("workers: 2\nforwards:\n  - {{name: dns, listen: \"{listen}\", to: \"{to}\"{more}}}\n");
    Launcher::config(&text).start()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ at >> 8 ^ seed) as u8).collect()
}

fn framed(datagram: &[u8]) -> Vec<u8> {
    let length = u16::try_from(datagram.len()).expect("a datagram");
    [&length.to_be_bytes()[..], datagram].concat()
}

fn read_framed(mut stream: &TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut datagram = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut datagram).expect("a datagram");
    datagram
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("a deadline");
    stream
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(LONG)).expect("a deadline");
    stream
}

const SIZES: [usize; 9] = [0, 1, 2, 512, 1472, 9000, 32_768, 65_506, 65_507];

#[test]
fn datagrams_go_into_a_stream_of_each_client_and_come_back() {
    let backend = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = udp::address();
    let to = format!("tcp:{}", backend.local_addr().expect("bound"));
    let spliced = run(&format!("udp:{listen}"), &to, "");
    assert!(!spliced.says(&format!("listening on udp:{listen}, forward \"dns\", to {to}")).is_empty());
    let clients = [client(listen), client(listen)];
    let streams: Vec<TcpStream> = clients
        .iter()
        .map(|client| {
            client.send(b"hello").expect("sent");
            let stream = accept(&backend);
            assert_eq!(read_framed(&stream), b"hello");
            stream
        })
        .collect();
    for (seed, len) in SIZES.into_iter().enumerate() {
        for (client, mut stream) in clients.iter().zip(&streams) {
            let question = pattern(len, seed);
            client.send(&question).expect("sent");
            assert!(read_framed(stream) == question, "{len} bytes");
            // In pieces, and two datagrams in one piece.
            let answer = [framed(&question), framed(b"and more")].concat();
            let (first, rest) = answer.split_at(answer.len() / 2);
            stream.write_all(first).expect("taken");
            std::thread::park_timeout(Duration::from_millis(2));
            stream.write_all(rest).expect("taken");
            assert!(receive(client) == question, "{len} bytes");
            assert_eq!(receive(client), b"and more");
        }
    }
    let stats = spliced.stats_until("all is counted", |s| s.number("/total/datagrams/backend_to_client") == 36);
    assert_eq!((stats.open(), stats.number("/total/datagrams/client_to_backend")), (2, 20));
    // The target ends the stream, and with it the flow; the next datagram begins another.
    drop(streams);
    spliced.stats_until("both end", |stats| stats.open() == 0 && stats.ends("done") == 2);
    clients[0].send(b"again").expect("sent");
    assert_eq!(read_framed(&accept(&backend)), b"again");
}

#[test]
fn a_target_that_refuses_the_stream_ends_the_flow() {
    let (nobody, listen) = (Reserved::loopback(), udp::address());
    let spliced = run(&format!("udp:{listen}"), &format!("tcp:{}", nobody.address()), "");
    client(listen).send(b"anybody there").expect("sent");
    let stats = spliced.stats_until("it ends", |stats| stats.ends("refused") == 1);
    assert_eq!((stats.open(), stats.number("/total/datagrams/drops/unreachable")), (0, 1));
}

#[test]
fn a_stream_that_takes_nothing_costs_bounded_memory_and_drops() {
    let backend = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = udp::address();
    let spliced = run(&format!("udp:{listen}"), &format!("tcp:{}", backend.local_addr().expect("bound")), "");
    let client = client(listen);
    client.send(b"first").expect("sent");
    let stream = accept(&backend);
    let question = pattern(8000, 1);
    let stats = spliced.stats_until("there is no room any more", |stats| {
        for _ in 0..100 {
            let _ = client.send(&question);
        }
        stats.number("/total/datagrams/drops/no_room") > 0
    });
    assert_eq!(stats.open(), 1);
    // What was taken is whole.
    assert_eq!(read_framed(&stream), b"first");
    for _ in 0..100 {
        assert!(read_framed(&stream) == question);
    }
}

#[test]
fn a_stream_comes_apart_into_datagrams_and_answers_come_back() {
    let (echo, listen) = (Echo::start(), Reserved::loopback());
    let spliced = run(&listen.address().to_string(), &format!("udp:{}", echo.address()), "");
    let mut stream = connect(listen.address());
    for (seed, len) in SIZES.into_iter().enumerate() {
        let question = pattern(len, seed);
        for piece in framed(&question).chunks(len / 3 + 1) {
            stream.write_all(piece).expect("taken");
        }
        assert!(read_framed(&stream) == question, "{len} bytes");
    }
    let many: Vec<u8> = (0..50).flat_map(|n| framed(&pattern(100, n))).collect();
    stream.write_all(&many).expect("taken");
    stream.shutdown(Shutdown::Write).expect("connected");
    let mut answers: Vec<Vec<u8>> = (0..50).map(|_| read_framed(&stream)).collect();
    answers.sort();
    let mut expected: Vec<Vec<u8>> = (0..50).map(|n| pattern(100, n)).collect();
    expected.sort();
    assert!(answers == expected, "also those that come after the client's end");
    assert_eq!(stream.read(&mut [0]).expect("a clean end"), 0);
    let stats = spliced.stats_until("it ends", |stats| stats.ends("done") == 1);
    assert_eq!((stats.open(), stats.number("/total/sessions_accepted")), (0, 1));
    assert_eq!(stats.number("/total/datagrams/client_to_backend"), 59);
    assert_eq!(stats.number("/total/datagrams/backend_to_client"), 59);
}

#[test]
fn a_stream_without_answers_ends_by_its_timeout_or_the_refusal() {
    let (nobody, listen) = (udp::address(), Reserved::loopback());
    let spliced =
        run(&listen.address().to_string(), &format!("udp:{nobody}"), ", udp_timeout: 300ms, deny: [127.0.0.9]");
    let idle = connect(listen.address());
    assert_eq!((&idle).read(&mut [0]).expect("a clean end"), 0);
    spliced.ended("idle", 1);
    let mut refused = connect(listen.address());
    refused.write_all(&framed(b"anybody there")).expect("taken");
    let end = refused.read(&mut [0]).expect_err("no clean end");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    spliced.ended("refused", 1);
    let denied = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    denied.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).expect("a loopback address");
    let _ = denied.connect(&listen.address().into());
    let stats = spliced.stats_until("it is denied", |stats| {
        stats.ends("denied") == 1 && stats.number("/total/sessions_accepted") == 3
    });
    assert_eq!(stats.open(), 0);
}

#[test]
fn files_of_oi_and_rinetd_say_it_their_way() {
    let (echo, listen, stream) = (Echo::start(), udp::address(), Reserved::loopback());
    let to = echo.address();
    let text = format!(
        "[[forwarding_rules]]\nbind_address = \"127.0.0.1\"\nbind_port = {}\nconnect_address = \"{}\"\nconnect_port = {}\n\
         protocol = \"tcptoudp\"\n",
        stream.address().port(),
        to.ip(),
        to.port()
    );
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("oi.toml");
    std::fs::write(&file, text).expect("written");
    let oi = Launcher::with_arguments(["run".into(), "--config".into(), file.into_os_string()]).start();
    let mut client_stream = connect(stream.address());
    client_stream.write_all(&framed(b"oi")).expect("taken");
    assert_eq!(read_framed(&client_stream), b"oi");
    drop(oi);
    let file = directory.path().join("rinetd.conf");
    std::fs::write(&file, format!("127.0.0.1 {}/udp {} {}/udp [timeout=7]\n", listen.port(), to.ip(), to.port()))
        .expect("written");
    let rinetd = Launcher::with_arguments(["run".into(), "--config".into(), file.into_os_string()]).start();
    assert_eq!(ask(&client(listen), b"rinetd"), b"rinetd");
    drop(rinetd);
}
