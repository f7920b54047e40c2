//! What is told of a live A/B: each arm's numbers, and one sentence.

use std::fmt::Write;

use serde::Serialize;

use super::estimate::{Interval, Moments};
use super::sample::{ArmStats, Times};
use crate::plan::{Arm, Engine};
use crate::stats::{Bytes, HistogramSnapshot, Sum};

/// A verdict takes so many measured turns of each arm …
const LEAST_TURNS: u64 = 100;
/// … so many bytes in them …
const LEAST_BYTES: f64 = (1 << 20) as f64;
/// … and an interval whose ends are within this share of the estimate.
const WIDEST: f64 = 0.25;
/// Share of its bytes a splice arm has to move by splice for its name to be true.
const SPLICED: f64 = 0.99;

const NOT_YET: &str = "not enough data yet";

/// One arm of a forward over all workers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArmSnapshot {
    /// Its name in the plan.
    pub name: String,
    /// Its share of new sessions relative to the other arms.
    pub share: u32,
    /// Sessions dealt to it.
    pub sessions: u64,
    /// Its sessions open now.
    pub open: u64,
    /// Bytes by direction and path.
    pub bytes: Bytes,
    /// System calls that moved its bytes or tried to: recv, send, splice, shutdown.
    pub syscalls: u64,
    /// The same per GB of 10^9 bytes.
    pub syscalls_per_gb: Option<f64>,
    /// CPU seconds per GB in measured turns.
    pub cpu_seconds_per_gb: Option<f64>,
    /// Its 95 % interval.
    pub cpu_ci95: Option<[f64; 2]>,
    /// CPU per byte as a multiple of the last arm's; never for the last arm.
    pub cpu_ratio: Option<f64>,
    /// Its 95 % interval.
    pub cpu_ratio_ci95: Option<[f64; 2]>,
    /// What the estimates rest on.
    pub measured: Measured,
    /// From accept to the backend's first byte.
    pub first_byte_time: TimesSnapshot,
    /// From accept to the end.
    pub session_time: TimesSnapshot,
}

/// How much of an arm was measured.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Turns.
    pub turns: u64,
    /// Sessions they belong to.
    pub sessions: u64,
    /// Bytes delivered in them.
    pub bytes: u64,
    /// CPU time they took.
    pub cpu_seconds: f64,
}

/// Times over all workers.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct TimesSnapshot {
    /// As in the forward's own histograms.
    #[serde(flatten)]
    pub histogram: HistogramSnapshot,
    /// Mean in seconds.
    pub mean_seconds: Option<f64>,
    /// Its 95 % interval.
    pub mean_ci95: Option<[f64; 2]>,
}

/// Each arm's numbers and the verdict; `workers` gives each worker's counters, in the order of the arms. Empty and
/// `None` for a forward without arms.
#[must_use]
pub fn report(arms: &[Arm], workers: &[&[ArmStats]]) -> (Vec<ArmSnapshot>, Option<String>) {
    let of = |index: usize| workers.iter().filter_map(move |stats| stats.get(index));
    let moments: Vec<Moments> = (0..arms.len())
        .map(|index| {
            let mut moments = Moments::default();
            of(index).for_each(|stats| moments.add(stats));
            moments
        })
        .collect();
    let Some(base) = moments.last() else { return (Vec::new(), None) };
    let snapshot = |(index, arm): (usize, &Arm)| {
        let stats: Vec<&ArmStats> = of(index).collect();
        let against = if index + 1 < arms.len() { moments[index].against(base) } else { None };
        ArmSnapshot::new(arm, &stats, &moments[index], against)
    };
    let snapshots: Vec<ArmSnapshot> = arms.iter().enumerate().map(snapshot).collect();
    let verdict = verdict(arms, &snapshots, &moments);
    (snapshots, Some(verdict))
}

impl ArmSnapshot {
    fn new(arm: &Arm, stats: &[&ArmStats], moments: &Moments, against: Option<Interval>) -> Self {
        let mut bytes = Bytes::default();
        for stats in stats {
            bytes.client_to_backend.splice += stats.up_splice.get();
            bytes.client_to_backend.copy += stats.up_copy.get();
            bytes.backend_to_client.splice += stats.down_splice.get();
            bytes.backend_to_client.copy += stats.down_copy.get();
        }
        let sum = |counter: fn(&ArmStats) -> u64| stats.iter().map(|stats| counter(stats)).sum::<u64>();
        let syscalls = sum(|stats| stats.calls.get());
        let total = spliced(&bytes) + copied(&bytes);
        let cost = moments.cost_interval();
        Self {
            name: arm.name.clone(),
            share: arm.share,
            sessions: sum(|stats| stats.sessions.get()),
            open: sum(|stats| stats.open.get()),
            bytes,
            syscalls,
            syscalls_per_gb: (total > 0).then(|| syscalls as f64 / (total as f64 / 1e9)),
            cpu_seconds_per_gb: moments.cost(),
            cpu_ci95: cost.map(ends),
            cpu_ratio: against.map(|against| against.value),
            cpu_ratio_ci95: against.map(ends),
            measured: Measured {
                turns: moments.turns,
                sessions: moments.sessions,
                bytes: sum(|stats| stats.bytes.get()),
                cpu_seconds: moments.cpu_ns / 1e9,
            },
            first_byte_time: TimesSnapshot::sum(stats.iter().map(|stats| &stats.first_byte)),
            session_time: TimesSnapshot::sum(stats.iter().map(|stats| &stats.session)),
        }
    }
}

impl TimesSnapshot {
    fn sum<'a>(times: impl Iterator<Item = &'a Times> + Clone) -> Self {
        let mut histogram = HistogramSnapshot::default();
        times.clone().for_each(|times| times.histogram.add_to(&mut histogram));
        let squares: f64 = times.map(|times| &times.squares).map(Sum::get).sum();
        let count: u64 = histogram.buckets.iter().sum();
        let (sum, squares) = (histogram.sum_us as f64 / 1e6, squares / 1e12);
        let mean_ci95 = Interval::of_mean(count, sum, squares).map(ends);
        Self { histogram, mean_seconds: (count > 0).then(|| sum / count as f64), mean_ci95 }
    }
}

fn ends(interval: Interval) -> [f64; 2] {
    [interval.low, interval.high]
}

fn spliced(bytes: &Bytes) -> u64 {
    bytes.client_to_backend.splice + bytes.backend_to_client.splice
}

fn copied(bytes: &Bytes) -> u64 {
    bytes.client_to_backend.copy + bytes.backend_to_client.copy
}

/// Every arm against the last one.
fn verdict(arms: &[Arm], snapshots: &[ArmSnapshot], moments: &[Moments]) -> String {
    let Some((last, others)) = arms.split_last() else { return NOT_YET.to_owned() };
    let base = arms.len() - 1;
    let enough = |index: usize| moments[index].turns >= LEAST_TURNS && moments[index].bytes >= LEAST_BYTES;
    let mut said = Vec::new();
    let mut any = false;
    for (index, arm) in others.iter().enumerate() {
        let against = moments[index].against(&moments[base]).filter(|against| against.is_within(WIDEST));
        let Some(Interval { value, low, high }) = against.filter(|_| enough(index) && enough(base)) else {
            said.push(format!("{}: {NOT_YET}", arm.name));
            continue;
        };
        any = true;
        let mut text =
            format!("{} needs {value:.2} × the CPU per byte of {}, 95 % {low:.2}–{high:.2}", arm.name, last.name);
        if low <= 1.0 && 1.0 <= high {
            text.push_str(" (no clear difference)");
        }
        let sessions = snapshots[index].sessions + snapshots[base].sessions;
        // Writing to a String cannot fail.
        let _ = write!(text, ", {} sessions", grouped(sessions));
        said.push(text);
    }
    if !any {
        return NOT_YET.to_owned();
    }
    said.extend(arms.iter().zip(snapshots).filter_map(|(arm, snapshot)| untrue(arm, snapshot)));
    said.join("; ")
}

/// What to say where an arm called splice had to copy: the comparison then is not what its name promises.
fn untrue(arm: &Arm, snapshot: &ArmSnapshot) -> Option<String> {
    let (spliced, copied) = (spliced(&snapshot.bytes) as f64, copied(&snapshot.bytes) as f64);
    let share = spliced / (spliced + copied);
    (arm.engine == Engine::Splice && share < SPLICED)
        .then(|| format!("{} moved only {:.1} % of its bytes by splice, see fallbacks", arm.name, share * 100.0))
}

/// A number with a comma between thousands.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::sample::Sampled;
    use super::*;
    use crate::stats::PathBytes;

    fn arm(name: &str, engine: Engine) -> Arm {
        Arm { name: name.to_owned(), engine, copy_buffer: 65536, share: 50 }
    }

    fn arms() -> [Arm; 2] {
        [arm("splice", Engine::Splice), arm("copy-64KiB", Engine::Copy)]
    }

    /// `sessions` sessions of ten measured turns of 10,000 bytes, at that many ns per byte; every third a tenth dearer.
    fn counted(stats: &ArmStats, sessions: u64, cost: f64, by_splice: bool) {
        for session in 0..sessions {
            let mut sampled = Sampled::default();
            let cost = if session % 3 == 0 { 1.1 * cost } else { cost };
            (0..10).for_each(|_| stats.measured(&mut sampled, 10_000, (10_000.0 * cost) as u64));
            let (splice, copy) = if by_splice { (1_000_000, 0) } else { (0, 1_000_000) };
            let bytes = Bytes { client_to_backend: PathBytes { splice, copy }, ..Bytes::default() };
            stats.moved(Bytes::default(), bytes, 30);
            stats.sessions.add(1);
            stats.first_byte.record(Duration::from_millis(2));
            stats.session.record(Duration::from_millis(10 + session % 2));
        }
    }

    /// Two workers with that many sessions in each arm.
    fn workers(sessions: u64, costs: [f64; 2], by_splice: bool) -> Vec<Vec<ArmStats>> {
        let worker = || {
            let stats = vec![ArmStats::default(), ArmStats::default()];
            counted(&stats[0], sessions, costs[0], by_splice);
            counted(&stats[1], sessions, costs[1], false);
            stats
        };
        vec![worker(), worker()]
    }

    fn told(workers: &[Vec<ArmStats>]) -> (Vec<ArmSnapshot>, String) {
        let workers: Vec<&[ArmStats]> = workers.iter().map(Vec::as_slice).collect();
        let (snapshots, verdict) = report(&arms(), &workers);
        (snapshots, verdict.unwrap())
    }

    #[test]
    fn a_clear_difference_is_told_with_its_interval() {
        let (snapshots, verdict) = told(&workers(600, [0.32, 0.5], true));
        assert_eq!(
            verdict, "splice needs 0.64 × the CPU per byte of copy-64KiB, 95 % 0.64–0.64, 2,400 sessions",
            "{snapshots:?}"
        );
        let [splice, copy] = snapshots.as_slice() else { panic!("two arms") };
        assert_eq!((splice.sessions, splice.measured.sessions, splice.measured.turns), (1200, 1200, 12_000));
        assert_eq!((spliced(&splice.bytes), copied(&splice.bytes)), (1_200_000_000, 0));
        assert_eq!((spliced(&copy.bytes), copied(&copy.bytes)), (0, 1_200_000_000));
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 0.001;
        assert!(near(splice.syscalls_per_gb.unwrap(), 30_000.0), "{splice:?}");
        assert!(near(splice.cpu_seconds_per_gb.unwrap(), 0.32 * 3.1 / 3.0), "{splice:?}");
        let [low, high] = splice.cpu_ci95.unwrap();
        assert!(low < splice.cpu_seconds_per_gb.unwrap() && splice.cpu_seconds_per_gb.unwrap() < high);
        assert_eq!((copy.cpu_ratio, copy.cpu_ratio_ci95), (None, None), "nothing is compared with itself");
        assert!(near(splice.first_byte_time.mean_seconds.unwrap(), 0.002), "{splice:?}");
        let [low, high] = splice.session_time.mean_ci95.unwrap();
        assert!(0.0104 < low && low < 0.0105 && 0.0105 < high && high < 0.0106, "{low} {high}");
    }

    #[test]
    fn no_difference_is_told_as_such() {
        let (_, verdict) = told(&workers(60, [0.5, 0.5], true));
        assert_eq!(
            verdict,
            "splice needs 1.00 × the CPU per byte of copy-64KiB, 95 % 0.99–1.01 (no clear difference), 240 sessions"
        );
    }

    #[test]
    fn a_splice_arm_that_copies_is_found_out() {
        let (_, verdict) = told(&workers(60, [0.5, 0.5], false));
        assert!(
            verdict.ends_with("sessions; splice moved only 0.0 % of its bytes by splice, see fallbacks"),
            "{verdict}"
        );
    }

    #[test]
    fn too_little_is_said() {
        for workers in [
            Vec::new(),
            vec![vec![ArmStats::default(), ArmStats::default()]],
            // 80 turns in each arm, or 100 with less than a mebibyte.
            workers(4, [0.32, 0.5], true),
            workers(5, [0.32, 0.5], true),
        ] {
            let (snapshots, verdict) = told(&workers);
            assert_eq!(verdict, "not enough data yet", "{snapshots:?}");
        }
        let (_, verdict) = told(&workers(6, [0.32, 0.5], true));
        assert!(verdict.starts_with("splice needs 0.64 ×"), "{verdict}");
    }

    #[test]
    fn wide_intervals_are_not_told() {
        let mut workers = workers(60, [0.32, 0.5], true);
        for worker in &mut workers {
            // Two thirds of the splice sessions are five times as dear.
            counted(&worker[0], 2, 50.0, true);
        }
        let (snapshots, verdict) = told(&workers);
        let [low, high] = snapshots[0].cpu_ratio_ci95.unwrap();
        assert!(high / low > 1.6, "{low} {high}");
        assert_eq!(verdict, "not enough data yet");
    }

    #[test]
    fn every_arm_is_held_against_the_last() {
        let arms = [arm("splice", Engine::Splice), arm("auto", Engine::Auto), arm("copy", Engine::Copy)];
        let worker: Vec<ArmStats> = arms.iter().map(|_| ArmStats::default()).collect();
        counted(&worker[0], 60, 0.3, true);
        counted(&worker[2], 60, 0.6, false);
        let (_, verdict) = report(&arms, &[&worker]);
        let verdict = verdict.unwrap();
        assert!(verdict.starts_with("splice needs 0.50 × the CPU per byte of copy, "), "{verdict}");
        assert!(verdict.ends_with(", 120 sessions; auto: not enough data yet"), "{verdict}");
    }

    #[test]
    fn a_forward_without_arms_has_no_verdict() {
        assert_eq!(report(&[], &[&[]]), (Vec::new(), None));
    }

    #[test]
    fn thousands_are_grouped() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_431, "12,431"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
    }
}
