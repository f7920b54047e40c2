//! Live A/B: sessions are dealt to arms, every arm does what its name says, and what it did is told.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use common::deadline::{LONG, until};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::{accept, backend, connect, connect_or_reset};
use common::spliced::Spliced;
use common::stats::Stats;
use serde_json::Value;

const ENGINE: &str = "ab:splice=1,copy-8KiB=1";
const UP: u64 = (1 << 20) + 13;
const DOWN: u64 = (2 << 20) + 7;
/// Small messages there and back before the bulk: turns that may be measured.
const EXCHANGES: usize = 20;
/// Sessions at once, and the most rounds of them: that some arm gets none of all is as good as impossible.
const SESSIONS: u64 = 6;
const ROUNDS: u64 = 40;

/// One session: exchanges, then bulk each way at once, every byte compared.
fn session(front: SocketAddr, back: &TcpListener) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let server = accept(back);
            let mut byte = [0];
            for _ in 0..EXCHANGES {
                (&server).read_exact(&mut byte).expect("a small message");
                (&server).write_all(&byte).expect("its answer");
            }
            both_ways(&server, DOWN, UP);
        });
        let client = connect(front);
        for n in 0..EXCHANGES {
            let byte = [u8::try_from(n).expect("small")];
            let mut answer = [0];
            (&client).write_all(&byte).expect("a small message");
            (&client).read_exact(&mut answer).expect("its answer");
            assert_eq!(answer, byte);
        }
        both_ways(&client, UP, DOWN);
    });
}

/// Sends and receives whole streams, whose length is their number.
fn both_ways(stream: &TcpStream, send: u64, receive: u64) {
    thread::scope(|scope| {
        scope.spawn(move || {
            Pattern::new(send).send(stream, 0, send).expect("send");
            stream.shutdown(Shutdown::Write).expect("half-close");
        });
        Pattern::new(receive).expect_whole(stream, 0, receive);
    });
}

fn arm<'a>(stats: &'a Stats, name: &str) -> &'a Value {
    let arms = stats.0.pointer("/forwards/0/arms").and_then(Value::as_array).expect("arms");
    arms.iter().find(|arm| arm["name"] == name).unwrap_or_else(|| panic!("no arm {name} in {}", stats.0))
}

fn number(value: &Value, place: &str) -> u64 {
    value.pointer(place).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number at {place} in {value}"))
}

fn count(times: &Value) -> u64 {
    times["buckets"].as_array().expect("buckets").iter().filter_map(Value::as_u64).sum()
}

/// Runs rounds until both arms have sessions and measured turns; how many sessions that took.
fn run_until_measured(path: &Path, spliced: &Spliced) -> u64 {
    for round in 1..=ROUNDS {
        thread::scope(|scope| {
            // Connections arrive in any order: all sessions carry the same bytes.
            for _ in 0..SESSIONS {
                scope.spawn(|| session(path.front(), &path.backend));
            }
        });
        path.ended("done", round * SESSIONS);
        let stats = spliced.stats();
        let seen = |name| number(arm(&stats, name), "/measured/turns") > 0;
        if seen("splice") && seen("copy-8KiB") {
            return round * SESSIONS;
        }
    }
    panic!("an arm without a measured turn after {ROUNDS} rounds: {}", spliced.stats().0);
}

#[test]
fn sessions_are_dealt_and_each_arm_is_true_to_its_name() {
    let path = Path::new(Via::Engine(ENGINE));
    let spliced = path.spliced.as_ref().expect("a forwarder");
    let sessions = run_until_measured(&path, spliced);
    let stats = spliced.stats_until("all sessions have ended", |stats| stats.open() == 0);

    let dealt = ["splice", "copy-8KiB"].map(|name| number(arm(&stats, name), "/sessions"));
    assert_eq!(dealt.iter().sum::<u64>(), sessions, "every session has an arm");
    let exchanged = EXCHANGES as u64;
    for (name, dealt) in ["splice", "copy-8KiB"].into_iter().zip(dealt) {
        let arm = arm(&stats, name);
        assert!(dealt > 0, "{name} got no session of {sessions}");
        assert_eq!(number(arm, "/open"), 0);
        let bytes = [("client_to_backend", UP), ("backend_to_client", DOWN)];
        for (direction, each) in bytes {
            let path = |path: &str| number(arm, &format!("/bytes/{direction}/{path}"));
            let all = dealt * (each + exchanged);
            let spliced = if name == "splice" && cfg!(not(spliced_portable)) { all } else { 0 };
            assert_eq!((path("splice"), path("copy")), (spliced, all - spliced), "{name}, {direction}");
        }
        assert_eq!((count(&arm["first_byte_time"]), count(&arm["session_time"])), (dealt, dealt));
        assert!(number(arm, "/measured/bytes") <= dealt * (UP + DOWN + 2 * exchanged));
        assert!(arm["syscalls_per_gb"].is_f64() && arm["measured"]["cpu_seconds"].is_f64(), "{arm}");
        // The log is written by a thread of its own.
        until("a line of the session log for each of its sessions", LONG, || {
            spliced.logged(&format!(" arm={name} ")).len() as u64 == dealt
        });
    }
    // A read takes at most 8 KiB, and each is followed by a send.
    let least = dealt[1] * (UP + DOWN) / 8192 * 2;
    assert!(number(arm(&stats, "copy-8KiB"), "/syscalls") >= least, "{}", stats.0);
    assert_eq!(stats.0.pointer("/forwards/0/engine"), Some(&ENGINE.into()));
    assert!(stats.0.pointer("/forwards/0/verdict").is_some_and(Value::is_string), "{}", stats.0);
    path.finish();
}

/// What people see, and that refused clients are no sessions of an arm.
#[test]
fn people_are_shown_a_table_and_refused_clients_belong_to_no_arm() {
    let path = Path::with(Via::Engine("ab"), backend(), |launcher| launcher.option("--deny", "127.0.0.1"));
    let spliced = path.spliced.as_ref().expect("a forwarder");
    drop(connect_or_reset(path.front()));
    spliced.ended("denied", 1);
    let output = Command::new(env!("CARGO_BIN_EXE_spliced"))
        .arg("stats")
        .arg("--control")
        .arg(spliced.control())
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in ["engine ab:splice=50,copy-64KiB=50", "CPU s/GB", "not enough data yet"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let stats = spliced.stats();
    let dealt = ["splice", "copy-64KiB"].map(|name| number(arm(&stats, name), "/sessions"));
    assert_eq!(dealt, [0, 0]);
    assert!(spliced.logged("reason=denied").iter().all(|line| !line.contains("arm=")));
    path.finish();
}
