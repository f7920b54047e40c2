//! Every byte arrives, once and in order, and by the path the engine promises.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::deadline::throughout;
use common::path::{Path, Via};
use common::pattern::{Pattern, Random};
use common::peer::{FullBackend, accept};
use common::stats::Moved;

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [
        nothing_one_byte_and_odd_sizes,
        three_hundred_mib_each_way_at_once,
        three_hundred_short_transfers,
        the_server_speaks_first,
    ],
    engines: [
        bulk_takes_the_promised_path,
        small_messages_take_the_promised_path,
        a_client_that_is_gone_before_the_backend_is_there,
    ],
);

/// Sizes around a segment, a page, a default pipe and a scratch buffer: catches a lost or doubled edge.
fn nothing_one_byte_and_odd_sizes(via: Via) {
    let path = Path::new(via);
    let sizes = [0, 1, 2, 63, 1447, 1448, 1449, 4095, 4096, 4097, 65_535, 65_536, 65_537, 196_609, MIB - 1, MIB + 1];
    let mut random = Random::new(5);
    let (mut up_sum, mut down_sum) = (0, 0);
    for up in sizes {
        for down in [0, up, sizes[usize::try_from(random.below(sizes.len() as u64)).expect("an index")]] {
            path.exchange(up, down);
            up_sum += up;
            down_sum += down;
        }
    }
    path.ended("done", 3 * sizes.len() as u64);
    path.settled(up_sum, down_sum);
    path.finish();
}

/// Long enough for every queue in between to fill and empty many times, in both directions of one session.
fn three_hundred_mib_each_way_at_once(via: Via) {
    let path = Path::new(via);
    let len = 300 * MIB + 13;
    path.exchange(len, len);
    path.ended("done", 1);
    path.settled(len, len);
    path.finish();
}

/// Sessions that come and go while others run: catches slots, keys and pipes that are reused too early.
fn three_hundred_short_transfers(via: Via) {
    let path = Path::new(via);
    let (lanes, each) = (6_u64, 50_u64);
    let front = path.front();
    let back = &path.backend;
    let moved = thread::scope(|scope| {
        // Connections arrive in any order, so each says which pattern it carries with its first eight bytes.
        scope.spawn(move || {
            thread::scope(|servers| {
                for _ in 0..lanes * each {
                    let server = accept(back);
                    servers.spawn(move || echo_whole(&server));
                }
            });
        });
        let clients: Vec<_> = (0..lanes)
            .map(|lane| {
                scope.spawn(move || {
                    let mut random = Random::new(100 + lane);
                    (0..each).map(|_| short_transfer(front, random.next(), random.below(20_000))).sum::<u64>()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("its panic has been shown")).sum::<u64>()
    });
    path.ended("done", lanes * each);
    path.settled(moved, moved);
    path.finish();
}

/// Reads to the end, then sends all of it back.
fn echo_whole(mut server: &TcpStream) {
    let mut all = Vec::new();
    server.read_to_end(&mut all).expect("a request with an end");
    server.write_all(&all).expect("send it back");
}

/// One transfer of a pattern and its number; returns the bytes of each direction.
fn short_transfer(front: std::net::SocketAddr, number: u64, len: u64) -> u64 {
    let pattern = Pattern::new(number);
    let mut client = common::peer::connect(front);
    client.write_all(&number.to_le_bytes()).expect("send the number");
    pattern.send(&client, 0, len).expect("send");
    client.shutdown(Shutdown::Write).expect("half-close");
    let mut back = [0; 8];
    client.read_exact(&mut back).expect("the number comes back");
    assert_eq!(u64::from_le_bytes(back), number, "bytes of another session");
    pattern.expect_whole(&client, 0, len);
    len + 8
}

/// Catches a relay that waits for the client before it connects or reads the backend.
fn the_server_speaks_first(via: Via) {
    let path = Path::new(via);
    let (client, server) = path.pair();
    let (greeting, answer) = (Pattern::new(1), Pattern::new(2));
    greeting.send(&server, 0, 220).expect("greet");
    greeting.expect(&client, 0, 220);
    answer.send(&client, 0, 30).expect("answer");
    answer.expect(&server, 0, 30);
    drop(server);
    greeting.expect_whole(&client, 220, 220);
    drop(client);
    path.settled(30, 220);
    path.finish();
}

/// Zero-copy must not be silently off, nor on where memory was asked for.
fn bulk_takes_the_promised_path(via: Via) {
    let path = Path::new(via);
    let len = 64 * MIB;
    path.exchange(len, len);
    let stats = path.settled(len, len).expect("in between");
    for (direction, moved) in [("up", stats.up()), ("down", stats.down())] {
        match via {
            Via::SPLICE => assert_eq!(moved, Moved { splice: len, copy: 0 }, "{direction}"),
            Via::AUTO if via.splices() => assert!(moved.splice >= len / 10 * 9, "{direction}: {moved:?}"),
            _ => assert_eq!(moved, Moved { splice: 0, copy: len }, "{direction}"),
        }
    }
    let fallbacks = stats.0.pointer("/total/fallbacks").expect("fallbacks").to_string();
    assert!(!fallbacks.contains(|c: char| c.is_ascii_digit() && c != '0'), "nothing to fall back from: {fallbacks}");
    path.finish();
}

/// Small messages are cheaper through memory, and `splice` means what it says for them too.
fn small_messages_take_the_promised_path(via: Via) {
    let path = Path::new(via);
    let (client, server) = path.pair();
    let (ping, pong) = (Pattern::new(1), Pattern::new(2));
    let rounds = 2000;
    for round in 0..rounds {
        let (from, to) = (round * 64, (round + 1) * 64);
        ping.send(&client, from, to).expect("ping");
        ping.expect(&server, from, to);
        pong.send(&server, from, to).expect("pong");
        pong.expect(&client, from, to);
    }
    drop((client, server));
    let len = rounds * 64;
    let stats = path.settled(len, len).expect("in between");
    let all_by = match via {
        Via::SPLICE => Moved { splice: len, copy: 0 },
        _ => Moved { splice: 0, copy: len },
    };
    assert_eq!((stats.up(), stats.down()), (all_by, all_by));
    path.finish();
}

/// The client has sent, finished and waits before the connection to the backend exists: all arrives, then the FIN,
/// and the way back works.
fn a_client_that_is_gone_before_the_backend_is_there(via: Via) {
    let backend = FullBackend::new();
    let path = Path::with(via, backend.try_clone(), |launcher| launcher);
    let client = path.connect();
    let (request, reply) = (Pattern::new(1), Pattern::new(2));
    let (up, down) = (50_001, 30_001);
    request.send(&client, 0, up).expect("send before there is a backend");
    client.shutdown(Shutdown::Write).expect("half-close");
    let spliced = path.spliced.as_ref().expect("in between");
    spliced.stats_until("the session is open", |stats| stats.open() == 1);
    throughout("nothing is counted as sent before there is a backend", Duration::from_millis(100), || {
        let stats = spliced.stats();
        if (stats.up().all(), stats.open()) == (0, 1) { Ok(()) } else { Err(stats.0.to_string()) }
    });
    backend.open();
    let server = accept(&path.backend);
    request.expect_whole(&server, 0, up);
    reply.send(&server, 0, down).expect("reply");
    drop(server);
    reply.expect_whole(&client, 0, down);
    drop(client);
    path.ended("done", 1);
    path.settled(up, down);
    path.finish();
}
