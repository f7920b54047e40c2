//! Which of several candidates: pure arithmetic over weights and open sessions.

use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// A target that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its place among all.
    pub(super) index: usize,
    /// Its share at this moment, at least 1.
    pub(super) weight: u64,
    /// Sessions that hold it.
    pub(super) open: u64,
    /// What hashing knows it by.
    pub(super) key: u64,
}

/// Pseudo-random numbers, good enough to spread load (splitmix64, public domain, Sebastiano Vigna).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl Random {
    /// Milliseconds from 0 up to a time, without it.
    pub(super) fn below(&mut self, time: Duration) -> u64 {
        self.next() % u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Mixes all bits into all (the finalizer of splitmix64).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A hash that is the same in every process and on every host (64-bit FNV-1a, then mixed).
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// The hash of a client, the same whether it comes over IPv4 or as a mapped address.
pub(super) fn hash_of(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}

/// Sessions for the weight: less is better. The one to come counts, so that of two idle ones the heavier is chosen.
fn by_load(a: &Candidate, b: &Candidate) -> Ordering {
    let load = |one: &Candidate, other: &Candidate| u128::from(one.open + 1) * u128::from(other.weight);
    load(a, b).cmp(&load(b, a))
}

/// The one with the fewest sessions for its weight; among equals the first from `start` on.
pub(super) fn least(candidates: &[Candidate], start: usize) -> usize {
    let order = |at: &usize| (at + candidates.len() - start % candidates.len()) % candidates.len();
    let all = 0..candidates.len();
    all.min_by(|a, b| by_load(&candidates[*a], &candidates[*b]).then(order(a).cmp(&order(b)))).unwrap_or(0)
}

/// Weighted rendezvous hashing: each candidate draws a number that depends on the client and on itself alone, the
/// smallest for its weight wins. So a candidate that comes takes its share evenly from all others, one that goes leaves
/// its own evenly to them, and nothing else moves.
pub(super) fn rendezvous(candidates: &[Candidate], client: u64) -> usize {
    let draw = |candidate: &Candidate| {
        let bits = mix(client ^ candidate.key.rotate_left(32)) >> 11;
        // From (0, 1): an exponential variable with the weight as its rate; the smallest of several is each one with
        // a chance in proportion to its weight.
        let uniform = (bits as f64 + 0.5) / (1u64 << 53) as f64;
        // Not the C library's logarithm: hosts must agree to the last bit, and it would be mapped for this call alone.
        -libm::log(uniform) / candidate.weight as f64
    };
    let draws = candidates.iter().map(draw).enumerate();
    draws.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at)
}

/// Draws two by weight, not the same one twice, and takes the one with fewer sessions for its weight.
pub(super) fn two(candidates: &[Candidate], random: &mut Random) -> usize {
    let sum: u64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let one = draw(candidates, None, random.next() % sum.max(1));
    if candidates.len() < 2 {
        return one;
    }
    let rest = sum - candidates[one].weight;
    let other = draw(candidates, Some(one), random.next() % rest.max(1));
    if by_load(&candidates[other], &candidates[one]).is_lt() { other } else { one }
}

fn draw(candidates: &[Candidate], without: Option<usize>, mut at: u64) -> usize {
    for (index, candidate) in candidates.iter().enumerate().filter(|(index, _)| Some(*index) != without) {
        if at < candidate.weight {
            return index;
        }
        at -= candidate.weight;
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(weights: &[u64]) -> Vec<Candidate> {
        let one = |(index, weight): (usize, &u64)| Candidate {
            index,
            weight: *weight,
            open: 0,
            key: hash(format!("10.0.0.{index}:80").as_bytes()),
        };
        weights.iter().enumerate().map(one).collect()
    }

    fn clients(count: u32) -> impl Iterator<Item = u64> {
        (0..count).map(|n| hash_of(IpAddr::from((0x0a00_0000 + n * 7).to_be_bytes())))
    }

    #[test]
    fn the_hash_is_the_same_everywhere() {
        // Hosts that share their clients must agree, whatever their version: these values never change.
        assert_eq!(hash(b"10.0.0.1:80"), 15_833_689_265_622_162_035);
        assert_eq!(hash_of("::ffff:192.0.2.1".parse().unwrap()), hash_of("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn sessions_are_counted_for_their_weight() {
        let mut some = candidates(&[1, 3]);
        let mut got = [0; 2];
        for turn in 0..400 {
            let at = least(&some, turn);
            some[at].open += 1;
            got[at] += 1;
        }
        assert_eq!(got, [100, 300]);
        let equal = candidates(&[1, 1, 1]);
        assert_eq!((0..4).map(|turn| least(&equal, turn)).collect::<Vec<_>>(), [0, 1, 2, 0]);
    }

    #[test]
    fn two_of_many_keeps_the_load_even_and_the_weights() {
        let mut some = candidates(&[1, 1, 2, 4]);
        let mut random = Random(7);
        for _ in 0..8000 {
            let at = two(&some, &mut random);
            some[at].open += 1;
        }
        for (candidate, share) in some.iter().zip([1000, 1000, 2000, 4000]) {
            assert!(candidate.open.abs_diff(share) <= share / 10, "{some:?}");
        }
        assert_eq!(two(&candidates(&[5]), &mut random), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Adding a target moves its share of the clients to it, and no other client at all.
        #[test]
        fn adding_a_target_moves_one_nth(weights in proptest::collection::vec(1u64..=8, 1..12), added in 1u64..=8) {
            let before = candidates(&weights);
            let after = candidates(&[weights.as_slice(), &[added]].concat());
            let (all, mut moved) = (4000, 0);
            for client in clients(all) {
                let (was, is) = (rendezvous(&before, client), rendezvous(&after, client));
                if was != is {
                    prop_assert_eq!(is, weights.len(), "only the new target gets clients");
                    moved += 1;
                }
            }
            let share = added as f64 / (weights.iter().sum::<u64>() + added) as f64;
            // Five standard deviations of a binomial.
            let room = 5.0 * (share * (1.0 - share) * f64::from(all)).sqrt();
            prop_assert!((f64::from(moved) - share * f64::from(all)).abs() < room, "{} moved of {}", moved, all);
        }

        #[test]
        fn every_choice_is_a_candidate(loads in proptest::collection::vec((1u64..=256 * 1024, 0u64..1000), 1..20), seed: u64) {
            let mut some = candidates(&loads.iter().map(|load| load.0).collect::<Vec<_>>());
            some.iter_mut().zip(&loads).for_each(|(candidate, load)| candidate.open = load.1);
            let mut random = Random(seed);
            prop_assert!(two(&some, &mut random) < some.len());
            prop_assert!(rendezvous(&some, seed) < some.len());
            prop_assert!(least(&some, seed as usize) < some.len());
        }
    }
}
