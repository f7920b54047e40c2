//! Unix sockets on either side carry bytes, ends and errors as TCP does, by every engine.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, throughout, until};
use common::unix::{Address, Kind, SHORT, Way, accept, echoes, exchange, pattern, receive_all, send_all};
use socket2::Socket;

const MIB: usize = 1 << 20;
const WAYS: [(Kind, Kind); 6] = [
    (Kind::File, Kind::Tcp),
    (Kind::Tcp, Kind::File),
    (Kind::File, Kind::File),
    (Kind::Abstract, Kind::Tcp),
    (Kind::Tcp, Kind::Abstract),
    (Kind::Abstract, Kind::Abstract),
];

fn every_way(engine: &str, check: impl Fn(&Way)) {
    for (from, to) in WAYS {
        let way = Way::new(from, to, engine, "");
        check(&way);
        way.spliced.finish();
    }
}

/// Megabytes both ways at once, and what came by which path.
fn bytes_arrive_whole(engine: &str) {
    every_way(engine, |way| {
        let sizes = [(0, 0), (1, 0), (3 * MIB + 7, 2 * MIB + 1)];
        for (up, down) in sizes {
            let (client, server) = way.pair();
            exchange(&client, &server, up, down);
        }
        let stats = way.spliced.stats_until("all sessions have ended", |stats| stats.ends("done") == 3);
        let (up, down) = (stats.up(), stats.down());
        let sums = sizes.iter().fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
        assert_eq!((up.all(), down.all()), (sums.0 as u64, sums.1 as u64), "{} to {}", way.front.text, way.back.text);
        match engine {
            "copy" => assert_eq!((up.splice, down.splice), (0, 0), "nothing goes through a pipe"),
            // Only the end is looked for by recv, which takes no byte.
            "splice" if cfg!(not(spliced_portable)) => {
                assert_eq!((up.copy, down.copy), (0, 0), "all goes through pipes")
            }
            _ => {}
        }
        assert_eq!(
            stats.fallbacks("source_unsupported") + stats.fallbacks("target_unsupported"),
            0,
            "no socket refuses splice"
        );
    });
}

#[test]
fn bytes_arrive_whole_by_splice() {
    bytes_arrive_whole("splice");
}

#[test]
fn bytes_arrive_whole_by_copy() {
    bytes_arrive_whole("copy");
}

#[test]
fn bytes_arrive_whole_by_auto() {
    bytes_arrive_whole("auto");
}

/// Either side may end its half and go on receiving.
#[test]
fn a_half_close_passes_and_the_other_half_goes_on() {
    every_way("auto", |way| {
        for from_client in [true, false] {
            let (client, server) = way.pair();
            let (first, second) = if from_client { (&client, &server) } else { (&server, &client) };
            send_all(first, b"question");
            assert_eq!(receive_all(second), b"question");
            let answer = pattern(3, MIB);
            thread::scope(|scope| {
                scope.spawn(|| send_all(second, &answer));
                assert!(receive_all(first) == answer);
            });
        }
        way.spliced.ended("done", 2);
    });
}

/// A reader that stops holds up its writer, and bytes neither get lost nor pile up.
#[test]
fn a_full_socket_holds_the_other_side_up() {
    for engine in ["splice", "copy"] {
        let way = Way::new(Kind::File, Kind::File, engine, "");
        let (client, mut server) = way.pair();
        let bytes = pattern(4, 24 * MIB);
        thread::scope(|scope| {
            let sender = scope.spawn(|| send_all(&client, &bytes));
            let mut held = 0;
            until("the sender is held up", Duration::from_secs(20), || {
                let now = way.spliced.stats().up().all();
                std::mem::replace(&mut held, now) == now && now > 0
            });
            assert!(!sender.is_finished() && held < bytes.len() as u64);
            let mut all = vec![0; bytes.len()];
            server.read_exact(&mut all).expect("the rest comes");
            assert!(all == bytes);
        });
        drop((client, server));
        way.spliced.finish();
    }
}

/// Closing with bytes unread is a unix socket's reset. It reaches a TCP peer as a reset.
#[test]
fn a_close_with_unread_bytes_is_a_reset_for_a_tcp_peer() {
    let way = Way::new(Kind::Tcp, Kind::File, "auto", "");
    let (mut client, server) = way.pair();
    client.write_all(b"never read").expect("send");
    until("the bytes are there", Duration::from_secs(20), || readable(&server));
    drop(server);
    let error = client.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    way.spliced.ended("reset_by_backend", 1);
    way.spliced.finish();
}

/// What a reset becomes for a unix peer: an end, because such a socket knows no reset of the other side's making.
#[test]
fn a_reset_of_a_tcp_client_is_an_end_for_a_unix_backend() {
    let way = Way::new(Kind::Tcp, Kind::File, "auto", "");
    let (client, mut server) = way.pair();
    echoes(&client, &server);
    client.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(client);
    assert_eq!(server.read(&mut [0]).expect("an end"), 0);
    let error = until_error(&mut server);
    assert_eq!(error, ErrorKind::BrokenPipe, "and nobody takes bytes any more");
    way.spliced.ended("reset_by_client", 1);
    way.spliced.finish();
}

fn until_error(socket: &mut Socket) -> ErrorKind {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match socket.write_all(b"x") {
            Err(e) => return e.kind(),
            Ok(()) => assert!(Instant::now() < end, "the other end is gone"),
        }
    }
}

fn readable(socket: &Socket) -> bool {
    socket.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok_and(|n| n > 0)
}

/// With the listener's queue full connect(2) says EAGAIN: the session waits, and goes on once there is room.
#[test]
fn a_full_queue_is_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let back = Address::file(&directory.path().join("back"));
    let (backend, fillers) = full(&back);
    let front = Address::file(&directory.path().join("front"));
    let spliced = common::spliced::Launcher::with_arguments(["forward", &front.text, &back.text]).start();
    let mut client = front.connect();
    client.write_all(b"hello").expect("send");
    until("it is taken", LONG, || spliced.stats().open() == 1);
    throughout("the session waits", SHORT, || {
        let stats = spliced.stats();
        if stats.open() == 1 { Ok(()) } else { Err(stats.0.to_string()) }
    });
    for _ in &fillers {
        drop(accept(&backend));
    }
    let mut server = accept(&backend);
    let mut hello = [0; 5];
    server.read_exact(&mut hello).expect("the request");
    drop((client, server));
    spliced.finish();
}

/// The connect timeout ends the wait.
#[test]
fn a_full_queue_is_waited_for_no_longer_than_the_connect_timeout() {
    let directory = tempfile::tempdir().expect("a directory");
    let back = Address::file(&directory.path().join("back"));
    let (_backend, _fillers) = full(&back);
    let front = Address::file(&directory.path().join("front"));
    let launcher = common::spliced::Launcher::with_arguments(["forward", &front.text, &back.text]);
    let spliced = launcher.option("--connect-timeout", "200ms").start();
    let mut client = front.connect();
    assert!(matches!(client.read(&mut [0]), Ok(0)), "it is closed");
    spliced.ended("connect_timeout", 1);
    let line = format!("target={} ", back.text);
    until("the session's line", Duration::from_secs(20), || spliced.logged(&line).len() == 1);
    spliced.finish();
}

/// A target that does not answer is passed over for the next one.
#[test]
fn the_next_target_is_tried() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| Address::file(&directory.path().join(name));
    let (missing, dead, busy, alive, front) = (at("missing"), at("dead"), at("busy"), at("alive"), at("front"));
    drop(dead.listen(1));
    let (_backend, _fillers) = full(&busy);
    let backend = alive.listen(8);
    let targets = [&missing, &dead, &busy, &alive].map(|target| format!("\"{}\"", target.text)).join(", ");
    let config = format!("connect_timeout: 1s\nforwards: [{{listen: \"{}\", to: [{targets}]}}]\n", front.text);
    let spliced = common::spliced::Launcher::config(&config).start();
    for _ in 0..4 {
        let client = front.connect();
        let server = accept(&backend);
        echoes(&client, &server);
        client.shutdown(Shutdown::Both).expect("done");
    }
    spliced.finish();
}

/// A listener whose queue takes no further connection, and those that fill it.
fn full(at: &Address) -> (Socket, Vec<Socket>) {
    let backend = at.listen(0);
    let mut fillers = Vec::new();
    loop {
        let filler = Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        filler.set_nonblocking(true).expect("O_NONBLOCK");
        match filler.connect(&at.kernel) {
            Ok(()) => fillers.push(filler),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return (backend, fillers),
            Err(e) => panic!("fill the queue: {e}"),
        }
    }
}

/// Logs and counters name unix sockets as the configuration does, and clients by who they are.
#[test]
fn logs_and_counters_name_unix_sockets() {
    let way = Way::new(Kind::File, Kind::Abstract, "auto", "deny: 0.0.0.0/0");
    let (client, server) = way.pair();
    exchange(&client, &server, 3, 4);
    drop((client, server));
    way.spliced.ended("done", 1);
    let who = format!("client=unix:uid={},pid={} ", nix::unistd::getuid(), std::process::id());
    let ends = format!("{who}listener={} target={} ", way.front.text, way.back.text);
    until("the session's line", Duration::from_secs(20), || way.spliced.logged(&ends).len() == 1);
    let stats = way.spliced.stats();
    assert_eq!(stats.0.pointer("/forwards/0/listen/0").and_then(|v| v.as_str()), Some(way.front.text.as_str()));
    assert_eq!(stats.0.pointer("/forwards/0/to/0").and_then(|v| v.as_str()), Some(way.back.text.as_str()));
    way.spliced.finish();
}
