//! Sends the pattern over several streams at once until told to stop, then ends each stream in order.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hello::{Hello, Kind, RECEIPT_LEN, Receipt};
use super::pattern::{self, Pattern};
use super::spawn_small;

/// What a [`Source`] sends and where.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Where the streams go; a [`super::sink::Backend`] must be behind it.
    pub target: SocketAddr,
    /// Connections, one thread each.
    pub streams: u32,
    /// Bytes handed to the kernel in one write.
    pub message: usize,
    /// Number of this measurement; seeds the pattern.
    pub run: u64,
    /// A stream that makes no progress for so long is broken.
    pub stall: Duration,
}

/// Streams being sent.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<StreamSent>>,
}

#[derive(Debug)]
struct Shared {
    pattern: Pattern,
    message: usize,
    stop: AtomicBool,
    sent: AtomicU64,
}

/// What became of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSent {
    /// Number of the stream.
    pub stream: u32,
    /// Pattern bytes the kernel took.
    pub bytes: u64,
    /// What went wrong; `None` when everything was sent, received, found right and answered.
    pub error: Option<String>,
}

impl Source {
    /// Connects every stream, then starts to send on all of them.
    ///
    /// # Errors
    /// A stream that cannot be connected, or a thread that cannot be started; nothing goes on running then.
    pub fn start(config: &SourceConfig) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            pattern: Pattern::new(config.message),
            message: config.message,
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        });
        let sockets: Vec<TcpStream> =
            (0..config.streams).map(|_| connect(config.target, config.stall)).collect::<io::Result<_>>()?;
        let mut source = Self { shared, threads: Vec::with_capacity(sockets.len()) };
        for (stream, socket) in (0..).zip(sockets) {
            let hello = Hello { kind: Kind::Bulk, run: config.run, stream, seed: pattern::seed(config.run, stream) };
            let shared = Arc::clone(&source.shared);
            let thread = spawn_small(&format!("source {stream}"), move || shared.run_stream(&socket, &hello));
            match thread {
                Ok(thread) => source.threads.push(thread),
                Err(error) => {
                    source.stop();
                    return Err(error);
                }
            }
        }
        Ok(source)
    }

    /// Pattern bytes the kernel has taken so far, all streams together.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Makes every stream finish its message, send its FIN and wait for the receipt.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Stops and waits for every stream to end, at most about `stall` for one that hangs.
    #[must_use]
    pub fn finish(self) -> Vec<StreamSent> {
        self.stop();
        let ends = self.threads.into_iter().map(JoinHandle::join);
        let broken = |stream| StreamSent { stream, bytes: 0, error: Some("its thread panicked".into()) };
        (0..).zip(ends).map(|(stream, end)| end.unwrap_or_else(|_| broken(stream))).collect()
    }
}

impl Shared {
    fn run_stream(&self, socket: &TcpStream, hello: &Hello) -> StreamSent {
        let mut bytes = 0;
        let end = self.send(socket, hello, &mut bytes).and_then(|()| take_receipt(socket, bytes));
        let error = end.err().map(|error| format!("after {bytes} bytes: {}", explain(&error)));
        StreamSent { stream: hello.stream, bytes, error }
    }

    fn send(&self, mut socket: &TcpStream, hello: &Hello, bytes: &mut u64) -> io::Result<()> {
        socket.write_all(&hello.encode())?;
        while !self.stop.load(Ordering::Relaxed) {
            let mut rest = self.pattern.bytes(hello.seed, *bytes, self.message);
            while !rest.is_empty() {
                match socket.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        *bytes += n as u64;
                        self.sent.fetch_add(n as u64, Ordering::Relaxed);
                        rest = &rest[n..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        socket.shutdown(Shutdown::Write)
    }
}

/// Waits for the backend's account of the stream and for its FIN.
fn take_receipt(mut socket: &TcpStream, sent: u64) -> io::Result<()> {
    let mut bytes = [0; RECEIPT_LEN];
    socket.read_exact(&mut bytes)?;
    let receipt = Receipt::decode(&bytes)?;
    if let Some(offset) = receipt.mismatch {
        return Err(io::Error::other(format!("the sink saw a wrong byte at offset {offset}")));
    }
    if receipt.received != sent {
        return Err(io::Error::other(format!("sent {sent} bytes, but the sink received {}", receipt.received)));
    }
    match socket.read(&mut bytes)? {
        0 => Ok(()),
        n => Err(io::Error::other(format!("{n} bytes came after the sink's receipt"))),
    }
}

/// Connects with both timeouts set to `stall`, and without Nagle's delay.
pub(super) fn connect(target: SocketAddr, stall: Duration) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&target, stall)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot connect to {target}: {error}")))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(stall))?;
    socket.set_write_timeout(Some(stall))?;
    Ok(socket)
}

/// Says in words what a blocking socket with timeouts reports.
pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no progress, it stalled".into(),
        io::ErrorKind::UnexpectedEof => "the stream ended before the answer".into(),
        _ => error.to_string(),
    }
}
