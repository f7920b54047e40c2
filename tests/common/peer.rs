//! Clients and backends: plain blocking sockets with deadlines.

use std::fmt::Debug;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::deadline::{LONG, eventually};

/// A port that the system chose and keeps for whoever sets SO_REUSEPORT beside this socket, which does not listen.
#[derive(Debug)]
pub(crate) struct Reserved {
    socket: Socket,
}

impl Reserved {
    /// On 127.0.0.1.
    pub(crate) fn loopback() -> Self {
        Self::on((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// On an address with port 0.
    pub(crate) fn on(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.bind(&address.into()).expect("a free port");
        Self { socket }
    }

    /// The address and its port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().ok().and_then(|a| a.as_socket()).expect("an address was bound")
    }

    /// Lets another user bind beside it: SO_REUSEPORT is only shared within one user.
    pub(crate) fn give_to(&self, uid: u32) {
        std::os::unix::fs::fchown(self.socket.as_fd(), Some(uid), None).expect("the socket takes a new owner");
    }
}

/// A loopback address that no other test has: 127.0.0.0/8 is a whole network.
pub(crate) fn own_loopback() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next < 200, "no address is given twice");
    Ipv4Addr::new(127, 30 + next, high, low.max(1))
}

/// An address for a metrics endpoint that no other test has.
pub(crate) fn metrics_address() -> SocketAddr {
    (own_loopback(), 9464).into()
}

/// A listening socket on 127.0.0.1 with a port the system chose.
pub(crate) fn backend() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port")
}

/// A backend that goes away in the middle of a test: nobody else comes in its place.
pub(crate) fn own_backend() -> TcpListener {
    TcpListener::bind((own_loopback(), 0)).expect("a free port")
}

/// A listening socket whose peers stop sending early: its connections have a small receive buffer. A smaller one
/// still would have the kernel send by its timers, which is slow.
pub(crate) fn backend_with_small_buffers() -> TcpListener {
    let listener = backend();
    SockRef::from(&listener).set_recv_buffer_size(32_768).expect("SO_RCVBUF");
    listener
}

/// A listener whose queue of connections is full, so that the kernel drops further SYNs until [`Self::open`].
#[derive(Debug)]
pub(crate) struct FullBackend {
    listener: TcpListener,
    filler: TcpStream,
}

impl FullBackend {
    /// Fills a queue of length 0, which takes one connection.
    pub(crate) fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        listener.listen(0).expect("a queue of no length");
        let listener = TcpListener::from(listener);
        let filler = TcpStream::connect(listener.local_addr().expect("bound")).expect("the one place in the queue");
        Self { listener, filler }
    }

    /// Another handle of the listener.
    pub(crate) fn try_clone(&self) -> TcpListener {
        self.listener.try_clone().expect("a descriptor")
    }

    /// Takes the filling connection out of the queue; SYNs that are sent again now succeed.
    pub(crate) fn open(self) {
        drop((accept(&self.listener), self.filler));
    }
}

/// Connects under a deadline; reads and writes of the stream have one too, so that a stall is a failure.
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, LONG).unwrap_or_else(|e| panic!("connect to {to}: {e}"));
    with_deadlines(stream)
}

/// Connects where the connection may be reset before connect(2) has told of its success: `None` then.
pub(crate) fn connect_or_reset(to: SocketAddr) -> Option<TcpStream> {
    match TcpStream::connect(to) {
        Ok(stream) => Some(with_deadlines(stream)),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => None,
        Err(e) => panic!("connect to {to}: {e}"),
    }
}

/// Accepts under a deadline: on Linux accept(2) obeys SO_RCVTIMEO.
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    SockRef::from(listener).set_read_timeout(Some(LONG)).expect("SO_RCVTIMEO");
    match listener.accept() {
        Ok((stream, _)) => with_deadlines(stream),
        Err(e) => panic!("no connection arrived within {LONG:?}: {e}"),
    }
}

/// Gives reads and writes the common deadline and takes Nagle's algorithm away.
pub(crate) fn with_deadlines(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(LONG)).expect("a read deadline");
    stream.set_write_timeout(Some(LONG)).expect("a write deadline");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    stream
}

/// Closes with a reset instead of a FIN; bytes not sent yet are dropped.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
}

/// Waits until a socket has an error of its own accord, without being read or written, and returns its kind.
pub(crate) fn pending_error(stream: &TcpStream) -> ErrorKind {
    eventually("an error on the socket", LONG, || match stream.take_error() {
        Ok(Some(e)) => Ok(e.kind()),
        Ok(None) => Err("there is none".to_owned()),
        Err(e) => Ok(e.kind()),
    })
}

/// Waits for the FIN or the reset that ends a stream without a byte before.
pub(crate) fn end_of(mut stream: &TcpStream) -> Result<(), ErrorKind> {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => panic!("byte {:#04x} where the stream should have ended", byte[0]),
            // Of a process that was stopped for a while: with SO_RCVTIMEO no read is resumed (signal(7)).
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.kind()),
        }
    }
}

/// Runs a step and fails when it takes longer than `within`.
pub(crate) fn timed<T: Debug>(what: &str, within: Duration, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = step();
    let took = start.elapsed();
    assert!(took <= within, "{what}: took {took:?}, allowed are {within:?}; it gave {value:?}");
    value
}

/// A backend that sends everything back, each connection on a thread of its own.
#[derive(Debug)]
pub(crate) struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts it.
    pub(crate) fn start(listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("bound");
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(20))).expect("SO_RCVTIMEO");
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((stream, _)) = listener.accept() {
                        thread::spawn(move || echo(&stream));
                    }
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends back what comes until the end, or until the peer is gone.
fn echo(mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    // The listener's own deadline is inherited.
    stream.set_read_timeout(None).expect("no deadline");
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// Whether a byte comes back within a time.
pub(crate) fn echoes(mut stream: &TcpStream, byte: u8, within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).expect("a read deadline");
    let mut back = [0];
    stream.write_all(&[byte]).is_ok() && stream.read_exact(&mut back).is_ok() && back == [byte]
}
