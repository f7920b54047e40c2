//! Segments of 1, 100 and 1448 bytes on a real link, offloads on and off: no stalled tail, no burst that waits on a
//! cork.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::netns::{Chain, with_namespaces};
use common::path::{Path, Via};
use common::pattern::{Pattern, Random};
use common::peer::{accept, timed};
use socket2::SockRef;

common::scenarios!(
    also_direct: [
        bursts_with_offloads,
        bursts_without_offloads,
        a_slow_reader_with_offloads,
        a_slow_reader_without_offloads,
        bulk_without_offloads,
    ],
    engines: [],
);

/// What a corked tail waits for in the kernel, less the time a machine may be late.
const CORK: Duration = Duration::from_millis(180);

/// Runs a scenario through three namespaces.
fn in_namespaces(via: Via, offloads: bool, scenario: impl FnOnce(&Path)) {
    with_namespaces(|| {
        let path = Path::through(via, Chain::new(offloads), |launcher| launcher);
        scenario(&path);
        path.finish();
    });
}

fn bursts_with_offloads(via: Via) {
    in_namespaces(via, true, bursts);
}

fn bursts_without_offloads(via: Via) {
    in_namespaces(via, false, bursts);
}

/// A burst of `count` writes of `size` bytes each way in turn, each of which must be there before the next starts.
/// A pipe that looks full, or a flag that promises more, holds the tail for 200 ms.
fn bursts(path: &Path) {
    let (client, server) = path.pair();
    let pattern = Pattern::new(1);
    let mut places = [0, 0];
    // Powers of two and their neighbours are where pipes of 16, 32 … slots are exactly full.
    let counts = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257, 300];
    let mut late = Vec::new();
    let start = Instant::now();
    for size in [1, 100, 1448] {
        for count in counts {
            let times: Vec<_> = (0..4)
                .map(|_| {
                    let from_client = burst(&client, &server, &pattern, &mut places[0], count, size);
                    let from_server = burst(&server, &client, &pattern, &mut places[1], count, size);
                    from_client.max(from_server)
                })
                .collect();
            late.extend(times.iter().filter(|time| **time >= CORK).map(|time| (count, size, *time)));
            let best = times.iter().min().expect("some rounds");
            assert!(*best < CORK, "every burst of {count} × {size} bytes waits: {times:?}");
        }
    }
    assert!(late.len() <= 5, "bursts (segments, size, time) that waited: {late:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "bursts are slow: {:?}", start.elapsed());
    drop((client, server));
    path.ended("done", 1);
}

/// One burst, read as it comes; returns how long it took to be there.
fn burst(from: &TcpStream, to: &TcpStream, pattern: &Pattern, place: &mut u64, count: u64, size: u64) -> Duration {
    let start = Instant::now();
    let first = *place;
    let end = first + count * size;
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in (first..end).step_by(usize::try_from(size).expect("small")) {
                pattern.send(from, at, at + size).expect("send");
            }
        });
        pattern.expect(to, first, end);
    });
    *place = end;
    start.elapsed()
}

fn a_slow_reader_with_offloads(via: Via) {
    in_namespaces(via, true, slow_reader);
}

fn a_slow_reader_without_offloads(via: Via) {
    in_namespaces(via, false, slow_reader);
}

/// Many small segments into a reader that takes its time: the queues fill by pieces, not by bytes, and everything
/// must come although nothing follows and the stream stays open.
fn slow_reader(path: &Path) {
    SockRef::from(&path.backend).set_recv_buffer_size(16_384).expect("SO_RCVBUF");
    for (size, count) in [(1, 3000), (100, 3000), (1448, 1500)] {
        let client = path.connect();
        let server = accept(&path.backend);
        let pattern = Pattern::new(size);
        let total = size * count;
        let mut random = Random::new(size);
        timed("a slow reader gets everything", Duration::from_secs(15), || {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for at in 0..count {
                        pattern.send(&client, at * size, (at + 1) * size).expect("send");
                    }
                });
                let mut place = 0;
                while place < total {
                    let next = total.min(place + 1 + random.below(total / 50));
                    thread::park_timeout(Duration::from_millis(random.below(8)));
                    pattern.expect(&server, place, next);
                    place = next;
                }
            });
        });
        client.shutdown(Shutdown::Write).expect("half-close");
        pattern.expect_whole(&server, total, total);
    }
    path.ended("done", 3);
}

/// Both ways at once in packets of the link's size, whole.
fn bulk_without_offloads(via: Via) {
    in_namespaces(via, false, |path| {
        let len = (16 << 20) + 5;
        path.exchange(len, len);
        path.ended("done", 1);
    });
}
