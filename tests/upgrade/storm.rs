//! A storm of connections, one upgrade after the other, and streams across all of them: nobody is refused, reset or left
//! with an empty connection, and every byte arrives.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, until};
use common::netns::{Netns, with_namespaces};
use common::pattern::Pattern;
use common::peer::{Echo, accept};
use common::spliced::{Launcher, ordinary_user};
use common::upgraded::{Installed, Storm};

/// Clients that connect without a pause.
const CLIENTS: u64 = 4;
/// Connections of them all, at most.
const MOST: u64 = 300_000;
/// Streams that are there from the beginning to the end.
const STREAMS: u64 = 4;
/// Between two writes of a stream.
const PAUSE: Duration = Duration::from_millis(20);

/// `ListenOverflows` and `ListenDrops` of a namespace: connections the kernel turned away because no queue took them.
fn listen_drops(namespace: &Netns) -> Vec<u64> {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/netstat").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let of = |wanted: &str| {
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == wanted).unwrap().1.parse().unwrap()
    };
    vec![of("ListenOverflows"), of("ListenDrops")]
}

/// How many bytes went or came, and their digest.
type Digest = (u64, u64);

/// Writes until it is enough, a little at a time, then a FIN.
fn write(mut stream: &TcpStream, pattern: &Pattern, enough: &AtomicBool) -> Digest {
    let (mut place, mut hasher) = (0, DefaultHasher::new());
    while !enough.load(Ordering::Relaxed) {
        let bytes = pattern.at(place, 1 + place % 60_000);
        stream.write_all(bytes).expect("the stream goes on");
        hasher.write(bytes);
        place += bytes.len() as u64;
        thread::park_timeout(PAUSE);
    }
    stream.shutdown(Shutdown::Write).expect("the stream is open to its end");
    (place, hasher.finish())
}

/// Reads to the FIN.
fn read(mut stream: &TcpStream) -> Digest {
    let (mut place, mut hasher, mut buffer) = (0, DefaultHasher::new(), vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer).expect("the stream goes on") {
            0 => return (place, hasher.finish()),
            n => {
                hasher.write(&buffer[..n]);
                place += n as u64;
            }
        }
    }
}

/// Three seconds by default; `SPLICED_STORM_SECONDS=180` for a longer look, with an upgrade every two seconds.
#[test]
fn a_connect_storm_and_long_streams_notice_nothing() {
    with_namespaces(|| {
        let seconds = std::env::var("SPLICED_STORM_SECONDS").map(|n| n.parse().expect("a number of seconds"));
        let (length, every) = seconds.map_or((Duration::from_secs(3), Duration::from_millis(500)), |seconds| {
            (Duration::from_secs(seconds), Duration::from_secs(2))
        });
        let namespace = Netns::new();
        let front = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let echo = Echo::start(namespace.listen(front(9001)));
        let sink = namespace.listen(front(9002));
        let text = "workers: 2\nlog_file: /dev/null\nforwards:\n- { listen: \"127.0.0.1:80\", to: \"127.0.0.1:9001\" }\n\
                    - { listen: \"127.0.0.1:81\", to: \"127.0.0.1:9002\" }\n";
        let installed = Installed::new();
        // The hardest way: a low port, nobody's rights, the sandbox.
        let mut launcher = Launcher::config(text).inside(&namespace);
        if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295")) {
            let uid = ordinary_user();
            launcher = launcher.place_of(uid).option("--user", format!("{uid}:{uid}"));
        }
        let mut upgraded = installed.start(launcher.option("--keep-capabilities", "none"));
        let before = listen_drops(&namespace);
        let (storm, over) = (Storm::default(), AtomicBool::new(false));
        let streams: Vec<(TcpStream, TcpStream)> =
            (0..STREAMS).map(|_| (namespace.connect(front(81)), accept(&sink))).collect();
        let (first, start) = (upgraded.pid(), Instant::now());
        let (upgrades, took) = thread::scope(|scope| {
            let ends = storm.ends_with_this();
            let over = SetOnDrop(&over);
            let mut directions = Vec::new();
            for (number, (client, server)) in (0..).zip(&streams) {
                for (from, to, offset) in [(client, server, 0), (server, client, STREAMS)] {
                    let (enough, pattern) = (over.0, Pattern::new(offset + number));
                    let writer = scope.spawn(move || write(from, &pattern, enough));
                    directions.push((writer, scope.spawn(move || read(to))));
                }
            }
            let client = || namespace.enter(|| storm.client(front(80), MOST / CLIENTS));
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            let (mut upgrades, mut next) = (0, start + every);
            while start.elapsed() < length && clients.iter().any(|client| !client.is_finished()) {
                thread::park_timeout(next.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
                if Instant::now() >= next {
                    next += every;
                    let served = storm.served.load(Ordering::Relaxed);
                    upgraded.upgrade();
                    upgrades += 1;
                    let gone_on =
                        || storm.served.load(Ordering::Relaxed) > served || clients.iter().all(|c| c.is_finished());
                    until("the storm goes on", LONG, gone_on);
                }
            }
            let took = start.elapsed();
            drop(ends);
            for client in clients {
                assert_eq!(client.join().unwrap(), Ok(()), "after {upgrades} upgrades");
            }
            assert!(upgraded.spliced.runs(), "process {first} has the streams still");
            drop(over);
            for (number, (writer, reader)) in directions.into_iter().enumerate() {
                let (sent, came) = (writer.join().unwrap(), reader.join().unwrap());
                assert!(sent.0 > 0 && sent == came, "direction {number}: sent {sent:?}, came {came:?}");
            }
            (upgrades, took)
        });
        drop(streams);
        let served = storm.served.load(Ordering::Relaxed);
        println!("{served} connections and {STREAMS} streams in {took:.1?}, {upgrades} upgrades");
        assert!(upgrades >= 3 && served > 1000, "{upgrades} upgrades in a storm of {served}");
        assert_eq!(listen_drops(&namespace), before, "ListenOverflows and ListenDrops");
        drop(echo);
        upgraded.finish();
    });
}

/// Sets a flag when it is dropped, also by a step that fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
