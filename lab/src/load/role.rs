//! The hidden commands that run one end of our own generators as a process of its own, within a namespace.
//!
//! Each prints `ready …` once it is, answers commands from standard input by one line of JSON each, and leaves when
//! standard input closes, which the kernel sees to however the lab ends.
//!
//! | role | commands |
//! | --- | --- |
//! | `server` | `counts`: [`ServerCounts`] |
//! | `exchange`, `connect` | `go`: [`ExchangeReport`] after `--seconds` |
//! | `bulk` | `go`: [`BulkReport`] |
//! | `stream` | `go`: [`StreamReport`] |
//! | `hold` | `grow N`: [`super::Held`] |

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use spliced::ab::pattern::Pattern;
use spliced::ab::role::{answer, commands, say};

use super::bulk::Bulk;
use super::client::{self, Tally, Window};
use super::engine::{Engine, Work};
use super::exchange::{Exchange, Pace};
use super::hold;
use super::server::{Counts, Echo, READ, Sink, Stall, Tokens};
use super::stream::{self, Stream};
use super::wire::Request;
use crate::process::failed;
use crate::results::Latency;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes one read of small messages may take.
const SMALL_READ: usize = 64 * 1024;
/// First bytes that are measured one after the other once everything is warm.
const WARM: usize = 32;

/// One end of a load.
#[derive(Debug, Clone, Args)]
pub struct RoleArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// Serve every connection in the way of `--mode`.
    Server(ServerArgs),
    /// Send requests on connections that stay.
    Exchange(ExchangeArgs),
    /// Make a connection for each request; the server closes it.
    Connect(ExchangeArgs),
    /// Send bulk streams.
    Bulk {
        #[command(flatten)]
        common: Common,
        /// Bytes of a message.
        #[arg(long, default_value_t = 128 * 1024)]
        message: usize,
    },
    /// Read streams of small chunks.
    Stream {
        #[command(flatten)]
        common: Common,
        /// Time from one chunk to the next, in µs.
        #[arg(long, default_value_t = 50_000)]
        interval_us: u64,
        /// Bytes of a chunk.
        #[arg(long, default_value_t = 40)]
        chunk: usize,
    },
    /// Keep sessions that do nothing.
    Hold {
        /// Where to connect.
        target: SocketAddr,
        /// Send until nothing more goes, instead of one exchange of a byte.
        #[arg(long)]
        stalled: bool,
    },
}

#[derive(Debug, Clone, Args)]
struct ServerArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    mode: Mode,
    /// Bytes of a request.
    #[arg(long, default_value_t = 64)]
    request: usize,
    /// Bytes of an answer.
    #[arg(long, default_value_t = 64)]
    reply: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Debug, Clone, Args)]
struct ExchangeArgs {
    #[command(flatten)]
    common: Common,
    /// Bytes of a request.
    #[arg(long, default_value_t = 64)]
    request: usize,
    /// Bytes of an answer.
    #[arg(long, default_value_t = 64)]
    reply: usize,
    /// Exchanges per second of all connections together; without it, as fast as answers come.
    #[arg(long)]
    rate: Option<f64>,
}

#[derive(Debug, Clone, Args)]
struct Common {
    /// Where to connect.
    target: SocketAddr,
    /// Connections at once, spread over the threads.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Length of the window.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl Common {
    /// No more than connections.
    fn threads(&self) -> usize {
        self.threads.clamp(1, self.connections.max(1))
    }
}

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// Answers requests.
    Echo,
    /// Answers one request and closes.
    Once,
    /// Receives bulk streams.
    Sink,
    /// Reads nothing.
    Stall,
    /// Sends streams of chunks.
    Tokens,
}

/// What a server has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCounts {
    /// Connections accepted.
    pub accepted: u64,
    /// Bytes of bulk streams received and found right.
    pub bytes: u64,
    /// Chunks that left more than a millisecond after they were due: then the server is the limit.
    pub late: u64,
    /// Connections that ended with an error.
    pub broken: u64,
}

/// What `exchange` and `connect` measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExchangeReport {
    /// The window.
    pub window: Window,
    /// Exchanges completed in it, each answer compared with its request.
    pub exchanges: u64,
    /// Round trips; of `connect`, from the connection's begin to the server's FIN.
    pub latency: Latency,
}

/// What `bulk` measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BulkReport {
    /// The window.
    pub window: Window,
    /// Bytes of all streams, each compared at the server and confirmed by it.
    pub bytes: u64,
    /// Streams that ended whole.
    pub streams: u64,
    /// Bytes of the slowest of them.
    pub slowest_bytes: u64,
    /// Bytes of the median stream.
    pub median_bytes: u64,
}

/// What `stream` measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// The window.
    pub window: Window,
    /// Chunks that arrived in it, each one checked.
    pub chunks: u64,
    /// From connecting to the first byte of the very first connection.
    pub first_byte_cold_us: f64,
    /// The same of connections one at a time after it.
    pub first_byte_warm: Latency,
    /// The same while all streams begin.
    pub first_byte_loaded: Latency,
    /// From one chunk to the next of a stream.
    pub gap: Latency,
    /// From the server's sending to our receiving.
    pub delay: Latency,
}

/// Runs one role until its standard input closes.
///
/// # Errors
/// What keeps it from starting, or breaks all of it.
pub fn run_role(args: &RoleArgs) -> io::Result<()> {
    // Each connection is a descriptor: take what this user may have.
    let _ = spliced::sys::raise_descriptor_limit();
    match &args.role {
        Role::Server(args) => server(args),
        Role::Exchange(args) => exchange(args, false),
        Role::Connect(args) => exchange(args, true),
        Role::Bulk { common, message } => bulk(common, *message),
        Role::Stream { common, interval_us, chunk } => {
            streams(common, Request { interval_ns: interval_us * 1000, chunk: (*chunk).max(16), chunks: 0 })
        }
        Role::Hold { target, stalled } => hold::run(*target, *stalled),
    }
}

fn server(args: &ServerArgs) -> io::Result<()> {
    let counts = Arc::new(Counts::default());
    let (request, reply, close) = (args.request.max(1), args.reply.max(1), args.mode == Mode::Once);
    let pattern = Arc::new(Pattern::new(READ));
    for _ in 0..args.threads.max(1) {
        let counts = Arc::clone(&counts);
        match args.mode {
            Mode::Echo | Mode::Once => {
                serve(args.listen, Echo { request, reply, close, scratch: vec![0; SMALL_READ], counts })?;
            }
            Mode::Sink => {
                serve(args.listen, Sink { pattern: Arc::clone(&pattern), scratch: vec![0; READ], counts })?;
            }
            Mode::Stall => serve(args.listen, Stall { counts })?,
            Mode::Tokens => serve(args.listen, Tokens { counts, buffer: Vec::new() })?,
        }
    }
    let commands = commands()?;
    say("ready")?;
    for command in commands {
        if command != "counts" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("unknown command {command:?}")));
        }
        let read = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let Counts { accepted, bytes, late, broken } = &*counts;
        answer(&ServerCounts { accepted: read(accepted), bytes: read(bytes), late: read(late), broken: read(broken) })?;
    }
    Ok(())
}

/// Serves in a thread of its own, by a listening socket of its own.
fn serve<W: Work + Send + 'static>(address: SocketAddr, work: W) -> io::Result<()>
where
    W::Session: Send,
{
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    let listener = listen().map_err(|error: io::Error| failed(&error, &format!("cannot listen on {address}")))?;
    let mut engine = Engine::new(work)?;
    engine.listen(listener)?;
    thread::Builder::new().name("serve".into()).spawn(move || {
        loop {
            if let Err(error) = engine.turn(None) {
                eprintln!("a serving thread cannot go on: {error}");
                std::process::exit(1);
            }
        }
    })?;
    Ok(())
}

/// One engine for each thread, with its share of the connections.
fn engines<W: Work>(common: &Common, at_once: bool, work: impl Fn(u64, usize) -> W) -> io::Result<Vec<Engine<W>>> {
    let threads = common.threads();
    let share = |thread: usize| common.connections / threads + usize::from(thread < common.connections % threads);
    (0..threads)
        .map(|thread| {
            let mut engine = Engine::new(work(thread as u64, share(thread)))?;
            if at_once {
                engine.open(common.target, share(thread));
            }
            Ok(engine)
        })
        .collect()
}

fn seconds(common: &Common) -> io::Result<Duration> {
    Duration::try_from_secs_f64(common.seconds)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{} seconds: {error}", common.seconds)))
}

fn exchange(args: &ExchangeArgs, reconnect: bool) -> io::Result<()> {
    let ExchangeArgs { common, request, reply, rate } = args;
    let pattern = Arc::new(Pattern::new((*request).max(1)));
    let pace = rate.filter(|_| !reconnect).map(|rate| Pace::new(rate, common.connections, common.threads()));
    let mut engines = engines(common, !reconnect, |thread, share| Exchange {
        request: (*request).max(1),
        reply: (*reply).max(1),
        reconnect: reconnect.then_some((common.target, share)),
        pattern: Arc::clone(&pattern),
        thread,
        pace,
        scratch: vec![0; SMALL_READ.max(*reply + 1)],
        running: false,
        tally: Tally::default(),
    })?;
    if pace.is_some() {
        engines.iter_mut().try_for_each(Engine::keep_exact_time)?;
    }
    client::run(engines, seconds(common)?, |tally, window| ExchangeReport {
        window,
        exchanges: tally.done,
        latency: tally.times.summary(),
    })
}

fn bulk(common: &Common, message: usize) -> io::Result<()> {
    let message = message.clamp(1, super::wire::LONGEST_MESSAGE);
    let pattern = Arc::new(Pattern::new(message));
    let work =
        |thread, _| Bulk { message, pattern: Arc::clone(&pattern), thread, running: false, tally: Tally::default() };
    client::run(engines(common, true, work)?, seconds(common)?, |tally, window| {
        let mut bytes = tally.stream_bytes;
        bytes.sort_unstable();
        BulkReport {
            window,
            bytes: bytes.iter().sum(),
            streams: bytes.len() as u64,
            slowest_bytes: bytes.first().copied().unwrap_or(0),
            median_bytes: median(&bytes),
        }
    })
}

/// The middle of ascending numbers, or half-way between the middle two.
fn median(sorted: &[u64]) -> u64 {
    let at = |place: usize| sorted.get(place).copied().unwrap_or(0);
    at(sorted.len().saturating_sub(1) / 2).midpoint(at(sorted.len() / 2))
}

fn streams(common: &Common, request: Request) -> io::Result<()> {
    let cold = stream::first_byte(common.target, request)?;
    let mut warm = super::latency::Times::default();
    for _ in 0..WARM {
        warm.record(stream::first_byte(common.target, request)?);
    }
    let work = |_, _| Stream { request, scratch: vec![0; SMALL_READ], running: false, tally: Tally::default() };
    client::run(engines(common, true, work)?, seconds(common)?, |tally, window| StreamReport {
        window,
        chunks: tally.done,
        first_byte_cold_us: cold as f64 / 1e3,
        first_byte_warm: warm.summary(),
        first_byte_loaded: tally.first_bytes.summary(),
        gap: tally.times.summary(),
        delay: tally.delays.summary(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stream_of_two_lies_between_them() {
        assert_eq!((median(&[]), median(&[7]), median(&[2, 10]), median(&[1, 5, 9])), (0, 7, 6, 5));
    }
}
