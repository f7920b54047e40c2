//! Idle, half-closed and connecting sessions: two descriptors, no pipe, no CPU, a few hundred bytes.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::cannot_run;
use common::deadline::{throughout, until};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::{FullBackend, connect};
use common::process::all_descriptors;
use common::spliced::Spliced;

common::scenarios!(
    also_direct: [],
    engines: [five_hundred_idle_sessions, half_closed_sessions, the_memory_of_a_session],
);

/// Exactly so many descriptors more than at the start, and no pipe that holds bytes or is kept beyond the counted.
fn holds(spliced: &Spliced, at_start: usize, more: usize) {
    until("two descriptors a session and no pipe in use", common::deadline::LONG, || {
        let stats = spliced.stats();
        let now = spliced.process().descriptors();
        let pooled = usize::try_from(stats.pipes_pooled()).expect("a small number");
        stats.pipes_in_use() == 0 && spliced.pipe_ends() == 2 * pooled && now.all == at_start + more + 2 * pooled
    });
}

/// Next to nothing in a second and a half: a timer that empties the pool, a line of the log.
fn costs_no_cpu(spliced: &Spliced) {
    let process = spliced.process();
    let before = process.cpu();
    throughout("nothing to do, no CPU", Duration::from_millis(1500), || {
        let used = process.cpu() - before;
        if used <= Duration::from_millis(5) { Ok(()) } else { Err(format!("{used:?} of CPU time")) }
    });
}

/// A burst and a small message each way, so that pipes and buffers have been used before the session rests.
fn used(path: &Path, pattern: &Pattern) -> (TcpStream, TcpStream) {
    let (client, server) = path.pair();
    for (from, to) in [(0, 100_000), (100_000, 100_010)] {
        pattern.send(&client, from, to).expect("send");
        pattern.expect(&server, from, to);
        pattern.send(&server, from, to).expect("send");
        pattern.expect(&client, from, to);
    }
    (client, server)
}

/// Catches timers that tick, pipes and buffers that stay with a session.
fn five_hundred_idle_sessions(via: Via) {
    let path = Path::new(via);
    let spliced = path.spliced.as_ref().expect("in between");
    let at_start = spliced.process().descriptors().all;
    let pattern = Pattern::new(1);
    let pairs: Vec<_> = (0..500).map(|_| used(&path, &pattern)).collect();
    holds(spliced, at_start, 1000);
    costs_no_cpu(spliced);
    // They are idle, not dead.
    for (client, server) in pairs.iter().step_by(50) {
        pattern.send(client, 0, 10).expect("send");
        pattern.expect(server, 0, 10);
    }
    drop(pairs);
    path.ended("done", 500);
    path.finish();
}

/// Catches a loop that is woken by a hang-up it does not consume, again and again.
fn half_closed_sessions(via: Via) {
    let path = Path::new(via);
    let spliced = path.spliced.as_ref().expect("in between");
    let at_start = spliced.process().descriptors().all;
    let pattern = Pattern::new(1);
    let pairs: Vec<_> = (0..100).map(|_| used(&path, &pattern)).collect();
    for (index, (client, server)) in pairs.iter().enumerate() {
        let closing = if index % 2 == 0 { client } else { server };
        closing.shutdown(Shutdown::Write).expect("half-close");
    }
    holds(spliced, at_start, 200);
    costs_no_cpu(spliced);
    drop(pairs);
    path.ended("done", 100);
    path.finish();
}

/// The difference between 500 and 4,000 sessions, so that what the process itself needs does not count.
fn the_memory_of_a_session(via: Via) {
    const MOST: usize = 4000;
    // One at a time: each takes a large part of what this process may have.
    static MANY: Mutex<()> = Mutex::new(());
    let _alone = MANY.lock().unwrap_or_else(PoisonError::into_inner);
    let (hard, needed) = (all_descriptors(), 2 * MOST as u64 + 2000);
    if hard < needed {
        return cannot_run(&format!("{MOST} sessions need {needed} descriptors here, the hard limit is {hard}"));
    }
    let path = Path::new(via);
    let spliced = path.spliced.as_ref().expect("in between");
    let pattern = Pattern::new(1);
    let mut pairs: Vec<_> = (0..500).map(|_| used(&path, &pattern)).collect();
    let few = spliced.process().anonymous_memory();
    pairs.extend((500..MOST).map(|_| path.pair()));
    for (client, server) in &pairs[500..] {
        pattern.send(client, 0, 64).expect("send");
        pattern.expect(server, 0, 64);
    }
    let many = spliced.process().anonymous_memory();
    let each = many.saturating_sub(few) / (MOST as u64 - 500);
    assert!(each <= 512, "{each} bytes of memory a session: {few} for 500, {many} for {MOST}");
    drop(pairs);
    path.ended("done", MOST as u64);
    path.finish();
}

/// A connect that waits for its answer is no reason to turn, nor are client bytes that wait meanwhile.
#[test]
fn connecting_sessions() {
    let full = FullBackend::new();
    let path = Path::configured(Via::AUTO, full.try_clone(), "timeouts: { connect: none }");
    let spliced = path.spliced.as_ref().expect("in between");
    let at_start = spliced.process().descriptors().all;
    let clients: Vec<_> = (0..50).map(|_| connect(path.front())).collect();
    for client in &clients {
        Pattern::new(1).send(client, 0, 1000).expect("send");
    }
    holds(spliced, at_start, 100);
    costs_no_cpu(spliced);
    for client in clients {
        common::peer::reset(client);
    }
    path.ended("reset_by_client", 50);
    path.finish();
}
