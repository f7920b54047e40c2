//! Takes the rounds: every arm once in each, bulk first, then small exchanges.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::AbArgs;
use super::arm::Arm;
use super::check::{check_bulk, check_ping};
use super::child::Child;
use super::forwarder::{Forwarder, SocketDir};
use super::host::CpuTicks;
use super::pinger::{Latency, PingReport};
use super::role::Count;
use super::sink::StreamEnd;
use super::source::StreamSent;
use super::usage::{Reading, Usage};

/// How long an end may take to answer a command.
const PATIENCE: Duration = Duration::from_secs(10);
/// A stream without progress for so long is broken.
const STALL: Duration = Duration::from_secs(10);
/// Longest time an end may take to finish: it may stall while sending and again while waiting for the last answer.
const FINISH: Duration = Duration::from_secs(25);
/// Whether this build has the splice engine at all.
const HAS_SPLICE: bool = cfg!(all(target_os = "linux", not(spliced_portable)));

/// What is measured.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// How often each arm is measured.
    pub rounds: u32,
    /// Measured time of each window.
    pub seconds: f64,
    /// Time before each window that is not counted.
    pub warm_up_seconds: f64,
    /// Bulk streams.
    pub streams: u32,
    /// Bytes of one bulk write.
    pub message_bytes: usize,
    /// Connections of the small exchanges.
    pub connections: u32,
    /// Bytes of one small message.
    pub exchange_bytes: u32,
    /// What is compared.
    #[serde(skip)]
    pub arms: Vec<Arm>,
}

/// All rounds of all arms.
#[derive(Debug)]
pub struct Measured {
    /// Arms that were measured, in the order asked for.
    pub lanes: Vec<Lane>,
    /// Arms that could not be, and why.
    pub skipped: Vec<(Arm, String)>,
}

/// One arm and what was measured of it.
#[derive(Debug)]
pub struct Lane {
    /// Which.
    pub arm: Arm,
    /// Bulk, one entry a round.
    pub bulk: Vec<BulkRound>,
    /// Small exchanges, one entry a round.
    pub ping: Vec<PingRound>,
    forwarder: Option<Forwarder>,
}

/// One window of bulk streams.
#[derive(Debug, Clone, Serialize)]
pub struct BulkRound {
    /// Length of the window.
    pub seconds: f64,
    /// Bytes that reached the sink within the window.
    pub bytes: u64,
    /// The same as a rate.
    pub gbit_per_second: f64,
    /// User and system time of the forwarder for each 10⁹ bytes it passed on.
    pub cpu_seconds_per_gb: Option<f64>,
    /// What the forwarder did in the window; none for `direct`.
    pub forwarder: Option<Usage>,
    /// Share of all CPUs of the host that was busy, 0 to 1, where the system tells.
    pub host_busy: Option<f64>,
    /// Bytes of whole streams, sent and found right at the sink.
    pub verified_bytes: u64,
}

/// One window of small exchanges.
#[derive(Debug, Clone, Serialize)]
pub struct PingRound {
    /// Length of the window.
    pub seconds: f64,
    /// Exchanges completed within the window.
    pub exchanges: u64,
    /// The same as a rate.
    pub exchanges_per_second: f64,
    /// User and system time of the forwarder for each exchange, in µs.
    pub cpu_us_per_exchange: Option<f64>,
    /// Round trips.
    pub latency: Latency,
    /// What the forwarder did in the window; none for `direct`.
    pub forwarder: Option<Usage>,
    /// Share of all CPUs of the host that was busy, 0 to 1, where the system tells.
    pub host_busy: Option<f64>,
    /// Exchanges of the whole run, each answer compared.
    pub verified_exchanges: u64,
}

impl From<&AbArgs> for Settings {
    fn from(args: &AbArgs) -> Self {
        let mut arms = Vec::new();
        for arm in &args.arms {
            if !arms.contains(arm) {
                arms.push(*arm);
            }
        }
        let seconds = args.seconds.as_secs_f64();
        Self {
            rounds: args.rounds,
            seconds,
            // Slow start and the kernel's buffer tuning are over within some 50 ms on one host.
            warm_up_seconds: (seconds / 5.0).clamp(0.05, 1.0),
            streams: args.streams,
            message_bytes: args.message,
            connections: args.connections,
            exchange_bytes: args.exchange,
            arms,
        }
    }
}

/// Starts everything, takes all rounds and ends everything. `progress` is told what is going on.
///
/// Call it from a thread that can wait: it takes rounds × arms × 2 windows.
///
/// # Errors
/// Names the arm, the round and what was seen.
pub fn compare(program: &Path, settings: &Settings, progress: &mut dyn FnMut(&str)) -> io::Result<Measured> {
    let directory = SocketDir::create()?;
    let mut bench = Bench::start(program, settings)?;
    let mut measured = Measured { lanes: Vec::new(), skipped: Vec::new() };
    for &arm in &settings.arms {
        progress(&format!("starting {arm}"));
        match bench.open(arm, &directory).map_err(|error| wrap(&format!("arm {arm}"), &error))? {
            Ok(lane) => measured.lanes.push(lane),
            Err(reason) => measured.skipped.push((arm, reason)),
        }
    }
    for round in 1..=settings.rounds {
        for kind in ["bulk", "exchanges"] {
            for lane in &mut measured.lanes {
                progress(&format!("round {round} of {}: {kind}, {}", settings.rounds, lane.arm));
                let done = if kind == "bulk" { bench.bulk(lane) } else { bench.ping(lane) };
                done.map_err(|error| lane.blame(&format!("round {round}, {kind}"), &error))?;
            }
            measured.drop_refused(&mut bench)?;
        }
    }
    if measured.lanes.is_empty() {
        let reasons: Vec<String> = measured.skipped.iter().map(|(arm, why)| format!("{arm}: {why}")).collect();
        return Err(io::Error::other(format!("nothing could be measured: {}", reasons.join("; "))));
    }
    Ok(measured)
}

impl Measured {
    /// Takes out the splice arm once the kernel has refused splice: what it measured was copied.
    fn drop_refused(&mut self, bench: &mut Bench<'_>) -> io::Result<()> {
        for index in (0..self.lanes.len()).rev() {
            let lane = &mut self.lanes[index];
            let Some(forwarder) = lane.forwarder.as_mut().filter(|_| lane.arm == Arm::Splice) else { continue };
            let reading = forwarder.read().map_err(|error| wrap("arm splice", &error))?;
            if !reading.splice_available() {
                let lane = self.lanes.remove(index);
                self.skipped.push((lane.arm, bench.no_splice()));
            }
        }
        Ok(())
    }
}

impl Lane {
    /// An arm of which nothing has been measured yet.
    pub(super) fn new(arm: Arm, forwarder: Option<Forwarder>) -> Self {
        Self { arm, bulk: Vec::new(), ping: Vec::new(), forwarder }
    }

    /// The error of a window; the forwarder's end, if it has ended, explains all others.
    fn blame(&mut self, when: &str, error: &io::Error) -> io::Error {
        let at = format!("arm {}, {when}", self.arm);
        let Some(forwarder) = &mut self.forwarder else { return wrap(&at, error) };
        let what = match (forwarder.exited(), forwarder.read()) {
            (Some(end), _) => end,
            (None, Ok(reading)) => format!("{error}{}", reading.broken_sessions()),
            (None, Err(_)) => error.to_string(),
        };
        io::Error::new(error.kind(), format!("{at}: {what}"))
    }
}

/// What all arms share.
struct Bench<'a> {
    program: &'a Path,
    settings: &'a Settings,
    backend: Child,
    address: SocketAddr,
    run: u64,
}

/// Where a window begins or ends.
struct Edge {
    count: Count,
    reading: Option<Reading>,
    host: Option<CpuTicks>,
}

/// What happened between two edges.
struct Window {
    seconds: f64,
    n: u64,
    usage: Option<Usage>,
    host_busy: Option<f64>,
}

impl<'a> Bench<'a> {
    fn start(program: &'a Path, settings: &'a Settings) -> io::Result<Self> {
        let mut backend = Child::spawn("the sink", program, ["ab-role", "backend"])?;
        let ready = backend.line(PATIENCE)?;
        let address = ready.strip_prefix("ready ").and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| io::Error::other(format!("the sink said {ready:?} instead of ready")))?;
        Ok(Self { program, settings, backend, address, run: 0 })
    }

    /// Starts an arm's forwarder; the inner error says why the arm cannot be measured here.
    fn open(&mut self, arm: Arm, directory: &SocketDir) -> io::Result<Result<Lane, String>> {
        if arm == Arm::Splice && !HAS_SPLICE {
            return Ok(Err(self.no_splice()));
        }
        let mut forwarder = Forwarder::start(self.program, arm, self.address, directory.path())?;
        if let (Arm::Splice, Some(forwarder)) = (arm, &mut forwarder)
            && !forwarder.read()?.splice_available()
        {
            return Ok(Err(self.no_splice()));
        }
        Ok(Ok(Lane::new(arm, forwarder)))
    }

    fn no_splice(&self) -> String {
        if HAS_SPLICE {
            "the kernel refused splice(2) (not built in, or forbidden by a filter)".into()
        } else {
            "this build has no splice engine (it needs Linux and a build without --cfg spliced_portable)".into()
        }
    }

    fn bulk(&mut self, lane: &mut Lane) -> io::Result<()> {
        let settings = self.settings;
        let (streams, message) = (settings.streams.to_string(), settings.message_bytes.to_string());
        let mut source = self.end(lane, "the source", "source", &["--streams", &streams, "--message", &message])?;
        std::thread::sleep(Duration::from_secs_f64(settings.warm_up_seconds));
        let before = Edge::take(lane, &mut self.backend, "count")?;
        std::thread::sleep(Duration::from_secs_f64(settings.seconds));
        let window = Edge::take(lane, &mut self.backend, "count")?.since(&before)?;
        let sent: Vec<StreamSent> = source.ask("stop", FINISH)?;
        let ends: Vec<StreamEnd> = self.backend.ask("ends", PATIENCE)?;
        let verified_bytes = check_bulk(self.run, &sent, &ends)?;
        let per_gb = |usage: &Usage| usage.cpu_seconds / (usage.bytes.total() as f64 / 1e9);
        lane.bulk.push(BulkRound {
            seconds: window.seconds,
            bytes: window.n,
            gbit_per_second: window.n as f64 * 8.0 / 1e9 / window.seconds,
            cpu_seconds_per_gb: window.usage.as_ref().map(per_gb),
            forwarder: window.usage,
            host_busy: window.host_busy,
            verified_bytes,
        });
        Ok(())
    }

    fn ping(&mut self, lane: &mut Lane) -> io::Result<()> {
        let settings = self.settings;
        let (connections, size) = (settings.connections.to_string(), settings.exchange_bytes.to_string());
        let mut pinger = self.end(lane, "the pinger", "ping", &["--connections", &connections, "--size", &size])?;
        std::thread::sleep(Duration::from_secs_f64(settings.warm_up_seconds));
        let before = Edge::take(lane, &mut pinger, "mark")?;
        std::thread::sleep(Duration::from_secs_f64(settings.seconds));
        let window = Edge::take(lane, &mut pinger, "count")?.since(&before)?;
        let report: PingReport = pinger.ask("stop", FINISH)?;
        let ends: Vec<StreamEnd> = self.backend.ask("ends", PATIENCE)?;
        check_ping(&report, &ends, settings.exchange_bytes)?;
        // The forwarder's bytes are read together with its CPU time; the pinger's count a moment later.
        let each = f64::from(settings.exchange_bytes);
        let per_exchange = |usage: &Usage| usage.cpu_seconds * 1e6 / (usage.bytes_to_backend as f64 / each);
        lane.ping.push(PingRound {
            seconds: window.seconds,
            exchanges: window.n,
            exchanges_per_second: window.n as f64 / window.seconds,
            cpu_us_per_exchange: window.usage.as_ref().map(per_exchange),
            latency: report.times,
            forwarder: window.usage,
            host_busy: window.host_busy,
            verified_exchanges: report.exchanges,
        });
        Ok(())
    }

    /// Starts a source or pinger through the arm and waits until it has connected.
    fn end(&mut self, lane: &Lane, name: &str, role: &str, options: &[&str]) -> io::Result<Child> {
        self.run += 1;
        let target = lane.forwarder.as_ref().map_or(self.address, Forwarder::address).to_string();
        let (run, stall) = (self.run.to_string(), STALL.as_secs().to_string());
        // Only a bound for the case that nobody says stop.
        let seconds = (self.settings.seconds + 60.0).min(3600.0).to_string();
        let mut args = vec!["ab-role", role, &target, "--run", &run, "--stall", &stall, "--seconds", &seconds];
        args.extend(options);
        let mut child = Child::spawn(name, self.program, args)?;
        match child.line(PATIENCE + STALL)?.as_str() {
            "ready" => Ok(child),
            other => Err(io::Error::other(format!("{name} said {other:?} instead of ready"))),
        }
    }
}

impl Edge {
    /// Reads the forwarder first and the counting end right after it, at both edges of a window.
    fn take(lane: &mut Lane, counter: &mut Child, command: &str) -> io::Result<Self> {
        let reading = lane.forwarder.as_mut().map(Forwarder::read).transpose()?;
        let count = counter.ask(command, PATIENCE)?;
        Ok(Self { count, reading, host: CpuTicks::now() })
    }

    fn since(&self, earlier: &Self) -> io::Result<Window> {
        let usage = self.reading.as_ref().zip(earlier.reading.as_ref()).map(|(now, then)| now.since(then));
        let n = self.count.n.saturating_sub(earlier.count.n);
        let ns = self.count.at_ns.saturating_sub(earlier.count.at_ns);
        if n == 0 || ns == 0 || usage.as_ref().is_some_and(|usage| usage.bytes_to_backend == 0) {
            let what = "nothing came through in the measured time; is the machine overloaded, or --seconds too short?";
            return Err(io::Error::other(what));
        }
        let host_busy = self.host.zip(earlier.host).and_then(|(now, then)| now.busy_since(then));
        Ok(Window { seconds: ns as f64 / 1e9, n, usage, host_busy })
    }
}

fn wrap(at: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{at}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_named_twice_is_measured_once() {
        let args = AbArgs {
            json: false,
            seconds: Duration::from_millis(300),
            rounds: 1,
            streams: 1,
            message: 1,
            connections: 1,
            exchange: 1,
            arms: vec![Arm::Auto, Arm::Direct, Arm::Auto],
        };
        assert_eq!(Settings::from(&args).arms, [Arm::Auto, Arm::Direct]);
    }
}
