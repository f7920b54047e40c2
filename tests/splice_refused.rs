//! splice(2) refused or interrupted, before and in the middle of a transfer: the same bytes, by memory from then on.

#![cfg(all(target_os = "linux", not(spliced_portable)))]

mod common;

use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use common::path::Via;
use common::pattern::Pattern;
use common::peer::{Reserved, accept, backend, connect};
use common::spliced::{Launcher, Spliced, can_inject};

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [],
    engines: [interrupted_anywhere, short_counts_anywhere],
);

/// A relay with faults and the backend behind it.
struct Faulty {
    port: Reserved,
    backend: TcpListener,
    spliced: Spliced,
}

impl Faulty {
    fn new(engine: &str, adapt: impl FnOnce(Launcher<'_>) -> Launcher<'_>) -> Self {
        let (port, backend) = (Reserved::loopback(), backend());
        let target = backend.local_addr().expect("bound");
        let launcher = Launcher::forward(port.address(), target).option("--engine", engine);
        Self { spliced: adapt(launcher).start(), port, backend }
    }

    /// Both ways at once, whole, and counted.
    fn transfer(&self, len: u64) {
        let client = connect(self.port.address());
        let server = accept(&self.backend);
        let (up, down) = (Pattern::new(len), Pattern::new(!len));
        let before = self.spliced.stats();
        let send = |stream: &TcpStream, pattern: &Pattern| {
            pattern.send(stream, 0, len).expect("send");
            stream.shutdown(Shutdown::Write).expect("half-close");
        };
        thread::scope(|scope| {
            scope.spawn(|| send(&client, &up));
            scope.spawn(|| send(&server, &down));
            scope.spawn(|| up.expect_whole(&server, 0, len));
            down.expect_whole(&client, 0, len);
        });
        let stats = self.spliced.stats_until("the session has ended", |stats| stats.open() == 0);
        assert_eq!(stats.up().all() - before.up().all(), len, "bytes counted up");
        assert_eq!(stats.down().all() - before.down().all(), len, "bytes counted down");
    }
}

/// Refused for the whole process: counted once and said once, and nobody tries again.
fn refused_for_all(fault: &str) {
    if !can_inject() {
        return;
    }
    let faulty = Faulty::new("splice", |launcher| launcher.inject(&[fault]));
    faulty.transfer(24 * MIB + 7);
    let first = faulty.spliced.stats();
    assert!(first.fallbacks("splice_refused") > 0, "the reason is counted: {}", first.0);
    assert_eq!(first.0.pointer("/engine_available/splice").and_then(|v| v.as_bool()), Some(false));
    assert_eq!(faulty.spliced.logged("refuses splice").len(), 1, "one line");
    // From then on nothing is spliced, in no session.
    let tries = faulty.spliced.trace().lines().filter(|line| line.contains("splice(")).count();
    faulty.transfer(3 * MIB);
    let second = faulty.spliced.stats();
    assert_eq!(second.up().splice, first.up().splice);
    assert_eq!(second.down().splice, first.down().splice);
    let tries_after = faulty.spliced.trace().lines().filter(|line| line.contains("splice(")).count();
    assert_eq!(tries_after, tries, "calls of splice after it was refused");
    faulty.spliced.finish();
}

#[test]
fn no_splice_in_the_kernel() {
    refused_for_all("splice:error=ENOSYS");
}

#[test]
fn splice_forbidden_by_a_filter() {
    refused_for_all("splice:error=EPERM");
}

#[test]
fn splice_lost_in_the_middle_of_a_transfer() {
    refused_for_all("splice:error=ENOSYS:when=20+");
    refused_for_all("splice:error=ENOSYS:when=21+");
}

#[test]
fn splice_forbidden_in_the_middle_of_a_transfer() {
    refused_for_all("splice:error=EPERM:when=40+");
    refused_for_all("splice:error=EPERM:when=41+");
}

/// Refused for one direction, going into the pipe or out of it with bytes inside: that direction copies, the rest of
/// the process goes on splicing.
#[test]
fn one_direction_that_cannot_splice() {
    if !can_inject() {
        return;
    }
    let mut refused_out = 0;
    for errno in ["EINVAL", "EBADF"] {
        // Fills and drains take turns, so neighbours hit both.
        for call in [1, 2, 7, 8, 9, 30] {
            let faulty = Faulty::new("splice", |launcher| {
                // Calls are counted per thread, so there is only one.
                launcher.option("--workers", "1").inject(&[&format!("splice:error={errno}:when={call}")])
            });
            faulty.transfer(6 * MIB + 3);
            let stats = faulty.spliced.stats();
            let (source, target) = (stats.fallbacks("source_unsupported"), stats.fallbacks("target_unsupported"));
            assert!(source + target > 0, "{errno} at call {call}: the reason is counted: {}", stats.0);
            assert_eq!(stats.fallbacks("splice_refused"), 0, "{errno} is about one direction");
            refused_out += target;
            let before = stats.up().splice;
            faulty.transfer(2 * MIB);
            assert_eq!(faulty.spliced.stats().up().splice, before + 2 * MIB, "the next session is spliced");
            faulty.spliced.finish();
        }
    }
    assert!(refused_out > 0, "no refusal was met with bytes in the pipe");
}

/// EINTR from every call of the data path and of the loop.
fn interrupted_anywhere(via: Via) {
    if !can_inject() {
        return;
    }
    let Via::Engine(engine) = via else { return };
    // Not read(2) and write(2): the dynamic loader and the log use them, and the data path does not.
    let calls = ["splice", "recvfrom", "sendto", "recvmsg", "sendmsg", "epoll_wait", "accept4"];
    let faults: Vec<_> = calls.iter().map(|call| format!("{call}:error=EINTR:when=3+5")).collect();
    let faults: Vec<_> = faults.iter().map(String::as_str).collect();
    let faulty = Faulty::new(engine, |launcher| launcher.inject(&faults));
    for len in [1, 100, 70_000, 16 * MIB + 1] {
        faulty.transfer(len);
    }
    let stats = faulty.spliced.stats();
    if via == Via::SPLICE {
        assert_eq!((stats.up().copy, stats.down().copy), (0, 0), "an interruption is no reason to copy");
    }
    for reason in ["splice_refused", "source_unsupported", "target_unsupported"] {
        assert_eq!(stats.fallbacks(reason), 0, "an interruption counted as {reason}");
    }
    assert!(faulty.spliced.trace().contains("INJECTED"), "no call was interrupted");
    faulty.spliced.finish();
}

/// Sockets so small that almost every write is a part of what was asked.
fn short_counts_anywhere(via: Via) {
    let Via::Engine(engine) = via else { return };
    let faulty = Faulty::new(engine, |launcher| {
        launcher.option("--send-buffer", "4KiB").option("--receive-buffer", "64KiB").option("--copy-buffer", "1MiB")
    });
    for len in [1, 5000, 2 * MIB + 1, 9 * MIB + 11] {
        faulty.transfer(len);
    }
    faulty.spliced.finish();
}
