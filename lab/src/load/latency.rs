//! Times of many events: kept exact to 0.1 %, shown as quantiles and buckets.

use hdrhistogram::Histogram;

use crate::results::Latency;

/// Ratio of the bounds of neighbouring buckets.
const STEP: f64 = 1.25;

/// Times in nanoseconds, up to ten minutes.
#[derive(Debug, Clone)]
pub(super) struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are in order and the digits 0 to 5"))
    }
}

impl Times {
    pub(super) fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Fails only for other bounds.
        let _ = self.0.add(&other.0);
    }

    /// A quantile, 0 to 1, in µs.
    pub(super) fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(super) fn summary(&self) -> Latency {
        let buckets = self.0.iter_log(1000, STEP).filter(|step| step.count_since_last_iteration() > 0);
        let bucket = |step: hdrhistogram::iterators::IterationValue<u64>| {
            (step.value_iterated_to() as f64 / 1e3, step.count_since_last_iteration())
        };
        Latency {
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            max_us: self.0.max() as f64 / 1e3,
            count: self.0.len(),
            buckets: buckets.map(bucket).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_and_buckets_lose_nothing() {
        let mut all = Times::default();
        for part in 0..4 {
            let mut one = Times::default();
            (part..100_000).step_by(4).for_each(|i: u64| one.record((i + 1) * 100));
            all.add(&one);
        }
        let summary = all.summary();
        assert_eq!(summary.count, 100_000);
        for (got, want) in [(summary.p50_us, 5000.0), (summary.p999_us, 9990.0), (summary.max_us, 10_000.0)] {
            assert!((got - want).abs() / want < 0.002, "{got} is not {want}");
        }
        assert_eq!(summary.buckets.iter().map(|(_, n)| n).sum::<u64>(), 100_000);
        assert!(summary.buckets.is_sorted_by(|a, b| a.0 < b.0));
        assert!(summary.buckets.len() < 60, "{}", summary.buckets.len());
        assert_eq!(Times::default().summary(), Latency::default());
    }
}
