//! `lab capacity`: what sessions hold as their number grows, what one costs, and how many this host can have.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use super::action::{Action, hold_name};
use super::arm::{Arm, What};
use super::bench::Bench;
use super::progress::Progress;
use super::{Experiment, Finished, not_taken_back, table, take_back};
use crate::load::HoldKind;
use crate::plan::runner::{Failed, Runner};
use crate::plan::stop;
use crate::plan::trace::Trace;
use crate::results::{Kind, Missing, Results, Round, Series};
use crate::sample::memory;
use crate::statistics;

/// Allocators that can be put in front of the system's: name, package in Debian, libraries.
const ALLOCATORS: [(&str, &str, &[&str]); 2] = [
    ("jemalloc", "libjemalloc2", &["libjemalloc.so.2"]),
    ("mimalloc", "libmimalloc2.0", &["libmimalloc.so.3", "libmimalloc.so.2"]),
];
/// Where libraries are, below each of these or of a directory in it.
const LIBRARIES: [&str; 4] = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib"];

/// Numbers of sessions to stop at, by what the sessions do.
pub type Stops = Vec<(HoldKind, Vec<u32>)>;

/// The arms again with each allocator that is installed, and what is not.
#[must_use]
pub fn with_allocators(arms: &[Arm]) -> (Vec<Arm>, Vec<Missing>) {
    let (mut more, mut missing) = (Vec::new(), Vec::new());
    for (name, package, files) in ALLOCATORS {
        let Some(path) = files.iter().find_map(|file| library(file)) else {
            let how = format!("{} is not installed; apt install {package}", files[0]);
            missing.push(Missing { name: name.to_owned(), how });
            continue;
        };
        for arm in arms.iter().filter(|arm| arm.name == "auto") {
            let mut arm = arm.clone();
            if let What::Engine(options) = &mut arm.what {
                options.environment.push(("LD_PRELOAD".to_owned(), path.display().to_string()));
            }
            arm.name = format!("{}-{name}", arm.name);
            more.push(arm);
        }
    }
    (more, missing)
}

fn library(file: &str) -> Option<PathBuf> {
    LIBRARIES.iter().find_map(|directory| {
        let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        std::iter::once(PathBuf::from(directory)).chain(below).map(|at| at.join(file)).find(|path| path.is_file())
    })
}

impl Experiment {
    /// Grows sessions through every arm. Call it inside, as [`Experiment::run`].
    ///
    /// # Errors
    /// When the trace cannot be written.
    pub fn grow(&self, stops: &Stops, spliced: &Path, out: &Path) -> std::io::Result<Finished> {
        let mut results = self.results(spliced);
        let mut runner = Runner::new(Bench::new(spliced, out), Trace::create(out)?);
        let mut progress = Progress::new(u64::try_from(stops.len() * self.arms.len()).unwrap_or(u64::MAX));
        let mut all = || {
            runner.take_all(&Self::setup(&self.links))?;
            for (kind, numbers) in stops {
                for arm in &self.arms {
                    one(&mut runner, arm, *kind, numbers, &mut results, &mut progress)?;
                }
            }
            Ok(())
        };
        let failed: Result<(), Failed> = all();
        progress.finish();
        take_back(&mut runner);
        results.take_versions(std::mem::take(&mut runner.bench.versions));
        Ok(Finished { results, failed: failed.err() })
    }
}

fn one(
    runner: &mut Runner<Action>,
    arm: &Arm,
    kind: HoldKind,
    numbers: &[u32],
    results: &mut Results,
    progress: &mut Progress,
) -> Result<(), Failed> {
    let what = format!("{}, {}", hold_name(kind), arm.name);
    progress.begin(&what);
    runner.bench.points.clear();
    let load = hold_name(kind).to_owned();
    runner.bench.round =
        Round { round: 1, arm: arm.name.clone(), kind: arm.kind, load: load.clone(), ..Round::default() };
    let depth = runner.depth();
    let steps = [Action::Start(arm.clone()), Action::Hold(arm.clone(), kind)];
    let grown = runner.take_all(steps.iter().chain(&Vec::from_iter(numbers.iter().map(|total| Action::Grow(*total)))));
    let back = runner.back_to(depth);
    let mut round = std::mem::take(&mut runner.bench.round);
    round.notes.extend(back.iter().map(not_taken_back));
    let points = std::mem::take(&mut runner.bench.points);
    let series = Series { arm: arm.name.clone(), load, x: "sessions".to_owned(), points };
    for (sample, name) in [
        ("private_dirty_bytes", "user_bytes_per_session"),
        ("kernel_bytes", "kernel_bytes_per_session"),
        ("kernel_tcp_bytes", "kernel_tcp_bytes_per_session"),
        ("descriptors", "descriptors_per_session"),
        ("pipes", "pipes_per_session"),
    ] {
        if let Some(slope) = slope(&series, sample) {
            round.samples.insert(name.to_owned(), slope);
        }
    }
    if let Some(limit) = limit(&round) {
        round.notes.push(limit);
    }
    let line = match &grown {
        Ok(()) => headline(&round),
        Err(failed) => failed.to_string(),
    };
    progress.end(&format!("{what}: {line}"));
    round.error = grown.as_ref().err().map(Failed::to_string);
    results.rounds.push(round);
    results.series.push(series);
    match grown {
        // What the kernel alone or one forwarder cannot do keeps no other from being measured.
        Err(failed) if failed.stopped() || stop::requested() => Err(failed),
        _ => Ok(()),
    }
}

/// What one session more costs.
fn slope(series: &Series, sample: &str) -> Option<f64> {
    let points: Vec<(f64, f64)> =
        series.points.iter().filter_map(|point| Some((point.x, *point.values.get(sample)?))).collect();
    statistics::slope(&points)
}

/// How many sessions this host holds, and which limit comes first.
fn limit(round: &Round) -> Option<String> {
    if round.kind == Kind::Limit {
        return None;
    }
    let of = |name: &str| round.samples.get(name).copied().filter(|value| *value > 0.0);
    let bytes = of("user_bytes_per_session").unwrap_or(0.0) + of("kernel_bytes_per_session")?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let share = |most: u64, each: f64| most as f64 / each;
    let mut limits = vec![("memory", share(memory::available()?, bytes))];
    if let (Some(per_session), Some(most)) = (of("kernel_tcp_bytes_per_session"), memory::tcp_most()) {
        limits.push(("data in TCP buffers (net.ipv4.tcp_mem)", share(most, per_session)));
    }
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard);
    if let (Some(per_session), Some(most)) = (of("descriptors_per_session"), descriptors) {
        limits.push(("descriptors (ulimit -Hn)", share(most, per_session)));
    }
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<f64>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    limits.push(("ports to one backend address (net.ipv4.ip_local_port_range)", last - first + 1.0));
    limits.sort_by(|a, b| a.1.total_cmp(&b.1));
    let told = limits.iter().map(|(name, most)| format!("{most:.0} by {name}"));
    Some(format!("sessions this host holds: {}", Vec::from_iter(told).join(", ")))
}

const COLUMNS: [(&str, &str); 5] = [
    ("user_bytes_per_session", "user B each"),
    ("kernel_bytes_per_session", "kernel B each"),
    ("kernel_tcp_bytes_per_session", "of it TCP data"),
    ("descriptors_per_session", "descriptors each"),
    ("pipes_per_session", "pipes each"),
];

fn headline(round: &Round) -> String {
    let columns = COLUMNS
        .iter()
        .filter_map(|(name, words)| round.samples.get(*name).map(|value| format!("{} {words}", table::number(*value))));
    Vec::from_iter(columns).join(", ")
}

/// What was found, for a terminal.
#[must_use]
pub fn text(results: &Results) -> String {
    let mut rows = vec![vec!["sessions".to_owned(), "arm".to_owned()]];
    rows[0].extend(COLUMNS.map(|(_, words)| words.to_owned()));
    let mut notes = String::new();
    for round in &results.rounds {
        let mut row = vec![round.load.clone(), round.arm.clone()];
        row.extend(
            COLUMNS.map(|(name, _)| round.samples.get(name).map_or("–".to_owned(), |value| table::number(*value))),
        );
        rows.push(row);
        for note in round.notes.iter().chain(&round.error) {
            notes.push_str(&format!("{}, {}: {note}\n", round.load, round.arm));
        }
    }
    for missing in &results.missing {
        notes.push_str(&format!("missing: {}: {}\n", missing.name, missing.how));
    }
    let hint = "kernel memory is that of client, forwarder and server together; `direct` shows what the ends alone take; pages that \
         wait in pipes are not in it\n";
    format!("\n{}{hint}{notes}", table::aligned(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Point;

    #[test]
    fn a_session_costs_the_slope() {
        let point = |x, y| Point { x, values: [("kernel_bytes".to_owned(), y)].into() };
        let points = vec![point(0.0, 1000.0), point(10.0, 6000.0), point(20.0, 11_000.0)];
        let series = Series { points, ..Series::default() };
        assert_eq!(slope(&series, "kernel_bytes"), Some(500.0));
        assert_eq!(slope(&series, "pipes"), None);
    }

    #[test]
    fn the_first_limit_is_said() {
        let samples =
            [("kernel_bytes_per_session".to_owned(), 1.0), ("descriptors_per_session".to_owned(), 1e9)].into();
        let told = limit(&Round { samples, ..Round::default() }).unwrap();
        assert!(told.starts_with("sessions this host holds: 0 by descriptors"), "{told}");
        assert_eq!(limit(&Round::default()), None);
    }
}
