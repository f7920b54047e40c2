//! The manual page and shell completions, both made from the command line's own definition.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::{env, io};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use jiff::Timestamp;

use crate::cli::Cli;

const NAME: &str = "spliced";
/// Tells when what is built was last changed, in seconds since 1970; <https://reproducible-builds.org/specs/source-date-epoch>.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What no option says; roff(7) source.
const CLOSING: &str = r#".SH SIGNALS
.TP
SIGTERM, SIGINT
Stop accepting, let sessions finish up to the drain timeout, exit 0. A second one ends them at once.
.TP
SIGHUP
Read the configuration again; what did not change is not touched.
.TP
SIGUSR1
Open the session log by its name again, after it was rotated.
.TP
SIGUSR2
Hand over to the binary that is now at the place of this one.
.SH "EXIT STATUS"
.TP
0
Fine.
.TP
1
Failed while running, such as an address in use. For probe: a check failed.
.TP
2
Wrong usage or configuration.
.SH ENVIRONMENT
.TP
RUST_LOG
What is logged, such as debug; goes before \-v and \-q.
.TP
NO_COLOR
No colours, also on a terminal.
.SH FILES
.TP
/etc/spliced/spliced.yaml
The configuration of the service.
.TP
/run/spliced/control.sock
Where spliced stats and spliced top ask, unless told otherwise.
.SH "SEE ALSO"
splice(2), pipe(7), tcp(7), systemd.unit(5)
"#;

/// `spliced completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell that completes
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// The script that completes the program's command line in a shell.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), NAME, &mut script);
    script
}

/// The command line without the commands people do not type.
fn visible() -> Command {
    let whole = Cli::command();
    let shown: Vec<Command> = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let options = whole.get_arguments().cloned();
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_help(whole.get_after_help().cloned().unwrap_or_default())
        .subcommand_required(true)
        .args(options)
        .subcommands(shown)
}

/// The manual page, one for all commands, as roff(7) source.
///
/// Its date is that of the variable `SOURCE_DATE_EPOCH`, else today's.
///
/// # Errors
/// When that variable is set and is no time.
pub fn page() -> io::Result<String> {
    let whole = visible();
    let man = Man::new(whole.clone()).title(NAME.to_uppercase()).manual("User Commands").date(date()?);
    let man = man.source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")));
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    let mut page = text(out)?;
    example(&mut page, &whole);
    let forward = whole.find_subcommand("forward").cloned().unwrap_or_default();
    for command in whole.get_subcommands() {
        page.push_str(&section(command, &forward)?);
    }
    page.push_str(CLOSING);
    Ok(tidy(&portable(&page)))
}

/// The day for the foot of the page, as mandoc(1) wants it: `2026-11-21`, in UTC.
fn date() -> io::Result<String> {
    let seconds =
        |value: OsString| value.to_str()?.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let time = match env::var_os(EPOCH) {
        None => Timestamp::now(),
        Some(value) => seconds(value).ok_or_else(|| {
            let why = format!("{EPOCH} is not a number of seconds since 1970 such as 1700000000; correct or unset it");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?,
    };
    Ok(time.strftime("%Y-%m-%d").to_string())
}

/// A command's part of the page. Options it shares with `forward` are explained there.
fn section(command: &Command, forward: &Command) -> io::Result<String> {
    let full_name = format!("{NAME} {}", command.get_name());
    // Only a command that takes all of a forward's options shares them; `--control` of `stats` is its own.
    let takes_all =
        command.get_name() != forward.get_name() && command.get_arguments().any(|arg| arg.get_id() == "engine");
    let own = command.clone().display_name(&full_name).bin_name(&full_name).disable_help_flag(true).mut_args(|arg| {
        let shared = takes_all && forward.get_arguments().any(|other| other.get_id() == arg.get_id());
        if shared { arg.hide(true) } else { arg }
    });
    // With dozens of options the synopsis would say nothing.
    let own = match command.get_name() {
        "forward" => own.override_usage("spliced forward [OPTIONS] LISTEN TARGET"),
        "run" | "check" => own.override_usage(format!("{full_name} -c FILE [OPTIONS]")),
        _ => own,
    };
    let man = Man::new(own.clone());
    let (mut synopsis, mut description, mut options) = (Vec::new(), Vec::new(), Vec::new());
    man.render_synopsis_section(&mut synopsis)?;
    man.render_description_section(&mut description)?;
    man.render_options_section(&mut options)?;
    let mut out = format!(".SH \"{}\"\n", full_name.to_uppercase());
    for part in [synopsis, description, options] {
        // A command is a section of the one page, so what is a section of its own page is a part of that.
        for line in text(part)?.lines().filter(|line| !matches!(*line, ".SH SYNOPSIS" | ".SH DESCRIPTION")) {
            match line.strip_prefix(".SH ") {
                Some(title) => _ = writeln!(out, ".SS {title}"),
                // Said once, at the top of the page.
                None if line.ends_with(".ds Aq \\(aq") || line.ends_with(".ds Aq '") => {}
                None => _ = writeln!(out, "{line}"),
            }
        }
        out.push_str(".PP\n");
    }
    if takes_all {
        out.push_str("Every option of \\fBspliced forward\\fR may be given too.\n");
    }
    example(&mut out, &own);
    Ok(out)
}

/// The text below a command's help, line by line as it is written there.
fn example(out: &mut String, command: &Command) {
    let Some(text) = command.get_after_help() else { return };
    out.push_str(".PP\n.nf\n");
    for line in text.to_string().lines() {
        let escaped = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
        let guard = if escaped.starts_with('.') { "\\&" } else { "" };
        let _ = writeln!(out, "{guard}{escaped}");
    }
    out.push_str(".fi\n");
}

/// roff(7) is ASCII; every other character has a name of its own.
fn portable(page: &str) -> String {
    let mut out = String::with_capacity(page.len());
    for c in page.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            let _ = write!(out, "\\[u{:04X}]", u32::from(c));
        }
    }
    out
}

/// Leaves out requests that ask for space where there already is some.
fn tidy(page: &str) -> String {
    let lines: Vec<&str> = page.lines().collect();
    let is = |at: Option<usize>, requests: &[&str]| {
        let line = at.and_then(|at| lines.get(at)).copied().unwrap_or_default();
        requests.iter().any(|request| line == *request || line.starts_with(&format!("{request} ")))
    };
    let wanted = |at: &usize| match lines[*at] {
        ".PP" => !is(Some(at + 1), &[".PP", ".SH", ".SS", ".TP"]),
        ".br" => !is(at.checked_sub(1), &[".sp", ""]) && !is(Some(at + 1), &[".sp", ""]),
        _ => true,
    };
    (0..lines.len()).filter(wanted).flat_map(|at| [lines[at], "\n"]).collect()
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(io::Error::other)
}
