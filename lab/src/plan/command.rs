//! Programs that run to their end: `ip`, `nft`, `tc`, `ethtool`.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::runner::{Outcome, StepError};
use super::stop;
use crate::place::Place;
use crate::tools;

/// How long such a program may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Most bytes kept of what a program says.
const MOST_SAID: u64 = 16 << 10;

/// Packages of the programs the lab itself runs, by their name in Debian.
const PACKAGES: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("sysctl", "procps"),
    ("sh", "dash"),
];

/// A command line in a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Where it runs.
    pub place: Place,
    /// The program and its arguments.
    pub words: Vec<OsString>,
}

impl CommandLine {
    /// A command line from words split at blanks.
    #[must_use]
    pub fn new(place: &Place, line: &str) -> Self {
        Self { place: place.clone(), words: line.split_ascii_whitespace().map(OsString::from).collect() }
    }

    /// A command line from words as they are.
    #[must_use]
    pub fn of<const N: usize>(place: &Place, words: [&str; N]) -> Self {
        Self { place: place.clone(), words: words.map(OsString::from).into() }
    }

    /// The whole line as a shell would take it.
    #[must_use]
    pub fn text(&self) -> String {
        let words = self.place.prefix.iter().chain(&self.words);
        Vec::from_iter(words.map(|word| quoted(&word.to_string_lossy()))).join(" ")
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When the program is missing, ends with another status than 0, takes too long, or the lab was asked to stop.
    pub fn run(&self) -> Result<Outcome, StepError> {
        run(self.command()?, LIMIT, true)
    }

    /// Runs it to its end also when the lab was asked to stop, as taking back must.
    ///
    /// # Errors
    /// As [`CommandLine::run`].
    pub fn run_through(&self) -> Result<Outcome, StepError> {
        run(self.command()?, LIMIT, false)
    }

    fn command(&self) -> io::Result<Command> {
        let (program, arguments) =
            self.words.split_first().ok_or_else(|| io::Error::other("a command without words"))?;
        for program in self.place.prefix.first().into_iter().chain([program]) {
            require(&program.to_string_lossy())?;
        }
        let mut command = self.place.command(program);
        command.args(arguments).env("PATH", tools::search_path());
        Ok(command)
    }
}

/// Runs a command to its end within a time; both of its outputs are kept as one.
fn run(mut command: Command, limit: Duration, stoppable: bool) -> Result<Outcome, StepError> {
    let (reader, writer) = io::pipe()?;
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let child =
        command.spawn().map_err(|error| io::Error::new(error.kind(), format!("cannot start {program}: {error}")))?;
    // The command holds the ends that are written to; while it lives, reading does not end.
    drop(command);
    let reading = std::thread::spawn(move || {
        let mut said = Vec::new();
        let mut reader = reader;
        // What cannot be read is missing from a message, no more.
        let _ = reader.by_ref().take(MOST_SAID).read_to_end(&mut said);
        let _ = io::copy(&mut reader, &mut io::sink());
        String::from_utf8_lossy(&said).trim().to_owned()
    });
    let mut child = Reaped(child);
    let probe = || child.0.try_wait();
    let waited = if stoppable { stop::wait(limit, probe) } else { stop::wait_through(limit, probe) };
    if !matches!(waited, Ok(Some(_))) {
        drop(child);
    }
    let output = reading.join().unwrap_or_default();
    let Some(status) = waited? else {
        let why = format!("{program} did not end within {} s{}", limit.as_secs(), tail(&output));
        return Err(io::Error::new(io::ErrorKind::TimedOut, why).into());
    };
    if status.success() {
        return Ok(Outcome { exit: status.code(), output });
    }
    Err(StepError { exit: status.code(), error: io::Error::other(format!("{status}{}", tail(&output))) })
}

/// Says which package has a program that is not there.
///
/// # Errors
/// Of the kind `NotFound`.
pub fn require(program: &str) -> io::Result<()> {
    if tools::on_path(program).is_some() { Ok(()) } else { Err(missing(program)) }
}

fn missing(program: &str) -> io::Error {
    let hint = PACKAGES.iter().find(|(name, _)| *name == program);
    let hint = hint.map_or_else(|| "install it".to_owned(), |(_, package)| format!("apt-get install {package}"));
    io::Error::new(io::ErrorKind::NotFound, format!("the program {program} is not on PATH; {hint}"))
}

/// A child that is not left behind, nor its children in its process group.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait()
            && let Ok(group) = i32::try_from(self.0.id())
        {
            // Both fail only when it has ended just now.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

fn tail(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!("; it said: {}", output.replace('\n', " | ")) }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let here = Place::here();
        let said = CommandLine::of(&here, ["sh", "-c", "echo a; echo b >&2"]).run().unwrap();
        assert_eq!(said, Outcome { exit: Some(0), output: "a\nb".to_owned() });
        let line = CommandLine::of(&here, ["sh", "-c", "echo no >&2; exit 3"]);
        assert_eq!(line.text(), "sh -c 'echo no >&2; exit 3'");
        let failed = line.run().unwrap_err();
        assert_eq!((failed.exit, failed.error.to_string().as_str()), (Some(3), "exit status: 3; it said: no"));
        let missing = CommandLine::new(&here, "no-such-program-of-ours x").run().unwrap_err();
        assert_eq!(missing.error.kind(), io::ErrorKind::NotFound);
        assert!(super::missing("ip").to_string().contains("apt-get install iproute2"));
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60; echo never"]);
        let failed = run(command, Duration::from_millis(30), true).unwrap_err();
        assert_eq!(failed.error.kind(), io::ErrorKind::TimedOut, "{}", failed.error);
    }
}
