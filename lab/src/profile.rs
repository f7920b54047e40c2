//! Where one forwarder spends its time: perf's samples as a flame graph, and the functions on top.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options as FolderOptions};
use inferno::flamegraph::{self, Options};
use nix::sys::signal::Signal;

use crate::process::{Process, failed};
use crate::sample::Tree;
use crate::sample::counters::{joined, opened_events};
use crate::tools::{self, PERF};

/// How long perf may take to attach, and to write what it has.
const PATIENCE: Duration = Duration::from_secs(30);
/// Samples per second of CPU time. No divisor of what timers go by, so that it does not run in step with them.
const FREQUENCY: &str = "997";
/// Functions that are listed.
const LISTED: usize = 20;

/// A running `perf record`.
#[derive(Debug)]
pub struct Recording {
    perf: Process,
    program: PathBuf,
    directory: PathBuf,
    event: &'static str,
}

/// What was recorded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// The flame graph.
    pub svg: PathBuf,
    /// Stacks and their counts, one a line, for other tools.
    pub folded: PathBuf,
    /// What was sampled: `cycles`, or `cpu-clock` where the machine has no cycle counter.
    pub event: String,
    /// Samples taken.
    pub samples: u64,
    /// Functions that ran themselves, the most frequent first.
    pub top: Vec<Function>,
}

/// A function of the forwarder or the kernel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Share of the samples it was running itself in, 0 to 1.
    pub itself: f64,
    /// Share of the samples it or something it called was running in.
    pub total: f64,
}

impl Recording {
    /// Begins to record every thread of a tree; files go to `directory`.
    ///
    /// # Errors
    /// When perf is missing (with how to get it) or may not record.
    pub fn start(tree: &Tree, directory: &Path) -> io::Result<Self> {
        let program = PERF.require()?;
        let event = event(&program);
        let data = directory.join("perf.data");
        let mut command = Command::new(&program);
        command
            .args(["record", "-q", "-g", "-F", FREQUENCY, "-e", event, "-p", &joined(&tree.pids()), "-o"])
            .arg(&data);
        let mut perf = Process::start("perf record", command, &directory.join("perf-record.log"))?;
        let pid = perf.pid();
        perf.wait_until("recording", PATIENCE, || opened_events(pid))?;
        Ok(Self { perf, program, directory: directory.to_owned(), event })
    }

    /// Ends recording and draws `flamegraph.svg`.
    ///
    /// # Errors
    /// When perf ended before, took no sample, or its files cannot be read or written.
    pub fn finish(mut self, title: &str) -> io::Result<Profile> {
        self.perf.stop(Signal::SIGINT, PATIENCE)?;
        let script = self.directory.join("perf-script.txt");
        // Appended to otherwise.
        let _ = fs::remove_file(&script);
        let mut command = Command::new(&self.program);
        // Without inlined frames: finding them takes minutes with full debug information.
        command.args(["script", "--no-inline", "-i"]).arg(self.directory.join("perf.data"));
        let log = self.directory.join("perf-script.log");
        let mut process = Process::start_split("perf script", command, &script, &log)?;
        let status = process.wait_for_end(PATIENCE)?;
        if !status.success() {
            return Err(io::Error::other(format!("perf script failed ({status}){}", process.said())));
        }
        let mut profile = draw(&script, &self.directory, title, self.event)?;
        // It is large, and says nothing that the folded stacks do not.
        let _ = fs::remove_file(&script);
        profile.event = self.event.to_owned();
        Ok(profile)
    }
}

/// Cycles where the machine counts them, else the clock of the CPU: coarser, and blind where interrupts are off.
fn event(perf: &Path) -> &'static str {
    let said = tools::output_of(perf, &["stat", "-x", ",", "-e", "cycles", "true"]).unwrap_or_default();
    let counted = said.lines().any(|line| {
        let mut fields = line.split(',');
        fields.next().is_some_and(|value| value.parse::<u64>().is_ok()) && line.contains("cycles")
    });
    if counted { "cycles" } else { "cpu-clock" }
}

/// From `perf script`'s output to the graph.
fn draw(script: &Path, directory: &Path, title: &str, event: &str) -> io::Result<Profile> {
    let at = |what: &str, path: &Path| {
        let what = format!("cannot {what} {}", path.display());
        move |error: io::Error| failed(&error, &what)
    };
    let (folded, svg) = (directory.join("stacks.folded"), directory.join("flamegraph.svg"));
    let input = File::open(script).map_err(at("read", script))?;
    let output = File::create(&folded).map_err(at("write", &folded))?;
    let mut options = FolderOptions::default();
    options.annotate_kernel = true;
    Folder::from(options).collapse(BufReader::new(input), BufWriter::new(output)).map_err(at("fold", script))?;
    let text = fs::read_to_string(&folded).map_err(at("read", &folded))?;
    let (samples, top) = functions(&text);
    if samples == 0 {
        return Err(io::Error::other(
            "perf took no sample: the forwarder had nothing to do, or perf may not look at it",
        ));
    }
    let mut options = Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(format!("{samples} samples of {event}"));
    options.count_name = "samples".to_owned();
    let file = File::create(&svg).map_err(at("write", &svg))?;
    flamegraph::from_lines(&mut options, text.lines(), BufWriter::new(file)).map_err(at("draw", &svg))?;
    Ok(Profile { svg, folded, event: event.to_owned(), samples, top })
}

/// All samples, and the functions that ran most, of lines `outermost;…;innermost COUNT`.
fn functions(folded: &str) -> (u64, Vec<Function>) {
    let mut counted: HashMap<&str, (u64, u64)> = HashMap::new();
    let mut samples = 0;
    for line in folded.lines() {
        let Some((stack, count)) = line.rsplit_once(' ') else { continue };
        let Ok(count) = count.parse::<u64>() else { continue };
        samples += count;
        // The first is the name of the thread.
        let mut frames: Vec<&str> = stack.split(';').skip(1).collect();
        if let Some(innermost) = frames.last() {
            counted.entry(innermost).or_default().0 += count;
        }
        // A function that calls itself is in the stack more than once and counts once.
        frames.sort_unstable();
        frames.dedup();
        for frame in frames {
            counted.entry(frame).or_default().1 += count;
        }
    }
    let share = |n: u64| n as f64 / (samples.max(1)) as f64;
    let function = |(name, (itself, total)): (&str, (u64, u64))| Function {
        // The mark of the kernel's functions is for the colours of the graph.
        name: name.trim_end_matches("_[k]").to_owned(),
        itself: share(itself),
        total: share(total),
    };
    let mut functions: Vec<Function> = counted.into_iter().map(function).collect();
    functions.sort_by(|a, b| b.itself.total_cmp(&a.itself).then(b.total.total_cmp(&a.total)).then(a.name.cmp(&b.name)));
    functions.truncate(LISTED);
    (samples, functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_ranked_by_their_own_time() {
        let folded =
            "worker-0;run;advance;splice_[k] 60\nworker-0;run;advance;recv_[k];copy_[k] 30\nworker-1;run;run 10\n";
        let (samples, top) = functions(folded);
        assert_eq!(samples, 100);
        assert_eq!(top[0], Function { name: "splice".into(), itself: 0.6, total: 0.6 });
        assert_eq!(top[1], Function { name: "copy".into(), itself: 0.3, total: 0.3 });
        let run = top.iter().find(|function| function.name == "run").unwrap();
        assert_eq!((run.itself, run.total), (0.1, 1.0), "once for each sample");
        assert_eq!(functions("no numbers here\n"), (0, Vec::new()));
    }

    #[test]
    fn recorded_stacks_become_a_graph() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, include_str!("fixtures/perf-script.txt")).unwrap();
        let profile = draw(&script, directory.path(), "splice, 8 streams", "cpu-clock").unwrap();
        assert!(profile.samples >= 3, "{profile:?}");
        let svg = fs::read_to_string(&profile.svg).unwrap();
        assert!(svg.contains("<svg") && svg.contains("splice, 8 streams"));
        assert!(profile.top.iter().any(|function| svg.contains(&function.name)), "{profile:?}");
        fs::write(&script, "").unwrap();
        assert!(draw(&script, directory.path(), "nothing", "cpu-clock").is_err());
    }
}
