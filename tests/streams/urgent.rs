//! An urgent byte (MSG_OOB) is a byte like any other: in order, in band, no stall, no spin.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::deadline::{LONG, throughout};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::{FullBackend, accept};
use socket2::SockRef;

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [
        at_the_start,
        in_the_middle,
        at_the_end,
        alone_with_nothing_behind,
        two_in_a_row,
        scattered_through_bulk,
        as_the_last_byte_before_the_fin,
        behind_full_queues,
    ],
    engines: [a_mark_that_waits_costs_nothing, with_the_end_there_before_the_first_look],
);

/// One call of the sender.
#[derive(Debug, Clone, Copy)]
enum Piece {
    /// That many bytes.
    Plain(u64),
    /// That many bytes with MSG_OOB: the last of them is urgent.
    Urgent(u64),
    /// Waits until the receiver has everything so far.
    Delivered,
}

use Piece::{Delivered, Plain, Urgent};

/// Sends the pieces from either side, checks that everything arrives before any FIN, then the end.
fn both_directions(via: Via, pieces: &[Piece]) {
    let path = Path::new(via);
    for from_client in [true, false] {
        let (client, server) = path.pair();
        let (sender, receiver) = if from_client { (&client, &server) } else { (&server, &client) };
        let sent = play(sender, receiver, pieces);
        sender.shutdown(Shutdown::Write).expect("half-close");
        Pattern::new(1).expect_whole(receiver, sent, sent);
    }
    path.ended("done", 2);
    path.finish();
}

/// Sends the pieces and reads all of them; returns how many bytes that was.
fn play(sender: &TcpStream, receiver: &TcpStream, pieces: &[Piece]) -> u64 {
    let pattern = Pattern::new(1);
    // In band on the direct way too, as the program does it for both of its sides.
    SockRef::from(receiver).set_out_of_band_inline(true).expect("SO_OOBINLINE");
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a short deadline");
    let (mut sent, mut received) = (0, 0);
    for round in pieces.split_inclusive(|piece| matches!(piece, Delivered)) {
        let end = sent + round.iter().map(Piece::len).sum::<u64>();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut place = sent;
                for piece in round {
                    match *piece {
                        Plain(len) => pattern.send(sender, place, place + len).expect("send"),
                        Urgent(len) => {
                            let n =
                                SockRef::from(sender).send_out_of_band(pattern.at(place, len)).expect("send urgent");
                            assert_eq!(n as u64, len, "a small send goes whole");
                        }
                        Delivered => {}
                    }
                    place += piece.len();
                }
            });
            pattern.expect(receiver, received, end);
        });
        (sent, received) = (end, end);
    }
    sent
}

impl Piece {
    fn len(&self) -> u64 {
        match *self {
            Plain(len) | Urgent(len) => len,
            Delivered => 0,
        }
    }
}

/// With and without bytes behind it in the same turn.
fn at_the_start(via: Via) {
    both_directions(via, &[Urgent(1), Plain(1000), Delivered, Plain(MIB)]);
    both_directions(via, &[Urgent(1), Delivered, Plain(100_000)]);
}

/// splice(2) stops in front of the mark and would stop there for ever.
fn in_the_middle(via: Via) {
    both_directions(via, &[Plain(3 * MIB), Urgent(1), Plain(3 * MIB)]);
    both_directions(via, &[Plain(10), Delivered, Plain(10), Urgent(100), Plain(10), Delivered, Plain(10)]);
}

/// Nothing follows that could push it through.
fn at_the_end(via: Via) {
    both_directions(via, &[Plain(2 * MIB), Urgent(1)]);
    both_directions(via, &[Plain(100), Urgent(7)]);
}

/// The only byte there is.
fn alone_with_nothing_behind(via: Via) {
    both_directions(via, &[Urgent(1), Delivered, Urgent(1), Delivered, Urgent(1)]);
}

/// The second mark takes the first one's place while both bytes wait.
fn two_in_a_row(via: Via) {
    both_directions(via, &[Urgent(1), Urgent(1)]);
    both_directions(via, &[Plain(50_000), Urgent(1), Urgent(1), Urgent(2), Plain(50_000)]);
}

/// A mark in every full pipe.
fn scattered_through_bulk(via: Via) {
    let pieces: Vec<_> = (0..40).flat_map(|i| [Plain(50_000 + i * 7001), Urgent(1)]).collect();
    both_directions(via, &pieces);
}

/// The mark and the end in one.
fn as_the_last_byte_before_the_fin(via: Via) {
    let path = Path::new(via);
    let (client, server) = path.pair();
    SockRef::from(&server).set_out_of_band_inline(true).expect("SO_OOBINLINE");
    let pattern = Pattern::new(1);
    pattern.send(&client, 0, 300).expect("send");
    SockRef::from(&client).send_out_of_band(pattern.at(300, 1)).expect("send urgent");
    client.shutdown(Shutdown::Write).expect("half-close");
    pattern.expect_whole(&server, 0, 301);
    drop((client, server));
    path.ended("done", 1);
    path.finish();
}

/// The mark waits behind megabytes, far from where the reader is; with or without bytes behind it, the FIN is known
/// by the time the mark is reached. splice(2) takes the mark for the end then.
fn behind_full_queues(via: Via) {
    let path = Path::new(via);
    for (from_client, behind) in [(true, 0), (false, 0), (true, 1000), (false, 100_000)] {
        let (client, server) = path.pair();
        let (sender, receiver) = if from_client { (&client, &server) } else { (&server, &client) };
        SockRef::from(receiver).set_out_of_band_inline(true).expect("SO_OOBINLINE");
        let pattern = Pattern::new(1);
        sender.set_write_timeout(Some(Duration::from_millis(200))).expect("a short deadline");
        let (sent, _) = pattern.send_all_it_takes(sender, u64::MAX);
        thread::scope(|scope| {
            scope.spawn(|| {
                sender.set_write_timeout(Some(LONG)).expect("a deadline");
                SockRef::from(sender).send_out_of_band(pattern.at(sent, 1)).expect("send urgent");
                pattern.send(sender, sent + 1, sent + 1 + behind).expect("send");
                sender.shutdown(Shutdown::Write).expect("half-close");
            });
            pattern.expect_whole(receiver, 0, sent + 1 + behind);
        });
    }
    path.ended("done", 4);
    path.finish();
}

/// Sessions whose last byte was urgent, and one whose receiver does not read: none may keep the loop turning.
fn a_mark_that_waits_costs_nothing(via: Via) {
    let path = Path::new(via);
    let pairs: Vec<_> = (0..8).map(|_| path.pair()).collect();
    for (client, server) in &pairs {
        play(client, server, &[Plain(100), Urgent(1)]);
        play(server, client, &[Urgent(1)]);
    }
    let (client, server) = path.pair();
    let pattern = Pattern::new(1);
    client.set_write_timeout(Some(Duration::from_millis(200))).expect("a short deadline");
    let (sent, _) = pattern.send_all_it_takes(&client, u64::MAX);
    SockRef::from(&client).set_nonblocking(true).expect("non-blocking");
    let urgent = SockRef::from(&client).send_out_of_band(pattern.at(sent, 1)).map_or(0, |n| n as u64);
    let process = path.spliced.as_ref().expect("in between").process();
    let before = process.cpu();
    throughout("the loop sleeps", Duration::from_secs(1), || {
        let used = process.cpu() - before;
        if used <= Duration::from_millis(10) { Ok(()) } else { Err(format!("{used:?} of CPU time")) }
    });
    SockRef::from(&client).set_nonblocking(false).expect("blocking");
    client.shutdown(Shutdown::Write).expect("half-close");
    pattern.expect_whole(&server, 0, sent + urgent);
    drop((pairs, client, server));
    path.finish();
}

/// Bytes, marks and the end wait in the kernel until there is a backend: splice(2) answers 0 in front of a mark then,
/// as if nothing followed.
fn with_the_end_there_before_the_first_look(via: Via) {
    let full = FullBackend::new();
    let path = Path::with(via, full.try_clone(), |launcher| launcher);
    let client = path.connect();
    let pattern = Pattern::new(1);
    // Large enough for `auto` to be splicing when it comes to the mark.
    pattern.send(&client, 0, 200_000).expect("send");
    SockRef::from(&client).send_out_of_band(pattern.at(200_000, 1)).expect("send urgent");
    pattern.send(&client, 200_001, 201_000).expect("send");
    client.shutdown(Shutdown::Write).expect("half-close");
    full.open();
    let server = accept(&path.backend);
    pattern.expect_whole(&server, 0, 201_000);
    drop((client, server));
    path.ended("done", 1);
    path.finish();
}
