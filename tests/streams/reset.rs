//! A reset stays a reset, whoever sends it and whenever: a truncated stream never ends as a clean FIN.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::path::{Path, Via};
use common::pattern::{Pattern, StreamEnd};
use common::peer::{accept, backend_with_small_buffers, connect, connect_or_reset, end_of, pending_error, reset};

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [
        while_idle,
        behind_delivered_bytes,
        in_the_middle_of_bulk_from_the_one_that_resets,
        in_the_middle_of_bulk_to_the_one_that_resets,
        while_the_other_side_does_not_read,
        after_ones_own_half_close,
        after_the_half_close_of_the_other,
        during_bulk_behind_a_half_close,
        by_closing_with_bytes_unread,
        of_many_at_once,
    ],
    engines: [before_the_backend_is_there, by_a_backend_right_after_it_has_accepted],
);

/// Which side sends the reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Backend,
}

impl From {
    const BOTH: [Self; 2] = [Self::Client, Self::Backend];

    /// A new connection as (the one that will reset, the one that must see it).
    fn pair(self, path: &Path) -> (TcpStream, TcpStream) {
        let (client, server) = path.pair();
        match self {
            Self::Client => (client, server),
            Self::Backend => (server, client),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Client => "reset_by_client",
            Self::Backend => "reset_by_backend",
        }
    }
}

/// Runs a scenario for both sides; each must count its reason once.
fn each_side(via: Via, scenario: impl Fn(&Path, From)) {
    let path = Path::new(via);
    for from in From::BOTH {
        scenario(&path, from);
        path.ended(from.reason(), 1);
    }
    path.finish();
}

/// Catches passing a reset on as a FIN, and not passing it on at all.
fn while_idle(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        reset(breaker);
        assert_eq!(end_of(&other), Err(ErrorKind::ConnectionReset), "from {from:?}");
    });
}

/// The bytes have been read, so the relay's next reading of a latched error could look like a clean end.
fn behind_delivered_bytes(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        let pattern = Pattern::new(1);
        pattern.send(&breaker, 0, 5000).expect("send");
        pattern.expect(&other, 0, 5000);
        reset(breaker);
        assert_eq!(end_of(&other), Err(ErrorKind::ConnectionReset), "from {from:?}");
    });
}

/// Bytes may be lost with the reset, but what arrives is right and its end is not clean.
fn in_the_middle_of_bulk_from_the_one_that_resets(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        let pattern = Pattern::new(1);
        thread::scope(|scope| {
            let reader = scope.spawn(|| pattern.expect_prefix(&other, 0));
            pattern.send(&breaker, 0, 8 * MIB + 1).expect("send");
            reset(breaker);
            let (came, end) = reader.join().expect("its panic has been shown");
            assert_eq!(end, StreamEnd::Reset, "from {from:?}, after {came} bytes");
            assert!(came <= 8 * MIB + 1);
        });
    });
}

/// The sender must learn it from its own writing, and the error must not be lost in the relay's pipe.
fn in_the_middle_of_bulk_to_the_one_that_resets(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        let pattern = Pattern::new(1);
        thread::scope(|scope| {
            let writer = scope.spawn(|| pattern.send(&other, 0, u64::MAX).expect_err("nobody takes that many"));
            pattern.expect(&breaker, 0, 3 * MIB);
            reset(breaker);
            let error = writer.join().expect("its panic has been shown").kind();
            assert!(matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "from {from:?}: {error:?}");
        });
    });
}

/// With every queue up to the other side full, the reset must still free the session at once.
fn while_the_other_side_does_not_read(via: Via) {
    let path = Path::with(via, backend_with_small_buffers(), |launcher| launcher);
    for from in From::BOTH {
        let (breaker, other) = from.pair(&path);
        let pattern = Pattern::new(1);
        breaker.set_write_timeout(Some(Duration::from_millis(200))).expect("a short deadline");
        let (sent, error) = pattern.send_all_it_takes(&breaker, u64::MAX);
        assert!(error.is_none(), "the queues were to fill, not to fail: {error:?}");
        reset(breaker);
        path.ended(from.reason(), 1);
        let (came, end) = pattern.expect_prefix(&other, 0);
        assert_eq!(end, StreamEnd::Reset, "from {from:?}, after {came} of {sent} bytes");
    }
    path.finish();
}

/// The other side has seen a clean end already; the reset behind it must reach it all the same, without its help.
fn after_ones_own_half_close(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        breaker.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(end_of(&other), Ok(()));
        reset(breaker);
        // The kernel reports a reset in CLOSE_WAIT as EPIPE.
        assert_eq!(pending_error(&other), ErrorKind::BrokenPipe, "from {from:?}");
        assert!((&other).write(b"late").is_err(), "writing into a connection that was reset");
    });
}

/// The half that is still open is cut: its reader must not take that for the end.
fn after_the_half_close_of_the_other(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        other.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(end_of(&breaker), Ok(()));
        let pattern = Pattern::new(1);
        pattern.send(&breaker, 0, 1234).expect("send");
        pattern.expect(&other, 0, 1234);
        reset(breaker);
        assert_eq!(end_of(&other), Err(ErrorKind::ConnectionReset), "from {from:?}");
    });
}

/// One half closed, bulk in the other, and either the sender or the receiver of the bulk resets.
fn during_bulk_behind_a_half_close(via: Via) {
    each_side(via, |path, from| {
        let (sender, receiver) = from.pair(path);
        receiver.shutdown(Shutdown::Write).expect("half-close");
        let pattern = Pattern::new(1);
        thread::scope(|scope| {
            let reader = scope.spawn(|| pattern.expect_prefix(&receiver, 0).1);
            pattern.send(&sender, 0, 5 * MIB + 1).expect("send");
            reset(sender);
            assert_eq!(reader.join().expect("its panic has been shown"), StreamEnd::Reset, "sender {from:?}");
        });
    });
    each_side(via, |path, from| {
        let (receiver, sender) = from.pair(path);
        receiver.shutdown(Shutdown::Write).expect("half-close");
        assert_eq!(end_of(&sender), Ok(()));
        let pattern = Pattern::new(1);
        thread::scope(|scope| {
            let writer = scope.spawn(|| pattern.send(&sender, 0, u64::MAX).expect_err("nobody takes that many").kind());
            pattern.expect(&receiver, 0, 2 * MIB);
            reset(receiver);
            let error = writer.join().expect("its panic has been shown");
            assert!(
                matches!(error, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "receiver {from:?}: {error:?}"
            );
        });
    });
}

/// A plain close with bytes unread is a reset on the wire and must stay one.
fn by_closing_with_bytes_unread(via: Via) {
    each_side(via, |path, from| {
        let (breaker, other) = from.pair(path);
        let pattern = Pattern::new(1);
        pattern.send(&other, 0, 4000).expect("send");
        // The first byte is read, so the rest is there or on its way.
        pattern.expect(&breaker, 0, 1);
        drop(breaker);
        assert_eq!(end_of(&other), Err(ErrorKind::ConnectionReset), "from {from:?}");
    });
}

/// Many in one turn of the event loop, alternating sides: nothing may be mixed up or kept.
fn of_many_at_once(via: Via) {
    let path = Path::new(via);
    let count = 100;
    let mut pairs: Vec<_> = (0..count).map(|i| From::BOTH[i % 2].pair(&path)).collect();
    let pattern = Pattern::new(1);
    for (breaker, _) in &pairs {
        pattern.send(breaker, 0, 3000).expect("send");
    }
    let others: Vec<_> = pairs
        .drain(..)
        .map(|(breaker, other)| {
            reset(breaker);
            other
        })
        .collect();
    for other in &others {
        assert_eq!(pattern.expect_prefix(other, 0).1, StreamEnd::Reset);
    }
    path.ended("reset_by_client", count as u64 / 2);
    path.ended("reset_by_backend", count as u64 / 2);
    path.finish();
}

/// A client that resets while the connection to the backend is still being made frees the session then, and the
/// backend, should it be reached, never sees a clean end.
fn before_the_backend_is_there(via: Via) {
    let full = common::peer::FullBackend::new();
    let path = Path::with(via, full.try_clone(), |launcher| launcher);
    let client = connect(path.front());
    (&client).write_all(b"too early").expect("send");
    let spliced = path.spliced.as_ref().expect("in between");
    spliced.stats_until("the session is open", |stats| stats.open() == 1);
    reset(client);
    path.ended("reset_by_client", 1);
    full.open();
    let (client, server) = (connect(path.front()), accept(&path.backend));
    drop(client);
    assert_eq!(end_of(&server), Ok(()), "the next session is not touched");
    drop(server);
    path.finish();
}

/// A backend that accepts and resets at once has not refused: the connection was there, and the client sees a reset.
/// The reset may come before the relay has looked at its new connection.
fn by_a_backend_right_after_it_has_accepted(via: Via) {
    let path = Path::new(via);
    let count = 300;
    thread::scope(|scope| {
        scope.spawn(|| (0..count).for_each(|_| reset(accept(&path.backend))));
        for _ in 0..count {
            let client = connect_or_reset(path.front());
            assert!(client.is_none_or(|client| end_of(&client) == Err(ErrorKind::ConnectionReset)));
        }
    });
    path.ended("reset_by_backend", count);
    path.finish();
}
