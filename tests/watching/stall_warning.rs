//! Bytes that wait for a side that takes none: named once, counted, and forgotten when they move or the session ends.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::deadline::{LONG, eventually, throughout};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::backend_with_small_buffers;
use common::spliced::Spliced;
use common::stats::Stats;

common::scenarios!(
    also_direct: [],
    engines: [the_side_that_takes_nothing_is_named, a_slow_reader_is_not_named, many_stalls_are_summed_up, it_can_be_turned_off],
);

fn path(via: Via, limit: &str) -> Path {
    Path::with(via, backend_with_small_buffers(), |launcher| launcher.option("--stall-warning", limit))
}

/// Sends until nothing more goes.
fn fill(stream: &TcpStream) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let (sent, error) = Pattern::new(1).send_all_it_takes(stream, u64::MAX);
    assert!(error.is_none(), "the queues were to fill, not to fail: {error:?}");
    sent
}

fn stalls(stats: &Stats) -> [u64; 3] {
    ["/total/stalls/client", "/total/stalls/backend", "/total/stalled"].map(|place| stats.number(place))
}

fn named(spliced: &Spliced, lines: usize) -> Vec<String> {
    eventually("stalls are named", LONG, || {
        let named = spliced.logged("stalled: forward=");
        if named.len() >= lines { Ok(named) } else { Err(format!("{named:?}")) }
    })
}

fn the_side_that_takes_nothing_is_named(via: Via) {
    let path = path(via, "400ms");
    let spliced = path.spliced.as_ref().unwrap();
    for (from_client, side, direction, counted) in
        [(true, "backend", "up", [0, 1, 1]), (false, "client", "down", [1, 1, 1])]
    {
        let (client, server) = path.pair();
        let (sender, reader) = if from_client { (&client, &server) } else { (&server, &client) };
        let ours = format!("client={} ", client.local_addr().unwrap());
        let sent = fill(sender);
        let lines = named(spliced, usize::from(!from_client) + 1);
        let line = lines.last().unwrap();
        let target = path.backend.local_addr().unwrap();
        let address = if from_client { target } else { client.local_addr().unwrap() };
        for part in [
            &ours,
            &format!("target={target} "),
            &format!("direction={direction} "),
            &format!("the {side} ({address}) takes no"),
        ] {
            assert!(line.contains(part.as_str()), "{part} is missing in {line}");
        }
        let pending = line.split("pending=").nth(1).unwrap().split(' ').next().unwrap();
        assert!(pending.parse::<u64>().unwrap() > 0, "{line}");
        assert_eq!(stalls(&spliced.stats()), counted);
        // It goes on standing still: nothing more is said, and the other way works.
        throughout("named once", Duration::from_millis(900), || {
            let now = stalls(&spliced.stats());
            let lines = spliced.logged("stalled: ").len();
            if now == counted && lines == usize::from(!from_client) + 1 {
                Ok(())
            } else {
                Err(format!("{now:?}, {lines} lines"))
            }
        });
        (&mut &*reader).write_all(b"!").unwrap();
        (&mut &*sender).read_exact(&mut [0]).unwrap();
        // Progress ends it.
        Pattern::new(1).expect(reader, 0, sent);
        spliced.stats_until("no direction stalls any more", |stats| stats.number("/total/stalled") == 0);
        // The next one is a stall of its own, and the end of the session ends it.
        if !from_client {
            fill(sender);
            spliced.stats_until("a second stall", |stats| stalls(stats) == [2, 1, 1]);
        }
        drop((client, server));
        spliced.stats_until("nothing is left", |stats| stats.open() == 0 && stats.number("/total/stalled") == 0);
    }
    path.finish();
}

/// A byte now and then is progress, and an idle session waits for nothing.
fn a_slow_reader_is_not_named(via: Via) {
    let path = path(via, "1s");
    let spliced = path.spliced.as_ref().unwrap();
    let (client, mut server) = path.pair();
    let _idle = path.pair();
    fill(&client);
    throughout("slow, not stalled", Duration::from_millis(2500), || {
        // More than a receive buffer holds back before it tells the sender of its room.
        server.read_exact(&mut vec![0; 65_536]).unwrap();
        client.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = Pattern::new(1).send_all_it_takes(&client, u64::MAX);
        let named = spliced.logged("stalled: ");
        if named.is_empty() { Ok(()) } else { Err(format!("{named:?}")) }
    });
    assert_eq!(stalls(&spliced.stats()), [0, 0, 0]);
    drop((client, server));
    drop(_idle);
    spliced.stats_until("nothing is left", |stats| stats.open() == 0);
    path.finish();
}

/// A backend that hangs stalls thousands at once; the log says so in a few lines.
fn many_stalls_are_summed_up(via: Via) {
    let path = path(via, "200ms");
    let spliced = path.spliced.as_ref().unwrap();
    let pairs: Vec<_> = (0..30).map(|_| path.pair()).collect();
    for (client, _) in &pairs {
        client.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    }
    eventually("all of them stall", LONG, || {
        for (client, _) in &pairs {
            let _ = Pattern::new(1).send_all_it_takes(client, u64::MAX);
        }
        let stalls = stalls(&spliced.stats());
        if stalls[1] >= 30 { Ok(()) } else { Err(format!("{stalls:?}")) }
    });
    let workers = spliced.stats().0["workers"].as_array().unwrap().len();
    let summed = eventually("the rest is summed up", LONG, || {
        let summed = spliced.logged(" more within 10 s");
        if summed.is_empty() { Err(spliced.text()) } else { Ok(summed) }
    });
    let lines = spliced.logged("stalled: forward=").len();
    assert!(lines <= 20 * workers, "{lines} lines, {summed:?}");
    drop(pairs);
    spliced.stats_until("nothing is left", |stats| stats.open() == 0 && stats.number("/total/stalled") == 0);
    path.finish();
}

fn it_can_be_turned_off(via: Via) {
    let path = path(via, "none");
    let spliced = path.spliced.as_ref().unwrap();
    let (client, server) = path.pair();
    fill(&client);
    throughout("nothing is said", Duration::from_millis(500), || {
        let named = spliced.logged("stalled: ");
        if named.is_empty() { Ok(()) } else { Err(format!("{named:?}")) }
    });
    drop((client, server));
    spliced.stats_until("nothing is left", |stats| stats.open() == 0);
    path.finish();
}
