//! Sessions whose both ends say exactly how they fared.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use crate::common::deadline::{LONG, eventually};
use crate::common::pattern::{Pattern, StreamEnd};
use crate::common::peer::{connect, connect_or_reset, reset, with_deadlines};

/// A number, and how many bytes each way.
const HEADER: usize = 24;

/// The number of a session whose bytes come back one by one.
const ECHO: u64 = u64::MAX;

/// What a session carries; its number names its patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    number: u64,
    up: u64,
    down: u64,
}

/// How a session looked from the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All bytes and a FIN, both ways.
    Whole,
    /// At least one end saw a reset, and nobody a stream that was cut and looked complete; which end, and when.
    Broken(&'static str),
}

/// A backend that serves every order it is given.
#[derive(Debug)]
pub(crate) struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// How each order arrived.
    seen: Mutex<HashMap<u64, StreamEnd>>,
    /// What should not have happened.
    faults: Mutex<Vec<String>>,
    /// Connections that are served now.
    busy: AtomicU64,
}

impl Backend {
    /// Starts it.
    pub(crate) fn start(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(20))).expect("SO_RCVTIMEO");
                while !shared.stop.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else { continue };
                    let shared = Arc::clone(&shared);
                    shared.busy.fetch_add(1, Ordering::Relaxed);
                    thread::spawn(move || {
                        shared.serve(&with_deadlines(stream));
                        shared.busy.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What should not have happened, once nothing is served any more.
    pub(crate) fn faults(&self) -> Vec<String> {
        eventually("the backend has served all", LONG, || match self.shared.busy.load(Ordering::Relaxed) {
            0 => Ok(()),
            n => Err(format!("{n} connections are open")),
        });
        self.shared.faults.lock().expect("no panic while held").clone()
    }

    /// How an order arrived; waits a little for one that does.
    fn seen(&self, number: u64) -> Option<StreamEnd> {
        let look = || self.shared.seen.lock().expect("no panic while held").get(&number).copied();
        // The client has seen its end; the other one is on its way, unless the session never reached the backend.
        for _ in 0..200 {
            if look().is_some() || self.shared.busy.load(Ordering::Relaxed) == 0 {
                break;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        look()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: &TcpStream) {
        let mut header = [0; HEADER];
        match stream.read_exact(&mut header) {
            Ok(()) => {}
            // Reset before it began: as good as never connected.
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                return self.fault("a stream was cut in its first bytes and ended with a FIN".to_owned());
            }
            Err(e) => return self.fault(format!("the first bytes of a session: {e}")),
        }
        let order = Order::read(header);
        if order.number == ECHO {
            // Without an end of its own: it ends when its client closes.
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                let _ = stream.write_all(&byte);
            }
            return;
        }
        let (incoming, outgoing) = (Pattern::new(2 * order.number), Pattern::new(2 * order.number + 1));
        let (read, _) = run_half(stream, incoming, order.up, outgoing, order.down, || ());
        match read {
            Ok(end) => _ = self.seen.lock().expect("no panic while held").insert(order.number, end),
            Err(why) => self.fault(format!("{order:?} at the backend: {why}")),
        }
    }

    fn fault(&self, text: String) {
        self.faults.lock().expect("no panic while held").push(text);
    }
}

impl Order {
    /// An order with a number of its own.
    pub(crate) fn new(number: u64, up: u64, down: u64) -> Self {
        Self { number, up, down }
    }

    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        for (place, value) in header.chunks_exact_mut(8).zip([self.number, self.up, self.down]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    fn read(header: [u8; HEADER]) -> Self {
        let value = |at: usize| u64::from_le_bytes(header[8 * at..8 * at + 8].try_into().expect("8 bytes"));
        Self { number: value(0), up: value(1), down: value(2) }
    }

    /// Runs it over a new connection.
    ///
    /// # Errors
    /// What no session may show: a stream that is cut and looks complete, wrong bytes, a stall.
    pub(crate) fn run(self, front: SocketAddr, backend: &Backend) -> Result<Fate, String> {
        match connect_or_reset(front) {
            Some(stream) => self.run_on(&stream, backend, || ()),
            None => Ok(Fate::Broken("reset while the client connected")),
        }
    }

    /// Runs it over an open connection; the client begins to read when `gate` returns.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn run_on(
        self,
        mut stream: &TcpStream,
        backend: &Backend,
        gate: impl FnOnce() + Send,
    ) -> Result<Fate, String> {
        if stream.write_all(&self.header()).is_err() {
            return Ok(Fate::Broken("reset before the client had sent its first bytes"));
        }
        let (incoming, outgoing) = (Pattern::new(2 * self.number + 1), Pattern::new(2 * self.number));
        let (read, sent) = run_half(stream, incoming, self.down, outgoing, self.up, gate);
        let client = read.map_err(|why| format!("{self:?} at the client: {why}"))?;
        Ok(match (client, sent, backend.seen(self.number)) {
            (StreamEnd::Reset, ..) => Fate::Broken("the client read a reset"),
            (StreamEnd::Clean, false, _) => Fate::Broken("the client could not send all"),
            (.., None) => Fate::Broken("the backend did not see it to its end"),
            (.., Some(StreamEnd::Reset)) => Fate::Broken("the backend read a reset"),
            (.., Some(StreamEnd::Clean)) => Fate::Whole,
        })
    }

    /// Sends a part of it, then resets: the backend must see a reset too.
    pub(crate) fn run_and_reset(self, front: SocketAddr) {
        if let Some(mut stream) = connect_or_reset(front) {
            let _ = stream.write_all(&self.header());
            let _ = Pattern::new(2 * self.number).send(&stream, 0, self.up / 2);
            reset(stream);
        }
    }
}

/// A session whose bytes come back one by one.
pub(crate) fn echo(front: SocketAddr) -> TcpStream {
    let mut stream = connect(front);
    stream.write_all(&Order::new(ECHO, 0, 0).header()).expect("a new connection takes a few bytes");
    stream
}

/// Sends `out_len` bytes and a FIN while it reads and compares what comes, from when `gate` returns; says how the
/// other's stream ended, and whether all was sent. A FIN before `in_len` bytes, a wrong byte or a stall is an error.
fn run_half(
    stream: &TcpStream,
    incoming: Pattern,
    in_len: u64,
    outgoing: Pattern,
    out_len: u64,
    gate: impl FnOnce() + Send,
) -> (Result<StreamEnd, String>, bool) {
    let received = OnceLock::new();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_gently(stream, outgoing, out_len, &received));
        let reader = scope.spawn(|| {
            gate();
            incoming.expect_prefix(stream, 0)
        });
        let read = reader.join();
        let _ = received.set(matches!(read, Ok((_, StreamEnd::Clean))));
        let sent = sender.join().expect("sending does not panic");
        let read = match read {
            Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".to_owned())),
            // The sender has taken the only error the socket had to give.
            Ok((_, StreamEnd::Clean)) if sent == Sent::Reset => Ok(StreamEnd::Reset),
            Ok((n, StreamEnd::Clean)) if n != in_len => Err(format!("cut after {n} of {in_len} bytes, with a FIN")),
            Ok((_, end)) => Ok(end),
        };
        (read, sent == Sent::All)
    })
}

/// How sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// With a FIN.
    All,
    /// It was left to the reader to say why.
    Stopped,
    /// With the error of a reset.
    Reset,
}

/// Sends and ends with a FIN, but leaves it to the reader to learn how the other's stream ended. A socket tells of a
/// reset only once, and writing to a peer that has closed brings a reset about: so before every write it looks, and
/// once the other has ended it waits until the reader has `received` a whole stream.
fn send_gently(stream: &TcpStream, pattern: Pattern, len: u64, received: &OnceLock<bool>) -> Sent {
    let socket = SockRef::from(stream);
    let mut place = 0;
    while place < len {
        let mut wanted = PollFlags::POLLOUT;
        if received.get().is_none() {
            wanted |= PollFlags::from_bits_retain(libc::POLLRDHUP);
        }
        let mut fds = [PollFd::new(stream.as_fd(), wanted)];
        let Ok(1) = poll(&mut fds, PollTimeout::from(1000_u16)) else {
            if received.get() == Some(&false) {
                return Sent::Stopped;
            }
            continue;
        };
        match fds[0].revents() {
            Some(found) if found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) => return Sent::Stopped,
            Some(_) => {}
            // POLLRDHUP, which nix does not know.
            None if *received.wait() => {}
            None => return Sent::Stopped,
        }
        match socket.send_with_flags(pattern.at(place, len - place), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) {
            Ok(n) => place += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Sent::Reset,
        }
    }
    match stream.shutdown(Shutdown::Write) {
        Ok(()) => Sent::All,
        Err(_) => Sent::Stopped,
    }
}
