//! A/B comparison on one host: an embedded source and sink, a forwarder for each arm, every byte verified.
//!
//! In reading order: [`pattern`] and [`hello`] are what streams carry; [`source`], [`sink`] and [`pinger`] are the ends;
//! [`role`] runs an end as a process of its own and [`child`] starts such a process; an [`arm`] is what is compared,
//! [`forwarder`] runs it, [`usage`] and [`host`] say what it cost; [`measure`] takes the rounds, [`check`] finds what
//! went wrong in one, and [`report`] says what came out.

pub mod arm;
pub mod check;
pub mod child;
pub mod forwarder;
pub mod hello;
pub mod host;
pub mod measure;
pub mod pattern;
pub mod pinger;
pub mod report;
pub mod role;
pub mod sink;
pub mod source;
mod table;
pub mod usage;
mod verdict;

use std::io::{self, IsTerminal, Write};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;

pub use self::arm::Arm;
pub use self::role::{RoleArgs, run_role};
pub(crate) use self::table::Table;
use crate::config;

/// Compare the engines on this host: no root, nothing else to install, every byte verified.
///
/// Starts an embedded source and sink and one forwarder for each arm, runs bulk streams and small exchanges through
/// them in interleaved rounds, and prints throughput, the forwarder's own CPU time and latency.
#[derive(Debug, Clone, Args)]
pub struct AbArgs {
    /// Print one JSON object with every round instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Measured seconds of each arm in each round, for bulk and again for small exchanges.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "0.5")]
    pub seconds: Duration,
    /// Rounds; each measures every arm once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), default_value_t = 3)]
    pub rounds: u32,
    /// Bulk streams at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), default_value_t = 4)]
    pub streams: u32,
    /// Bytes of one write of a bulk stream, 1 to 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = message_size, default_value = "128KiB")]
    pub message: usize,
    /// Connections that exchange small messages at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), default_value_t = 16)]
    pub connections: u32,
    /// Bytes of one small message, 1 to 16MiB.
    #[arg(long, value_name = "SIZE", value_parser = exchange_size, default_value = "64")]
    pub exchange: u32,
    /// What to compare, in this order: direct, splice, auto, copy-SIZE [default: direct, splice, copy-8KiB, copy-16KiB,
    /// copy-64KiB, auto]
    #[arg(
        long,
        value_name = "ARM,…",
        value_delimiter = ',',
        default_values_t = Arm::DEFAULT,
        hide_default_value = true
    )]
    pub arms: Vec<Arm>,
}

/// Runs the comparison and prints it on standard output.
///
/// # Errors
/// A byte that differs, a stream that breaks, a forwarder that dies or cannot be started: names the arm, the round and
/// what was seen.
pub fn run(args: &AbArgs) -> io::Result<()> {
    let program = std::env::current_exe()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot find this program's own file: {error}")))?;
    let settings = measure::Settings::from(args);
    let mut progress = Progress::new();
    let measured = measure::compare(&program, &settings, &mut |what| progress.show(what));
    progress.clear();
    // Whatever kind it was in a stream or a child: here it means that the comparison failed. A broken pipe in
    // particular must not pass for a reader of our own output that has left.
    let measured = measured.map_err(|error| io::Error::other(error.to_string()))?;
    let report = report::Report::new(settings, measured);
    print(&report, args.json)
}

fn print(report: &report::Report, json: bool) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(report)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    stdout.flush()
}

/// One line on the terminal, rewritten; nothing where standard error is not a terminal.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, what: &str) {
        if self.terminal {
            // A terminal that has gone away is no reason to stop measuring.
            let _ = write!(io::stderr(), "\r\x1b[2K{what}");
        }
    }

    fn clear(&mut self) {
        self.show("");
    }
}

/// Starts a named thread with a small stack: source, sink and pinger take one for each stream.
fn spawn_small<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(128 * 1024)
        .spawn(run)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start the thread {name:?}: {error}")))
}

/// Reads a positive number of seconds, fractions allowed, at most an hour.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds are a number from 0.01 to 3600, such as 0.5".into()),
    }
}

fn message_size(text: &str) -> Result<usize, String> {
    config::size(text, 1, 64 << 20, "a size from 1 to 64MiB")
}

fn exchange_size(text: &str) -> Result<u32, String> {
    let size = config::size(text, 1, hello::LONGEST_EXCHANGE as u64, "a size from 1 to 16MiB")?;
    u32::try_from(size).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ab: AbArgs,
    }

    #[test]
    fn the_command_line_has_the_promised_defaults() {
        let ab = Line::parse_from(["ab"]).ab;
        assert_eq!((ab.rounds, ab.streams, ab.message, ab.connections, ab.exchange), (3, 4, 131_072, 16, 64));
        assert_eq!(ab.arms, Arm::DEFAULT);
        let windows = f64::from(ab.rounds) * ab.arms.len() as f64 * 2.0;
        assert!(windows * (ab.seconds.as_secs_f64() * 1.2 + 0.1) < 30.0, "the default run stays under 30 s");
    }

    #[test]
    fn the_command_line_refuses_what_cannot_be_run() {
        for bad in [
            ["--rounds", "0"],
            ["--seconds", "0"],
            ["--seconds", "NaN"],
            ["--streams", "0"],
            ["--message", "65MiB"],
            ["--exchange", "0"],
            ["--arms", "splice,turbo"],
        ] {
            assert!(Line::try_parse_from(["ab", bad[0], bad[1]]).is_err(), "{bad:?}");
        }
        let arms = Line::parse_from(["ab", "--arms", "copy-1MiB,direct", "--seconds", "0.3"]).ab.arms;
        assert_eq!(arms, [Arm::Copy(1 << 20), Arm::Direct]);
    }
}
