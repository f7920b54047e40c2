//! Unix sockets beside TCP ones, handled alike.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use super::deadline::LONG;
use super::peer::Reserved;
use super::spliced::{Launcher, Spliced};

/// What a side of the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP on loopback.
    Tcp,
    /// A unix socket with a file.
    File,
    /// A unix socket in the abstract namespace.
    Abstract,
}

/// An address as a configuration has it, and as a socket takes it.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// `127.0.0.1:9000`, `unix:/path`, `unix:@name`.
    pub(crate) text: String,
    /// The same for the kernel.
    pub(crate) kernel: SockAddr,
}

impl Address {
    /// A unix socket by its path.
    pub(crate) fn file(path: &Path) -> Self {
        Self { text: format!("unix:{}", path.display()), kernel: SockAddr::unix(path).expect("a short path") }
    }

    /// A unix socket by a name no other test has.
    pub(crate) fn named(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("spliced-test-{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { text: format!("unix:@{name}"), kernel: SockAddr::unix(format!("\0{name}")).expect("a short name") }
    }

    fn domain(&self) -> Domain {
        Domain::from(i32::from(self.kernel.family()))
    }

    /// Listens there.
    pub(crate) fn listen(&self, backlog: i32) -> Socket {
        let socket = Socket::new(self.domain(), Type::STREAM, None).expect("a socket");
        socket.bind(&self.kernel).unwrap_or_else(|e| panic!("bind {}: {e}", self.text));
        socket.listen(backlog).expect("it listens");
        socket
    }

    /// Connects; reads and writes have a deadline.
    pub(crate) fn connect(&self) -> Socket {
        let socket = Socket::new(self.domain(), Type::STREAM, None).expect("a socket");
        with_deadlines(&socket);
        socket.connect(&self.kernel).unwrap_or_else(|e| panic!("connect to {}: {e}", self.text));
        socket
    }

    /// Whether somebody listens.
    pub(crate) fn answers(&self) -> bool {
        let socket = Socket::new(self.domain(), Type::STREAM, None).expect("a socket");
        socket.connect(&self.kernel).is_ok()
    }
}

/// Gives reads, writes and accepts the common deadline.
pub(crate) fn with_deadlines(socket: &Socket) {
    socket.set_read_timeout(Some(LONG)).expect("a read deadline");
    socket.set_write_timeout(Some(LONG)).expect("a write deadline");
}

/// Accepts under a deadline.
pub(crate) fn accept(listener: &Socket) -> Socket {
    with_deadlines(listener);
    let (socket, _) = listener.accept().unwrap_or_else(|e| panic!("no connection arrived: {e}"));
    with_deadlines(&socket);
    socket
}

/// A backend, the program in front of it, and the way through both.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) spliced: Spliced,
    pub(crate) front: Address,
    pub(crate) backend: Socket,
    pub(crate) back: Address,
    pub(crate) directory: TempDir,
    _port: Option<Reserved>,
}

impl Way {
    /// From one kind to another by an engine, with more lines in the file.
    pub(crate) fn new(from: Kind, to: Kind, engine: &str, lines: &str) -> Self {
        let directory = TempDir::with_prefix("spliced-unix-").expect("a temporary directory");
        let name = format!("{from:?}-{to:?}-{engine}");
        let (back, backend) = match to {
            Kind::Tcp => {
                let listener = Socket::from(super::peer::backend());
                let kernel = listener.local_addr().expect("bound");
                (Address { text: kernel.as_socket().expect("IPv4").to_string(), kernel }, listener)
            }
            Kind::File => listen_at(Address::file(&directory.path().join("back"))),
            Kind::Abstract => listen_at(Address::named(&format!("back-{name}"))),
        };
        let port = (from == Kind::Tcp).then(Reserved::loopback);
        let front = match (from, &port) {
            (Kind::Abstract, _) => Address::named(&format!("front-{name}")),
            (Kind::File, _) => Address::file(&directory.path().join("front")),
            (Kind::Tcp, port) => {
                let address = port.as_ref().expect("reserved").address();
                Address { text: address.to_string(), kernel: address.into() }
            }
        };
        let (listen, target) = (&front.text, &back.text);
        let forward = format!("forwards: [{{ name: test, listen: \"{listen}\", to: \"{target}\", engine: {engine} }}]");
        let spliced = Launcher::config(&format!("{lines}\n{forward}\n")).start();
        Self { spliced, front, backend, back, directory, _port: port }
    }

    /// Both ends of a new connection.
    pub(crate) fn pair(&self) -> (Socket, Socket) {
        let client = self.front.connect();
        (client, accept(&self.backend))
    }
}

fn listen_at(address: Address) -> (Address, Socket) {
    let listener = address.listen(128);
    (address, listener)
}

/// Bytes no two places of which look alike.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sends all of it, then ends its half.
pub(crate) fn send_all(mut socket: &Socket, bytes: &[u8]) {
    socket.write_all(bytes).expect("send");
    socket.shutdown(Shutdown::Write).expect("half-close");
}

/// Everything up to the end.
pub(crate) fn receive_all(mut socket: &Socket) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("receive up to the end");
    bytes
}

/// Both directions at once, each to its end, compared whole.
pub(crate) fn exchange(client: &Socket, server: &Socket, up: usize, down: usize) {
    let (request, reply) = (pattern(1, up), pattern(2, down));
    thread::scope(|scope| {
        let sent_up = scope.spawn(|| send_all(client, &request));
        let sent_down = scope.spawn(|| send_all(server, &reply));
        let received_up = scope.spawn(|| receive_all(server));
        assert!(receive_all(client) == reply, "what the client got is what the server sent");
        assert!(received_up.join().expect("the server receives") == request, "and the other way round");
        sent_up.join().expect("the client sends");
        sent_down.join().expect("the server sends");
    });
}

/// One byte there and one back.
pub(crate) fn echoes(mut client: &Socket, mut server: &Socket) {
    let mut byte = [0];
    client.write_all(b"a").expect("send");
    server.read_exact(&mut byte).expect("receive");
    server.write_all(b"b").expect("send back");
    client.read_exact(&mut byte).expect("receive back");
    assert_eq!(byte, *b"b");
}

/// A path in a directory.
pub(crate) fn at(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

/// A wait that a test states instead of sleeping through it.
pub(crate) const SHORT: Duration = Duration::from_millis(300);
