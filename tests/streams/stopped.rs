//! SIGSTOP and SIGCONT, in the middle of a transfer and with timeouts pending: the streams stand still and go on, and
//! what arrived meanwhile counts before a deadline that passed meanwhile.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, throughout, until};
use common::path::{Path, Via};
use common::pattern::{Pattern, exchange};
use common::peer::{FullBackend, backend, connect, pending_error};
use common::spliced::Spliced;
use nix::sys::signal::Signal;

const MIB: u64 = 1 << 20;

common::scenarios!(
    also_direct: [],
    engines: [
        a_transfer_that_is_stopped_many_times,
        bytes_that_came_while_stopped_keep_a_session,
        deadlines_pass_while_stopped,
    ],
);

/// Stops the process and waits until each of its threads has.
fn stop(spliced: &Spliced) {
    spliced.signal(Signal::SIGSTOP);
    until("every thread has stopped", LONG, || {
        let threads = fs::read_dir(format!("/proc/{}/task", spliced.process().0)).expect("the process is there");
        let stat = |path: std::path::PathBuf| fs::read_to_string(path.join("stat")).unwrap_or_default();
        threads
            .flatten()
            .all(|thread| stat(thread.path()).rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
    });
}

/// Nothing happens for that long: time itself is what is tested.
fn pass(time: Duration) {
    throughout("time passes", time, || Ok(()));
}

/// Catches a call that is interrupted and given up, and an event that is lost with it.
fn a_transfer_that_is_stopped_many_times(via: Via) {
    let path = Path::new(via);
    let len = 150 * MIB + 7;
    let (client, server) = path.pair();
    let spliced = path.spliced.as_ref().expect("in between");
    let stops = thread::scope(|scope| {
        let transfer = scope.spawn(|| exchange(&client, &server, len, len));
        let mut stops = 0;
        while !transfer.is_finished() {
            stop(spliced);
            pass(Duration::from_millis(20));
            spliced.signal(Signal::SIGCONT);
            stops += 1;
            let moved = spliced.stats().up().all();
            until("bytes move again", LONG, || transfer.is_finished() || spliced.stats().up().all() > moved);
        }
        transfer.join().expect("every byte arrives");
        stops
    });
    assert!(stops >= 3, "stopped {stops} times: the transfer was too short");
    drop((client, server));
    path.ended("done", 1);
    path.settled(len, len);
    path.finish();
}

/// The idle time is over when it goes on, but bytes are waiting: the session has not been idle.
fn bytes_that_came_while_stopped_keep_a_session(via: Via) {
    let path = Path::configured(via, backend(), "timeouts: { idle: 2s }");
    let spliced = path.spliced.as_ref().expect("in between");
    let pairs: Vec<(TcpStream, TcpStream)> = (0..40).map(|_| path.pair()).collect();
    let pattern = Pattern::new(1);
    for (client, server) in &pairs {
        pattern.send(client, 0, 10).expect("send");
        pattern.expect(server, 0, 10);
    }
    stop(spliced);
    // Every second one has something to say, from either side.
    for (index, (client, server)) in pairs.iter().enumerate().step_by(2) {
        let from = if index % 4 == 0 { client } else { server };
        pattern.send(from, 10, 1000).expect("the kernel takes it");
    }
    pass(Duration::from_millis(2300));
    spliced.signal(Signal::SIGCONT);
    for (index, (client, server)) in pairs.iter().enumerate() {
        if index % 2 == 1 {
            assert_eq!(pending_error(client), std::io::ErrorKind::ConnectionReset, "session {index} was idle");
            continue;
        }
        let to = if index % 4 == 0 { server } else { client };
        pattern.expect(to, 10, 1000);
    }
    spliced.ended("idle", 20);
    for (client, server) in pairs.iter().step_by(2) {
        exchange(client, server, 1000, 1000);
    }
    drop(pairs);
    path.ended("done", 20);
    path.finish();
}

/// The time stopped counts: whatever is due is done at once and under its name.
fn deadlines_pass_while_stopped(via: Via) {
    let full = FullBackend::new();
    let path = Path::configured(via, full.try_clone(), "timeouts: { connect: 2s }");
    let spliced = path.spliced.as_ref().expect("in between");
    let clients: Vec<TcpStream> = (0..5).map(|_| connect(path.front())).collect();
    spliced.stats_until("all are connecting", |stats| stats.open() == 5);
    stop(spliced);
    pass(Duration::from_millis(2200));
    spliced.signal(Signal::SIGCONT);
    let start = Instant::now();
    for client in &clients {
        assert_eq!(pending_error(client), std::io::ErrorKind::ConnectionReset);
        let _ = client.shutdown(Shutdown::Both);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "it took {:?} after it went on", start.elapsed());
    path.ended("connect_timeout", 5);
    path.finish();
    drop(full);
}
