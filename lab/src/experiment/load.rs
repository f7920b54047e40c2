//! Loads: what is put on every arm, and what is read from it.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::iperf3;
use crate::place::Wiring;
use crate::results::{Latency, Samples, Settings};
use crate::sample::Used;
use crate::tools::{self, Tool};
use crate::topology::links::Rate;

/// One load.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Streams as fast as they go, or at a rate, by iperf3.
    Bulk(Bulk),
    /// Requests and responses on connections that stay.
    Exchange(Exchange),
    /// Connect, one request and response, close.
    Connect(Connect),
    /// Many slow streams of small chunks.
    Stream(Stream),
}

/// Way of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Forward,
    /// From the server to the client.
    Reverse,
    /// Both at once.
    Bidirectional,
}

/// See [`Load::Bulk`].
#[derive(Debug, Clone, PartialEq)]
pub struct Bulk {
    /// Streams at once.
    pub streams: u32,
    /// Which way.
    pub way: Way,
    /// Rate of all streams together; `None` as fast as they go.
    pub offered: Option<Rate>,
    /// How long.
    pub seconds: Duration,
}

/// See [`Load::Exchange`].
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Connections at once.
    pub connections: u32,
    /// Bytes of a request and of a response.
    pub size: u32,
    /// How long.
    pub seconds: Duration,
    /// By netperf instead of our own generator.
    pub netperf: bool,
}

/// See [`Load::Connect`].
#[derive(Debug, Clone, PartialEq)]
pub struct Connect {
    /// Clients at once.
    pub clients: u32,
    /// Bytes of a request and of a response.
    pub size: u32,
    /// How long.
    pub seconds: Duration,
    /// By netperf instead of our own generator.
    pub netperf: bool,
}

/// See [`Load::Stream`].
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Streams at once.
    pub streams: u32,
    /// Chunks per second of each.
    pub chunks: u32,
    /// Bytes of a chunk.
    pub size: u32,
    /// How long.
    pub seconds: Duration,
}

impl Way {
    /// By its name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "forward" => Some(Self::Forward),
            "reverse" => Some(Self::Reverse),
            "bidirectional" => Some(Self::Bidirectional),
            _ => None,
        }
    }
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Done {
    /// Bytes passed on, both ways together.
    pub bytes: u64,
    /// Exchanges, connections or chunks.
    pub pieces: u64,
    /// What it measured itself.
    pub samples: Samples,
    /// Times of exchanges, connections or gaps.
    pub latency: Option<Latency>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} pieces", self.bytes, self.pieces)?;
        self.samples.iter().try_for_each(|(name, value)| write!(f, ", {name} {value:.4}"))
    }
}

/// A server that takes a load; ended when dropped.
#[derive(Debug)]
pub enum Server {
    /// iperf3.
    Iperf3(iperf3::Server),
}

impl Server {
    /// Ends it.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn stop(self) -> io::Result<()> {
        match self {
            Self::Iperf3(server) => server.stop(),
        }
    }
}

impl Load {
    /// Its name in results.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bulk(Bulk { offered: Some(_), .. }) => "rate",
            Self::Bulk(Bulk { way: Way::Forward, .. }) => "bulk",
            Self::Bulk(Bulk { way: Way::Reverse, .. }) => "reverse",
            Self::Bulk(Bulk { way: Way::Bidirectional, .. }) => "bidirectional",
            Self::Exchange(_) => "rr",
            Self::Connect(_) => "crr",
            Self::Stream(_) => "stream",
        }
    }

    /// What is particular to it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let pairs: Vec<(&str, Value)> = match self {
            Self::Bulk(bulk) => {
                let mut pairs = vec![("streams", json!(bulk.streams)), ("seconds", json!(bulk.seconds.as_secs_f64()))];
                pairs.extend(bulk.offered.map(|rate| ("offered", json!(rate.to_string()))));
                pairs
            }
            Self::Exchange(load) => vec![
                ("connections", json!(load.connections)),
                ("size", json!(load.size)),
                ("seconds", json!(load.seconds.as_secs_f64())),
                ("by", json!(if load.netperf { "netperf" } else { "lab" })),
            ],
            Self::Connect(load) => vec![
                ("clients", json!(load.clients)),
                ("size", json!(load.size)),
                ("seconds", json!(load.seconds.as_secs_f64())),
                ("by", json!(if load.netperf { "netperf" } else { "lab" })),
            ],
            Self::Stream(load) => vec![
                ("streams", json!(load.streams)),
                ("chunks_per_second", json!(load.chunks)),
                ("size", json!(load.size)),
                ("seconds", json!(load.seconds.as_secs_f64())),
            ],
        };
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// What its trace says was tried.
    #[must_use]
    pub fn tried(&self) -> String {
        let settings = self.settings();
        let settings = settings.iter().map(|(name, value)| format!("{name} {value}"));
        format!("{} ({})", self.name(), Vec::from_iter(settings).join(", "))
    }

    /// The programs of others it takes.
    #[must_use]
    pub fn tools(&self) -> Vec<Tool> {
        match self {
            Self::Bulk(_) => vec![tools::IPERF3],
            _ => Vec::new(),
        }
    }

    /// The same, but short: for a pass that only looks.
    #[must_use]
    pub fn brief(&self) -> Self {
        let mut load = self.clone();
        let (Self::Bulk(Bulk { seconds, .. })
        | Self::Exchange(Exchange { seconds, .. })
        | Self::Connect(Connect { seconds, .. })
        | Self::Stream(Stream { seconds, .. })) = &mut load;
        *seconds = Duration::from_secs(1).min(*seconds);
        load
    }

    /// Starts its server.
    ///
    /// # Errors
    /// What kept it from listening.
    pub fn serve(&self, wiring: &Wiring, out: &Path) -> io::Result<Server> {
        match self {
            Self::Bulk(_) => iperf3::Server::start(&wiring.server, wiring.server_addr, out).map(Server::Iperf3),
            _ => Err(io::Error::other("not yet")),
        }
    }

    /// Puts it on what listens at `wiring.target`, until it ends. Files go to `out`.
    ///
    /// # Errors
    /// What broke.
    pub fn run(&self, wiring: &Wiring, out: &Path) -> io::Result<Done> {
        match self {
            Self::Bulk(load) => bulk(load, wiring, out),
            _ => Err(io::Error::other("not yet")),
        }
    }

    /// Adds what it cost, by the byte or by the piece.
    pub fn costs(&self, used: &Used, done: &Done, samples: &mut Samples) {
        match self {
            Self::Bulk(_) => used.per_gb(done.bytes, samples),
            Self::Exchange(_) => used.per("exchange", done.pieces, samples),
            Self::Connect(_) => used.per("connection", done.pieces, samples),
            Self::Stream(_) => used.per("chunk", done.pieces, samples),
        }
    }

    /// The samples that tell most of it, with the words for them.
    #[must_use]
    pub fn columns(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Bulk(_) => &[
                ("gbit_per_second", "Gbit/s"),
                ("forwarder_cpu_seconds_per_gb", "CPU s/GB"),
                ("machine_cpu_seconds_per_gb", "machine s/GB"),
                ("syscalls_per_gb", "calls/GB"),
            ],
            Self::Exchange(_) => &[
                ("exchanges_per_second", "exchanges/s"),
                ("cpu_us_per_exchange", "CPU µs each"),
                ("latency_us_p50", "p50 µs"),
                ("latency_us_p99", "p99 µs"),
            ],
            Self::Connect(_) => &[
                ("connections_per_second", "connections/s"),
                ("cpu_us_per_connection", "CPU µs each"),
                ("latency_us_p50", "p50 µs"),
                ("latency_us_p99", "p99 µs"),
            ],
            Self::Stream(_) => &[
                ("first_byte_cold_us", "first byte cold µs"),
                ("first_byte_us_p50", "first byte p50 µs"),
                ("gap_us_p50", "gap p50 µs"),
                ("gap_us_p99", "gap p99 µs"),
                ("cpu_share_per_1000_streams", "CPU per 1000"),
            ],
        }
    }

    /// A line for the progress.
    #[must_use]
    pub fn headline(&self, samples: &Samples) -> String {
        let column = |(name, words): &(&str, &str)| {
            samples.get(*name).map(|value| format!("{} {words}", super::table::number(*value)))
        };
        Vec::from_iter(self.columns().iter().filter_map(column)).join(", ")
    }
}

fn bulk(load: &Bulk, wiring: &Wiring, out: &Path) -> io::Result<Done> {
    let settings = iperf3::Settings {
        streams: load.streams,
        // It takes whole seconds.
        seconds: u32::try_from(load.seconds.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
        direction: match load.way {
            Way::Forward => iperf3::Direction::Up,
            Way::Reverse => iperf3::Direction::Reverse,
            Way::Bidirectional => iperf3::Direction::Both,
        },
        rate: load.offered.map(|rate| rate.0),
        message: None,
    };
    let report = iperf3::run(&wiring.client, wiring.target, &settings, out)?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let samples = [
        ("gbit_per_second", report.gbit_per_second()),
        ("generator_busy_share", report.busy_share(cpus)),
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        ("bytes", report.bytes as f64),
    ];
    Ok(Done {
        bytes: report.bytes,
        pieces: 0,
        samples: samples.map(|(name, value)| (name.to_owned(), value)).into(),
        latency: None,
        notes: report.note(cpus).into_iter().collect(),
    })
}
