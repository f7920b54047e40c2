//! The commands: each makes a plan and runs it.

mod experiments;
mod others;
mod prepare;
mod up;

use std::fmt;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::load;
use crate::plan::runner::Failed;
use crate::report;

/// Something failed while running.
const FAILED: u8 = 1;
/// The command line or a file is wrong.
const WRONG: u8 = 2;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// The command line or a file is wrong; nothing was started.
    Wrong(String),
    /// Something failed while running.
    Failed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Wrong(what) | Self::Failed(what)) = self;
        f.write_str(what)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        if failed.stopped() {
            return Self::Failed("stopped as asked; every step was taken back".to_owned());
        }
        Self::Failed(failed.to_string())
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => {
            // A file's error stands alone, so that editors can jump to it.
            let place = matches!(&error, Error::Wrong(what) if what.split(':').nth(1).is_some_and(|n| n.parse::<u32>().is_ok()));
            crate::tell!("{}{error}", if place { "" } else { "lab: " });
            ExitCode::from(if matches!(error, Error::Wrong(_)) { WRONG } else { FAILED })
        }
    }
}

fn run(command: &Command) -> Result<ExitCode, Error> {
    match command {
        Command::Up(args) => up::up(args)?,
        Command::Down => up::down()?,
        Command::Status => up::status()?,
        Command::Ab(args) => return experiments::ab(args),
        Command::Rr(args) => return experiments::rr(args),
        Command::Crr(args) => return experiments::crr(args),
        Command::Stream(args) => return experiments::stream(args),
        Command::Run(args) => return experiments::run(args),
        Command::Report(args) => {
            report::rewrite(&args.dir)?;
            crate::show!("written again: {}", args.dir.display());
        }
        Command::Role(args) => load::run_role(args)?,
        Command::Capacity(args) => return others::capacity(args),
        Command::Profile(args) => return others::profile(args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Help goes to standard output, a mistake to standard error in one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that has gone away (`| head`) wants no more of it.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(WRONG)
        }
        _ => {
            crate::tell!("lab: {}", spliced::cli::one_line(error).replace("spliced --help", "lab --help"));
            ExitCode::from(WRONG)
        }
    }
}
