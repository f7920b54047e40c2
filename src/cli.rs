//! The command line.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{Maybe, Overrides};

const EXAMPLES: &str = "\
Examples:
  spliced forward 0.0.0.0:9000 10.0.0.2:9001    forward one port
  spliced run --config spliced.yaml             run a service from a file
  spliced ab                                    measure splice against copy on this host

Exit status: 0 fine, 1 failed while running, 2 wrong usage or configuration.
RUST_LOG (such as RUST_LOG=debug) goes before -v and -q.";

const FORWARD_EXAMPLES: &str = "\
LISTEN is ADDRESS:PORT or HOST:PORT on this host, TARGET the same anywhere. Brackets go around IPv6 addresses.
A range of ports leads to one port, or to a range as long: 9000 to 9010 here goes to 9100 to 9110 there.

Sizes: 65536, 64KiB, 64K, 1MiB, 1GiB, all powers of 1024. Times: 250ms, 5s, 10m, 1h, 1d, none.

Examples:
  spliced forward 0.0.0.0:9000 10.0.0.2:9001
  spliced forward '[::]:9000' db.example:5432 --connect-timeout 2s --idle-timeout 1h
  spliced forward 127.0.0.1:9000-9010 10.0.0.2:9100-9110 --engine splice --pipe-size 256KiB
  spliced forward 0.0.0.0:2222 10.0.0.2:22 --allow 192.168.0.0/16 --deny 192.168.0.66";

const RUN_EXAMPLES: &str = "\
The file is YAML, lines of rinetd or oi, or oi's TOML; the content tells which. `-` reads standard input.
An option given here has the last word over the file and each of its forwards; --allow and --deny add to it.
In YAML every option has the same name with _ for -.

Examples:
  spliced run --config spliced.yaml
  spliced run -f -c /etc/rinetd.conf --control /run/spliced/control.sock
  echo '0.0.0.0 9000 10.0.0.2 9001' | spliced run -c -

A file:
  timeouts: {connect: 2s, idle: 1h}
  forwards:
    - name: web
      listen: [\"0.0.0.0:8080\", \"[::]:8080\"]
      to: [\"10.0.0.2:80\", {address: \"10.0.0.3:80\", weight: 3}]
      deny: [\"192.168.*\"]";

const CHECK_EXAMPLES: &str = "\
Prints every value of the resolved plan as YAML. Exit status 0 when the file is good, 2 when it is not, with one line
FILE:LINE:COLUMN: what was found; what is allowed.

Example:
  spliced check --config spliced.yaml && systemctl restart spliced
  spliced check --config spliced.yaml --against $(pidof spliced)    what a reload would change";

const CONVERT_EXAMPLES: &str = "\
Examples:
  spliced convert /etc/rinetd.conf > spliced.yaml
  spliced convert oi.toml | spliced check -c -";

const RELOAD_EXAMPLES: &str = "\
Prints what has changed: + added, - removed, ~ changed, ! not before a restart, = unchanged. Sessions go on with what
they began with. Exit status 0 when the file is in effect; 2 when it is not valid or something in it cannot be opened,
and then nothing has changed.

Examples:
  spliced check --config spliced.yaml --against /run/spliced/control.sock    what would change
  spliced reload --control /run/spliced/control.sock                         change it
  kill -HUP PID                                                              the same, the result in the log";

const STATS_EXAMPLES: &str = "\
The instance must run with --control PATH.

Examples:
  spliced stats --control /run/spliced/control.sock
  spliced stats --json | jq .total.bytes";

const TARGET_EXAMPLES: &str = "\
The instance must run with --control PATH. A reload keeps what was done to targets that stay; a restart or an upgrade
begins with the configuration.

Examples:
  spliced target web 10.0.0.2:80 drain       no new sessions, to take it out of service
  spliced target web 10.0.0.2:80 enable      back in service
  spliced target web 10.0.0.2:80 weight 5    another share";

const TOP_EXAMPLES: &str = "\
The instance must run with --control PATH. It may be restarted meanwhile. In the view h shows the keys.

Examples:
  spliced top --control /run/spliced/control.sock
  spliced top --once";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  spliced completions bash > /usr/share/bash-completion/completions/spliced
  spliced completions zsh > /usr/share/zsh/vendor-completions/_spliced
  spliced completions fish > /usr/share/fish/vendor_completions.d/spliced.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  spliced man | man -l -
  spliced man > /usr/local/share/man/man1/spliced.1";

const PROBE_EXAMPLES: &str = "\
Moves bytes through a pipe and compares them, then reads the system's settings. Nothing is changed. Run it as the user
who runs the forwards: limits on pipes depend on capabilities. Exit status 1 when a check fails; a warning is none.

Examples:
  spliced probe
  spliced probe --json | jq -r '.checks[] | select(.mend) | .mend'";
const UPGRADE_EXAMPLES: &str = "\
Starts the program again where the instance was started from, with the same arguments, hands the listeners over and waits
until the new process is ready; the old one then finishes its sessions. When the new one does not become ready, the old one
goes on and this says why, with exit status 1. The instance must run with --control PATH; SIGUSR2 does the same without.

Example:
  spliced upgrade --control /run/spliced/control.sock";

/// Forwards TCP: bytes go socket to pipe to socket inside the kernel, on every core.
#[derive(Debug, Parser)]
#[command(name = "spliced", version, about, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Log more: -v debug, -vv trace
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Log less: -q warnings and errors, -qq errors
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub quiet: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forward one address to another, without a file
    #[command(after_help = FORWARD_EXAMPLES)]
    Forward(Box<ForwardArgs>),
    /// Run the forwards of a file
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Check a file and print the plan it makes, without running it
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Box<CheckArgs>),
    /// Turn rinetd lines, oi lines or oi TOML into YAML on standard output
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert(ConvertArgs),
    /// Measure splice, copy and auto against each other on this host
    Ab(Box<crate::ab::AbArgs>),
    /// Say whether this host is ready to forward, and what would make it so
    #[command(after_help = PROBE_EXAMPLES)]
    Probe(crate::probe::ProbeArgs),
    /// Have a running instance read its configuration again
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(ReloadArgs),
    /// Print the counters of a running instance
    #[command(after_help = STATS_EXAMPLES)]
    Stats(StatsArgs),
    /// Drain, disable or enable a target of a running instance, or give it another weight
    #[command(after_help = TARGET_EXAMPLES)]
    Target(TargetArgs),
    /// Watch a running instance live in the terminal
    #[command(after_help = TOP_EXAMPLES)]
    Top(crate::top::TopArgs),
    /// Print the script that completes this command line in a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(crate::manual::CompletionsArgs),
    /// Print the manual page
    #[command(after_help = MAN_EXAMPLES)]
    Man,
    /// Replace a running instance by the program that is installed now, without losing a connection
    #[command(after_help = UPGRADE_EXAMPLES)]
    Upgrade(UpgradeArgs),
    /// A child process of `ab`.
    #[command(hide = true)]
    AbRole(Box<crate::ab::RoleArgs>),
}

/// `spliced forward`.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// Where clients connect, such as 0.0.0.0:9000
    #[arg(value_name = "LISTEN")]
    pub listen: String,
    /// Where their bytes go, such as 10.0.0.2:9001
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Everything else.
    #[command(flatten)]
    pub options: Overrides,
}

/// `spliced run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The file to read, - for standard input
    #[arg(short, long, visible_alias = "conf-file", value_name = "FILE")]
    pub config: PathBuf,
    /// Stay in the foreground, which spliced always does; for rinetd's command line
    #[arg(short, long)]
    pub foreground: bool,
    /// What goes over the file.
    #[command(flatten)]
    pub options: Overrides,
}

/// `spliced check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The file to read, - for standard input
    #[arg(short, long, visible_alias = "conf-file", value_name = "FILE")]
    pub config: PathBuf,
    /// Print what a reload of a running instance would change, instead of the plan: its process id or control socket
    #[arg(long, value_name = "PID|SOCKET", value_parser = NonEmptyStringValueParser::new())]
    pub against: Option<String>,
    /// What goes over the file.
    #[command(flatten)]
    pub options: Overrides,
}

/// `spliced convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The file to read, - for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// `spliced reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The control socket of the instance
    #[arg(long, value_name = "PATH", default_value = crate::control::DEFAULT_CONTROL, value_parser = NonEmptyStringValueParser::new())]
    pub control: String,
}

/// `spliced stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print JSON for programs
    #[arg(long)]
    pub json: bool,
    /// The control socket of the instance
    #[arg(long, value_name = "PATH", default_value = crate::control::DEFAULT_CONTROL, value_parser = NonEmptyStringValueParser::new())]
    pub control: String,
}

/// `spliced target`.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// The name of the forward
    #[arg(value_name = "FORWARD")]
    pub forward: String,
    /// The target as the configuration and `spliced stats` name it, such as 10.0.0.2:9001
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// What to do
    #[command(subcommand)]
    pub action: TargetAction,
    /// The control socket of the instance
    #[arg(long, global = true, value_name = "PATH", default_value = crate::control::DEFAULT_CONTROL, value_parser = NonEmptyStringValueParser::new())]
    pub control: String,
}

/// What `spliced target` does.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum TargetAction {
    /// Give it no new sessions; those it has go on
    Drain,
    /// Give it no new sessions and check it no more; on_down says what becomes of those it has
    Disable,
    /// Give it sessions again, with its slow start where it has one
    Enable,
    /// Give it another weight until it is changed again, or until the instance is restarted
    Weight {
        /// 1 to 256, or default for the configured one
        #[arg(value_name = "N", value_parser = crate::config::weight_or_default)]
        weight: Maybe<u16>,
    },
}

impl From<TargetAction> for crate::control::Action {
    fn from(action: TargetAction) -> Self {
        match action {
            TargetAction::Drain => Self::Drain,
            TargetAction::Disable => Self::Disable,
            TargetAction::Enable => Self::Enable,
            TargetAction::Weight { weight } => Self::Weight(weight.0),
        }
    }
}

/// `spliced upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// The control socket of the instance
    #[arg(long, value_name = "PATH", default_value = crate::control::DEFAULT_CONTROL, value_parser = NonEmptyStringValueParser::new())]
    pub control: String,
}

/// A usage error in one line without clap's colours, usage and tips on further lines.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    use std::error::Error as _;
    if let (ErrorKind::ValueValidation, Some(ContextValue::String(argument)), Some(source)) =
        (error.kind(), error.get(ContextKind::InvalidArg), error.source())
    {
        return format!("{}: {source}", argument.split(' ').next().unwrap_or(argument));
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim);
    let said: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    format!("{}; see spliced --help", said.strip_prefix("error: ").unwrap_or(&said))
}
