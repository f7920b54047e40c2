//! Bulk load by iperf3.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;

use super::SATURATED;
use crate::place::Place;
use crate::process::{Process, failed};
use crate::tools::IPERF3;

/// How long it may take beyond its time, and to start and stop.
const PATIENCE: Duration = Duration::from_secs(15);
/// The first version that has a thread for each stream.
const THREADED: (u32, u32) = (3, 16);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Direction {
    /// From client to server.
    #[default]
    Up,
    /// From server to client.
    Reverse,
    /// Both at once.
    Both,
}

/// What is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Streams at once.
    pub streams: u32,
    /// How long.
    pub seconds: u32,
    /// Which way.
    pub direction: Direction,
    /// Bits per second of all streams together, in each direction; `None` as fast as they can.
    pub rate: Option<u64>,
    /// Bytes of one write; `None` leaves it to iperf3 (128 KiB).
    pub message: Option<u32>,
}

/// A listening iperf3; stopped when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
}

/// What a run gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Version of iperf3, such as `3.12`.
    pub version: String,
    /// Bytes that arrived, both directions together.
    pub bytes: u64,
    /// Length of the measured time.
    pub seconds: f64,
    /// Segments the senders sent again.
    pub retransmits: u64,
    /// CPU time of the client over the test's time; above 1 with several threads.
    pub client_cpu_share: f64,
    /// The same of the server.
    pub server_cpu_share: f64,
    /// CPUs each of the two can use: one for each thread.
    pub cpus: f64,
    /// Bytes of each stream, at its receiver.
    pub stream_bytes: Vec<u64>,
}

impl Server {
    /// Starts one that serves one test after the other; what it says goes to a file in `out`.
    ///
    /// # Errors
    /// When iperf3 is missing (with how to get it) or does not start, with its last output.
    pub fn start(place: &Place, address: SocketAddr, out: &Path) -> io::Result<Self> {
        let mut command = place.command(IPERF3.require()?);
        command.args(["-s", "--forceflush", "-B", &address.ip().to_string(), "-p", &address.port().to_string()]);
        let log = out.join("iperf3-server.txt");
        let seen = || fs::read_to_string(&log).unwrap_or_default().matches("Server listening").count();
        let before = seen();
        let mut process = Process::start("the iperf3 server", command, &log)?;
        process.wait_until("listening", PATIENCE, || seen() > before)?;
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

/// Runs a client to its end. Its JSON is kept as `out/iperf3.json`, which is overwritten by the next.
///
/// # Errors
/// iperf3's own error, or that it hangs.
pub fn run(place: &Place, target: SocketAddr, settings: &Settings, out: &Path) -> io::Result<Report> {
    let mut command = place.command(IPERF3.require()?);
    command.args(arguments(target, settings));
    let (json, log) = (out.join("iperf3.json"), out.join("iperf3-client.txt"));
    // Appended to, and a report is one object.
    let _ = fs::remove_file(&json);
    let mut process = Process::start_split("iperf3", command, &json, &log)?;
    let ended = process.wait_for_end(Duration::from_secs(settings.seconds.into()) + PATIENCE);
    let text = read(&json)?;
    // A failure is told in the report, which is there all the same.
    match Report::parse(&text) {
        Ok(report) => ended.map(|_| report),
        Err(error) => Err(ended.err().unwrap_or(error)),
    }
}

fn read(path: &PathBuf) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| failed(&error, &format!("cannot read {}", path.display())))
}

fn arguments(target: SocketAddr, settings: &Settings) -> Vec<String> {
    let mut words: Vec<String> = ["-J", "-i", "0", "--connect-timeout", "5000", "-c"].map(str::to_owned).into();
    words.extend([target.ip().to_string(), "-p".into(), target.port().to_string()]);
    words.extend(["-P".into(), settings.streams.to_string(), "-t".into(), settings.seconds.to_string()]);
    match settings.direction {
        Direction::Up => {}
        Direction::Reverse => words.push("-R".into()),
        Direction::Both => words.push("--bidir".into()),
    }
    if let Some(rate) = settings.rate {
        // iperf3 takes it for each stream.
        words.extend(["-b".into(), (rate / u64::from(settings.streams.max(1))).to_string()]);
    }
    if let Some(message) = settings.message {
        words.extend(["-l".into(), message.to_string()]);
    }
    words
}

impl Report {
    /// Reads the output of `iperf3 -J`.
    ///
    /// # Errors
    /// The error iperf3 reports in it, or that it is no such report.
    pub fn parse(json: &str) -> io::Result<Self> {
        let raw: Raw = serde_json::from_str(json).map_err(|error| {
            let begin: String = json.chars().take(200).collect();
            io::Error::other(format!("iperf3 gave no report: {error}; it began with {begin:?}"))
        })?;
        if let Some(error) = raw.error {
            return Err(io::Error::other(format!("iperf3: {error}")));
        }
        let Some(sum) = raw.end.sum_received else {
            return Err(io::Error::other("iperf3 ended without a sum"));
        };
        let both = [Some(&sum), raw.end.sum_received_bidir_reverse.as_ref()];
        let sent = [raw.end.sum_sent.as_ref(), raw.end.sum_sent_bidir_reverse.as_ref()];
        let cpu = raw.end.cpu_utilization_percent;
        let version = raw.start.version.trim_start_matches("iperf").trim().to_owned();
        let streams = raw.end.streams.len().max(1) as f64;
        Ok(Self {
            cpus: if threaded(&version) { streams } else { 1.0 },
            version,
            bytes: both.iter().flatten().map(|sum| sum.bytes).sum(),
            seconds: sum.seconds,
            retransmits: sent.iter().flatten().filter_map(|sum| sum.retransmits).sum(),
            client_cpu_share: cpu.host_total / 100.0,
            server_cpu_share: cpu.remote_total / 100.0,
            stream_bytes: raw.end.streams.iter().filter_map(|stream| Some(stream.receiver.as_ref()?.bytes)).collect(),
        })
    }

    /// 10⁹ bits per second.
    #[must_use]
    pub fn gbit_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 * 8.0 / self.seconds / 1e9 } else { 0.0 }
    }

    /// How busy the busier of its two ends was, 0 to 1, on a machine with so many CPUs.
    #[must_use]
    pub fn busy_share(&self, cpus: usize) -> f64 {
        self.client_cpu_share.max(self.server_cpu_share) / self.cpus.min(cpus.max(1) as f64)
    }

    /// What to say when it was the limit itself.
    #[must_use]
    pub fn note(&self, cpus: usize) -> Option<String> {
        let percent = |share: f64| share * 100.0;
        (self.busy_share(cpus) >= SATURATED).then(|| {
            format!(
                "iperf3 {} was at its own limit (client {:.0} %, server {:.0} % of a CPU): the forwarder may be faster",
                self.version,
                percent(self.client_cpu_share),
                percent(self.server_cpu_share)
            )
        })
    }
}

/// Whether this version has a thread for each stream; older ones have one for all.
fn threaded(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) >= THREADED
}

#[derive(Deserialize)]
struct Raw {
    error: Option<String>,
    #[serde(default)]
    start: RawStart,
    #[serde(default)]
    end: RawEnd,
}

#[derive(Deserialize, Default)]
struct RawStart {
    #[serde(default)]
    version: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawEnd {
    streams: Vec<RawStream>,
    sum_sent: Option<RawSum>,
    sum_received: Option<RawSum>,
    sum_sent_bidir_reverse: Option<RawSum>,
    sum_received_bidir_reverse: Option<RawSum>,
    cpu_utilization_percent: RawCpu,
}

#[derive(Deserialize)]
struct RawStream {
    receiver: Option<RawSum>,
}

#[derive(Deserialize)]
struct RawSum {
    seconds: f64,
    bytes: u64,
    retransmits: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawCpu {
    host_total: f64,
    remote_total: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read() {
        let up = Report::parse(include_str!("fixtures/iperf3-up.json")).unwrap();
        assert_eq!(up.version, "3.12");
        assert_eq!(up.stream_bytes.len(), 2);
        assert_eq!(up.stream_bytes.iter().sum::<u64>(), up.bytes);
        assert!(up.bytes > 1_000_000 && up.gbit_per_second() > 0.1, "{up:?}");
        assert!(up.client_cpu_share > 0.0 && up.server_cpu_share > 0.0, "{up:?}");
        assert_eq!(up.cpus, 1.0, "one thread for all streams");
    }

    #[test]
    fn both_directions_are_added() {
        let both = Report::parse(include_str!("fixtures/iperf3-bidir.json")).unwrap();
        assert_eq!(both.stream_bytes.len(), 2);
        assert_eq!(both.stream_bytes.iter().sum::<u64>(), both.bytes);
        assert!(both.seconds > 0.5);
    }

    #[test]
    fn its_errors_are_passed_on() {
        let error = Report::parse(include_str!("fixtures/iperf3-refused.json")).unwrap_err().to_string();
        assert!(error.contains("Connection refused"), "{error}");
        let error = Report::parse("iperf3: parameter error").unwrap_err().to_string();
        assert!(error.contains("parameter error"), "{error}");
        assert!(Report::parse("{}").is_err());
    }

    #[test]
    fn a_saturated_generator_is_told() {
        let mut report = Report { client_cpu_share: 0.97, server_cpu_share: 0.4, cpus: 1.0, ..Report::default() };
        assert!(report.note(8).unwrap().contains("97 %"));
        report.cpus = 8.0;
        assert_eq!(report.note(8), None, "one of its eight threads");
        report.client_cpu_share = 1.9;
        assert!(report.note(2).is_some(), "both CPUs of the machine");
        assert!(threaded("3.16") && threaded("4.0") && !threaded("3.12") && !threaded(""));
    }

    #[test]
    fn a_rate_is_divided_among_the_streams() {
        let settings = Settings {
            streams: 8,
            seconds: 3,
            direction: Direction::Reverse,
            rate: Some(4_000_000_000),
            message: Some(1448),
        };
        let words = arguments("10.0.1.1:9000".parse().unwrap(), &settings).join(" ");
        assert!(words.contains("-c 10.0.1.1 -p 9000 -P 8 -t 3 -R -b 500000000 -l 1448"), "{words}");
    }
}
