//! The bytes every stream carries: cheap to send, cheap to check, different at every position.
//!
//! One table of pseudo-random bytes is repeated for ever. Its length is a prime, so that no buffer, page or pipe size
//! divides it: a chunk that is lost, doubled, swapped or delivered to another stream lands where other bytes are
//! expected. A stream's seed says where in the table it begins. Sending is a slice of the table and checking one
//! slice comparison, so neither costs more than touching the bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of the table in bytes: the first prime above 1 MiB.
pub const PERIOD: usize = 1_048_583;

/// The repeating table, long enough that every slice asked for is contiguous.
pub struct Pattern {
    table: Vec<u8>,
}

/// The first byte of a stream that was not the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Position in the stream, in bytes.
    pub offset: u64,
    /// What the pattern has there.
    pub expected: u8,
    /// What arrived.
    pub found: u8,
}

impl Pattern {
    /// A pattern that can be asked for up to `longest` bytes at once. Takes [`PERIOD`] + `longest` bytes of memory.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        let mut state = 0x5eed_0f5b_11ce_d000;
        let mut table = Vec::with_capacity(PERIOD + longest + 8);
        while table.len() < PERIOD {
            table.extend_from_slice(&next(&mut state).to_le_bytes());
        }
        table.truncate(PERIOD);
        while table.len() < PERIOD + longest {
            let from = table.len() - PERIOD;
            let take = (PERIOD + longest - table.len()).min(PERIOD);
            table.extend_from_within(from..from + take);
        }
        Self { table }
    }

    /// The `len` bytes at `offset` of the stream with that seed.
    ///
    /// # Panics
    /// When `len` is more than the `longest` of [`Pattern::new`].
    #[must_use]
    pub fn bytes(&self, seed: u64, offset: u64, len: usize) -> &[u8] {
        let period = PERIOD as u64;
        let at = (start(seed) + offset % period) % period;
        let at = at as usize;
        &self.table[at..at + len]
    }

    /// Compares what arrived at `offset` with what should have.
    ///
    /// # Errors
    /// The first byte that differs.
    ///
    /// # Panics
    /// When `got` is longer than the `longest` of [`Pattern::new`].
    pub fn verify(&self, seed: u64, offset: u64, got: &[u8]) -> Result<(), Mismatch> {
        let expected = self.bytes(seed, offset, got.len());
        if expected == got {
            return Ok(());
        }
        let differs = expected.iter().zip(got).position(|(e, g)| e != g);
        match differs {
            Some(at) => Err(Mismatch { offset: offset + at as u64, expected: expected[at], found: got[at] }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern").field("len", &self.table.len()).finish()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrong byte at offset {}: expected {:#04x}, found {:#04x}", self.offset, self.expected, self.found)
    }
}

/// The seed of one stream of one run; different for every pair.
#[must_use]
pub fn seed(run: u64, stream: u32) -> u64 {
    let mut state = run.rotate_left(32) ^ u64::from(stream);
    next(&mut state)
}

/// Where a stream begins in the table.
fn start(seed: u64) -> u64 {
    let mut state = seed;
    next(&mut state) % PERIOD as u64
}

/// SplitMix64 (Steele, Lea, Flood 2014): short, and good enough that no two stretches of the table look alike.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 64 * 1024;

    /// A stream of three periods, cut from the pattern in odd pieces.
    fn stream(pattern: &Pattern, seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        let mut step = 1;
        while bytes.len() < len {
            let take = step.min(len - bytes.len()).min(CHUNK);
            bytes.extend_from_slice(pattern.bytes(seed, bytes.len() as u64, take));
            step = step * 3 % 60_001 + 1;
        }
        bytes
    }

    /// Checks a whole stream in chunks of `size`, as a sink does.
    fn check(pattern: &Pattern, seed: u64, bytes: &[u8], size: usize) -> Result<(), Mismatch> {
        let mut offset = 0;
        for chunk in bytes.chunks(size) {
            pattern.verify(seed, offset, chunk)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    #[test]
    fn a_true_stream_passes_however_it_is_cut() {
        let pattern = Pattern::new(CHUNK);
        let bytes = stream(&pattern, 7, 3 * PERIOD + 17);
        for size in [1, 1448, 4096, 65_521, CHUNK] {
            assert_eq!(check(&pattern, 7, &bytes, size), Ok(()), "chunks of {size}");
        }
    }

    #[test]
    fn a_flipped_bit_is_named() {
        let pattern = Pattern::new(CHUNK);
        let good = stream(&pattern, 1, 300_000);
        for at in [0, 1, 65_535, 65_536, 299_999] {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            let found = check(&pattern, 1, &bytes, CHUNK);
            assert_eq!(found, Err(Mismatch { offset: at as u64, expected: good[at], found: good[at] ^ 0x10 }));
        }
    }

    #[test]
    fn slips_doubles_and_swaps_are_found_at_once() {
        let pattern = Pattern::new(CHUNK);
        let good = stream(&pattern, 3, 2 * PERIOD);
        for size in [1usize, 4096, 65_536, 1 << 20] {
            for at in [0usize, 4096, 100_001] {
                let mut lost = good.clone();
                lost.drain(at..at + size);
                let mut doubled = good.clone();
                let again = good[at..at + size].to_vec();
                doubled.splice(at..at, again);
                for (what, bytes) in [("lost", lost), ("doubled", doubled)] {
                    let mismatch = check(&pattern, 3, &bytes, CHUNK).expect_err(what);
                    assert!(mismatch.offset < (at + size + 16) as u64, "{what} {size} at {at}: {mismatch}");
                }
            }
        }
        let mut swapped = good;
        let (left, right) = swapped.split_at_mut(65_536);
        left[..65_536].swap_with_slice(&mut right[..65_536]);
        assert_eq!(check(&pattern, 3, &swapped, CHUNK).expect_err("swapped").offset, 0);
    }

    #[test]
    fn no_stream_passes_for_another() {
        let pattern = Pattern::new(CHUNK);
        for run in 1..4 {
            for (a, b) in [(0, 1), (1, 2), (0, 7)] {
                let (a, b) = (seed(run, a), seed(run, b));
                assert_ne!(a, b);
                assert!(pattern.verify(a, 0, pattern.bytes(b, 0, 4096)).is_err());
            }
            assert!(pattern.verify(seed(run, 0), 0, pattern.bytes(seed(run + 1, 0), 0, 4096)).is_err());
        }
    }

    #[test]
    fn the_period_is_a_prime() {
        assert!((2..1025).all(|d| !PERIOD.is_multiple_of(d)));
    }

    #[test]
    fn a_request_longer_than_the_period_is_contiguous() {
        let pattern = Pattern::new(3 * PERIOD);
        let whole = pattern.bytes(9, 5, 3 * PERIOD).to_vec();
        assert_eq!(check(&pattern, 9, &whole, CHUNK).map_err(|m| m.offset), Err(0), "offset 5 is not offset 0");
        assert_eq!(pattern.verify(9, 5 + 2 * PERIOD as u64, &whole[2 * PERIOD..]), Ok(()));
    }
}
