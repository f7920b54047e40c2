//! Connected sockets and waiting with a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

/// How long anything on loopback may take before the test fails.
const DEADLINE: Duration = Duration::from_secs(20);

/// Both ends of a connection, non-blocking, without Nagle's delay.
pub(crate) fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
    }
    (client, server)
}

/// Bytes that differ from position to position and repeat only after a prime number of them.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Repeats `attempt` until it gives something, at most until the deadline.
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until at least `len` bytes can be received in one piece.
pub(crate) fn arrived(socket: &TcpStream, len: usize) {
    let mut buffer = vec![0; len];
    until("bytes in the receive queue", || match socket.peek(&mut buffer) {
        Ok(n) if n >= len => Some(()),
        Ok(_) => None,
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(e) => panic!("peek: {e}"),
    });
}

/// Writes each segment with a system call of its own.
pub(crate) fn send_segments(mut socket: &TcpStream, bytes: &[u8], segment: usize) {
    for part in bytes.chunks(segment) {
        socket.write_all(part).unwrap();
    }
}

/// Receives exactly `len` bytes.
pub(crate) fn receive(mut socket: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match socket.read(&mut bytes[filled..]) {
            Ok(0) => panic!("end of stream after {filled} of {len} bytes"),
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let ready = events(socket, PollFlags::POLLIN, DEADLINE);
                assert!(!ready.is_empty(), "{filled} of {len} bytes within {DEADLINE:?}");
            }
            Err(e) => panic!("receive: {e}"),
        }
    }
    bytes
}

/// What poll(2) reports within `limit`.
pub(crate) fn events(socket: &TcpStream, wanted: PollFlags, limit: Duration) -> PollFlags {
    let mut fds = [PollFd::new(socket.as_fd(), wanted)];
    poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap();
    fds[0].revents().unwrap()
}

/// Closes with a reset, and waits until it has reached `peer`.
pub(crate) fn reset(socket: TcpStream, peer: &TcpStream) {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    let seen = events(peer, PollFlags::empty(), DEADLINE);
    assert!(seen.contains(PollFlags::POLLERR), "the reset did not arrive: {seen:?}");
}
