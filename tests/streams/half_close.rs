//! Half-close in both directions and both orders, and the end of a half-closed session that has gone silent.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::deadline::throughout;
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::{backend, end_of};

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [
    a_fin_passes_while_the_other_side_is_silent,
    a_reply_that_starts_after_the_clients_fin_arrives_whole,
    an_upload_goes_on_after_the_backends_fin,
    both_sides_finish_at_once,
    an_empty_session_ends_clean_from_either_side,
    ],
    engines: [
        a_silent_half_closed_session_ends,
        bytes_keep_a_half_closed_session_open,
        the_time_counts_from_the_half_close,
    ],
);

/// Catches a relay that passes the FIN on only when both directions are over.
fn a_fin_passes_while_the_other_side_is_silent(via: Via) {
    let path = Path::new(via);
    for from_client in [true, false] {
        let (client, server) = path.pair();
        let (first, second) = if from_client { (&client, &server) } else { (&server, &client) };
        first.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(end_of(second), Ok(()), "the FIN of the {}", if from_client { "client" } else { "backend" });
        second.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(end_of(first), Ok(()), "the answering FIN");
    }
    path.ended("done", 2);
    path.finish();
}

/// Catches a relay that ends the session at the first FIN, or drops what is under way in the other direction.
fn a_reply_that_starts_after_the_clients_fin_arrives_whole(via: Via) {
    let path = Path::new(via);
    let (request, reply) = (Pattern::new(1), Pattern::new(2));
    for (up, down) in [(0, 1), (1, 0), (5, 3 * MIB + 1), (3 * MIB + 7, 100)] {
        let (client, server) = path.pair();
        thread::scope(|scope| {
            scope.spawn(|| {
                request.expect_whole(&server, 0, up);
                reply.send(&server, 0, down).expect("send the reply");
                server.shutdown(Shutdown::Write).expect("half-close");
            });
            request.send(&client, 0, up).expect("send the request");
            client.shutdown(Shutdown::Write).expect("half-close");
            reply.expect_whole(&client, 0, down);
        });
    }
    path.ended("done", 4);
    path.finish();
}

/// The same with the roles changed: a relay that treats the backend's FIN as the end of everything fails here.
fn an_upload_goes_on_after_the_backends_fin(via: Via) {
    let path = Path::new(via);
    let (upload, greeting) = (Pattern::new(1), Pattern::new(2));
    for (down, up) in [(0, 1), (1, 0), (77, 5 * MIB + 3), (2 * MIB + 1, 9)] {
        let (client, server) = path.pair();
        thread::scope(|scope| {
            scope.spawn(|| {
                greeting.send(&server, 0, down).expect("send the greeting");
                server.shutdown(Shutdown::Write).expect("half-close");
                upload.expect_whole(&server, 0, up);
            });
            greeting.expect_whole(&client, 0, down);
            upload.send(&client, 0, up).expect("upload after the backend's FIN");
            client.shutdown(Shutdown::Write).expect("half-close");
        });
    }
    path.ended("done", 4);
    path.finish();
}

/// Both FINs cross, each behind data: catches losing the tail of one direction when the other ends.
fn both_sides_finish_at_once(via: Via) {
    let path = Path::new(via);
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let rounds = 20;
    for round in 0..rounds {
        let len = round * 30_011;
        let (client, server) = path.pair();
        let side = |stream: &TcpStream, mine: &Pattern, theirs: &Pattern| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    mine.send(stream, 0, len).expect("send");
                    stream.shutdown(Shutdown::Write).expect("half-close");
                });
                theirs.expect_whole(stream, 0, len);
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| side(&server, &down, &up));
            side(&client, &up, &down);
        });
    }
    path.ended("done", rounds);
    path.finish();
}

/// Not a byte either way, and the whole socket closed at once instead of one half.
fn an_empty_session_ends_clean_from_either_side(via: Via) {
    let path = Path::new(via);
    let (client, server) = path.pair();
    drop(client);
    assert_eq!(end_of(&server), Ok(()));
    drop(server);
    let (client, server) = path.pair();
    drop(server);
    assert_eq!(end_of(&client), Ok(()));
    drop(client);
    path.ended("done", 2);
    path.finish();
}

/// Catches a half-closed session that is kept for ever, and one that is counted as something else.
fn a_silent_half_closed_session_ends(via: Via) {
    let path = Path::configured(via, backend(), "timeouts: { half_closed: 500ms }");
    let (open_client, open_server) = path.pair();
    for from_client in [true, false] {
        let (client, server) = path.pair();
        let (first, second) = if from_client { (&client, &server) } else { (&server, &client) };
        first.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(end_of(second), Ok(()));
        // The open half carries no end of its own, so it must not look complete.
        assert_eq!(end_of(first), Err(std::io::ErrorKind::ConnectionReset), "an unfinished stream ended clean");
        path.ended("half_closed", 1 + u64::from(!from_client));
    }
    // A session with both halves open is none of that timer's business.
    let pattern = Pattern::new(3);
    pattern.send(&open_client, 0, 1000).expect("the open session lives");
    pattern.expect(&open_server, 0, 1000);
    drop((open_client, open_server));
    path.finish();
}

/// Catches a timer that runs from the FIN instead of from the last byte.
fn bytes_keep_a_half_closed_session_open(via: Via) {
    let path = Path::configured(via, backend(), "timeouts: { half_closed: 1s }");
    let (client, server) = path.pair();
    client.shutdown(Shutdown::Write).expect("half-close");
    assert_eq!(end_of(&server), Ok(()));
    let pattern = Pattern::new(4);
    let mut sent = 0;
    for _ in 0..8 {
        pattern.send(&server, sent, sent + 1).expect("send");
        pattern.expect(&client, sent, sent + 1);
        sent += 1;
        throughout("the session lives", Duration::from_millis(250), || {
            let open = path.spliced.as_ref().expect("in between").stats().open();
            if open == 1 { Ok(()) } else { Err(format!("after {sent} bytes {open} sessions are open")) }
        });
    }
    drop(server);
    pattern.expect_whole(&client, sent, sent);
    drop(client);
    path.ended("done", 1);
    path.finish();
}

/// A session that was silent for longer than that before its first FIN has all of the time after it.
fn the_time_counts_from_the_half_close(via: Via) {
    let path = Path::configured(via, backend(), "timeouts: { half_closed: 1500ms }");
    let (client, server) = path.pair();
    let pattern = Pattern::new(5);
    pattern.send(&client, 0, 10).expect("send");
    pattern.expect(&server, 0, 10);
    let open = || {
        let open = path.spliced.as_ref().expect("in between").stats().open();
        if open == 1 { Ok(()) } else { Err(format!("{open} sessions are open")) }
    };
    throughout("a session with both halves open may be silent", Duration::from_secs(2), open);
    client.shutdown(Shutdown::Write).expect("half-close");
    pattern.expect_whole(&server, 10, 10);
    throughout("the time has only begun", Duration::from_millis(500), open);
    pattern.send(&server, 0, 1000).expect("reply");
    drop(server);
    pattern.expect_whole(&client, 0, 1000);
    drop(client);
    path.ended("done", 1);
    path.finish();
}
