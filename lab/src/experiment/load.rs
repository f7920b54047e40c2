//! Loads by the names that results, plans and tables have for them.

use std::time::Duration;

use serde_json::{Value, json};

use super::table;
use crate::load::{Bulk, Exchange, Hold, HoldKind, Load, Stream, iperf3, netperf};
use crate::results::{Round, Settings};
use crate::tools::{self, Tool};
use crate::topology::links::Rate;

/// Longest pass that only looks.
const BRIEF: f64 = 1.0;

/// Bulk by iperf3.
#[must_use]
pub fn bulk(streams: u32, direction: iperf3::Direction, offered: Option<Rate>, seconds: Duration) -> Load {
    let (seconds, rate) = (whole(seconds), offered.map(|rate| rate.0));
    Load::Iperf3(iperf3::Settings { streams, seconds, direction, rate, message: None })
}

/// Exchanges, or with `connect` a connection for each, of requests and answers of one size; so many a second where that
/// is given, and otherwise one after the other.
#[must_use]
pub fn exchanges(connect: bool, connections: u32, size: u32, per_second: Option<u32>, seconds: Duration) -> Load {
    let (connections, size) = (connections as usize, size as usize);
    let (rate, seconds) = (per_second.map(f64::from), seconds.as_secs_f64());
    let load = Exchange { connections, request: size, reply: size, rate, seconds };
    if connect { Load::Connect(load) } else { Load::Exchange(load) }
}

/// Streams of chunks.
#[must_use]
pub fn streams(streams: u32, chunks_per_second: f64, size: u32, seconds: Duration) -> Load {
    Load::Stream(Stream {
        streams: streams as usize,
        rate: chunks_per_second,
        chunk: size as usize,
        seconds: seconds.as_secs_f64(),
    })
}

/// Bulk by our own generator, which takes thousands of streams.
#[must_use]
pub fn sessions(streams: u32, message: u32, seconds: Duration) -> Load {
    Load::Bulk(Bulk { streams: streams as usize, message: message as usize, seconds: seconds.as_secs_f64() })
}

/// Sessions that are only there.
#[must_use]
pub fn held(sessions: u32, kind: HoldKind, seconds: Duration) -> Load {
    Load::Hold(Hold { sessions: sessions as usize, kind, seconds: seconds.as_secs_f64() })
}

/// The same for another time.
#[must_use]
pub fn lasting(load: &Load, seconds: Duration) -> Load {
    let mut load = load.clone();
    match &mut load {
        Load::Iperf3(load) => load.seconds = whole(seconds),
        Load::Netperf(load) => load.seconds = whole(seconds),
        Load::Exchange(Exchange { seconds: old, .. })
        | Load::Connect(Exchange { seconds: old, .. })
        | Load::Bulk(Bulk { seconds: old, .. })
        | Load::Stream(Stream { seconds: old, .. })
        | Load::Hold(Hold { seconds: old, .. }) => *old = seconds.as_secs_f64(),
    }
    load
}

/// Exchanges by netperf, as in the founding post.
#[must_use]
pub fn netperf(test: netperf::Test, size: u32, seconds: Duration) -> Load {
    Load::Netperf(netperf::Settings { test, request: size, reply: size, seconds: whole(seconds) })
}

/// iperf3 and netperf take whole seconds.
fn whole(seconds: Duration) -> u32 {
    u32::try_from(seconds.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// Way of the bytes by its name: forward, reverse, bidirectional.
#[must_use]
pub fn direction(text: &str) -> Option<iperf3::Direction> {
    match text {
        "forward" => Some(iperf3::Direction::Up),
        "reverse" => Some(iperf3::Direction::Reverse),
        "bidirectional" => Some(iperf3::Direction::Both),
        _ => None,
    }
}

/// Its name in results.
#[must_use]
pub fn name(load: &Load) -> &'static str {
    match load {
        Load::Iperf3(iperf3::Settings { rate: Some(_), .. }) => "rate",
        Load::Iperf3(settings) => match settings.direction {
            iperf3::Direction::Up => "bulk",
            iperf3::Direction::Reverse => "reverse",
            iperf3::Direction::Both => "bidirectional",
        },
        Load::Netperf(settings) => match settings.test {
            netperf::Test::Rr => "rr",
            netperf::Test::Crr => "crr",
        },
        Load::Exchange(_) => "rr",
        Load::Connect(_) => "crr",
        Load::Bulk(_) => "sessions",
        Load::Stream(_) => "stream",
        Load::Hold(Hold { kind: HoldKind::Idle, .. }) => "idle",
        Load::Hold(Hold { kind: HoldKind::Stalled, .. }) => "stalled",
    }
}

/// What is particular to it.
#[must_use]
pub fn settings(load: &Load) -> Settings {
    let pairs: Vec<(&str, Value)> = match load {
        Load::Iperf3(load) => {
            let mut pairs = vec![("streams", json!(load.streams)), ("seconds", json!(load.seconds))];
            pairs.extend(load.rate.map(|rate| ("offered", json!(Rate(rate).to_string()))));
            pairs
        }
        Load::Netperf(load) => vec![
            ("by", json!("netperf")),
            ("connections", json!(1)),
            ("request", json!(load.request)),
            ("reply", json!(load.reply)),
            ("seconds", json!(load.seconds)),
        ],
        Load::Exchange(load) | Load::Connect(load) => {
            let mut pairs = vec![
                ("by", json!("lab")),
                ("connections", json!(load.connections)),
                ("request", json!(load.request)),
                ("reply", json!(load.reply)),
                ("seconds", json!(load.seconds)),
            ];
            pairs.extend(load.rate.map(|rate| ("exchanges_per_second", json!(rate))));
            pairs
        }
        Load::Bulk(load) => {
            vec![("streams", json!(load.streams)), ("message", json!(load.message)), ("seconds", json!(load.seconds))]
        }
        Load::Stream(load) => vec![
            ("streams", json!(load.streams)),
            ("chunks_per_second", json!(load.rate)),
            ("chunk", json!(load.chunk)),
            ("seconds", json!(load.seconds)),
        ],
        Load::Hold(load) => vec![("sessions", json!(load.sessions)), ("seconds", json!(load.seconds))],
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// In one line, for traces and headings.
#[must_use]
pub fn describe(load: &Load) -> String {
    let settings = settings(load);
    let settings = settings.iter().map(|(name, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name} {value}")
    });
    format!("{}: {}", name(load), Vec::from_iter(settings).join(", "))
}

/// The programs of others it takes.
#[must_use]
pub fn tools(load: &Load) -> Vec<Tool> {
    match load {
        Load::Iperf3(_) => vec![tools::IPERF3],
        Load::Netperf(_) => vec![tools::NETPERF],
        _ => Vec::new(),
    }
}

/// The same, but short: for a pass that only looks.
#[must_use]
pub fn brief(load: &Load) -> Load {
    let seconds = match load {
        Load::Iperf3(load) => load.seconds.into(),
        Load::Netperf(load) => load.seconds.into(),
        Load::Exchange(load) | Load::Connect(load) => load.seconds,
        Load::Bulk(load) => load.seconds,
        Load::Stream(load) => load.seconds,
        Load::Hold(load) => load.seconds,
    };
    lasting(load, Duration::from_secs_f64(seconds.clamp(0.0, BRIEF)))
}

/// The samples that tell most of it, with the words for them.
#[must_use]
pub fn columns(load: &Load) -> &'static [(&'static str, &'static str)] {
    match name(load) {
        "rr" => &[
            ("exchanges_per_second", "exchanges/s"),
            ("cpu_us_per_exchange", "CPU µs each"),
            ("latency_us_p50", "p50 µs"),
            ("latency_us_p99", "p99 µs"),
        ],
        "crr" => &[
            ("connections_per_second", "connections/s"),
            ("cpu_us_per_connection", "CPU µs each"),
            ("latency_us_p50", "p50 µs"),
            ("latency_us_p99", "p99 µs"),
        ],
        "stream" => &[
            ("first_byte_us_cold", "cold first byte µs"),
            ("first_byte_us_p50", "first byte p50 µs"),
            ("gap_us_p50", "gap p50 µs"),
            ("gap_us_p99", "gap p99 µs"),
            ("cpu_share_per_1000_streams", "CPUs per 1,000"),
        ],
        "idle" | "stalled" => &[
            ("user_bytes_per_session", "user B each"),
            ("kernel_bytes_per_session", "kernel B each"),
            ("descriptors_per_session", "descriptors each"),
            ("pipes_per_session", "pipes each"),
            ("cpu_us_per_session_second", "CPU µs/s each"),
            ("start_rss_bytes", "RSS at start"),
        ],
        "sessions" => &[
            ("gbit_per_second", "Gbit/s"),
            ("forwarder_cpu_seconds_per_gb", "CPU s/GB"),
            ("machine_cpu_seconds_per_gb", "machine s/GB"),
            ("slowest_stream_share", "slowest/median"),
            ("pipes", "pipes"),
        ],
        _ => &[
            ("gbit_per_second", "Gbit/s"),
            ("forwarder_cpu_seconds_per_gb", "CPU s/GB"),
            ("machine_cpu_seconds_per_gb", "machine s/GB"),
            ("syscalls_per_gb", "calls/GB"),
        ],
    }
}

/// A line for the progress.
#[must_use]
pub fn headline(load: &Load, round: &Round) -> String {
    let column =
        |(name, words): &(&str, &str)| round.value(name).map(|value| format!("{} {words}", table::number(value)));
    Vec::from_iter(columns(load).iter().filter_map(column)).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_told_by_name_and_settings() {
        let seconds = Duration::from_millis(1500);
        let load = bulk(8, iperf3::Direction::Up, Some(Rate(4_000_000_000)), seconds);
        assert_eq!(describe(&load), "rate: offered 4gbit, seconds 2, streams 8");
        assert_eq!(name(&bulk(8, iperf3::Direction::Reverse, None, seconds)), "reverse");
        let load = exchanges(true, 4, 1, None, seconds);
        assert_eq!(describe(&load), "crr: by lab, connections 4, reply 1, request 1, seconds 1.5");
        assert_eq!(settings(&brief(&load))["seconds"], json!(1.0));
        let paced = describe(&exchanges(false, 10, 64, Some(4000), seconds));
        assert_eq!(paced, "rr: by lab, connections 10, exchanges_per_second 4000.0, reply 64, request 64, seconds 1.5");
    }
}
