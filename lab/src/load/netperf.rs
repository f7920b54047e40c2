//! Small exchanges by netperf, whose control and data connection both go through the forwarder.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::place::{Place, Wiring};
use crate::process::{Process, failed};
use crate::results::Latency;
use crate::sample::{Tree, listens};
use crate::tools::{NETPERF, Tool};

/// How long it may take beyond its time, and to start and stop.
const PATIENCE: Duration = Duration::from_secs(15);
/// netperf's server, which comes with it.
const NETSERVER: Tool = Tool { program: "netserver", version: &["-V"], how: NETPERF.how };
/// What it is asked to print, one `NAME=VALUE` a line.
const WANTED: &str = "THROUGHPUT,ELAPSED_TIME,P50_LATENCY,P90_LATENCY,P99_LATENCY,MAX_LATENCY,LOCAL_TRANSPORT_RETRANS";

/// The last of them.
const LAST: &str = "LOCAL_TRANSPORT_RETRANS";
/// How long it may take to end once it has printed them.
const END: Duration = Duration::from_secs(1);

/// Which test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Exchanges on one connection.
    Rr,
    /// A connection for each exchange.
    Crr,
}

/// What is to be exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Which test.
    pub test: Test,
    /// Bytes of a request.
    pub request: u32,
    /// Bytes of an answer.
    pub reply: u32,
    /// How long.
    pub seconds: u32,
}

/// A listening netserver; stopped when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

/// What a run gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Exchanges, or connections, per second.
    pub per_second: f64,
    /// Length of the measured time.
    pub seconds: f64,
    /// Times; netperf gives no 99.9th percentile and no buckets.
    pub latency: Latency,
    /// Whether it ended by itself.
    pub ended: bool,
}

impl Server {
    /// Starts one on netperf's control port of the server's address.
    ///
    /// # Errors
    /// When it is missing (with how to get it) or does not start, with its last output.
    pub fn start(wiring: &Wiring, out: &Path) -> io::Result<Self> {
        let ip = wiring.server_addr.ip();
        let mut command = wiring.server.command(NETSERVER.require()?);
        command.args(["-D", "-L", &ip.to_string(), "-p", &Wiring::NETPERF_CONTROL.to_string()]);
        let mut process = Process::start("netserver", command, &out.join("netserver.txt"))?;
        let (tree, address) = (Tree::new([process.pid()]), SocketAddr::new(ip, Wiring::NETPERF_CONTROL));
        process.wait_until("listening", PATIENCE, || listens(&tree, &[address]))?;
        Ok(Self { process })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it had ended before, with its last output.
    pub fn stop(mut self) -> io::Result<()> {
        self.process.stop(Signal::SIGTERM, PATIENCE).map(|_| ())
    }
}

/// Runs a client to its end. What it prints is kept as `out/netperf.txt`.
///
/// # Errors
/// netperf's own error, or that it hangs.
pub fn run(place: &Place, target: SocketAddr, settings: &Settings, out: &Path) -> io::Result<Report> {
    let mut command = place.command(NETPERF.require()?);
    command.args(arguments(target, settings));
    let file = out.join("netperf.txt");
    // Appended to, and a report is what one run printed.
    let _ = fs::remove_file(&file);
    let mut process = Process::start("netperf", command, &file)?;
    let text = || {
        let read = fs::read_to_string(&file);
        read.map_err(|error| failed(&error, &format!("cannot read {}", file.display())))
    };
    // With its numbers out it only waits for the ends of its connections, which not every forwarder passes on.
    let written = || text().is_ok_and(|text| text.lines().any(|line| line.starts_with(LAST) && line.contains('=')));
    let patience = Duration::from_secs(settings.seconds.into()) + PATIENCE;
    let ended = process.wait_for_end_or(patience, written, END)?;
    Ok(Report { ended, ..Report::parse(&text()?)? })
}

/// The data port is given for the far side, where the forwarder listens on the same one.
fn arguments(target: SocketAddr, settings: &Settings) -> Vec<String> {
    let test = match settings.test {
        Test::Rr => "TCP_RR",
        Test::Crr => "TCP_CRR",
    };
    [
        ("-H", target.ip().to_string()),
        ("-p", Wiring::NETPERF_CONTROL.to_string()),
        ("-l", settings.seconds.to_string()),
        ("-t", test.to_owned()),
        ("--", String::new()),
        ("-r", format!("{},{}", settings.request, settings.reply)),
        ("-P", format!(",{}", Wiring::NETPERF_DATA)),
        ("-k", WANTED.to_owned()),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .filter(|word| !word.is_empty())
    .collect()
}

impl Report {
    /// Reads lines of `NAME=VALUE`.
    ///
    /// # Errors
    /// That there is no rate among them, with what was there instead.
    pub fn parse(text: &str) -> io::Result<Self> {
        let pairs = text.lines().filter_map(|line| line.trim().split_once('='));
        let values: HashMap<&str, f64> = pairs.filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
        let Some(per_second) = values.get("THROUGHPUT").copied() else {
            let said: String = text.chars().take(300).collect();
            return Err(io::Error::other(format!("netperf gave no rate; it said {said:?}")));
        };
        if per_second <= 0.0 {
            return Err(io::Error::other("netperf completed nothing: not one answer came back"));
        }
        let value = |name| values.get(name).copied().unwrap_or(0.0);
        let seconds = value("ELAPSED_TIME");
        Ok(Self {
            per_second,
            seconds,
            ended: true,
            latency: Latency {
                p50_us: value("P50_LATENCY"),
                p90_us: value("P90_LATENCY"),
                p99_us: value("P99_LATENCY"),
                max_us: value("MAX_LATENCY"),
                count: (per_second * seconds).round() as u64,
                ..Latency::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_values_are_read() {
        let text = "MIGRATED TCP REQUEST/RESPONSE TEST from 0.0.0.0 (0.0.0.0) port 0 AF_INET to 10.0.1.1 () port 9003\n\
                    THROUGHPUT=20000.50\nELAPSED_TIME=2.00\nP50_LATENCY=47\nP90_LATENCY=55\nP99_LATENCY=80\n\
                    MAX_LATENCY=1220\nLOCAL_TRANSPORT_RETRANS=0\n";
        let report = Report::parse(text).unwrap();
        assert_eq!((report.per_second, report.seconds, report.latency.count), (20_000.5, 2.0, 40_001));
        assert_eq!((report.latency.p50_us, report.latency.p99_us, report.latency.max_us), (47.0, 80.0, 1220.0));
        let error = Report::parse("establish control: are you sure there is a netserver listening on 10.0.1.1?");
        assert!(error.unwrap_err().to_string().contains("netserver listening"));
        assert!(Report::parse("THROUGHPUT=0.00\nELAPSED_TIME=1.00\n").is_err(), "nothing is no rate");
    }

    #[test]
    fn both_connections_are_led_through_the_forwarder() {
        let settings = Settings { test: Test::Crr, request: 32, reply: 32, seconds: 3 };
        let words = arguments("10.0.1.1:9000".parse().unwrap(), &settings).join(" ");
        assert!(words.starts_with("-H 10.0.1.1 -p 9002 -l 3 -t TCP_CRR -- -r 32,32 -P ,9003 -k THROUGHPUT"), "{words}");
    }
}
