//! With `spin` a worker looks for the next message for a while before it sleeps; with nothing to do it sleeps all the same.

#![cfg(target_os = "linux")]

use crate::common;

use std::time::Duration;

use common::deadline::{LONG, throughout};
use common::path::{Path, Via};
use common::peer::{backend, echoes};

/// A path through one worker, to a backend that gives each byte back.
fn path(via: Via, spin: &str) -> Path {
    Path::with(via, backend(), |launcher| launcher.option("--workers", "1").option("--spin", spin))
}

/// How often the only worker has gone to sleep.
fn sleeps(path: &Path) -> u64 {
    let threads = path.spliced.as_ref().expect("in between").process().threads();
    let worker = threads.into_iter().find(|thread| thread.name == "worker-0").expect("a worker");
    worker.field("voluntary_ctxt_switches").parse().expect("a number")
}

/// How often it does so while bytes go there and back one by one.
fn sleeps_of_exchanges(spin: &str) -> u64 {
    let path = path(Via::AUTO, spin);
    let (client, server) = path.pair();
    std::thread::scope(|scope| {
        scope.spawn(|| std::io::copy(&mut (&server), &mut (&server)));
        let exchange = || (0..1000).for_each(|_| assert!(echoes(&client, 7, LONG)));
        exchange();
        let before = sleeps(&path);
        exchange();
        let slept = sleeps(&path) - before;
        drop(client.shutdown(std::net::Shutdown::Both));
        slept
    })
}

#[test]
fn the_next_message_finds_it_awake() {
    let (without, with) = (sleeps_of_exchanges("none"), sleeps_of_exchanges("10ms"));
    assert!(without > 40, "{without} sleeps in 1000 exchanges");
    assert!(with < without / 4, "{with} sleeps with spin, {without} without");
}

#[test]
fn an_idle_worker_sleeps() {
    let path = path(Via::AUTO, "1ms");
    let (client, server) = path.pair();
    let process = path.spliced.as_ref().expect("in between").process();
    let before = process.cpu();
    throughout("it rests", Duration::from_millis(400), || {
        let used = process.cpu() - before;
        if used <= Duration::from_millis(50) { Ok(()) } else { Err(format!("{used:?} of CPU time")) }
    });
    drop((client, server));
}
