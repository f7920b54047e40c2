//! Whether a quantity grows with time, and how sure that is.

/// A straight line through samples over time, by least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trend {
    /// What a second adds.
    pub(super) per_second: f64,
    /// What the line rises by from the first sample to the last.
    pub(super) rise: f64,
    /// How uncertain `rise` is: one standard error.
    pub(super) error: f64,
    /// Samples it goes through.
    pub(super) samples: usize,
}

/// The share of a run that is left out at its start: pools fill, tables get their size.
const WARM_UP: f64 = 0.25;
/// Fewer samples than this say nothing.
const FEWEST: usize = 8;
/// So many standard errors are no chance. Samples of a load resemble their neighbours, so it takes more than the usual three.
const SURE: f64 = 6.0;

impl Trend {
    /// The trend of `(second, value)` once the run is warm; `None` with too few samples.
    #[must_use]
    pub(super) fn of(points: &[(f64, f64)]) -> Option<Self> {
        let (first, last) = (points.first()?.0, points.last()?.0);
        let warm = first + (last - first) * WARM_UP;
        let points: Vec<(f64, f64)> = points.iter().copied().filter(|(x, _)| *x >= warm).collect();
        if points.len() < FEWEST {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few thousand samples")]
        let n = points.len() as f64;
        let mean_x = points.iter().map(|(x, _)| x / n).sum::<f64>();
        let mean_y = points.iter().map(|(_, y)| y / n).sum::<f64>();
        let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let together: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        if spread <= 0.0 {
            return None;
        }
        let slope = together / spread;
        let off = |(x, y): &(f64, f64)| (y - mean_y - slope * (x - mean_x)).powi(2);
        let error = (points.iter().map(off).sum::<f64>() / (n - 2.0) / spread).sqrt();
        let span = points.last()?.0 - points.first()?.0;
        Some(Self { per_second: slope, rise: slope * span, error: error * span, samples: points.len() })
    }

    /// Whether it rises by more than `least` and that is no chance.
    #[must_use]
    pub(super) fn grows(&self, least: f64) -> bool {
        self.rise > least && self.rise > SURE * self.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that jump about by up to 1 without a trend of their own.
    fn noise(n: u32) -> f64 {
        f64::from(n.wrapping_mul(2_654_435_761) >> 16) / f64::from(1 << 16)
    }

    #[test]
    fn a_leak_is_told_from_noise() {
        let flat: Vec<(f64, f64)> = (0..200).map(|n| (f64::from(n), 100.0 + 20.0 * noise(n))).collect();
        let trend = Trend::of(&flat).unwrap();
        assert!(!trend.grows(1.0), "{trend:?}");
        // One descriptor every ten seconds in the same noise.
        let leak: Vec<(f64, f64)> = flat.iter().map(|(x, y)| (*x, y + x / 10.0)).collect();
        let trend = Trend::of(&leak).unwrap();
        assert!(trend.grows(4.0), "{trend:?}");
        assert!((trend.per_second - 0.1).abs() < 0.03, "{trend:?}");
        assert!(!trend.grows(50.0), "less than what counts: {trend:?}");
    }

    #[test]
    fn what_happens_before_it_is_warm_does_not_count() {
        let warms_up: Vec<(f64, f64)> = (0..100).map(|n| (f64::from(n), f64::from(n.min(20)) * 1e6)).collect();
        assert!(!Trend::of(&warms_up).unwrap().grows(0.0));
        assert_eq!(Trend::of(&warms_up[..8]), None);
        assert_eq!(Trend::of(&[]), None);
    }

    #[test]
    fn a_steady_value_is_flat_and_a_steady_rise_is_not() {
        let steady: Vec<(f64, f64)> = (0..40).map(|n| (f64::from(n), 7.0)).collect();
        assert!(!Trend::of(&steady).unwrap().grows(0.0));
        let rise: Vec<(f64, f64)> = (0..40).map(|n| (f64::from(n), f64::from(n))).collect();
        assert!(Trend::of(&rise).unwrap().grows(10.0));
    }
}
