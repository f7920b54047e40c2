//! The thing itself: bytes over loopback, socket → pipe → socket, compared at the other end.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Finding;
use crate::sys;
use crate::sys::pipes::{Pipe, PipeBudget};

const CHECK: &str = "splice";
/// Bytes moved: several fillings of the largest pipe.
const BYTES: usize = 4 << 20;
/// More than that takes on any machine; a stall is a failure.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether bytes go through a pipe and come out the same.
pub(super) fn transfer() -> Finding {
    if !sys::HAS_SPLICE {
        let found = "this build has no splice: every session copies";
        return Finding::warn(CHECK, found, "run a build for Linux without --cfg spliced_portable");
    }
    match attempt() {
        Ok((calls, took)) => {
            let found = format!(
                "{} MiB over loopback through a pipe, every byte compared, {calls} calls, {:.1} ms",
                BYTES >> 20,
                took.as_secs_f64() * 1e3
            );
            Finding::ok(CHECK, found)
        }
        Err(error) => {
            let mend = match error.raw_os_error() {
                Some(libc::ENOSYS | libc::EPERM) => {
                    "allow splice(2) in the seccomp filter of this container or unit (SystemCallFilter=); until then \
                     every session copies"
                }
                Some(libc::EMFILE | libc::ENFILE) => "ulimit -n 65536",
                _ => "run the forwards with --engine copy, and report this kernel",
            };
            Finding::fail(CHECK, error.to_string(), mend)
        }
    }
}

/// The byte at a place of the stream; its period is no power of two, so that a shifted page shows.
fn pattern(place: usize) -> u8 {
    (place % 251) as u8
}

fn attempt() -> io::Result<(u64, Duration)> {
    let (mut source, from) = pair()?;
    let (to, mut sink) = pair()?;
    from.set_nonblocking(true)?;
    to.set_nonblocking(true)?;
    source.set_write_timeout(Some(LIMIT))?;
    sink.set_read_timeout(Some(LIMIT))?;
    let mut pool = PipeBudget::detect(None, 1).pool();
    let mut pipe = pool.get().map_err(|e| io::Error::other(format!("no pipe: {e:?}")))?;
    let begun = Instant::now();
    let (moved, arrived) = thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
            source.write_all(&bytes) // Dropping the socket ends the stream.
        });
        let receiver = scope.spawn(move || {
            let mut bytes = Vec::with_capacity(BYTES);
            sink.read_to_end(&mut bytes).map(|_| bytes)
        });
        let moved = pump(&mut pipe, &from, &to, begun + LIMIT);
        // Ends both threads, also after an error.
        drop((from, to));
        let sent = sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender failed")));
        let arrived = receiver.join().unwrap_or_else(|_| Err(io::Error::other("the receiver failed")));
        (moved.and_then(|calls| sent.map(|()| calls)), arrived)
    });
    let took = begun.elapsed();
    pool.put(pipe);
    let (calls, arrived) = (moved?, arrived?);
    if arrived.len() != BYTES {
        return Err(io::Error::other(format!("{} of {BYTES} bytes came out of the pipe", arrived.len())));
    }
    if let Some(place) = (0..BYTES).find(|place| arrived[*place] != pattern(*place)) {
        return Err(io::Error::other(format!("byte {place} came out of the pipe changed")));
    }
    Ok((calls, took))
}

/// Moves everything; how many calls moved bytes.
fn pump(pipe: &mut Pipe, from: &TcpStream, to: &TcpStream, until: Instant) -> io::Result<u64> {
    let mut calls = 0;
    loop {
        match pipe.fill_from(from, 1 << 20) {
            Ok(0) => return Ok(calls),
            Ok(_) => calls += 1,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait(from, PollFlags::POLLIN, until)?;
                continue;
            }
            Err(e) => return Err(named("splice(2) from a socket to a pipe", e)),
        }
        while !pipe.is_empty() {
            match pipe.drain_into(to) {
                Ok(_) => calls += 1,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(to, PollFlags::POLLOUT, until)?,
                Err(e) => return Err(named("splice(2) from a pipe to a socket", e)),
            }
        }
    }
}

/// Keeps the error's number, so that it can be told what mends it.
fn named(what: &str, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EMFILE | libc::ENFILE) => error,
        _ => io::Error::new(error.kind(), format!("{what}: {error}")),
    }
}

fn wait(socket: &TcpStream, events: PollFlags, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(socket.as_fd(), events)], timeout) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("the transfer stood still for {LIMIT:?}"))),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Two ends of a connection over loopback.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, peer) = listener.accept()?;
    if peer != client.local_addr()? {
        return Err(io::Error::other("somebody else connected to the port of this check; run it again"));
    }
    Ok((client, server))
}

#[cfg(all(test, target_os = "linux", not(spliced_portable)))]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_splices() {
        let (calls, _) = attempt().unwrap();
        assert!(calls >= 2);
    }
}
