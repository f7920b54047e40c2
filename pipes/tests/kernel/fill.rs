//! Socket to pipe.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::unistd::pipe2;
use pipes::{Pipe, min_pipe_size};

use crate::net::{arrived, connection, pattern, send_segments, until};

#[test]
fn an_empty_socket_would_block() {
    let (_client, server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    let error = pipe.fill_from(&server, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(error.raw_os_error(), Some(Errno::EAGAIN as i32));
    assert!(pipe.is_empty());
}

#[test]
fn the_end_of_the_stream_is_zero_after_the_last_byte() {
    let (mut client, server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    arrived(&server, 10);
    assert_eq!(pipe.fill_from(&server, 4096).unwrap(), 10);
    assert_eq!(pipe.read_out().unwrap(), b"last words");
    let end = until("the end of the stream", || pipe.fill_from(&server, 4096).ok());
    assert_eq!(end, 0);
    assert_eq!(pipe.fill_from(&server, 4096).unwrap(), 0, "the end stays the end");
    assert!(pipe.is_empty());
}

#[test]
fn no_length_is_refused() {
    let (mut client, server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    client.write_all(b"abc").unwrap();
    arrived(&server, 3);
    assert_eq!(pipe.fill_from(&server, 0).unwrap(), 1, "0 would look like the end of the stream");
    assert_eq!(pipe.read_out().unwrap(), b"a");
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 2, "above isize::MAX is EINVAL on newer kernels");
    assert_eq!(pipe.read_out().unwrap(), b"bc");
}

/// Capacity counts slots: how many segments share one is the kernel's business (neighbours are merged), but tiny
/// segments fill a pipe at a small part of its size, so a short fill says nothing about the socket.
#[test]
fn tiny_segments_fill_a_pipe_long_before_its_size() {
    let (client, server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    let sent = pattern(300);
    send_segments(&client, &sent, 1);
    arrived(&server, sent.len());

    let first = pipe.fill_from(&server, usize::MAX).unwrap();
    assert!(first < sent.len(), "all {first} one-byte segments fitted a pipe of {} bytes", pipe.size());
    assert_eq!(pipe.pending(), first);
    let mut got = pipe.read_out().unwrap();
    while got.len() < sent.len() {
        let n = pipe.fill_from(&server, usize::MAX).unwrap();
        assert_eq!(pipe.pending(), n);
        got.extend(pipe.read_out().unwrap());
    }
    assert_eq!(got, sent);
    assert_eq!(pipe.fill_from(&server, 1).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Why only an empty pipe may be filled: a full one gives the same EAGAIN whether the socket is dry or not.
#[test]
fn a_full_pipe_would_block_whatever_the_socket_holds() {
    let (client, server) = connection();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
    let fill = |from: &std::net::TcpStream| splice(from, None, &writer, None, 1 << 30, SpliceFFlags::SPLICE_F_NONBLOCK);
    send_segments(&client, &pattern(300), 1);
    arrived(&server, 300);
    let mut moved = 0;
    let error = loop {
        match fill(&server) {
            Ok(n) => moved += n,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::EAGAIN);
    assert!(moved < 300);
    arrived(&server, 300 - moved);
    let (_quiet, dry) = connection();
    assert_eq!(fill(&dry), Err(Errno::EAGAIN), "the same answer for a socket that holds nothing");

    let mut buffer = [0; 300];
    assert_eq!(nix::unistd::read(&reader, &mut buffer).unwrap(), moved);
    assert!(fill(&server).unwrap() > 0, "the bytes were there all the time");
}

#[test]
fn pending_is_exact_for_every_segment_size() {
    for (segment, len) in [(1, 200), (100, 20_000), (1448, 100_000), (16_384, 400_000), (65_483, 400_000)] {
        for size in [min_pipe_size(), 4 * min_pipe_size()] {
            let (client, server) = connection();
            let sent = pattern(len);
            let mut pipe = Pipe::new(size).unwrap();
            let mut got = Vec::new();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    client.set_nonblocking(false).unwrap();
                    send_segments(&client, &sent, segment);
                    client.shutdown(Shutdown::Write).unwrap();
                });
                loop {
                    let n = until("bytes or the end", || match pipe.fill_from(&server, usize::MAX) {
                        Ok(n) => Some(n),
                        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
                        Err(e) => panic!("fill: {e}"),
                    });
                    assert_eq!(pipe.pending(), n);
                    if n == 0 {
                        break;
                    }
                    let bytes = pipe.read_out().unwrap();
                    assert_eq!(bytes.len(), n);
                    got.extend(bytes);
                }
            });
            assert!(got == sent, "segments of {segment} bytes through {size}: {} of {len} bytes, or others", got.len());
        }
    }
}
