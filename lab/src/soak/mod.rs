//! `lab soak`: sessions of every kind for hours, while what the forwarder holds is watched for growth.

mod growth;
mod traffic;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use self::growth::Trend;
use self::traffic::Traffic;
use crate::experiment::{host, table};
use crate::plan::runner::now;
use crate::plan::{about, stop};
use crate::process::Process;
use crate::results::{Kind, Point, Results, Round, Samples, Series};
use crate::sample::Tree;
use crate::sample::descriptors::Descriptors;
use crate::sample::memory::{KernelMemory, UserMemory};

/// How long the forwarder may take to be ready, to come to rest, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Samples of a run, about; never more than one a second.
const SAMPLES: u32 = 600;
/// Between two looks at whether the run is over.
const LOOK: Duration = Duration::from_millis(50);
/// What is judged, and the least rise over a run that counts, in its unit. The slab is the whole machine's: it is shown and
/// not judged.
const JUDGED: [(&str, f64); 5] =
    [("descriptors", 6.0), ("pipes", 4.0), ("sessions", 4.0), ("private_dirty_bytes", 1_048_576.0), ("sources", 4.0)];
/// What is shown beside it.
const SHOWN: [&str; 3] = ["rss_bytes", "kernel_slab_bytes", "kernel_tcp_bytes"];

/// What to do.
#[derive(Debug, Clone)]
pub struct Soak {
    /// How long.
    pub time: Duration,
    /// Clients at once, each with one session after the other.
    pub clients: u32,
    /// Time between two reloads.
    pub reload_every: Option<Duration>,
    /// Percent of sessions that end with a reset.
    pub resets: u32,
    /// How bytes move.
    pub engine: String,
    /// Says which sessions are made.
    pub seed: u64,
}

/// A running forwarder under soak.
#[derive(Debug)]
struct Forwarder {
    process: Process,
    config: PathBuf,
    control: PathBuf,
    text: String,
    front: SocketAddr,
    reloads: u64,
}

impl Forwarder {
    fn start(soak: &Soak, program: &Path, out: &Path, scratch: &Path, back: SocketAddr) -> io::Result<Self> {
        // Nobody else is in this network namespace.
        let front = SocketAddr::from((Ipv4Addr::LOCALHOST, 9000));
        let (config, control) = (out.join("soak.yaml"), scratch.join("soak.sock"));
        let text = format!(
            "engine: {}\ncontrol: {}\nlog_file: {}\nforwards:\n  - {{ name: soak, listen: \"{front}\", to: \"{back}\" }}\n",
            soak.engine,
            control.display(),
            scratch.join("sessions.log").display(),
        );
        fs::write(&config, &text).map_err(about("write", &config))?;
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(&config);
        let process = Process::start("spliced", command, &out.join("spliced.log"))?;
        let mut forwarder = Self { process, config, control, text, front, reloads: 0 };
        let control = forwarder.control.clone();
        forwarder.process.wait_until("ready", PATIENCE, || ask(&control).is_ok())?;
        Ok(forwarder)
    }

    fn tree(&self) -> Tree {
        Tree::new([self.process.pid()])
    }

    /// SIGHUP with a file that differs in a time, and every other time in none.
    fn reload(&mut self) -> io::Result<()> {
        self.reloads += 1;
        let idle = 3600 + self.reloads / 2;
        let text = format!("{}timeouts: {{ idle: {idle}s }}\n", self.text);
        fs::write(&self.config, text).map_err(about("write", &self.config))?;
        let pid = i32::try_from(self.process.pid()).unwrap_or(i32::MAX);
        kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(io::Error::from)
    }

    /// What it holds now.
    fn holds(&self) -> io::Result<Samples> {
        let mut samples = Samples::new();
        let stats = ask(&self.control).map_err(about("ask the control socket", &self.control))?;
        let tree = self.tree();
        Descriptors::of(&tree).samples(&mut samples);
        UserMemory::of(&tree).samples(&mut samples);
        let kernel = KernelMemory::now();
        let parts =
            [("kernel_bytes", kernel.total()), ("kernel_slab_bytes", kernel.slab), ("kernel_tcp_bytes", kernel.tcp)];
        samples.extend(parts.map(|(name, bytes)| (name.to_owned(), bytes as f64)));
        samples.retain(|name, _| JUDGED.iter().any(|(judged, _)| judged == name) || SHOWN.contains(&name.as_str()));
        for (name, place) in [("sessions", "/total/sessions_open"), ("sources", "/sources"), ("pipes", "")] {
            let sum = |names: [&str; 2]| names.iter().filter_map(|n| stats["pipes"][n].as_f64()).sum::<f64>();
            let value = if place.is_empty() {
                Some(sum(["in_use", "pooled"]))
            } else {
                stats.pointer(place).and_then(Value::as_f64)
            };
            if let Some(value) = value {
                samples.insert(name.to_owned(), value);
            }
        }
        Ok(samples)
    }

    /// Waits until nothing is open and no pipe is kept, and says what is held then.
    fn rest(&mut self) -> io::Result<Samples> {
        let begun = Instant::now();
        loop {
            let holds = self.holds()?;
            let resting = ["sessions", "pipes"].iter().all(|name| holds.get(*name).is_none_or(|value| *value == 0.0));
            if resting || begun.elapsed() > PATIENCE {
                return Ok(holds);
            }
            thread::sleep(LOOK);
        }
    }
}

/// The counters of a forwarder.
fn ask(control: &Path) -> io::Result<Value> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"stats\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::other)
}

/// What a soak found.
#[derive(Debug)]
pub struct Soaked {
    /// For the report.
    pub results: Results,
    /// The verdict in lines for people.
    pub text: String,
    /// Everything arrived, and nothing grew.
    pub fine: bool,
}

impl Soak {
    /// Runs it. Call it inside, where loopback is up and port 9000 free. `scratch` is a directory with a short path.
    ///
    /// # Errors
    /// The forwarder or a socket cannot be started or asked, or the forwarder ended.
    pub fn run(&self, program: &Path, out: &Path, scratch: &Path) -> io::Result<Soaked> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut forwarder = Forwarder::start(self, program, out, scratch, listener.local_addr()?)?;
        let before = forwarder.rest()?;
        let traffic = Traffic::new(self.resets, self.seed);
        let (front, begun) = (forwarder.front, Instant::now());
        let points = thread::scope(|scope| {
            scope.spawn(|| traffic.serve(&listener));
            for client in 0..self.clients {
                let traffic = &traffic;
                let builder = thread::Builder::new().stack_size(256 << 10);
                builder.spawn_scoped(scope, move || traffic.call(front, u64::from(client)))?;
            }
            let points = self.watch(&mut forwarder, &traffic);
            traffic.stop();
            points
        });
        let took = begun.elapsed();
        let points = points?;
        let after = forwarder.rest()?;
        let stats = ask(&forwarder.control)?;
        forwarder.process.stop(Signal::SIGTERM, PATIENCE)?;
        Ok(self.judge(program, &Seen { traffic, points, before, after, stats, took, reloads: forwarder.reloads }))
    }

    /// Samples and reloads until the time is over.
    fn watch(&self, forwarder: &mut Forwarder, traffic: &Traffic) -> io::Result<Vec<Point>> {
        let interval = (self.time / SAMPLES).max(Duration::from_secs(1));
        let (begun, mut points) = (Instant::now(), Vec::new());
        let (mut sample_at, mut told_at) = (interval, Duration::from_secs(60));
        let mut reload_at = self.reload_every;
        while begun.elapsed() < self.time && !stop::requested() {
            if let Some(end) = forwarder.process.exited() {
                return Err(io::Error::other(end));
            }
            let elapsed = begun.elapsed();
            if elapsed >= sample_at {
                sample_at += interval;
                points.push(Point { x: elapsed.as_secs_f64(), values: forwarder.holds()? });
            }
            if let (Some(at), Some(every)) = (reload_at, self.reload_every)
                && elapsed >= at
            {
                reload_at = Some(at + every);
                forwarder.reload()?;
            }
            if elapsed >= told_at {
                told_at += Duration::from_secs(60);
                crate::tell!("{:.0} min: {}", elapsed.as_secs_f64() / 60.0, told(traffic));
            }
            thread::sleep(LOOK);
        }
        Ok(points)
    }

    fn judge(&self, program: &Path, seen: &Seen) -> Soaked {
        let tally = &seen.traffic.tally;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (failed, bytes) = (load(&tally.failed), load(&tally.bytes));
        let mut notes = vec![format!("{}, {} reloads, seed {}", told(&seen.traffic), seen.reloads, self.seed)];
        notes.extend(tally.failures().into_iter().map(|failure| format!("failed: {failure}")));
        let grown = grown(&seen.points, &mut notes);
        let left = left(&seen.before, &seen.after, &mut notes);
        let panicked = seen.stats["total"]["ends"]["worker_panic"].as_u64().unwrap_or(0);
        if panicked > 0 {
            notes.push(format!("{panicked} sessions were lost with a worker that panicked"));
        }
        let whole = load(&tally.whole[0]);
        let fine = failed == 0 && panicked == 0 && whole > 0 && grown.is_empty() && left.is_empty();
        let verdict = if fine {
            "verdict: flat; every byte arrived".to_owned()
        } else {
            let mut why: Vec<String> = Vec::new();
            if failed > 0 || whole == 0 {
                why.push(format!("{failed} sessions failed, {whole} were whole"));
            }
            why.extend(grown.iter().map(|name| format!("{name} grows")));
            why.extend(left.iter().map(|name| format!("{name} is not given back")));
            format!("verdict: not fine: {}", why.join("; "))
        };
        notes.insert(0, verdict);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let samples: Samples = [
            ("sessions_whole", whole as f64),
            ("sessions_reset", load(&tally.resets) as f64),
            ("sessions_failed", failed as f64),
            ("gb", bytes as f64 / 1e9),
            ("gbit_per_second", bytes as f64 * 8e-9 / seen.took.as_secs_f64()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let round = Round {
            round: 1,
            arm: self.engine.clone(),
            kind: Kind::Engine,
            load: "soak".to_owned(),
            samples,
            notes: notes.clone(),
            error: (!fine).then(|| notes[0].clone()),
            ..Round::default()
        };
        let series = Series {
            arm: self.engine.clone(),
            load: "soak".to_owned(),
            x: "seconds".to_owned(),
            points: seen.points.clone(),
        };
        let results = Results {
            version: Results::VERSION,
            experiment: "soak".to_owned(),
            title: format!("{} clients for {:.0} s", self.clients, self.time.as_secs_f64()),
            started: now(),
            host: host::host(),
            settings: self.settings(),
            tools: host::versions(program, &[]),
            rounds: vec![round],
            series: vec![series],
            ..Results::default()
        };
        let text = notes.iter().map(|note| format!("{note}\n")).collect();
        Soaked { results, text, fine }
    }

    fn settings(&self) -> crate::results::Settings {
        [
            ("seconds", json!(self.time.as_secs_f64())),
            ("clients", json!(self.clients)),
            ("reload_every", json!(self.reload_every.map(|every| every.as_secs_f64()))),
            ("resets_percent", json!(self.resets)),
            ("engine", json!(self.engine)),
            ("seed", json!(self.seed)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// Everything a run gave.
struct Seen {
    traffic: Traffic,
    points: Vec<Point>,
    before: Samples,
    after: Samples,
    stats: Value,
    took: Duration,
    reloads: u64,
}

fn told(traffic: &Traffic) -> String {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let tally = &traffic.tally;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let gb = load(&tally.bytes) as f64 / 1e9;
    let (whole, resets, failed) = (load(&tally.whole[0]), load(&tally.resets), load(&tally.failed));
    format!("{whole} sessions whole, {resets} reset as they should, {failed} failed, {gb:.2} GB compared")
}

/// Names of what grows; a note for each quantity.
fn grown(points: &[Point], notes: &mut Vec<String>) -> Vec<&'static str> {
    let mut grown = Vec::new();
    let line = |name: &str| -> Vec<(f64, f64)> {
        points.iter().filter_map(|point| Some((point.x, *point.values.get(name)?))).collect()
    };
    let say = |name: &str, trend: &Trend, word: &str| {
        format!(
            "{name}: {word}: {} a minute, {} ± {} over {} samples",
            table::number(trend.per_second * 60.0),
            table::number(trend.rise),
            table::number(trend.error),
            trend.samples
        )
    };
    for (name, least) in JUDGED {
        match Trend::of(&line(name)) {
            Some(trend) if trend.grows(least) => {
                grown.push(name);
                notes.push(say(name, &trend, "grows"));
            }
            Some(trend) => notes.push(say(name, &trend, "flat")),
            None => notes.push(format!("{name}: too few samples to tell")),
        }
    }
    notes.extend(SHOWN.iter().filter_map(|name| Some(say(name, &Trend::of(&line(name))?, "shown, not judged"))));
    grown
}

/// Names of what is held at the end beyond what was held before the load; memory may be kept by the allocator.
fn left(before: &Samples, after: &Samples, notes: &mut Vec<String>) -> Vec<&'static str> {
    let mut left = Vec::new();
    for (name, _) in JUDGED.iter().filter(|(name, _)| !name.ends_with("_bytes") && *name != "sources") {
        let (Some(before), Some(after)) = (before.get(*name), after.get(*name)) else { continue };
        if after > before {
            left.push(*name);
            notes.push(format!("{name}: {before} before the load, {after} after it"));
        }
    }
    left
}

#[cfg(test)]
mod tests;
