//! A reader that stops: bounded memory, at most one pipe, no CPU; everything on resume, and data before the FIN.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::deadline::throughout;
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::backend_with_small_buffers;

common::scenarios!(
    also_direct: [
        both_directions_stall_and_resume,
        a_fin_behind_full_queues_comes_after_the_data,
        a_close_behind_full_queues_loses_nothing,
    ],
    engines: [a_stalled_reader_costs_no_memory_and_no_cpu, many_short_stalls_lose_nothing],
);

/// Sends until nothing more has gone for a while; the stream's write deadline is short afterwards.
fn fill(stream: &TcpStream, pattern: &Pattern) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a short deadline");
    let (sent, error) = pattern.send_all_it_takes(stream, u64::MAX);
    assert!(error.is_none(), "the queues were to fill, not to fail: {error:?}");
    sent
}

/// Catches a relay that buffers without a bound, keeps both of its pipes, or polls a socket that cannot be written.
fn a_stalled_reader_costs_no_memory_and_no_cpu(via: Via) {
    let path = Path::with(via, backend_with_small_buffers(), |launcher| launcher);
    let spliced = path.spliced.as_ref().expect("in between");
    for from_client in [true, false] {
        let (client, server) = path.pair();
        let (sender, reader) = if from_client { (&client, &server) } else { (&server, &client) };
        let pattern = Pattern::new(1);
        let process = spliced.process();
        let memory = process.anonymous_memory();
        let sent = fill(sender, &pattern);
        let cpu = process.cpu();
        throughout("a stalled session costs nothing", Duration::from_secs(1), || {
            let grown = process.anonymous_memory().saturating_sub(memory);
            let used = process.cpu() - cpu;
            let pipes = spliced.pipe_ends();
            if grown < 4 << 20 && used <= Duration::from_millis(10) && pipes <= 4 {
                return Ok(());
            }
            Err(format!("{grown} bytes more, {used:?} of CPU time, {pipes} ends of pipes"))
        });
        let in_use = spliced.stats().pipes_in_use();
        let may = u64::from(via.splices());
        assert!(in_use <= may, "{in_use} pipes hold bytes of one stalled direction");
        assert!(via != Via::SPLICE || in_use == 1, "full queues and nothing in a pipe");
        sender.shutdown(Shutdown::Write).expect("half-close");
        pattern.expect_whole(reader, 0, sent);
        assert_eq!(spliced.stats().pipes_in_use(), 0, "pipes in use after everything was delivered");
    }
    path.ended("done", 2);
    path.finish();
}

/// Both directions of one session full at once must not wait for each other.
fn both_directions_stall_and_resume(via: Via) {
    let path = Path::with(via, backend_with_small_buffers(), |launcher| launcher);
    let (client, server) = path.pair();
    let (upward, downward) = (Pattern::new(1), Pattern::new(2));
    let (up, down) = thread::scope(|scope| {
        let up = scope.spawn(|| fill(&client, &upward));
        let down = fill(&server, &downward);
        (up.join().expect("its panic has been shown"), down)
    });
    // First one direction alone to its end of data, then the other.
    upward.expect(&server, 0, up);
    downward.expect(&client, 0, down);
    upward.send(&client, up, up + 1000).expect("it goes on");
    upward.expect(&server, up, up + 1000);
    drop(client);
    upward.expect_whole(&server, up + 1000, up + 1000);
    drop(server);
    path.finish();
}

/// The FIN is known to the relay long before the last byte can go: it must not overtake, and not be forgotten.
fn a_fin_behind_full_queues_comes_after_the_data(via: Via) {
    let path = Path::with(via, backend_with_small_buffers(), |launcher| launcher);
    for from_client in [true, false] {
        let (client, server) = path.pair();
        let (sender, reader) = if from_client { (&client, &server) } else { (&server, &client) };
        let pattern = Pattern::new(1);
        let sent = fill(sender, &pattern);
        sender.shutdown(Shutdown::Write).expect("half-close");
        pattern.expect_whole(reader, 0, sent);
        // The other half still works.
        pattern.send(reader, 0, 70_000).expect("answer");
        reader.shutdown(Shutdown::Write).expect("half-close");
        pattern.expect_whole(sender, 0, 70_000);
    }
    path.ended("done", 2);
    path.finish();
}

/// The sender is gone altogether, and only then does the reader start.
fn a_close_behind_full_queues_loses_nothing(via: Via) {
    let path = Path::with(via, backend_with_small_buffers(), |launcher| launcher);
    for from_client in [true, false] {
        let (client, server) = path.pair();
        let (sender, reader) = if from_client { (client, server) } else { (server, client) };
        let pattern = Pattern::new(1);
        let sent = fill(&sender, &pattern);
        drop(sender);
        pattern.expect_whole(&reader, 0, sent);
    }
    path.ended("done", 2);
    path.finish();
}

/// Stops and goes at every place of the queues: catches a lost wake-up after a partial write.
fn many_short_stalls_lose_nothing(via: Via) {
    let path = Path::with(via, backend_with_small_buffers(), |launcher| launcher);
    let (client, server) = path.pair();
    let pattern = Pattern::new(1);
    let total = 20 << 20;
    thread::scope(|scope| {
        scope.spawn(|| {
            pattern.send(&client, 0, total).expect("send");
            client.shutdown(Shutdown::Write).expect("half-close");
        });
        let mut random = common::pattern::Random::new(7);
        let mut place = 0;
        while place < total {
            let next = total.min(place + 1 + random.below(900_000));
            pattern.expect(&server, place, next);
            place = next;
            thread::park_timeout(Duration::from_micros(random.below(20_000)));
        }
        pattern.expect_whole(&server, total, total);
    });
    drop((client, server));
    path.ended("done", 1);
    path.finish();
}
