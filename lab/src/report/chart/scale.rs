//! From values to places on an axis, and the ticks that name them.

use crate::report::metric::prefix;

/// An axis from `low` to `high`, linear or logarithmic.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
}

/// Span from which a logarithmic axis shows more than a linear one.
const WIDE: f64 = 60.0;
/// Most ticks of a logarithmic axis.
const MOST_TICKS: usize = 8;

impl Scale {
    /// From zero to a round number that is not below `highest`.
    pub(super) fn from_zero(highest: f64) -> Self {
        let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
        let step = round_step(highest / 4.0);
        let steps = (highest / step).ceil().clamp(1.0, 20.0);
        // Small and whole, so that the cast is exact.
        let ticks = (0..=steps as u32).map(|n| f64::from(n) * step).collect();
        Self { low: 0.0, high: steps * step, logarithmic: false, ticks }
    }

    /// Fits the values: logarithmic when all are positive and they span more than linear can show.
    pub(super) fn fitting(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = values.first().copied().zip(values.last().copied()).unwrap_or((0.0, 1.0));
        if low <= 0.0 || high / low < WIDE { Self::from_zero(high) } else { Self::logarithmic(low, high) }
    }

    /// Axis of sessions and sizes: logarithmic when the positive values span enough, with zero at its left end.
    pub(super) fn growing(values: &[f64]) -> Self {
        let positive: Vec<f64> = values.iter().copied().filter(|v| v.is_finite() && *v > 0.0).collect();
        let zeroes = values.len() - positive.len();
        // Growth from nothing is a straight line on a linear axis; that is what its reader looks for.
        if zeroes > 0 { Self::from_zero(positive.into_iter().fold(0.0, f64::max)) } else { Self::fitting(positive) }
    }

    /// From zero in powers of 1024, for bytes.
    pub(super) fn bytes_from_zero(highest: f64) -> Self {
        let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
        let (scale, _) = prefix(highest);
        let plain = Self::from_zero(highest / scale);
        let ticks = plain.ticks.iter().map(|tick| tick * scale).collect();
        Self { low: 0.0, high: plain.high * scale, logarithmic: false, ticks }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        // Exponents of f64 lie between -324 and 308, so that the casts are exact.
        let (first, last) = (low.log10().floor() as i32, high.log10().floor() as i32);
        let steps = (first..=last + 1).flat_map(|n| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(n)));
        let steps: Vec<f64> = steps.filter(|step| step.is_finite() && *step > 0.0).collect();
        let before = steps.iter().rposition(|step| *step <= low).unwrap_or(0);
        let after = steps.iter().position(|step| *step >= high).unwrap_or(steps.len() - 1).max(before + 1);
        let steps = &steps[before..=after.min(steps.len() - 1)];
        let decade = |step: &&f64| (step.log10() - step.log10().round()).abs() < 1e-9;
        let mut ticks: Vec<f64> =
            if steps.len() <= MOST_TICKS { steps.into() } else { steps.iter().filter(decade).copied().collect() };
        let every = ticks.len().div_ceil(MOST_TICKS).max(1);
        ticks = ticks.into_iter().step_by(every).collect();
        Self { low: steps[0], high: steps[steps.len() - 1], logarithmic: true, ticks }
    }

    /// The place of a value: 0 at the low end, 1 at the high end, never outside.
    pub(super) fn place(&self, value: f64) -> f64 {
        if !value.is_finite() {
            return 0.0;
        }
        let share = if self.logarithmic {
            let (low, high) = (self.low.log10(), self.high.log10());
            if value <= 0.0 { 0.0 } else { (value.log10() - low) / (high - low) }
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// Values to be named, ascending.
    pub(super) fn ticks(&self) -> &[f64] {
        &self.ticks
    }

    /// For the axis' title.
    pub(super) fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }
}

/// 1, 2, 2.5 or 5 times a power of ten, not below `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor()).max(f64::MIN_POSITIVE);
    let factor = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|f| f * power >= rough * 0.999).unwrap_or(10.0);
    (factor * power).min(f64::MAX / 32.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_highest_value() {
        let scale = Scale::from_zero(9.3);
        assert_eq!(scale.ticks(), [0.0, 2.5, 5.0, 7.5, 10.0]);
        assert_eq!((scale.place(0.0), scale.place(5.0), scale.place(10.0)), (0.0, 0.5, 1.0));
        let mib = |n: f64| n * 1024.0 * 1024.0;
        assert_eq!(Scale::bytes_from_zero(mib(86.3)).ticks(), [0.0, 25.0, 50.0, 75.0, 100.0].map(mib));
        assert_eq!(Scale::from_zero(0.64).ticks().last(), Some(&0.8));
    }

    #[test]
    fn odd_values_keep_every_place_on_the_plot() {
        for high in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MAX, f64::MIN_POSITIVE, 1e-300, 3.0] {
            for scale in [
                Scale::from_zero(high),
                Scale::fitting([high]),
                Scale::growing(&[0.0, high]),
                Scale::growing(&[1.0, high]),
            ] {
                assert!(!scale.ticks().is_empty() && scale.ticks().len() <= 21, "{high}: {scale:?}");
                for value in [f64::NEG_INFINITY, -1.0, 0.0, 1.0, high, f64::MAX, f64::NAN] {
                    assert!((0.0..=1.0).contains(&scale.place(value)), "{value} on {scale:?}");
                }
            }
        }
    }

    #[test]
    fn wide_spans_become_logarithmic() {
        let scale = Scale::fitting([20.0, 45_000.0]);
        assert!(scale.is_logarithmic());
        assert_eq!(scale.ticks(), [100.0, 1000.0, 10_000.0], "from 20 to 50,000");
        assert!((scale.place(1000.0) - 0.5).abs() < 1e-9);
        assert_eq!(Scale::fitting([3.0, 190.0]).ticks(), [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0]);
        assert!(!Scale::fitting([20.0, 90.0]).is_logarithmic());
        assert!(!Scale::growing(&[0.0, 1.0, 8000.0]).is_logarithmic(), "zero has a place");
    }
}
