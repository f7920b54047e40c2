//! The program: a command line becomes one command.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use env_logger::{Env, Target, WriteStyle};
use spliced::cli::{CheckArgs, Cli, Command, one_line};
use spliced::config::{self, ConfigError};
use spliced::control::Source;
use spliced::plan::Plan;
use spliced::session_log::Stderr;
use spliced::upgrade::Predecessor;
use spliced::{ab, control, manual, probe, top};

/// Something failed while running.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    start_log(&cli);
    match cli.command {
        Command::Forward(args) => run(None, || config::from_args(&args.listen, &args.target, &args.options)),
        Command::Run(args) => {
            let source = Source { path: args.config, overrides: args.options };
            run(Some(source.clone()), || config::load(&source.path, &source.overrides))
        }
        Command::Check(args) => check(&args),
        Command::Completions(args) => ended(write(&manual::completions(args.shell))),
        Command::Convert(args) => print(config::convert(&args.file)),
        Command::Man => ended(manual::page().and_then(|page| write(page.as_bytes()))),
        Command::Probe(args) => probed(probe::run(&args)),
        Command::Reload(args) => match control::reload_command(args.control.as_ref()) {
            Ok(Err(why)) => fail(&format!("nothing has changed: {why}"), WRONG),
            result => ended(result.map(|_| ())),
        },
        Command::Stats(args) => ended(control::stats_command(args.control.as_ref(), args.json)),
        Command::Target(args) => {
            ended(control::target_command(args.control.as_ref(), &args.forward, &args.target, args.action.into()))
        }
        Command::Top(args) => ended(top::run(&args)),
        Command::Upgrade(args) => ended(control::upgrade_command(args.control.as_ref())),
        Command::Ab(args) => ended(ab::run(&args)),
        Command::AbRole(args) => ended(ab::run_role(&args)),
    }
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
            WRONG.into()
        }
        _ => fail(&one_line(error), WRONG),
    }
}

/// Time, level and message on standard error; the module too once somebody asks for details.
fn start_log(cli: &Cli) {
    let level = match (cli.quiet, cli.verbose) {
        (0, 0) => "info",
        (0, 1) => "debug",
        (0, _) => "trace",
        (1, _) => "warn",
        (_, _) => "error",
    };
    let mut builder = env_logger::Builder::from_env(Env::default().default_filter_or(level));
    let style = if io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        WriteStyle::Always
    } else {
        WriteStyle::Never
    };
    // Nothing may ever wait for whoever reads standard error, or does not.
    builder.write_style(style).target(Target::Pipe(Box::new(Stderr)));
    builder.format_target(cli.verbose > 0).format_timestamp_millis().init();
}

fn check(args: &CheckArgs) -> ExitCode {
    let plan = match config::load(&args.config, &args.options) {
        Err(error) => return wrong(&error),
        Ok(plan) => plan,
    };
    let Some(instance) = &args.against else { return print(Ok(config::render(&plan))) };
    match control::against_command(instance, &plan) {
        Ok(diff) => print(Ok(diff)),
        Err(error) => fail(&error.to_string(), FAILED),
    }
}

/// Runs the plan that `load` makes of the source, or of the command line alone.
fn run(source: Option<Source>, load: impl FnOnce() -> Result<Plan, ConfigError>) -> ExitCode {
    // Before anything is read: in a process that takes over, standard input is where it takes over from.
    let predecessor = match Predecessor::connect() {
        Ok(predecessor) => predecessor,
        Err(error) => return fail(&error, FAILED),
    };
    if predecessor.is_some() && source.as_ref().is_some_and(|source| source.path == Path::new("-")) {
        return fail("the configuration was read from standard input and cannot be read again; use a file", WRONG);
    }
    match load() {
        Err(error) => wrong(&error),
        Ok(plan) => match control::run(plan, source, predecessor) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error.to_string(), FAILED),
        },
    }
}

fn print(text: Result<String, ConfigError>) -> ExitCode {
    match text {
        Err(error) => wrong(&error),
        Ok(text) => ended(write(text.as_bytes())),
    }
}

fn write(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text).and_then(|()| stdout.flush())
}

/// A configuration error stands alone where it names its file, so that editors can jump to it.
fn wrong(error: &ConfigError) -> ExitCode {
    if error.place.is_none() {
        return fail(&error.to_string(), WRONG);
    }
    let _ = writeln!(io::stderr(), "{error}");
    WRONG.into()
}

fn ended(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has had enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), FAILED),
    }
}

/// A host that is not ready is a failure, and what is missing has been printed.
fn probed(ready: io::Result<bool>) -> ExitCode {
    match ready {
        Ok(false) => FAILED.into(),
        Ok(true) => ExitCode::SUCCESS,
        Err(error) => ended(Err(error)),
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "spliced: {message}");
    code.into()
}
