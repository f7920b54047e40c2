//! Token buckets that take one word each.
//!
//! A [`Bucket`] does not count tokens but says until when they are spent: the generic cell rate algorithm (ITU-T I.371).
//! Time refills it by itself, taking is one compare and swap, and several workers may share it. What tokens cost is not
//! in the bucket but in a [`Meter`], so that a million buckets of one kind cost a million words, and a rate can be
//! changed in place.
//!
//! Times are nanoseconds of one clock for the whole process, which begins at `BEGIN_NS`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::plan::Rate;

/// What the clock says at its start: more than any burst lasts, so that a new bucket, whose word is 0, is a full one.
pub(super) const BEGIN_NS: u64 = 1 << 60;

const SECOND_NS: u64 = 1_000_000_000;

/// How fast buckets of one kind fill and how much they hold, or nothing when there is no limit.
#[derive(Debug, Default)]
pub struct Meter {
    /// Tokens per second; 0 is no limit.
    per_second: AtomicU64,
    /// How long an empty bucket takes to be full.
    burst_ns: AtomicU64,
}

/// One reading of a [`Meter`].
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    per_second: u64,
    burst_ns: u64,
}

/// Until when tokens are spent.
#[derive(Debug, Default)]
pub struct Bucket {
    spent_until_ns: AtomicU64,
}

/// Tokens that have been taken, and when they may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// How many.
    pub tokens: usize,
    /// From when on.
    pub at_ns: u64,
}

impl Meter {
    /// As the plan says.
    #[must_use]
    pub fn new(rate: Option<Rate>) -> Self {
        let meter = Self::default();
        meter.update(rate);
        meter
    }

    /// Changes the rate; true when it is another one, and buckets of this kind should be [reset](Bucket::reset).
    pub fn update(&self, rate: Option<Rate>) -> bool {
        let per_second = rate.map_or(0, |rate| rate.per_second);
        let burst_ns = rate.map_or(0, |rate| {
            // Tokens that are taken one by one, connections, have their cost rounded up each; the bucket shall hold just
            // so many. Bytes are taken in thousands, and one of them may cost less than a nanosecond.
            if rate.per_second > 1_000_000 {
                share_up(rate.burst, SECOND_NS, rate.per_second)
            } else {
                rate.burst.saturating_mul(cost_ns(rate.per_second, 1))
            }
        });
        let burst_ns = burst_ns.min(BEGIN_NS / 2);
        let before = self.burst_ns.swap(burst_ns, Ordering::Relaxed);
        self.per_second.swap(per_second, Ordering::Relaxed) != per_second || before != burst_ns
    }

    /// Whether there is a limit.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.per_second.load(Ordering::Relaxed) != 0
    }

    /// The limit, if there is one.
    #[must_use]
    pub fn speed(&self) -> Option<Speed> {
        let per_second = self.per_second.load(Ordering::Relaxed);
        (per_second != 0).then(|| Speed { per_second, burst_ns: self.burst_ns.load(Ordering::Relaxed) })
    }
}

/// `a * b / c`, rounded down. Divisions of 128 bits cost several times those of 64, and few need them.
fn share(a: u64, b: u64, c: u64) -> u64 {
    let wide = || u64::try_from(u128::from(a) * u128::from(b) / u128::from(c)).unwrap_or(u64::MAX);
    a.checked_mul(b).map_or_else(wide, |product| product / c)
}

/// `a * b / c`, rounded up.
fn share_up(a: u64, b: u64, c: u64) -> u64 {
    let wide = || u64::try_from((u128::from(a) * u128::from(b)).div_ceil(u128::from(c))).unwrap_or(u64::MAX);
    a.checked_mul(b).map_or_else(wide, |product| product.div_ceil(c))
}

fn cost_ns(per_second: u64, tokens: usize) -> u64 {
    share_up(tokens as u64, SECOND_NS, per_second)
}

impl Speed {
    /// Tokens per second.
    #[must_use]
    pub fn per_second(self) -> u64 {
        self.per_second
    }

    /// How long an empty bucket takes to be full.
    #[must_use]
    pub fn burst_ns(self) -> u64 {
        self.burst_ns
    }

    fn cost_ns(self, tokens: usize) -> u64 {
        cost_ns(self.per_second, tokens)
    }

    fn worth(self, ns: u64) -> usize {
        usize::try_from(share(ns, self.per_second, SECOND_NS)).unwrap_or(usize::MAX)
    }
}

impl Bucket {
    /// Takes one token.
    ///
    /// # Errors
    /// When there will be one.
    pub fn take(&self, speed: Speed, now_ns: u64) -> Result<(), u64> {
        let full_ns = now_ns.saturating_sub(speed.burst_ns);
        let cost_ns = speed.cost_ns(1);
        let spend = |until: u64| Some(until.max(full_ns) + cost_ns).filter(|after| *after <= now_ns);
        let result = self.spent_until_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend);
        result.map(|_| ()).map_err(|until| until.max(full_ns) + cost_ns)
    }

    /// Takes up to `wanted` tokens: half of those there are, so that others find some too, but at least `portion`, which
    /// may be used only later when there are none now. Who comes next gets what is after that: whoever waits is served
    /// in the order they asked.
    pub fn grant(&self, speed: Speed, now_ns: u64, wanted: usize, portion: usize) -> Grant {
        let full_ns = now_ns.saturating_sub(speed.burst_ns);
        let mut until = self.spent_until_ns.load(Ordering::Acquire);
        loop {
            let at_ns = until.max(full_ns);
            let there = || speed.worth(now_ns.saturating_sub(at_ns));
            let tokens = if wanted <= portion { wanted } else { wanted.min((there() / 2).max(portion)) };
            let after = at_ns.saturating_add(speed.cost_ns(tokens));
            let swap = self.spent_until_ns.compare_exchange_weak(until, after, Ordering::AcqRel, Ordering::Acquire);
            match swap {
                Ok(_) => return Grant { tokens, at_ns: at_ns.max(now_ns) },
                Err(other) => until = other,
            }
        }
    }

    /// Takes tokens now or not at all: as long as it is not overdrawn, also more than it holds, which is made up for later.
    pub fn take_all(&self, speed: Speed, now_ns: u64, tokens: usize) -> bool {
        let full_ns = now_ns.saturating_sub(speed.burst_ns);
        let spend = |until: u64| {
            let from = until.max(full_ns);
            (from <= now_ns).then(|| from.saturating_add(speed.cost_ns(tokens)))
        };
        self.spent_until_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend).is_ok()
    }

    /// Gives tokens back that were not used.
    pub fn refund(&self, speed: Speed, tokens: usize) {
        if tokens > 0 {
            let back_ns = share(tokens as u64, SECOND_NS, speed.per_second);
            let give = |until: u64| Some(until.saturating_sub(back_ns));
            let _ = self.spent_until_ns.fetch_update(Ordering::AcqRel, Ordering::Acquire, give);
        }
    }

    /// When it is full again if nobody takes anything; in the past when it is full.
    #[must_use]
    pub fn full_at_ns(&self, meter: &Meter) -> u64 {
        meter.speed().map_or(0, |speed| self.spent_until_ns.load(Ordering::Acquire).saturating_add(speed.burst_ns))
    }

    /// Makes it full: what was spent at another rate says nothing about this one.
    pub fn reset(&self) {
        self.spent_until_ns.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn speed(per_second: u64, burst: u64) -> Speed {
        Meter::new(Some(Rate { per_second, burst })).speed().unwrap()
    }

    #[test]
    fn a_new_bucket_is_full_and_no_fuller() {
        for (per_second, burst) in [(100, 100), (3, 3), (7, 1), (1_000_000, 17)] {
            let (bucket, speed) = (Bucket::default(), speed(per_second, burst));
            let taken = (0..burst + 5).filter(|_| bucket.take(speed, BEGIN_NS).is_ok()).count() as u64;
            assert_eq!(taken, burst, "{per_second}/s");
        }
    }

    #[test]
    fn what_is_taken_at_once_keeps_to_the_rate() {
        let (bucket, speed) = (Bucket::default(), speed(100_000, 10_000));
        let passed = (0..1000u64).filter(|ms| bucket.take_all(speed, BEGIN_NS + ms * 1_000_000, 1500)).count();
        assert!((72..=75).contains(&passed), "a tenth of a second's worth and a second's: {passed}");
        assert!(bucket.take_all(speed, BEGIN_NS + 5 * SECOND, 60_000), "larger than what it holds");
        assert!(!bucket.take_all(speed, BEGIN_NS + 5 * SECOND + SECOND / 4, 1));
        assert!(bucket.take_all(speed, BEGIN_NS + 6 * SECOND, 1));
    }

    #[test]
    fn a_refusal_says_when() {
        let (bucket, speed) = (Bucket::default(), speed(10, 1));
        assert_eq!(bucket.take(speed, BEGIN_NS), Ok(()));
        let at = bucket.take(speed, BEGIN_NS).unwrap_err();
        assert_eq!(at, BEGIN_NS + SECOND / 10);
        assert!(bucket.take(speed, at - 1).is_err());
        assert_eq!(bucket.take(speed, at), Ok(()));
    }

    #[test]
    fn shares_are_exact_at_every_size() {
        for (a, b, c) in [(7, 3, 2), (u64::MAX, 3, 4), (1 << 40, 1 << 40, 1 << 30), (0, 5, 9), (u64::MAX, 2, u64::MAX)]
        {
            let product = u128::from(a) * u128::from(b);
            assert_eq!(u128::from(share(a, b, c)), product / u128::from(c), "{a} * {b} / {c}");
            assert_eq!(u128::from(share_up(a, b, c)), product.div_ceil(u128::from(c)), "{a} * {b} / {c} up");
        }
        assert_eq!(
            (share(u64::MAX, 2, 1), share_up(u64::MAX, 2, 1)),
            (u64::MAX, u64::MAX),
            "too large: the most there is"
        );
    }

    #[test]
    fn those_who_wait_are_served_in_turn() {
        let (bucket, speed) = (Bucket::default(), speed(1000, 100));
        for tokens in [50, 25, 12, 10, 10] {
            assert_eq!(bucket.grant(speed, BEGIN_NS, 1000, 10), Grant { tokens, at_ns: BEGIN_NS });
        }
        bucket.refund(speed, 7);
        for n in 0..5 {
            let grant = bucket.grant(speed, BEGIN_NS, 1000, 10);
            assert_eq!(grant, Grant { tokens: 10, at_ns: BEGIN_NS + n * SECOND / 100 });
        }
        bucket.refund(speed, 10);
        assert_eq!(bucket.grant(speed, BEGIN_NS, 1000, 10).at_ns, BEGIN_NS + 4 * SECOND / 100);
    }

    #[test]
    fn a_meter_tells_whether_it_changed() {
        let meter = Meter::default();
        let rate = Some(Rate { per_second: 5, burst: 5 });
        assert!(!meter.update(None) && !meter.is_set());
        assert!(meter.update(rate) && meter.is_set());
        assert!(!meter.update(rate));
        assert!(meter.update(Some(Rate { per_second: 5, burst: 6 })));
        assert!(meter.update(None));
    }

    proptest! {
        /// However tokens are asked for and partly given back, no more are used in any time than the rate and one burst
        /// allow, and whoever always asks gets them all.
        #[test]
        fn the_rate_holds(
            per_second in 1_000u64..1 << 34,
            steps in prop::collection::vec((0u64..50_000_000, 1usize..1 << 20, 0usize..1 << 20), 1..200),
        ) {
            let burst = per_second / 10;
            let (bucket, speed) = (Bucket::default(), speed(per_second, burst));
            let portion = 512;
            let (mut now, mut used, mut grants) = (BEGIN_NS, 0u128, 0u128);
            for (pause, wanted, unused) in steps {
                now += pause;
                let grant = bucket.grant(speed, now, wanted, portion);
                let unused = unused.min(grant.tokens);
                bucket.refund(speed, unused);
                used += (grant.tokens - unused) as u128;
                grants += 1;
                let last = grant.at_ns.max(now);
                let allowed = u128::from(last - BEGIN_NS) * u128::from(per_second) / u128::from(SECOND_NS)
                    + u128::from(burst) + portion as u128 + 2
                    // Each refund is rounded by less than a nanosecond's worth.
                    + grants * (u128::from(per_second) / u128::from(SECOND_NS) + 1);
                prop_assert!(used <= allowed, "{used} of {allowed}");
            }
        }
    }

    #[test]
    fn shared_by_threads_it_gives_no_more() {
        let (bucket, speed) = (Bucket::default(), speed(1_000, 500));
        let taken: usize = std::thread::scope(|scope| {
            let worker = || (0..1_000).filter(|_| bucket.take(speed, BEGIN_NS).is_ok()).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(taken, 500);
    }
}
