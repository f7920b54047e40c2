//! Load generators: iperf3, netperf, and our own for what those lack.
//!
//! A [`Load`] says what is to be sent. Its [`Server`] is started first, then the forwarder; [`Load::prepare`] makes the
//! connections, and [`Ready::run`] is the window to be measured, and nothing else.

mod bulk;
mod client;
mod engine;
mod exchange;
mod hold;
pub mod iperf3;
mod latency;
pub mod netperf;
mod outcome;
pub mod role;
mod room;
mod server;
mod stream;
mod wire;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use spliced::ab::child::Child;

pub use self::client::Window;
pub use self::hold::Held;
pub use self::outcome::Outcome;
pub use self::role::{BulkReport, ExchangeReport, RoleArgs, ServerCounts, StreamReport, run_role};

use self::room::Growth;
use crate::place::{Place, Wiring};
use crate::plan::stop;
use crate::process::failed;

/// Share of its time, or of its CPUs, from which on a generator is taken for the limit itself.
pub(crate) const SATURATED: f64 = 0.9;

/// How long one of our own ends may take to get ready or to answer, beyond the time of its work.
const PATIENCE: Duration = Duration::from_secs(45);

/// What is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Bulk by iperf3.
    Iperf3(iperf3::Settings),
    /// Small exchanges by netperf.
    Netperf(netperf::Settings),
    /// Small exchanges by our own generator.
    Exchange(Exchange),
    /// A connection for each exchange, by our own generator.
    Connect(Exchange),
    /// Many bulk streams, every byte verified.
    Bulk(Bulk),
    /// Streams of small chunks.
    Stream(Stream),
    /// Sessions that are only there.
    Hold(Hold),
}

/// Exchanges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exchange {
    /// Connections at once.
    pub connections: usize,
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of an answer.
    pub reply: usize,
    /// Exchanges per second of all connections together, each begun when it is due; without it, each connection begins
    /// its next one when it has its answer. Only on connections that stay.
    pub rate: Option<f64>,
    /// Length of the window.
    pub seconds: f64,
}

/// Bulk streams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bulk {
    /// Streams at once.
    pub streams: usize,
    /// Bytes of a message.
    pub message: usize,
    /// Length of the window.
    pub seconds: f64,
}

/// Streams of chunks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stream {
    /// Streams at once, a connection each.
    pub streams: usize,
    /// Chunks per second of each.
    pub rate: f64,
    /// Bytes of a chunk, at least 16.
    pub chunk: usize,
    /// Length of the window.
    pub seconds: f64,
}

/// Sessions that are only there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hold {
    /// How many.
    pub sessions: usize,
    /// What they do.
    pub kind: HoldKind,
    /// How long they are watched.
    pub seconds: f64,
}

/// The far end of a load; ended when dropped.
#[derive(Debug)]
pub enum Server {
    /// iperf3's.
    Iperf3(iperf3::Server),
    /// netperf's.
    Netperf(netperf::Server),
    /// One of our own.
    Own(OwnServer),
}

/// One of our own servers.
#[derive(Debug)]
pub struct OwnServer(Child);

/// A load that is connected and waits for its window.
#[derive(Debug)]
pub struct Ready {
    load: Load,
    place: Place,
    target: SocketAddr,
    out: PathBuf,
    /// The client where it is one of our own.
    child: Option<Child>,
}

impl Load {
    /// Starts its server at `wiring.server`; files go to `out`.
    ///
    /// # Errors
    /// What kept it from listening.
    pub fn serve(&self, wiring: &Wiring, out: &Path) -> io::Result<Server> {
        let own = |mode, request: usize, reply: usize| {
            OwnServer::start(&wiring.server, wiring.server_addr, mode, request, reply).map(Server::Own)
        };
        match self {
            Self::Iperf3(_) => iperf3::Server::start(&wiring.server, wiring.server_addr, out).map(Server::Iperf3),
            Self::Netperf(_) => netperf::Server::start(wiring, out).map(Server::Netperf),
            Self::Exchange(load) => own("echo", load.request, load.reply),
            Self::Connect(load) => own("once", load.request, load.reply),
            Self::Bulk(_) => own("sink", 1, 1),
            Self::Stream(_) => own("tokens", 1, 1),
            Self::Hold(load) => own(load.kind.server(), 1, 1),
        }
    }

    /// Connects to `wiring.target` and gets ready; iperf3 and netperf do that within their window.
    ///
    /// # Errors
    /// A connection that cannot be made.
    pub fn prepare(&self, wiring: &Wiring, out: &Path) -> io::Result<Ready> {
        let mut child = match self.role(wiring.target) {
            None => None,
            Some(words) => Some(start("the load", &wiring.client, &words)?),
        };
        if let (Self::Hold(load), Some(client)) = (self, &mut child) {
            let forwards = wiring.target != wiring.server_addr;
            let held = Growth::new(load.kind, forwards).grow(client, load.sessions)?;
            if held.open < load.sessions as u64 {
                let (open, wanted, why) = (held.open, load.sessions, held.why());
                return Err(io::Error::other(format!("{open} of {wanted} sessions could be held: {why}")));
            }
        }
        let (place, out) = (wiring.client.clone(), out.to_owned());
        Ok(Ready { load: self.clone(), place, target: wiring.target, out, child })
    }

    /// The command line of our own client.
    fn role(&self, target: SocketAddr) -> Option<Vec<String>> {
        let threads = threads();
        let words = match self {
            Self::Iperf3(_) | Self::Netperf(_) => return None,
            Self::Exchange(load) | Self::Connect(load) => {
                let role = if matches!(self, Self::Exchange(_)) { "exchange" } else { "connect" };
                let rate = load.rate.map(|rate| format!(" --rate {rate}")).unwrap_or_default();
                format!(
                    "{role} {target} --connections {} --seconds {} --threads {threads} --request {} --reply {}{rate}",
                    load.connections, load.seconds, load.request, load.reply
                )
            }
            Self::Bulk(load) => format!(
                "bulk {target} --connections {} --seconds {} --threads {threads} --message {}",
                load.streams, load.seconds, load.message
            ),
            Self::Stream(load) => format!(
                "stream {target} --connections {} --seconds {} --threads {threads} --chunk {} --interval-us {}",
                load.streams,
                load.seconds,
                load.chunk,
                (1e6 / load.rate.clamp(0.01, 50_000.0)).round()
            ),
            Self::Hold(load) => {
                let stalled = if load.kind == HoldKind::Stalled { " --stalled" } else { "" };
                format!("hold {target}{stalled}")
            }
        };
        Some(words.split(' ').map(str::to_owned).collect())
    }

    fn seconds(&self) -> f64 {
        match self {
            Self::Iperf3(load) => load.seconds.into(),
            Self::Netperf(load) => load.seconds.into(),
            Self::Exchange(load) | Self::Connect(load) => load.seconds,
            Self::Bulk(load) => load.seconds,
            Self::Stream(load) => load.seconds,
            Self::Hold(load) => load.seconds,
        }
    }
}

impl Ready {
    /// The window: from the word to the last byte. Connections of our own clients stay until this is dropped.
    ///
    /// # Errors
    /// A load that broke, with what it said.
    pub fn run(&mut self) -> io::Result<Outcome> {
        let (place, target) = (&self.place, self.target);
        match &self.load {
            Load::Iperf3(settings) => {
                iperf3::run(place, target, settings, &self.out).map(|report| Outcome::of_iperf3(&report, settings))
            }
            Load::Netperf(settings) => {
                netperf::run(place, target, settings, &self.out).map(|report| Outcome::of_netperf(report, settings))
            }
            Load::Exchange(load) => {
                let load = *load;
                self.go().map(|report| Outcome::of_exchange(report, "exchange", load))
            }
            Load::Connect(load) => {
                let load = *load;
                self.go().map(|report| Outcome::of_exchange(report, "connection", load))
            }
            Load::Bulk(_) => self.go().map(|report| Outcome::of_bulk(&report)),
            Load::Stream(load) => {
                let load = *load;
                self.go().map(|report| Outcome::of_stream(report, load))
            }
            Load::Hold(load) => {
                let nothing = || Ok(None::<()>);
                stop::wait(Duration::from_secs_f64(load.seconds), nothing)?;
                Ok(Outcome::default())
            }
        }
    }

    fn go<R: serde::de::DeserializeOwned>(&mut self) -> io::Result<R> {
        let patience = Duration::from_secs_f64(self.load.seconds()) + PATIENCE;
        let Some(child) = &mut self.child else {
            return Err(io::Error::other("this load has no client of its own"));
        };
        child.ask("go", patience)
    }
}

impl Server {
    /// Ends it.
    ///
    /// # Errors
    /// When it had ended before, with its last output.
    pub fn stop(self) -> io::Result<()> {
        match self {
            Self::Iperf3(server) => server.stop(),
            Self::Netperf(server) => server.stop(),
            Self::Own(mut server) => server.0.exited().map_or(Ok(()), |end| Err(io::Error::other(end))),
        }
    }
}

impl OwnServer {
    fn start(place: &Place, listen: SocketAddr, mode: &str, request: usize, reply: usize) -> io::Result<Self> {
        let threads = threads();
        let line =
            format!("server --listen {listen} --mode {mode} --threads {threads} --request {request} --reply {reply}");
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        start("the server", place, &words).map(Self)
    }

    /// What it has seen so far.
    ///
    /// # Errors
    /// When it has ended or does not answer.
    pub fn counts(&mut self) -> io::Result<ServerCounts> {
        self.0.ask("counts", PATIENCE)
    }
}

/// What held sessions do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldKind {
    /// Nothing, after one exchange of a byte.
    Idle,
    /// Their reader has stopped, and every buffer on the way is full.
    Stalled,
}

impl HoldKind {
    /// The mode of the server behind them.
    fn server(self) -> &'static str {
        match self {
            Self::Idle => "echo",
            Self::Stalled => "stall",
        }
    }
}

/// Sessions that are only there, both ends of them; closed when dropped.
#[derive(Debug)]
pub struct Sessions {
    client: Child,
    _server: OwnServer,
    growth: Growth,
}

impl Sessions {
    /// Starts the server. The forwarder may be started after it; connections are made by [`Self::grow`]. `forwards` says
    /// that a program takes part in between.
    ///
    /// # Errors
    /// What kept one of the two from starting.
    pub fn start(wiring: &Wiring, kind: HoldKind, forwards: bool) -> io::Result<Self> {
        let server = OwnServer::start(&wiring.server, wiring.server_addr, kind.server(), 1, 1)?;
        let mut words = vec!["hold".to_owned(), wiring.target.to_string()];
        words.extend((kind == HoldKind::Stalled).then(|| "--stalled".to_owned()));
        let client = start("the sessions", &wiring.client, &words)?;
        Ok(Self { client, _server: server, growth: Growth::new(kind, forwards) })
    }

    /// Brings the number of sessions up to `total`, step by step, and waits until they are at rest. Where this host has
    /// no room for all of them it stops, and [`Held::limit`] says at what.
    ///
    /// # Errors
    /// When one of the two has ended. Sessions that fail are counted in [`Held`].
    pub fn grow(&mut self, total: usize) -> io::Result<Held> {
        self.growth.grow(&mut self.client, total)
    }

    /// What keeps them from growing any further, once something does.
    #[must_use]
    pub fn limit(&self) -> Option<&str> {
        self.growth.limit()
    }
}

/// Starts a role of this program in a place and waits until it is ready.
fn start(name: &str, place: &Place, words: &[String]) -> io::Result<Child> {
    let mut line: Vec<OsString> = place.prefix.clone();
    line.push(program()?.into());
    line.push("role".into());
    line.extend(words.iter().map(OsString::from));
    let (first, rest) = line.split_first().ok_or_else(|| io::Error::other("an empty command line"))?;
    let mut child = Child::spawn(name, Path::new(first), rest)?;
    child.interrupt_by(stop::requested);
    let ready = child.line(PATIENCE)?;
    if ready != "ready" {
        return Err(io::Error::other(format!("{name} said {ready:?} instead of \"ready\"")));
    }
    Ok(child)
}

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Names the program whose `role` command runs our own generators, where that is not the current one: a test is a
/// program of its own. The first call counts.
pub fn set_program(program: &Path) {
    let _ = PROGRAM.set(program.to_owned());
}

fn program() -> io::Result<PathBuf> {
    let own = || std::env::current_exe().map_err(|error| failed(&error, "cannot find this program's own file"));
    PROGRAM.get().cloned().map_or_else(own, Ok)
}

/// Threads of a generator: a quarter of the CPUs, so that both ends leave half of them to the forwarder.
fn threads() -> usize {
    (cpus() / 4).clamp(1, 8)
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
