//! A stream of nothing but the shortest datagrams, two bytes each, does not hold up the other sessions of its worker.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::Write;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::deadline::LONG;
use common::deadline::until;
use common::peer::{Echo, Reserved, connect, echoes};
use common::spliced::{Launcher, Spliced};

/// Datagrams taken from clients, and turns of the worker's event loop.
fn progress(spliced: &Spliced) -> (u64, u64) {
    let stats = spliced.stats();
    let drops = stats.0["total"]["datagrams"]["drops"].as_object().expect("a map");
    let dropped: u64 = drops.values().filter_map(serde_json::Value::as_u64).sum();
    (stats.number("/total/datagrams/client_to_backend") + dropped, stats.number("/workers/0/turns"))
}

#[test]
fn the_shortest_datagrams_leave_room_for_others() {
    let (tiny, other, echo) = (Reserved::loopback(), Reserved::loopback(), Echo::start(common::peer::backend()));
    // Nobody reads: what does not fit there is the kernel's to drop.
    let target = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let text = format!(
        "workers: 1\nforwards:\n  - {{ listen: \"{}\", to: \"udp:{}\", udp_timeout: 300ms }}\n  - {{ listen: \"{}\", to: \"{}\" }}\n",
        tiny.address(),
        target.local_addr().expect("bound"),
        other.address(),
        echo.address()
    );
    let spliced = Launcher::config(&text).start();
    let stop = AtomicBool::new(false);
    let session = connect(other.address());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut stream = connect(tiny.address());
                let zeros = vec![0; 1 << 20];
                while !stop.load(Ordering::Relaxed) {
                    stream.write_all(&zeros).expect("it is taken sooner or later");
                }
            });
        }
        until("the flood has begun", LONG, || progress(&spliced).0 > 0);
        let before = progress(&spliced);
        let answers = (0..20u8).all(|byte| echoes(&session, byte, LONG));
        until("datagrams were sent", LONG, || progress(&spliced).0 > before.0 + 200_000);
        let after = progress(&spliced);
        stop.store(true, Ordering::Relaxed);
        assert!(answers, "the other session is served");
        // A turn serves every session that is ready: it may send some thousand, after a first read some more.
        let (sent, turns) = (after.0 - before.0, after.1 - before.1);
        assert!(sent / turns.max(1) < 6_000, "{sent} datagrams in {turns} turns");
    });
    drop(session);
    spliced.finish();
}
