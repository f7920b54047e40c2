//! Chance: which arm a session gets, and which turn is measured.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU8;

use crate::plan::Arm;

/// A small generator of random numbers (splitmix64, Steele, Lea and Flood 2014): good enough to deal sessions, and not
/// meant to withstand a client that wants to guess its arm.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Always the same numbers for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Other numbers at every call and in every process: seeded by std's hasher, which the system seeds.
    #[must_use]
    pub fn unforeseen() -> Self {
        Self(RandomState::new().hash_one(0))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must be above 0. The bias is below `bound` / 2^32.
    pub fn below(&mut self, bound: u32) -> u32 {
        debug_assert!(bound > 0, "no number is below 0");
        // The high half of a 32 × 32 bit product is below its second factor.
        (((self.next_u64() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// Which of its forward's arms a session has, in one byte also where it may have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArmIndex(NonZeroU8);

impl ArmIndex {
    /// The index in the forward's arms.
    #[must_use]
    pub fn get(self) -> usize {
        usize::from(self.0.get() - 1)
    }
}

/// The arm a new session gets: each in proportion to its share. `arms` must not be empty.
pub fn deal(arms: &[Arm], random: &mut Random) -> ArmIndex {
    let mut at = random.below(arms.iter().map(|arm| arm.share).sum());
    let mut number = NonZeroU8::MIN;
    for arm in arms {
        if at < arm.share {
            break;
        }
        at -= arm.share;
        number = number.saturating_add(1);
    }
    ArmIndex(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Engine;

    fn arms(shares: &[u32]) -> Vec<Arm> {
        let arm = |share: &u32| Arm { name: share.to_string(), engine: Engine::Auto, copy_buffer: 1024, share: *share };
        shares.iter().map(arm).collect()
    }

    #[test]
    fn deals_follow_the_shares() {
        const DEALS: u32 = 10_000;
        for (seed, shares) in [(1, vec![50, 50]), (2, vec![90, 10]), (3, vec![1, 2, 3, 4]), (4, vec![1000, 1])] {
            let (arms, mut random) = (arms(&shares), Random::seeded(seed));
            let mut dealt = vec![0u32; arms.len()];
            for _ in 0..DEALS {
                dealt[deal(&arms, &mut random).get()] += 1;
            }
            let total: u32 = shares.iter().sum();
            for (share, dealt) in shares.iter().zip(&dealt) {
                let p = f64::from(*share) / f64::from(total);
                let (mean, deviation) = (p * f64::from(DEALS), (p * (1.0 - p) * f64::from(DEALS)).sqrt());
                // Four standard deviations of the binomial distribution: one fair dealer in 16,000 fails.
                assert!((f64::from(*dealt) - mean).abs() <= 4.0 * deviation + 1.0, "{shares:?}: {dealt} of {mean}");
            }
        }
    }

    #[test]
    fn one_deal_tells_nothing_about_the_next() {
        let (arms, mut random) = (arms(&[50, 50]), Random::seeded(5));
        let deals: Vec<ArmIndex> = (0..10_000).map(|_| deal(&arms, &mut random)).collect();
        let same = deals.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!((4800..5200).contains(&same), "{same} of 9999 deals repeat the one before");
    }

    #[test]
    fn workers_do_not_deal_alike() {
        let deals = |mut random: Random| (0..16).map(|_| random.next_u64()).collect::<Vec<_>>();
        assert_ne!(deals(Random::unforeseen()), deals(Random::unforeseen()));
    }
}
