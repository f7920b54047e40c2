//! The other end of the control socket: `spliced stats`, `spliced reload` and `spliced upgrade`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{arms_table, names, targets};

/// Where `spliced stats` looks when no path is given.
pub const DEFAULT_CONTROL: &str = "/run/spliced/control.sock";

/// How long the running instance may take to answer.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// How long a reload may take: its file has half of it.
const RELOAD_LIMIT: Duration = Duration::from_secs(65);
/// The same for an upgrade, whose new process may need a while to become ready.
const UPGRADE_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of the answer that are read: more is no answer of ours.
const MAX_ANSWER: u64 = 256 * 1024 * 1024;

/// Prints the counters of the instance behind `control`: the JSON object as it came, or a table for people.
///
/// # Errors
/// When nobody answers on the socket, the answer is not understood, or standard output fails. A closed standard output
/// (`spliced stats | head`) is no error.
pub fn stats_command(control: &Path, json: bool) -> io::Result<()> {
    let answer = ask(control, "stats")?;
    let value = answered(control, &answer)?;
    let text = if json { answer } else { table(&Stats::deserialize(value).map_err(|e| unknown(control, &e))?) };
    print(&text)
}

/// Has the instance behind `control` read its configuration again, and prints what has changed.
///
/// # Errors
/// When nobody answers on the socket or standard output fails; and, as the inner error, why the instance goes on with
/// the configuration it has.
pub fn reload_command(control: &Path) -> io::Result<Result<(), String>> {
    let answer = ask(control, "reload")?;
    let value: Value = serde_json::from_str(&answer).map_err(|error| unknown(control, &error))?;
    if let Some(error) = value.get("error").and_then(Value::as_str) {
        return Ok(Err(error.to_owned()));
    }
    let lines = value.get("diff").and_then(Value::as_array).ok_or_else(|| unknown(control, &"no diff in it"))?;
    let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
    print(&format!("{}\n", lines.join("\n")))?;
    Ok(Ok(()))
}

/// Has the instance behind `control` replaced by a new process, and says which one took over.
///
/// # Errors
/// When nobody answers on the socket, or the new process did not take over: why, in words.
pub fn upgrade_command(control: &Path) -> io::Result<()> {
    let answer = ask(control, "upgrade")?;
    let value = answered(control, &answer)?;
    let version = value["version"].as_str().unwrap_or("unknown");
    print(&format!("upgraded: process {}, version {version}\n", value["pid"]))
}

fn unknown(control: &Path, what: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: answer not understood: {what}", control.display()))
}

/// The object in an answer, unless it tells of an error.
pub(super) fn answered(control: &Path, answer: &str) -> io::Result<Value> {
    let value: Value = serde_json::from_str(answer).map_err(|error| unknown(control, &error))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => Err(io::Error::other(format!("{}: {error}", control.display()))),
        None => Ok(value),
    }
}

pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Sends one line and returns the answer's line.
pub(crate) fn ask(control: &Path, command: &str) -> io::Result<String> {
    let explain = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "; is spliced running, and with this --control path?",
            io::ErrorKind::ConnectionRefused => "; no instance listens there any more",
            io::ErrorKind::PermissionDenied => "; only the user who runs spliced may ask",
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "; no answer in time, is the process stopped?",
            _ => "",
        };
        // A closed pipe means elsewhere that nobody wants to read our output, which is no failure.
        let (kind, hint) = match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                (io::ErrorKind::ConnectionAborted, "; closed without an answer; too many clients ask at once?")
            }
            kind => (kind, hint),
        };
        io::Error::new(kind, format!("control socket {}: {error}{hint}", control.display()))
    };
    let mut stream = UnixStream::connect(control).map_err(explain)?;
    let limit = match command {
        "reload" => RELOAD_LIMIT,
        "upgrade" => UPGRADE_LIMIT,
        _ => TIME_LIMIT,
    };
    stream.set_read_timeout(Some(limit)).map_err(explain)?;
    stream.set_write_timeout(Some(TIME_LIMIT)).map_err(explain)?;
    stream.write_all(format!("{command}\n").as_bytes()).map_err(explain)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer).map_err(explain)?;
    if answer.ends_with('\n') {
        return Ok(answer);
    }
    let error = io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer; too many clients ask at once?");
    Err(explain(error))
}

// What the table shows of the answer. Fields it does not know are left out, so that a newer instance can be asked.

#[derive(Debug, Deserialize)]
struct Stats {
    version: String,
    pid: u32,
    uptime_seconds: f64,
    draining: bool,
    cpu: Cpu,
    engine_available: EngineAvailable,
    workers: Vec<Worker>,
    #[serde(default)]
    reloads: Reloads,
    #[serde(default)]
    worker_panics: u64,
    #[serde(default)]
    helper_panics: u64,
    pipes: Pipes,
    total: Counters,
    forwards: Vec<Forward>,
    #[serde(default)]
    names: Vec<names::NameSnapshot>,
}

#[derive(Debug, Default, Deserialize)]
struct Reloads {
    ok: u64,
    failed: u64,
    last_ok: Option<bool>,
    generation: u64,
}

#[derive(Debug, Deserialize)]
struct Cpu {
    user_seconds: f64,
    system_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct EngineAvailable {
    splice: bool,
}

#[derive(Debug, Deserialize)]
struct Worker {
    id: usize,
    cpu: Option<usize>,
    state: String,
    sessions_open: u64,
    busy_seconds: f64,
    handed_over: u64,
    moved: u64,
    accept_paused: bool,
    #[serde(default)]
    batch: bool,
    log_dropped: u64,
}

#[derive(Debug, Deserialize)]
struct Pipes {
    in_use: u64,
    pooled: u64,
    budget: u64,
    size_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Forward {
    name: String,
    #[serde(default)]
    removed: bool,
    listen: Vec<String>,
    to: Vec<String>,
    engine: String,
    #[serde(flatten)]
    counters: Counters,
    #[serde(default)]
    arms: Vec<arms_table::Arm>,
    #[serde(default)]
    targets: Vec<targets::Shown>,
    verdict: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Counters {
    sessions_accepted: u64,
    sessions_open: u64,
    bytes: Bytes,
    fallbacks: BTreeMap<String, u64>,
    ends: BTreeMap<String, u64>,
    #[serde(default)]
    datagrams: Datagrams,
}

#[derive(Debug, Default, Deserialize)]
struct Datagrams {
    client_to_backend: u64,
    backend_to_client: u64,
    drops: BTreeMap<String, u64>,
    receives: u64,
    sends: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Bytes {
    pub(super) client_to_backend: PathBytes,
    pub(super) backend_to_client: PathBytes,
}

#[derive(Debug, Deserialize)]
pub(super) struct PathBytes {
    pub(super) splice: u64,
    pub(super) copy: u64,
}

fn table(stats: &Stats) -> String {
    let mut out = String::new();
    let state = if stats.draining { "draining" } else { "serving" };
    let splice = if stats.engine_available.splice { "" } else { ", splice not available: copying" };
    line(&mut out, 0, "spliced", &format!("{}, process {}, {state}{splice}", stats.version, stats.pid));
    let (user, system) = (stats.cpu.user_seconds, stats.cpu.system_seconds);
    line(&mut out, 0, "up", &format!("{:.0} s, CPU {user:.2} s user + {system:.2} s system", stats.uptime_seconds));
    let Pipes { in_use, pooled, budget, size_bytes } = stats.pipes;
    line(
        &mut out,
        0,
        "pipes",
        &format!("{in_use} in use, {pooled} pooled, {budget} allowed, {} each", human(size_bytes)),
    );
    for worker in &stats.workers {
        describe_worker(&mut out, worker);
    }
    describe_reloads(&mut out, &stats.reloads, (stats.worker_panics, stats.helper_panics));
    if stats.forwards.len() > 1 {
        out.push_str("\nall forwards\n");
        counters(&mut out, &stats.total);
    }
    for forward in &stats.forwards {
        // The name is free text: Debug keeps control characters away from the terminal.
        let heading = format!("\nforward {:?}", forward.name);
        let (listen, to) = (forward.listen.join(", "), forward.to.join(", "));
        let removed = if forward.removed { "  removed, its sessions go on" } else { "" };
        out.push_str(&format!("{heading}  {listen} → {to}  engine {}{removed}\n", forward.engine));
        counters(&mut out, &forward.counters);
        targets::describe(&mut out, &forward.targets);
        arms_table::describe(&mut out, &forward.arms, forward.verdict.as_deref());
    }
    names::describe(&mut out, &stats.names);
    out
}

fn describe_reloads(out: &mut String, reloads: &Reloads, (workers, others): (u64, u64)) {
    let Reloads { ok, failed, generation, .. } = reloads;
    if ok + failed > 0 {
        let last = if reloads.last_ok == Some(false) { ", the last one failed" } else { "" };
        line(out, 0, "configuration", &format!("{generation}, {ok} reloads, {failed} failed{last}"));
    }
    if workers > 0 {
        line(out, 0, "panics", &format!("{workers} workers panicked; please report this"));
    }
    if others > 0 {
        line(out, 0, "panics", &format!("{others} of other threads; please report this"));
    }
}

fn describe_worker(out: &mut String, worker: &Worker) {
    let mut text = format!("{} sessions, busy {:.2} s", worker.sessions_open, worker.busy_seconds);
    if let Some(cpu) = worker.cpu {
        let _ = write!(text, ", CPU {cpu}");
    }
    if worker.state != "running" {
        let _ = write!(text, ", {:?}", worker.state);
    }
    if worker.batch {
        text.push_str(", batch job");
    }
    for (n, what) in
        [(worker.handed_over, "handed over"), (worker.moved, "moved away"), (worker.log_dropped, "log lines dropped")]
    {
        if n > 0 {
            let _ = write!(text, ", {n} {what}");
        }
    }
    if worker.accept_paused {
        text.push_str(", not accepting: a limit is reached or descriptors have run out");
    }
    line(out, 0, &format!("worker {}", worker.id), &text);
}

fn counters(out: &mut String, counters: &Counters) {
    let sessions = format!("{} open, {} accepted", counters.sessions_open, counters.sessions_accepted);
    line(out, 2, "sessions", &sessions);
    line(out, 2, "client → backend", &by_path(&counters.bytes.client_to_backend));
    line(out, 2, "backend → client", &by_path(&counters.bytes.backend_to_client));
    let Datagrams { client_to_backend: up, backend_to_client: down, drops, receives, sends } = &counters.datagrams;
    if receives + sends > 0 {
        let text = format!("{up} up, {down} down; {receives} calls received and {sends} sent them");
        line(out, 2, "datagrams", &text);
    }
    for (label, map) in [("drops", drops), ("ends", &counters.ends), ("fallbacks", &counters.fallbacks)] {
        let parts: Vec<_> = map.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        if !parts.is_empty() {
            line(out, 2, label, &parts.join(", "));
        }
    }
}

fn by_path(bytes: &PathBytes) -> String {
    let total = bytes.splice.saturating_add(bytes.copy);
    format!("{}: {} spliced, {} copied", human(total), human(bytes.splice), human(bytes.copy))
}

pub(super) fn line(out: &mut String, indent: usize, label: &str, text: &str) {
    let width = 18 - indent;
    let _ = writeln!(out, "{:indent$}{label:width$} {text}", "");
}

/// Bytes with a binary unit and three digits: `640 B`, `1.50 KiB`, `23.4 GiB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.5 and more would be shown as 1024 of the smaller unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests;
