//! Resets and urgent bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use pipes::{Pipe, min_pipe_size};
use socket2::SockRef;

use crate::net::{arrived, connection, events, pattern, reset, until};

/// Why the first error of a socket must be kept: asked again, a reset looks like a clean end.
#[test]
fn a_reset_source_gives_its_bytes_then_the_error_then_zero() {
    let (mut client, server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    let sent = pattern(5000);
    client.write_all(&sent).unwrap();
    arrived(&server, sent.len());
    reset(client, &server);

    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 5000);
    assert_eq!(pipe.read_out().unwrap(), sent);
    let error = pipe.fill_from(&server, usize::MAX).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ECONNRESET as i32));
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 0, "the error is reported once");
}

/// std ignores SIGPIPE, so the second error is only that.
#[test]
fn a_reset_target_leaves_the_bytes_in_the_pipe() {
    let (mut client, server) = connection();
    let (target, peer) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    let sent = pattern(5000);
    client.write_all(&sent).unwrap();
    arrived(&server, sent.len());
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 5000);
    reset(peer, &target);

    let error = pipe.drain_into(&target).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ECONNRESET as i32));
    let error = pipe.drain_into(&target).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EPIPE as i32));
    assert_eq!(pipe.pending(), 5000);
    assert_eq!(pipe.read_out().unwrap(), sent);
}

/// splice stops in front of an urgent byte and stays there, while poll goes on reporting the socket as readable.
#[test]
fn an_urgent_byte_stops_splice_until_recv_steps_over_it() {
    let (mut client, mut server) = connection();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    client.write_all(b"abc").unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"def").unwrap();
    arrived(&server, 3);
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 3);
    assert_eq!(pipe.read_out().unwrap(), b"abc");

    for _ in 0..5 {
        let ready = events(&server, PollFlags::POLLIN | PollFlags::POLLPRI, Duration::from_secs(20));
        assert!(ready.contains(PollFlags::POLLIN | PollFlags::POLLPRI), "{ready:?}");
        let error = pipe.fill_from(&server, usize::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    let mut buffer = [0; 16];
    let n = server.read(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"def", "recv steps over the urgent byte");
    client.write_all(b"ghi").unwrap();
    arrived(&server, 3);
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 3, "splice works again");
    assert_eq!(pipe.read_out().unwrap(), b"ghi");
}

/// With `SO_OOBINLINE` the same happens, and the `recv` brings the urgent byte in its place.
#[test]
fn an_inline_urgent_byte_comes_with_the_recv() {
    let (mut client, mut server) = connection();
    SockRef::from(&server).set_out_of_band_inline(true).unwrap();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    client.write_all(b"abc").unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    arrived(&server, 3);
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 3);
    assert_eq!(pipe.read_out().unwrap(), b"abc");
    let mut buffer = [0; 16];
    let n = until("the urgent byte", || {
        assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap_err().kind(), ErrorKind::WouldBlock);
        server.read(&mut buffer).ok()
    });
    assert_eq!(&buffer[..n], b"!");
    client.write_all(b"def").unwrap();
    arrived(&server, 3);
    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 3);
    assert_eq!(pipe.read_out().unwrap(), b"def");
}

/// The same with the end of the stream behind it: now splice does not say `EAGAIN` but 0, as at the end.
#[test]
fn splice_takes_an_urgent_byte_for_the_end_once_a_fin_is_there() {
    let (mut client, mut server) = connection();
    SockRef::from(&server).set_out_of_band_inline(true).unwrap();
    let mut pipe = Pipe::new(min_pipe_size()).unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"and more").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // With our own half ended too, poll(2) tells when the other end's FIN is there.
    server.shutdown(Shutdown::Write).unwrap();
    let wanted = PollFlags::empty();
    until("the FIN", || events(&server, wanted, Duration::from_secs(20)).contains(PollFlags::POLLHUP).then_some(()));

    assert_eq!(pipe.fill_from(&server, usize::MAX).unwrap(), 0, "though nine bytes wait");
    let mut rest = String::new();
    server.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "!and more", "only recv sees them");
}
