//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::commands::hours;
use crate::load::RoleArgs;
use crate::peers::Given;
use crate::topology::links::{self, Links, Loss, Rate};

const EXAMPLES: &str = "\
Examples:
  lab ab --rounds 3 --seconds 3 --out DIR      every engine and every forwarder found, side by side
  lab ab --arms splice,haproxy --mtu 1500 --offloads off
  lab up                                       the network to play with, and what to type in it
  lab run lab/plans/founding.yaml              an experiment of your own

It works as root, and without root in a user namespace of its own. Nothing outside of its namespaces changes.
Exit status: 0 fine, 1 failed while running, 2 wrong usage or file.";

/// The network laboratory of spliced.
#[derive(Debug, Parser)]
#[command(name = "lab", version, about, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the topology and leave it for you to use
    Up(UpArgs),
    /// Take the topology of `up` down
    Down,
    /// Say whether the topology is up, and how to use it
    Status,
    /// Bulk transfer with iperf3 through every engine and every forwarder found
    Ab(AbArgs),
    /// Requests and responses on open connections
    Rr(RrArgs),
    /// Connect, one request and response, close
    Crr(CrrArgs),
    /// Many slow streams of small chunks, as a language-model server sends them
    Stream(StreamArgs),
    /// Memory, descriptors and pipes as sessions grow: once, whatever --rounds and --seconds say
    Capacity(CapacityArgs),
    /// Where one engine spends its time: counters, system calls, flame graph
    Profile(ProfileArgs),
    /// An experiment of your own, from a file
    Run(RunArgs),
    /// Sessions of every kind for hours, every byte compared, and a watch for growth
    Soak(SoakArgs),
    /// Write the reports of a directory of results again
    Report(ReportArgs),
    /// One end of a load, as a process of its own.
    #[command(hide = true)]
    Role(RoleArgs),
}

/// What the links are like.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct LinkArgs {
    /// Largest packet of every link in bytes [default: the kernel's 1500]
    #[arg(long, value_name = "BYTES", value_parser = links::mtu)]
    pub mtu: Option<u32>,
    /// Segmentation and receive offloads of every link: on, off [default: on]
    #[arg(long, value_name = "on|off", value_parser = links::offloads)]
    pub offloads: Option<bool>,
    /// Most bits per second of every link and direction, such as 1gbit [default: none]
    #[arg(long, value_name = "RATE", value_parser = Rate::parse)]
    pub rate: Option<Rate>,
    /// Share of packets each link loses, such as 0.1% [default: none]
    #[arg(long, value_name = "PERCENT", value_parser = Loss::parse)]
    pub loss: Option<Loss>,
}

impl LinkArgs {
    /// These settings with the defaults for the others.
    #[must_use]
    pub fn links(&self) -> Links {
        Links { mtu: self.mtu, offloads: self.offloads.unwrap_or(true), rate: self.rate, loss: self.loss }
    }
}

/// The forwarder, and where results go.
#[derive(Debug, Clone, Args)]
pub struct Files {
    /// Directory for reports, traces, configurations and logs [default: lab-results/TIME]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Write results.json here too; - for standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// The forwarder to measure [default: spliced beside this program, built if missing]
    #[arg(long, value_name = "PATH", help_heading = "Experiment")]
    pub spliced: Option<PathBuf>,
}

/// What every experiment takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Times every arm is measured, in turn with the others
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Experiment")]
    pub rounds: u32,
    /// Seconds of load in each round
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds, help_heading = "Experiment")]
    pub seconds: Duration,
    /// Only these arms: copy-8K copy-16K copy-64K splice auto, direct dnat, and names of peers
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Experiment")]
    pub arms: Vec<String>,
    /// Which peers take part: all, none, or names
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all", help_heading = "Experiment")]
    pub peers: Vec<String>,
    /// A peer by its program, or any forwarder by a command with {listen} and {target} in it; may be repeated
    #[arg(long, value_name = "NAME=COMMAND", help_heading = "Experiment")]
    pub peer: Vec<Given>,
    /// What is measured, and where results go.
    #[command(flatten)]
    pub files: Files,
    /// The links.
    #[command(flatten, next_help_heading = "Links")]
    pub links: LinkArgs,
}

/// `lab up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// The links.
    #[command(flatten)]
    pub links: LinkArgs,
}

/// `lab ab`.
#[derive(Debug, Clone, Args)]
pub struct AbArgs {
    /// Streams at once
    #[arg(long, short = 'P', value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub streams: u32,
    /// Way of the bytes: forward, reverse, bidirectional
    #[arg(long, value_name = "WAY", default_value = "forward", value_parser = ["forward", "reverse", "bidirectional"])]
    pub way: String,
    /// Also measure at this rate of all streams together, such as 4gbit: tells CPU per byte apart on a small host
    #[arg(long, value_name = "RATE", value_parser = Rate::parse)]
    pub offered: Option<Rate>,
    /// What every experiment takes.
    #[command(flatten)]
    pub common: Common,
}

/// `lab rr`.
#[derive(Debug, Clone, Args)]
pub struct RrArgs {
    /// Connections at once, one experiment for each number
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 16, 256], value_parser = clap::value_parser!(u32).range(1..=8000))]
    pub streams: Vec<u32>,
    /// Exchanges per second of all connections together [default: each as fast as answers come]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub offered: Option<u32>,
    /// What the exchanges are like.
    #[command(flatten)]
    pub exchange: ExchangeArgs,
}

/// `lab crr`.
#[derive(Debug, Clone, Args)]
pub struct CrrArgs {
    /// Clients at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub streams: u32,
    /// What the exchanges are like.
    #[command(flatten)]
    pub exchange: ExchangeArgs,
}

/// What experiments of requests and responses take.
#[derive(Debug, Clone, Args)]
pub struct ExchangeArgs {
    /// Bytes of a request and of a response [default: 64 of rr, 1 of crr]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub size: Option<u32>,
    /// Leave netperf out where it is installed
    #[arg(long)]
    pub no_netperf: bool,
    /// What every experiment takes.
    #[command(flatten)]
    pub common: Common,
}

/// `lab stream`.
#[derive(Debug, Clone, Args)]
pub struct StreamArgs {
    /// Streams at once
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=8000))]
    pub streams: u32,
    /// Chunks per second of each stream
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub chunks: u32,
    /// Bytes of a chunk
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub size: u32,
    /// What every experiment takes.
    #[command(flatten)]
    pub common: Common,
}

/// `lab capacity`.
#[derive(Debug, Clone, Args)]
pub struct CapacityArgs {
    /// Numbers of sessions to stop at
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 1000, 2000, 4000, 8000], value_parser = clap::value_parser!(u32).range(0..=50_000))]
    pub streams: Vec<u32>,
    /// The same for sessions whose reader has stopped: each may hold megabytes
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 64, 128, 256], value_parser = clap::value_parser!(u32).range(0..=50_000))]
    pub stalled: Vec<u32>,
    /// What every experiment takes.
    #[command(flatten)]
    pub common: Common,
}

/// `lab profile`.
#[derive(Debug, Clone, Args)]
pub struct ProfileArgs {
    /// Streams at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=128))]
    pub streams: u32,
    /// What every experiment takes.
    #[command(flatten)]
    pub common: Common,
}

/// `lab run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The file, - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Only check the file and show the steps
    #[arg(long)]
    pub check: bool,
    /// Only these loads, by their names or kinds
    #[arg(long, value_name = "LOADS", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Rounds of every load, whatever the file says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Seconds of every load, whatever the file says
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<Duration>,
    /// Where a peer of the file is, as NAME=PROGRAM; may be repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    pub peer: Vec<Given>,
    /// What is measured, and where results go.
    #[command(flatten)]
    pub files: Files,
}

/// `lab soak`.
#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Seconds of load
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    pub seconds: Duration,
    /// Hours of load, instead of seconds
    #[arg(long, value_name = "H", value_parser = hours, conflicts_with = "seconds")]
    pub hours: Option<Duration>,
    /// Clients at once, each with one session after the other
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4000))]
    pub sessions: u32,
    /// Seconds between two reloads by SIGHUP [default: none]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub reload_every: Option<Duration>,
    /// Percent of sessions that end with a reset, from either side
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub resets: u32,
    /// How bytes move: auto, splice, copy
    #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = ["auto", "splice", "copy"])]
    pub engine: String,
    /// Says which sessions are made
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// What is measured, and where results go.
    #[command(flatten)]
    pub files: Files,
}

/// `lab report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Where results.json is
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// What [`seconds`] takes.
pub const SECONDS: &str = "seconds from 0.1 to 3600";

/// Reads a time in seconds.
///
/// # Errors
/// What was found and what is allowed.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("found {text:?}; allowed: {SECONDS}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["lab", "ab", "--offloads", "off", "--peer", "x=y {listen} {target}"]).unwrap();
        let Command::Ab(ab) = cli.command else { panic!("another command") };
        assert!(!ab.common.links.links().offloads);
        assert_eq!(ab.common.peer, ["x=y {listen} {target}".parse().unwrap()]);
        for bad in
            [["--offloads", "maybe"], ["--loss", "100%"], ["--seconds", "0"], ["--peer", "x="], ["--rounds", "0"]]
        {
            assert!(Cli::try_parse_from(["lab", "ab"].into_iter().chain(bad)).is_err(), "{bad:?}");
        }
    }
}
