//! EINTR and short counts anywhere: the same bytes, and no reason to change the path.

#![cfg(target_os = "linux")]

use crate::common;

use common::deadline::{LONG, until};
use common::path::{Path, Via};
use common::peer::backend;
use common::spliced::can_inject;
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [],
    engines: [interrupted_calls, short_counts],
);

/// EINTR from every third call and every fifth after it, of the data path and of the loop.
fn interrupted_calls(via: Via) {
    if !can_inject() {
        return;
    }
    // Not read(2) and write(2): the dynamic loader and the log use them, and the data path does not.
    let calls = ["splice", "recvfrom", "sendto", "recvmsg", "sendmsg", "epoll_wait", "accept4"];
    let faults: Vec<_> = calls.iter().map(|call| format!("{call}:error=EINTR:when=3+5")).collect();
    let faults: Vec<_> = faults.iter().map(String::as_str).collect();
    let mut path = Path::with(via, backend(), |launcher| launcher.inject(&faults));
    let sizes = [1, 100, 70_000, 16 * MIB + 1];
    sizes.iter().for_each(|len| path.exchange(*len, *len));
    let sum = sizes.iter().sum();
    let stats = path.settled(sum, sum).expect("in between");
    if via == Via::SPLICE {
        assert_eq!((stats.up().copy, stats.down().copy), (0, 0), "an interruption is no reason to copy");
    }
    for reason in ["splice_refused", "source_unsupported", "target_unsupported"] {
        assert_eq!(stats.fallbacks(reason), 0, "an interruption counted as {reason}");
    }
    let mut spliced = path.spliced.take().expect("in between");
    let trace = spliced.trace();
    for call in if via == Via::SPLICE { ["splice", "epoll_wait"] } else { ["recvfrom", "sendto"] } {
        let hit = trace.lines().any(|line| line.contains(&format!("{call}(")) && line.contains("INJECTED"));
        assert!(hit, "no {call} was interrupted");
    }
    spliced.back_at_start();
    // The signal handler wakes the control thread by a sendto(2) of its own, which no kernel interrupts; here it may
    // be the one that fails.
    until("it ends", LONG, || {
        spliced.signal(Signal::SIGTERM);
        !spliced.runs()
    });
    assert_eq!(spliced.wait(LONG).code(), Some(0));
}

/// Sockets so small that almost every write is a part of what was asked.
fn short_counts(via: Via) {
    let path = Path::with(via, backend(), |launcher| {
        launcher.option("--send-buffer", "4KiB").option("--receive-buffer", "2MiB").option("--copy-buffer", "1MiB")
    });
    let sizes = [1, 5000, 2 * MIB + 1, 4 * MIB + 11];
    sizes.iter().for_each(|len| path.exchange(*len, *len));
    let sum = sizes.iter().sum();
    path.settled(sum, sum);
    path.finish();
}
