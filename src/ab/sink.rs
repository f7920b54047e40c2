//! Receives streams, compares every byte with the pattern, and keeps the account; echoes where a stream asks for it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hello::{HELLO_LEN, Hello, Kind, Receipt};
use super::pattern::{Mismatch, Pattern};
use super::pinger;
use super::spawn_small;

/// Bytes one read may take.
const READ: usize = 256 * 1024;

/// A listening backend: sink and echo server in one, as the first bytes of each connection say.
#[derive(Debug, Clone)]
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pattern: Pattern,
    received: AtomicU64,
    ends: Mutex<Vec<StreamEnd>>,
}

/// How one connection ended at the backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Number of the measurement; 0 when the greeting never came.
    pub run: u64,
    /// Number of the stream.
    pub stream: u32,
    /// True for a bulk stream, false for an echo connection or one without a greeting.
    pub bulk: bool,
    /// Pattern bytes received, or bytes echoed.
    pub bytes: u64,
    /// The first wrong byte of a bulk stream.
    pub mismatch: Option<Mismatch>,
    /// What went wrong apart from that; `None` after a clean FIN.
    pub error: Option<String>,
}

impl Backend {
    /// Serves every connection to `listener` in a thread of its own, as long as the process lives.
    ///
    /// # Errors
    /// When the listener has no address or the accepting thread cannot be started.
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { pattern: Pattern::new(READ), received: AtomicU64::new(0), ends: Mutex::default() });
        let backend = Self { address, shared: Arc::clone(&shared) };
        spawn_small("backend", move || {
            for connection in listener.incoming() {
                accept(&shared, connection);
            }
        })?;
        Ok(backend)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Pattern bytes received so far, all streams together.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Connections that have ended since the last call. A stream is listed before its receipt is sent.
    #[must_use]
    pub fn take_ends(&self) -> Vec<StreamEnd> {
        std::mem::take(&mut *self.shared.ends())
    }
}

fn accept(shared: &Arc<Shared>, connection: io::Result<TcpStream>) {
    let served = connection.and_then(|socket| {
        let shared = Arc::clone(shared);
        spawn_small("stream", move || shared.serve(&socket))
    });
    if let Err(error) = served {
        let what = format!("the backend could not take a connection: {error}");
        shared.ends().push(StreamEnd::unknown(what));
        // Out of descriptors or threads: accept fails at once again, so wait for some to come back.
        thread::sleep(Duration::from_millis(10));
    }
}

impl Shared {
    fn ends(&self) -> MutexGuard<'_, Vec<StreamEnd>> {
        // A list of finished records is whole whatever a panicking thread was doing.
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, socket: &TcpStream) {
        let hello = match greeting(socket) {
            Ok(Some(hello)) => hello,
            Ok(None) => return,
            Err(error) => return self.ends().push(StreamEnd::unknown(error.to_string())),
        };
        let mut end =
            StreamEnd { run: hello.run, stream: hello.stream, bulk: true, bytes: 0, mismatch: None, error: None };
        match hello.kind {
            Kind::Bulk => self.sink(socket, &hello, end),
            Kind::Echo { size } => {
                end.bulk = false;
                let result = pinger::echo(socket, size as usize, &mut end.bytes);
                end.error = result.err().map(|error| error.to_string());
                self.ends().push(end);
            }
        }
    }

    /// Reads a bulk stream to its end. After a wrong byte the rest is read but no longer compared.
    fn sink(&self, mut socket: &TcpStream, hello: &Hello, mut end: StreamEnd) {
        let mut buffer = vec![0; READ];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    if end.mismatch.is_none() {
                        end.mismatch = self.pattern.verify(hello.seed, end.bytes, &buffer[..n]).err();
                    }
                    end.bytes += n as u64;
                    self.received.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    end.error = Some(error.to_string());
                    return self.ends().push(end);
                }
            }
        }
        let receipt = Receipt { received: end.bytes, mismatch: end.mismatch.map(|m| m.offset) };
        self.ends().push(end);
        // A source that is gone by now reports the missing receipt itself.
        let _ = socket.write_all(&receipt.encode());
    }
}

impl StreamEnd {
    fn unknown(error: String) -> Self {
        Self { run: 0, stream: 0, bulk: false, bytes: 0, mismatch: None, error: Some(error) }
    }
}

/// Reads the first bytes of a connection; `None` when it was closed without any, as a readiness probe does.
fn greeting(mut socket: &TcpStream) -> io::Result<Option<Hello>> {
    socket.set_nodelay(true)?;
    let mut bytes = [0; HELLO_LEN];
    let mut have = 0;
    while have < HELLO_LEN {
        match socket.read(&mut bytes[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::other(format!("the stream ended after {have} bytes of its greeting"))),
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if have == 0 && error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Hello::decode(&bytes).map(Some)
}
