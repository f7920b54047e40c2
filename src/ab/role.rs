//! The hidden commands that run one end of a measurement as a process of its own.
//!
//! Each prints a line when it is ready, then answers commands from standard input, one line of JSON each, and leaves
//! when standard input closes:
//!
//! | role | ready line | commands |
//! | --- | --- | --- |
//! | `backend` | `ready ADDRESS` | `count`: a [`Count`] of bytes; `ends`: a list of [`super::sink::StreamEnd`] |
//! | `source` | `ready` | `count`: a [`Count`] of bytes; `stop`: a list of [`super::source::StreamSent`], then it ends |
//! | `ping` | `ready` | `mark`, `count`: a [`Count`] of exchanges; `stop`: a [`super::pinger::PingReport`], then it ends |

use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::pinger::{PingConfig, Pinger};
use super::sink::Backend;
use super::source::{Source, SourceConfig};
use super::{parse_seconds, spawn_small};

/// One end of a measurement.
#[derive(Debug, Args)]
pub struct RoleArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Receive and check streams, echo messages.
    Backend {
        /// Where to listen; port 0 takes a free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Send streams until `stop` or the end of `--seconds`.
    Source {
        #[command(flatten)]
        common: Common,
        /// Number of streams.
        #[arg(long, default_value_t = 4)]
        streams: u32,
        /// Bytes of one write.
        #[arg(long, default_value_t = 128 * 1024)]
        message: usize,
    },
    /// Send messages and wait for each to come back.
    Ping {
        #[command(flatten)]
        common: Common,
        /// Number of connections.
        #[arg(long, default_value_t = 16)]
        connections: u32,
        /// Bytes of one message.
        #[arg(long, default_value_t = 64)]
        size: u32,
    },
    /// Become `spliced ARGS…`, ended when standard input closes.
    Guard {
        /// Socket to remove afterwards, with its directory when that is empty then.
        #[arg(long)]
        socket: PathBuf,
        /// The command line.
        #[arg(last = true, required = true)]
        args: Vec<String>,
    },
    /// Kill the parent process when standard input closes.
    Watch {
        /// The parent process.
        pid: u32,
        /// As for `guard`.
        #[arg(long)]
        socket: PathBuf,
    },
}

/// What source and ping have in common.
#[derive(Debug, Args)]
struct Common {
    /// Where to connect.
    target: SocketAddr,
    /// Number of the measurement.
    #[arg(long, default_value_t = 1)]
    run: u64,
    /// Longest time to go on.
    #[arg(long, value_parser = parse_seconds, default_value = "60")]
    seconds: Duration,
    /// Time without progress after which a stream is broken.
    #[arg(long, value_parser = parse_seconds, default_value = "10")]
    stall: Duration,
}

/// A count and when it was taken, on the clock of the process that counted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Count {
    /// Bytes or exchanges.
    pub n: u64,
    /// Nanoseconds since that process was ready.
    pub at_ns: u64,
}

/// Runs one role until its work is done or its standard input closes.
///
/// # Errors
/// What keeps the role from starting: an address that cannot be bound, a target that cannot be reached.
pub fn run_role(args: &RoleArgs) -> io::Result<()> {
    match &args.role {
        Role::Backend { listen } => backend(*listen),
        Role::Source { common, streams, message } => source(common, *streams, *message),
        Role::Ping { common, connections, size } => ping(common, *connections, *size),
        Role::Guard { socket, args } => guard(socket, args),
        Role::Watch { pid, socket } => watch(*pid, socket),
    }
}

fn backend(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}")))?;
    let commands = commands()?;
    let backend = Backend::start(listener)?;
    let begun = Instant::now();
    say(&format!("ready {}", backend.address()))?;
    for command in commands {
        match command.as_str() {
            "count" => answer(&count(backend.received(), begun))?,
            "ends" => answer(&backend.take_ends())?,
            other => return Err(unknown(other)),
        }
    }
    Ok(())
}

fn source(common: &Common, streams: u32, message: usize) -> io::Result<()> {
    let commands = commands()?;
    let source =
        Source::start(&SourceConfig { target: common.target, streams, message, run: common.run, stall: common.stall })?;
    let begun = Instant::now();
    say("ready")?;
    while let Some(command) = next(&commands, begun, common.seconds) {
        match command.as_str() {
            "count" => answer(&count(source.sent(), begun))?,
            "stop" => break,
            other => return Err(unknown(other)),
        }
    }
    answer(&source.finish())
}

fn ping(common: &Common, connections: u32, size: u32) -> io::Result<()> {
    let commands = commands()?;
    let pinger =
        Pinger::start(&PingConfig { target: common.target, connections, size, run: common.run, stall: common.stall })?;
    let begun = Instant::now();
    say("ready")?;
    while let Some(command) = next(&commands, begun, common.seconds) {
        match command.as_str() {
            "mark" => {
                pinger.mark();
                answer(&count(pinger.exchanges(), begun))?;
            }
            "count" => answer(&count(pinger.exchanges(), begun))?,
            "stop" => break,
            other => return Err(unknown(other)),
        }
    }
    answer(&pinger.finish())
}

/// Replaces this process by `spliced ARGS…`, which knows nothing of all this, beside a child that watches our standard
/// input and kills it. Portable, unlike a parent-death signal, and the process measured is the one users run.
fn guard(socket: &Path, args: &[String]) -> io::Result<()> {
    let program = std::env::current_exe()?;
    // The watcher must not hold our output open: the parent takes its end for ours.
    Command::new(&program)
        .args(["ab-role", "watch", &std::process::id().to_string(), "--socket"])
        .arg(socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Err(Command::new(&program).args(args).stdin(Stdio::null()).exec())
}

fn watch(pid: u32, socket: &Path) -> io::Result<()> {
    // Whatever arrives, only the end of it matters.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    // Once the parent has ended its number may be somebody else's; then this process has another parent.
    if parent_id() == pid
        && let Ok(pid) = i32::try_from(pid)
    {
        // Fails only when it has just ended.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    // Both may be gone already, and the directory may still hold the sockets of other forwarders.
    let _ = std::fs::remove_file(socket);
    if let Some(directory) = socket.parent() {
        let _ = std::fs::remove_dir(directory);
    }
    Ok(())
}

/// Lines of standard input. The process ends when there are no more.
///
/// # Errors
/// When the thread that reads them cannot be started.
pub fn commands() -> io::Result<Receiver<String>> {
    let (send, receive) = sync_channel(1);
    spawn_small("commands", move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line.trim().to_owned()).is_err() {
                break;
            }
        }
        std::process::exit(0);
    })?;
    Ok(receive)
}

/// The next command, or `None` once the time is up.
fn next(commands: &Receiver<String>, begun: Instant, limit: Duration) -> Option<String> {
    commands.recv_timeout(limit.saturating_sub(begun.elapsed())).ok()
}

fn count(n: u64, begun: Instant) -> Count {
    Count { n, at_ns: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX) }
}

/// Prints one line of JSON.
///
/// # Errors
/// When standard output cannot be written.
pub fn answer(value: &impl Serialize) -> io::Result<()> {
    say(&serde_json::to_string(value)?)
}

/// Prints one line.
///
/// # Errors
/// When standard output cannot be written.
pub fn say(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn unknown(command: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("unknown command {command:?}"))
}
