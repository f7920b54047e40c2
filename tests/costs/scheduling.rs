//! A worker is a batch job of the scheduler while it moves streams, and an ordinary thread while it passes messages.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::deadline::{LONG, throughout, until};
use common::path::{Path, Via};
use common::peer::backend;
use common::spliced::{Launcher, Spliced};

/// `SCHED_OTHER` and `SCHED_BATCH` in include/uapi/linux/sched.h.
const ORDINARY: u32 = 0;
const BATCH: u32 = 3;

/// Policy and nice value of each worker, which stand in fields 41 and 19 of its `stat` (proc(5)).
fn workers(spliced: &Spliced) -> Vec<(u32, i32)> {
    let process = spliced.process();
    let of = |tid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{}/task/{tid}/stat", process.0)).expect("its stat");
        let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        (fields[41 - 3].parse().expect("a policy"), fields[19 - 3].parse().expect("a nice value"))
    };
    let workers = process.threads().into_iter().filter(|thread| thread.name.starts_with("worker-"));
    workers.map(|thread| of(thread.field("Pid"))).collect()
}

fn has(spliced: &Spliced, policy: u32) -> bool {
    workers(spliced).iter().any(|(of, _)| *of == policy)
}

/// A path through one worker that stays where it is.
fn path(wrapper: &[&str], options: impl FnOnce(Launcher<'_>) -> Launcher<'_>) -> Path {
    let wrapper = wrapper.to_owned();
    Path::with(Via::AUTO, backend(), |launcher| options(launcher.option("--workers", "1").through(wrapper)))
}

/// Sends a stream through until the condition holds.
fn stream_until(path: &Path, what: &str, condition: impl Fn() -> bool) {
    let (client, server) = path.pair();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, block) = (&client, vec![7; 1 << 20]);
            while !stop.load(Ordering::Relaxed) {
                client.write_all(&block).expect("the backend takes it");
            }
            drop(client.shutdown(std::net::Shutdown::Write));
        });
        scope.spawn(|| std::io::copy(&mut (&server), &mut std::io::sink()));
        until(what, LONG, condition);
        stop.store(true, Ordering::Relaxed);
    });
}

/// Passes messages to and fro until the condition holds.
fn messages_until(path: &Path, what: &str, condition: impl Fn() -> bool) {
    let (mut client, mut server) = path.pair();
    let pass = |from: &mut TcpStream, to: &mut TcpStream| {
        from.write_all(b"a message").expect("send");
        to.read_exact(&mut [0; 9]).expect("receive");
    };
    until(what, LONG, || {
        (0..50).for_each(|_| {
            pass(&mut client, &mut server);
            pass(&mut server, &mut client);
        });
        condition()
    });
}

#[test]
fn a_stream_makes_a_batch_job_and_messages_end_it() {
    for sandbox in ["auto", "off"] {
        let path = path(&["nice", "-n", "3"], |launcher| launcher.option("--sandbox", sandbox));
        let spliced = path.spliced.as_ref().expect("in between");
        assert_eq!(workers(spliced), [(ORDINARY, 3)], "at the start");
        stream_until(&path, "a batch job", || has(spliced, BATCH));
        assert!(workers(spliced).iter().all(|(_, nice)| *nice == 3), "{:?}", workers(spliced));
        spliced.stats_until("the counters say so", |stats| stats.0["workers"][0]["batch"] == has(spliced, BATCH));
        messages_until(&path, "an ordinary thread again", || !has(spliced, BATCH));
        assert_eq!(workers(spliced), [(ORDINARY, 3)]);
        path.finish();
    }
}

#[test]
fn what_is_asked_for_holds_whatever_is_moved() {
    let normal = path(&[], |launcher| launcher.option("--scheduling", "normal"));
    let spliced = normal.spliced.as_ref().expect("in between");
    normal.exchange(100 << 20, 0);
    throughout("an ordinary thread", Duration::from_millis(200), || match has(spliced, BATCH) {
        true => Err("a batch job".to_owned()),
        false => Ok(()),
    });
    normal.finish();
    let batch = path(&[], |launcher| launcher.option("--scheduling", "batch"));
    let spliced = batch.spliced.as_ref().expect("in between");
    messages_until(&batch, "a batch job", || has(spliced, BATCH));
    batch.finish();
}

/// Whoever started the process under a policy of his own keeps it.
#[test]
fn a_policy_of_the_user_stays() {
    let path = path(&["chrt", "--idle", "0"], |launcher| launcher);
    let spliced = path.spliced.as_ref().expect("in between");
    let before = workers(spliced);
    path.exchange(100 << 20, 0);
    assert_eq!(workers(spliced), before);
    assert!(!has(spliced, BATCH) && !has(spliced, ORDINARY), "{before:?}");
    path.finish();
    let path = self::path(&["chrt", "--batch", "0"], |launcher| launcher.option("--scheduling", "normal"));
    let spliced = path.spliced.as_ref().expect("in between");
    messages_until(&path, "the counters say so", || spliced.stats().0["workers"][0]["batch"] == true);
    assert!(has(spliced, BATCH), "{:?}", workers(spliced));
    path.finish();
}
