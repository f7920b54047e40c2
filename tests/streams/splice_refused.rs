//! splice(2) refused, before and in the middle of a transfer: the same bytes, by memory from then on.

#![cfg(all(target_os = "linux", not(spliced_portable)))]

use crate::common;

use common::path::{Path, Via};
use common::peer::backend;
use common::spliced::can_inject;
use common::stats::Stats;

const MIB: u64 = 1 << 20;

/// A path whose system calls fail as strace's `inject=` says.
fn faulty(workers: &str, fault: &str) -> Path {
    Path::with(Via::SPLICE, backend(), |launcher| launcher.option("--workers", workers).inject(&[fault]))
}

/// One more session, whole both ways and counted; returns the counters after it.
fn transfer(path: &Path, len: u64) -> Stats {
    let spliced = path.spliced.as_ref().expect("in between");
    let before = spliced.stats();
    path.exchange(len, len);
    path.settled(before.up().all() + len, before.down().all() + len).expect("in between")
}

/// How often splice has been called.
fn calls(path: &Path) -> usize {
    let trace = path.spliced.as_ref().expect("in between").trace();
    trace.lines().filter(|line| line.contains("splice(")).count()
}

/// Refused for the whole process: counted once and said once, and nobody tries again.
fn refused_for_all(fault: &str) {
    if !can_inject() {
        return;
    }
    let path = faulty("auto", fault);
    let first = transfer(&path, 24 * MIB + 7);
    assert!(first.fallbacks("splice_refused") > 0, "the reason is counted: {}", first.0);
    assert_eq!(first.0.pointer("/engine_available/splice").and_then(|v| v.as_bool()), Some(false));
    let lines = path.spliced.as_ref().expect("in between").logged("refuses splice");
    assert_eq!(lines.len(), 1, "one line: {lines:?}");
    // From then on nothing is spliced, in no session.
    let tried = calls(&path);
    let second = transfer(&path, 3 * MIB);
    assert_eq!((second.up().splice, second.down().splice), (first.up().splice, first.down().splice));
    assert_eq!(calls(&path), tried, "calls of splice after it was refused");
    path.finish();
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
            // Calls are counted per thread, so there is only one.
            let path = faulty("1", &format!("splice:error={errno}:when={call}"));
            let stats = transfer(&path, 6 * MIB + 3);
            let (source, target) = (stats.fallbacks("source_unsupported"), stats.fallbacks("target_unsupported"));
            assert!(source + target > 0, "{errno} at call {call}: the reason is counted: {}", stats.0);
            assert_eq!(stats.fallbacks("splice_refused"), 0, "{errno} is about one direction");
            refused_out += target;
            let next = transfer(&path, 2 * MIB);
            assert_eq!(next.up().splice, stats.up().splice + 2 * MIB, "the next session is spliced");
            path.finish();
        }
    }
    assert!(refused_out > 0, "no refusal was met with bytes in the pipe");
}
