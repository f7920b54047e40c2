//! Pipe to socket.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use pipes::{Pipe, min_pipe_size};

use crate::net::{arrived, connection, events, pattern, receive, send_segments, until};

/// A pipe that holds `bytes`, received in segments of `segment`.
fn holding(bytes: &[u8], segment: usize) -> Pipe {
    let (client, server) = connection();
    let mut pipe = Pipe::new(16 * min_pipe_size()).unwrap();
    send_segments(&client, bytes, segment);
    arrived(&server, bytes.len());
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), bytes.len());
    pipe
}

#[test]
fn an_empty_pipe_drains_nothing() {
    let (client, _server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    assert_eq!(pipe.drain_into(&client).unwrap(), 0);
}

/// With `SPLICE_F_MORE`, or a length above what is pending, the last segment is corked until a timer of 200 ms fires.
/// Everything must be there within half of that; a busy machine gets three tries, the cork would spoil each of them.
#[test]
fn the_last_segment_is_never_corked() {
    for segments in 1..=40 {
        let in_time = (0..3).any(|_| {
            let bytes = pattern(segments);
            let mut pipe = holding(&bytes, 1);
            let (target, peer) = connection();
            assert_eq!(pipe.drain_into(&target).unwrap(), segments);
            assert!(pipe.is_empty());
            let in_time = events(&peer, PollFlags::POLLIN, Duration::from_millis(100)).contains(PollFlags::POLLIN);
            assert_eq!(receive(&peer, segments), bytes);
            in_time
        });
        assert!(in_time, "{segments} segments of one byte took more than 100 ms three times");
    }
}

/// The target's window closes in the middle: what did not go stays, is counted, and follows later.
#[test]
fn a_target_that_is_full_would_block_and_keeps_the_rest() {
    let (target, peer) = connection();
    let mut sent = Vec::new();
    let mut pipe = loop {
        let bytes = pattern(60_000);
        let mut pipe = holding(&bytes, 1448);
        sent.extend(bytes);
        let error = loop {
            match pipe.drain_into(&target) {
                Ok(_) if pipe.is_empty() => break None,
                Ok(_) => {}
                Err(error) => break Some(error),
            }
        };
        match error {
            None => assert!(sent.len() < 1 << 28, "a peer that never reads took {} bytes", sent.len()),
            Some(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break pipe;
            }
        }
    };
    let rest = pipe.pending();
    assert!(rest > 0 && rest <= 60_000);
    let mut got = receive(&peer, sent.len() - rest);
    until("an empty pipe", || {
        let n = pipe.drain_into(&target).unwrap_or(0);
        got.extend(receive(&peer, n));
        pipe.is_empty().then_some(())
    });
    assert!(got == sent, "{} bytes arrived of {}, or others", got.len(), sent.len());
}

/// A file opened for appending is refused by splice(2) as some kinds of socket are: nothing may be lost by trying.
#[test]
fn a_target_that_cannot_be_spliced_to_leaves_everything_to_read_out() {
    let bytes = pattern(5000);
    let mut pipe = holding(&bytes, 1448);
    let null = OpenOptions::new().append(true).open("/dev/null").unwrap();
    let error = pipe.drain_into(&null).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EINVAL as i32));
    assert_eq!(pipe.pending(), 5000);
    assert_eq!(pipe.read_out().unwrap(), bytes);
    assert!(pipe.is_empty());
    assert_eq!(pipe.read_out().unwrap(), b"");
}
