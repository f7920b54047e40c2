//! spliced as an arm: started with a configuration that is kept, asked for its counters, ended.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::routes::Routes;
use crate::place::Wiring;
use crate::plan::about;
use crate::process::Process;
use crate::sample::Tree;
use crate::topology::{self, sandbox};

/// How long it may take to be ready, to answer and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer of its control socket, in bytes.
const LONGEST_ANSWER: u64 = 16 << 20;

/// What of spliced is measured; the default of what is `None` is its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// `auto`, `splice` or `copy`.
    pub engine: String,
    /// Bytes of the copy buffer.
    pub copy_buffer: Option<u64>,
    /// Bytes of a pipe.
    pub pipe_size: Option<u64>,
    /// Event loops.
    pub workers: Option<u64>,
    /// Environment of the process, such as `LD_PRELOAD`.
    pub environment: Vec<(String, String)>,
    /// Further keys of its configuration.
    pub options: Map<String, Value>,
}

impl EngineOptions {
    /// By the name of an arm: `splice`, `auto`, or `copy-` with a size in KiB such as `8K`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let engine = |engine: &str| Self { engine: engine.to_owned(), ..Self::default() };
        match name {
            "splice" | "auto" | "copy" => Some(engine(name)),
            _ => {
                let kib: u64 = name.strip_prefix("copy-")?.strip_suffix('K')?.parse().ok()?;
                let sound = (1..=16384).contains(&kib);
                sound.then(|| Self { copy_buffer: Some(kib << 10), ..engine("copy") })
            }
        }
    }

    /// Whether spliced takes it, for the wiring of the lab.
    ///
    /// # Errors
    /// What spliced says of it, without a place.
    pub fn check(&self) -> Result<(), String> {
        let file = self.configuration(&topology::wiring(), Path::new("/run/lab/control.sock"));
        let text = serde_yaml::to_string(&file).map_err(|error| error.to_string())?;
        let lookup = spliced::config::Lookup::host();
        let plan = spliced::config::parse("", &text, &spliced::config::Overrides::default(), &lookup);
        plan.map(drop).map_err(|error| error.message)
    }

    fn is_transparent(&self) -> bool {
        self.options.get("transparent").is_some_and(|value| *value == json!(true) || *value == json!("on"))
    }

    /// The configuration file, which is YAML as every JSON is.
    fn configuration(&self, wiring: &Wiring, control: &Path) -> Value {
        let mut top = Map::new();
        top.insert("engine".to_owned(), json!(self.engine));
        for (name, value) in
            [("copy_buffer", self.copy_buffer), ("pipe_size", self.pipe_size), ("workers", self.workers)]
        {
            if let Some(value) = value {
                top.insert(name.to_owned(), json!(value));
            }
        }
        top.insert("control".to_owned(), json!(control));
        // Loads leave sessions open; they end with the forwarder.
        top.insert("timeouts".to_owned(), json!({ "drain": "0s" }));
        let forwards = wiring.forwards();
        let forwards = forwards.iter().enumerate().map(|(number, forward)| {
            json!({ "name": format!("lab-{number}"), "listen": forward.listen.to_string(), "to": forward.to.to_string() })
        });
        top.insert("forwards".to_owned(), forwards.collect());
        top.extend(self.options.clone());
        Value::Object(top)
    }
}

impl fmt::Display for EngineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "engine {}", self.engine)?;
        for (name, value) in
            [("copy buffer", self.copy_buffer), ("pipe size", self.pipe_size), ("workers", self.workers)]
        {
            if let Some(value) = value {
                write!(f, ", {name} {value}")?;
            }
        }
        for (name, value) in &self.options {
            write!(f, ", {name} {value}")?;
        }
        Ok(())
    }
}

/// A running spliced; ended when dropped.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    control: PathBuf,
    _routes: Option<Routes>,
}

/// Its counters, as far as they are needed here.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    /// CPU time it says it used, in seconds: a second opinion on our own reading.
    pub cpu_seconds: f64,
    /// Bytes moved through pipes.
    pub spliced: u64,
    /// Bytes moved through memory.
    pub copied: u64,
    /// Pipes that exist, holding bytes or waiting for some.
    pub pipes: u64,
    /// How many pipes there may be.
    pub pipe_budget: u64,
    /// Bytes of a pipe.
    pub pipe_size: u64,
}

#[derive(Deserialize)]
struct Stats {
    cpu: Cpu,
    total: Total,
    pipes: Pipes,
}

#[derive(Deserialize)]
struct Cpu {
    user_seconds: f64,
    system_seconds: f64,
}

#[derive(Deserialize)]
struct Total {
    bytes: std::collections::BTreeMap<String, PathBytes>,
}

#[derive(Deserialize)]
struct PathBytes {
    splice: u64,
    copy: u64,
}

#[derive(Deserialize)]
struct Pipes {
    in_use: u64,
    pooled: u64,
    budget: u64,
    size_bytes: u64,
}

/// A directory for the control socket of an arm.
#[must_use]
pub fn home(name: &str) -> PathBuf {
    sandbox::scratch().join(name)
}

impl Engine {
    /// Starts it in `wiring.forwarder` and waits until it takes connections. Its configuration and what it says are
    /// kept in `out/NAME`.
    ///
    /// # Errors
    /// What kept it, with its last words.
    pub fn start(name: &str, options: &EngineOptions, spliced: &Path, wiring: &Wiring, out: &Path) -> io::Result<Self> {
        let directory = out.join(name);
        fs::create_dir_all(&directory).map_err(about("make the directory", &directory))?;
        let control = home(name).join("control.sock");
        let file = directory.join("spliced.yaml");
        let text = serde_yaml::to_string(&options.configuration(wiring, &control)).map_err(io::Error::other)?;
        fs::write(&file, text).map_err(about("write", &file))?;
        let mut command = wiring.forwarder.command(spliced);
        command.args(["run", "--config"]).arg(&file).env_remove("RUST_LOG");
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        // A line for each of thousands of sessions is work that its peers do not do either.
        command.args(["--log-file", "/dev/null"]);
        let routes = options.is_transparent().then(|| Routes::open(name, &wiring.forwarder, &directory)).transpose()?;
        let mut process = Process::start(name, command, &directory.join("output.txt"))?;
        process.wait_until("ready", PATIENCE, || counters(&control).is_ok())?;
        Ok(Self { process, control, _routes: routes })
    }

    /// Its counters now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&self) -> io::Result<Counters> {
        counters(&self.control)
    }

    /// Its processes.
    #[must_use]
    pub fn tree(&self) -> Tree {
        Tree::new([self.process.pid()])
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// How it ended.
    pub fn check(&mut self) -> io::Result<()> {
        self.process.exited().map_or(Ok(()), |end| Err(io::Error::other(end)))
    }

    /// Ends it, and the sessions it has.
    ///
    /// # Errors
    /// When it had ended before or had to be killed.
    pub fn stop(mut self) -> io::Result<()> {
        self.process.stop(Signal::SIGTERM, PATIENCE).map(drop)
    }
}

fn counters(control: &Path) -> io::Result<Counters> {
    let ask = || {
        let mut socket = UnixStream::connect(control)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.write_all(b"stats\n")?;
        let mut answer = Vec::new();
        socket.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
        Ok(parse(&answer)?)
    };
    ask().map_err(about("ask the control socket", control))
}

fn parse(answer: &[u8]) -> serde_json::Result<Counters> {
    let stats: Stats = serde_json::from_slice(answer)?;
    let sum = |of: fn(&PathBytes) -> u64| stats.total.bytes.values().map(of).sum();
    Ok(Counters {
        cpu_seconds: stats.cpu.user_seconds + stats.cpu.system_seconds,
        spliced: sum(|bytes| bytes.splice),
        copied: sum(|bytes| bytes.copy),
        pipes: stats.pipes.in_use + stats.pipes.pooled,
        pipe_budget: stats.pipes.budget,
        pipe_size: stats.pipes.size_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_have_options_and_a_file_that_spliced_takes() {
        assert_eq!(EngineOptions::named("copy-8K").unwrap().copy_buffer, Some(8192));
        for bad in ["copy-", "copy-0K", "copy-8", "copy-99999K", "haproxy", ""] {
            assert_eq!(EngineOptions::named(bad), None, "{bad}");
        }
        let options =
            EngineOptions { pipe_size: Some(256 << 10), workers: Some(2), ..EngineOptions::named("copy-8K").unwrap() };
        let file = options.configuration(&crate::topology::wiring(), Path::new("/run/lab/x.sock"));
        let text = serde_yaml::to_string(&file).unwrap();
        let (overrides, lookup) = (Default::default(), spliced::config::Lookup::host());
        let plan = spliced::config::parse("lab.yaml", &text, &overrides, &lookup);
        let plan = plan.unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(plan.forwards.len(), 3);
    }

    #[test]
    fn counters_are_summed_over_directions() {
        let answer = br#"{"cpu": {"user_seconds": 0.25, "system_seconds": 0.5}, "total": {"bytes": {"client_to_backend": {"splice": 5, "copy": 1},
            "backend_to_client": {"splice": 2, "copy": 3}}, "ends": {}}, "pipes": {"in_use": 1, "pooled": 2,
            "budget": 64, "size_bytes": 1048576}}"#;
        let expected =
            Counters { cpu_seconds: 0.75, spliced: 7, copied: 4, pipes: 3, pipe_budget: 64, pipe_size: 1 << 20 };
        assert_eq!(parse(answer).unwrap(), expected);
        assert!(parse(b"{}").is_err());
    }
}
