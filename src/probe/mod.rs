//! `spliced probe`: is this host ready to forward, and what would make it so.
//!
//! Every check reads what the kernel says of itself, or tries the thing for real, and ends in one [`Finding`]. Nothing
//! is changed.

mod cpu;
mod devices;
mod limits;
mod network;
mod report;
mod splice;
mod system;

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use self::system::System;
use crate::sandbox;

/// `spliced probe`.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// Print JSON for programs
    #[arg(long)]
    pub json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// It works; under load it will cost something.
    Warn,
    /// It does not work.
    Fail,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's fixed name.
    pub check: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found, and what it means.
    pub found: String,
    /// The command or setting that mends it, where there is one.
    pub mend: Option<String>,
}

/// All of them, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    ready: bool,
    checks: Vec<Finding>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, found: found.into(), mend: None }
    }

    pub(crate) fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, status: Status::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Looks at this host and prints what it found; `true` when nothing failed.
///
/// # Errors
/// Standard output fails.
pub fn run(args: &ProbeArgs) -> io::Result<bool> {
    let checks = findings(&System::this());
    let ready = checks.iter().all(|finding| finding.status != Status::Fail);
    let mut stdout = io::stdout().lock();
    if args.json {
        let report = Report { version: env!("CARGO_PKG_VERSION"), ready, checks };
        serde_json::to_writer_pretty(&mut stdout, &report)?;
        stdout.write_all(b"\n")?;
    } else {
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        stdout.write_all(report::text(&checks, colour).as_bytes())?;
    }
    stdout.flush()?;
    Ok(ready)
}

/// Every check, in the order it is printed.
fn findings(system: &System) -> Vec<Finding> {
    let mut all = vec![limits::kernel(system), splice::transfer()];
    all.extend(limits::pipes(system));
    all.push(limits::descriptors(system));
    all.extend(network::findings(system));
    all.extend(devices::offloads(system));
    all.extend(cpu::findings(system));
    all.extend(sandbox());
    all
}

/// What the process could give up on this host.
fn sandbox() -> Vec<Finding> {
    let finding = |part: sandbox::Part| {
        let check = "sandbox";
        match part.state {
            sandbox::State::On(detail) => Finding::ok(check, format!("{}: {detail}", part.name)),
            sandbox::State::Off => Finding::ok(check, format!("{}: not wanted", part.name)),
            sandbox::State::Missing(why) => {
                let found = format!("{}: {why}; forwards run without it", part.name);
                Finding::warn(check, found, "allow it in this container or kernel, or run with --sandbox off")
            }
        }
    };
    sandbox::support().into_iter().map(finding).collect()
}
