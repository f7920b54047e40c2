//! From measured turns to a ratio and the interval it lies in.
//!
//! The unit is the session, for that is what is dealt: turns of one session are alike (its peers, its messages), and an
//! interval that took them for independent would call any two clients a difference between arms. So every sum of squares
//! runs over sessions, and few or very unequal sessions make the interval wide, however many turns they had.

use super::sample::ArmStats;

/// Below so many sessions of equal weight there is no interval: nothing is known about how sessions differ.
const LEAST_SESSIONS: f64 = 3.0;

/// The measured turns of one arm.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Moments {
    /// How many there were.
    pub turns: u64,
    /// Sessions they belong to.
    pub sessions: u64,
    /// Bytes delivered.
    pub bytes: f64,
    /// CPU time in nanoseconds.
    pub cpu_ns: f64,
    /// Over sessions with X bytes and Y nanoseconds each: ΣX².
    pub bytes_squared: f64,
    /// ΣY².
    pub cpu_squared: f64,
    /// ΣXY.
    pub products: f64,
}

/// An estimate and what it lies between with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// How uncertain the logarithm of a cost is.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    variance: f64,
    /// Degrees of freedom behind it.
    freedom: f64,
}

impl Moments {
    /// Adds one worker's counters of the arm.
    pub fn add(&mut self, stats: &ArmStats) {
        self.turns += stats.turns.get();
        self.sessions += stats.measured.get();
        self.bytes += stats.bytes.get() as f64;
        self.cpu_ns += stats.cpu_ns.get() as f64;
        self.bytes_squared += stats.bytes_squared.get();
        self.cpu_squared += stats.cpu_squared.get();
        self.products += stats.products.get();
    }

    /// CPU time per byte: nanoseconds per byte, which is seconds per GB of 10^9 bytes. `None` before there is any.
    #[must_use]
    pub fn cost(&self) -> Option<f64> {
        (self.bytes > 0.0 && self.cpu_ns > 0.0).then(|| self.cpu_ns / self.bytes)
    }

    /// The cost with its interval; `None` while too few sessions were measured.
    #[must_use]
    pub fn cost_interval(&self) -> Option<Interval> {
        Some(Interval::around(self.cost()?, self.doubt()?))
    }

    /// This arm's cost as a multiple of the other's; `None` while too few sessions of either were measured.
    #[must_use]
    pub fn against(&self, other: &Self) -> Option<Interval> {
        let (a, b) = (self.doubt()?, other.doubt()?);
        let variance = a.variance + b.variance;
        // Welch and Satterthwaite: the arms need be neither equally large nor equally noisy.
        let parts = a.variance.powi(2) / a.freedom + b.variance.powi(2) / b.freedom;
        let freedom = if parts > 0.0 { variance.powi(2) / parts } else { a.freedom + b.freedom };
        Some(Interval::around(self.cost()? / other.cost()?, Doubt { variance, freedom }))
    }

    /// The delta method for the logarithm of a ratio R of sums (Cochran, Sampling Techniques, 1977, chapter 6): its
    /// variance is Σ(Y − RX)² / (ΣY)² over sessions, times m / (m − 1) for m sessions.
    ///
    /// For m stands (ΣX)² / ΣX² (Kish 1965), which is m where all sessions are equally large and 1 where one has all
    /// the bytes. That one would have set R by itself and would seem to be without any doubt.
    fn doubt(&self) -> Option<Doubt> {
        let cost = self.cost()?;
        let sessions = self.bytes.powi(2) / self.bytes_squared;
        if sessions.is_nan() || sessions < LEAST_SESSIONS {
            return None;
        }
        // A reading in the middle of an update may be off by one turn; a sum of squares never is below 0.
        let residue = self.cpu_squared - 2.0 * cost * self.products + cost.powi(2) * self.bytes_squared;
        let freedom = sessions - 1.0;
        Some(Doubt { variance: residue.max(0.0) / self.cpu_ns.powi(2) * sessions / freedom, freedom })
    }
}

impl Interval {
    fn around(value: f64, doubt: Doubt) -> Self {
        // Not the one of the C library: for this one call its mathematics would be mapped, a third of a megabyte.
        let factor = libm::exp(student(doubt.freedom) * doubt.variance.sqrt());
        Self { value, low: value / factor, high: value * factor }
    }

    /// The mean of `count` times with that sum and sum of squares; `None` for less than two.
    #[must_use]
    pub fn of_mean(count: u64, sum: f64, squares: f64) -> Option<Self> {
        if count < 2 {
            return None;
        }
        let (n, mean) = (count as f64, sum / count as f64);
        let variance = (squares / n - mean.powi(2)).max(0.0) * n / (n - 1.0);
        let reach = student((n - 1.0).max(2.0)) * (variance / n).sqrt();
        Some(Self { value: mean, low: (mean - reach).max(0.0), high: mean + reach })
    }

    /// Whether both ends are within that share of the estimate.
    #[must_use]
    pub fn is_within(&self, share: f64) -> bool {
        self.high <= self.value * (1.0 + share) && self.low >= self.value * (1.0 - share)
    }
}

/// Student's t for 95 % confidence and that many degrees of freedom, at least 2.
///
/// Abramowitz and Stegun 26.7.5 with z for 97.5 %; within 1 % of the tables from 2 degrees on.
fn student(freedom: f64) -> f64 {
    const Z: f64 = 1.959_963_984_540_054;
    let terms = [
        (Z.powi(3) + Z) / 4.0,
        (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0,
        (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0,
        (79.0 * Z.powi(9) + 776.0 * Z.powi(7) + 1482.0 * Z.powi(5) - 1920.0 * Z.powi(3) - 945.0 * Z) / 92_160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) / freedom) + Z
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sample::Sampled;
    use super::*;
    use crate::arms::Random;

    /// The moments of sessions, each a list of measured turns of bytes and nanoseconds.
    fn moments(sessions: &[Vec<(u64, u64)>]) -> Moments {
        let stats = ArmStats::default();
        for turns in sessions {
            let mut session = Sampled::default();
            turns.iter().for_each(|(bytes, cpu_ns)| stats.measured(&mut session, *bytes, *cpu_ns));
        }
        let mut moments = Moments::default();
        moments.add(&stats);
        moments
    }

    fn unit(random: &mut Random) -> f64 {
        f64::from(random.below(1 << 30)) / f64::from(1 << 30)
    }

    /// Sessions whose true cost is `cost`: sizes from one to fifty, each session dearer or cheaper by up to `apart`, each
    /// turn by up to a half.
    fn simulated(random: &mut Random, sessions: u32, turns: u32, cost: f64, apart: f64) -> Moments {
        let session = |random: &mut Random| {
            let factor = 1.0 + apart * (2.0 * unit(random) - 1.0);
            let size = 1000.0 * 50f64.powf(unit(random));
            let turn = |random: &mut Random| {
                let bytes = size * (0.5 + unit(random));
                (bytes as u64, (bytes.floor() * cost * factor * (0.5 + unit(random))) as u64)
            };
            (0..=random.below(turns)).map(|_| turn(random)).collect()
        };
        moments(&(0..sessions).map(|_| session(random)).collect::<Vec<_>>())
    }

    /// In how many of 100 seeded runs the interval holds the true ratio, and how many runs had one at all.
    fn covered(sessions: u32, turns: u32, apart: f64, ratio: f64) -> (usize, usize) {
        let run = |seed| {
            let mut random = Random::seeded(seed);
            let a = simulated(&mut random, sessions, turns, 5.0 * ratio, apart);
            let b = simulated(&mut random, sessions, turns, 5.0, apart);
            a.against(&b).map(|interval| interval.low <= ratio && ratio <= interval.high)
        };
        let runs: Vec<bool> = (1..=100).filter_map(run).collect();
        (runs.iter().filter(|holds| **holds).count(), runs.len())
    }

    #[test]
    fn a_known_ratio_is_found() {
        // 2 ns and 5 ns per byte without any noise.
        let of = |cost: u64| moments(&[10, 20, 30, 40].map(|n| vec![(n, n * cost), (2 * n, 2 * n * cost)]));
        assert_eq!((of(2).cost(), of(5).cost()), (Some(2.0), Some(5.0)));
        let ratio = of(2).against(&of(5)).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(ratio.value, 0.4) && near(ratio.low, 0.4) && near(ratio.high, 0.4), "{ratio:?}");
    }

    #[test]
    fn the_interval_of_hand_made_samples() {
        // Four sessions of 100 bytes: R = 2, residues −20, +20, −20, +20, so the variance of ln R is
        // 4·400 / 800² · 4/3 = 1/300, and t for 3 degrees of freedom is 3.18.
        let arm = moments(&[180, 220, 180, 220].map(|cpu| vec![(100, cpu)]));
        let interval = arm.cost_interval().unwrap();
        let factor = (3.182 * (1.0f64 / 300.0).sqrt()).exp();
        assert!((interval.high / interval.value - factor).abs() < 0.002, "{interval:?}");
        assert!((interval.value / interval.low - factor).abs() < 0.002, "{interval:?}");
    }

    #[test]
    fn the_interval_holds_the_true_ratio() {
        for (sessions, turns, apart) in [(400, 4, 0.2), (60, 30, 0.5), (1000, 1, 0.0)] {
            let (holds, runs) = covered(sessions, turns, apart, 0.64);
            assert!(runs == 100 && holds >= 90, "{sessions} sessions: {holds} of {runs}");
        }
    }

    /// Thousands of turns of a handful of very different sessions must not pass for thousands of witnesses.
    #[test]
    fn few_sessions_that_differ_are_no_difference_between_arms() {
        let (holds, runs) = covered(8, 1000, 0.7, 1.0);
        assert!(runs > 50 && holds * 100 >= runs * 90, "{holds} of {runs}");
    }

    #[test]
    fn too_little_is_no_interval() {
        let equal = |n: usize| moments(&vec![vec![(1000, 500)]; n]);
        assert_eq!(Moments::default().cost(), None);
        assert_eq!(moments(&[vec![(0, 500)]]).cost(), None, "work without bytes");
        assert_eq!(moments(&[vec![(1000, 0)]]).cost(), None, "no CPU clock");
        assert!(equal(2).cost_interval().is_none() && equal(3).cost_interval().is_some());
        let whale = [vec![vec![(1_000_000_000, 500_000_000)]], vec![vec![(1000, 600)]; 1000]].concat();
        assert_eq!(moments(&whale).cost_interval(), None, "one session has nearly all the bytes");
        assert!(equal(2).against(&equal(9)).is_none() && equal(9).against(&equal(2)).is_none());
    }

    #[test]
    fn students_t_is_that_of_the_tables() {
        for (freedom, t) in [(2.0, 4.303), (3.0, 3.182), (5.0, 2.571), (10.0, 2.228), (30.0, 2.042), (1e9, 1.960)] {
            assert!((student(freedom) / t - 1.0).abs() < 0.01, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn a_mean_has_an_interval_from_two_on() {
        assert_eq!(Interval::of_mean(1, 5.0, 25.0), None);
        // 1, 2, 3, 4, 5: mean 3, standard error 0.707, t 2.776.
        let mean = Interval::of_mean(5, 15.0, 55.0).unwrap();
        assert!((mean.value - 3.0).abs() < 1e-9 && (mean.high - 4.963).abs() < 0.01, "{mean:?}");
    }

    proptest! {
        #[test]
        fn other_units_change_nothing(
            a in proptest::collection::vec((1u64..1_000_000, 1u64..1_000_000), 3..40),
            b in proptest::collection::vec((1u64..1_000_000, 1u64..1_000_000), 3..40),
            bytes_by in 1u64..1000,
            cpu_by in 1u64..1000,
        ) {
            let arm = |turns: &[(u64, u64)], x, y| moments(&turns.iter().map(|t| vec![(t.0 * x, t.1 * y)]).collect::<Vec<_>>());
            let plain = arm(&a, 1, 1).against(&arm(&b, 1, 1));
            let scaled = arm(&a, bytes_by, cpu_by).against(&arm(&b, bytes_by, cpu_by));
            prop_assert_eq!(plain.is_some(), scaled.is_some());
            if let (Some(plain), Some(scaled)) = (plain, scaled) {
                for (p, s) in [(plain.value, scaled.value), (plain.low, scaled.low), (plain.high, scaled.high)] {
                    prop_assert!((p / s - 1.0).abs() < 1e-6, "{:?} {:?}", plain, scaled);
                }
            }
        }
    }
}
