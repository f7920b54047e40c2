//! Timers of one worker: a hashed wheel with one entry per slab key.
//!
//! Setting, moving and clearing an entry costs a few stores and never allocates once the slab has reached its size.
//! An entry fires at its time or up to [`TICK_MS`] later, never earlier. Times are milliseconds of the worker's own
//! monotonic clock. An entry farther away than a turn of the wheel is looked at once a turn, about every minute.

/// Granularity of the wheel in milliseconds.
pub const TICK_MS: u64 = 32;
const SLOTS: usize = 2048;
const NONE: u32 = u32::MAX;

/// The wheel. Keys are small integers, as a slab gives them.
#[derive(Debug)]
pub struct Deadlines {
    heads: Box<[u32]>,
    occupied: [u64; SLOTS / 64],
    links: Vec<Link>,
    /// The first tick that has not been visited.
    tick: u64,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// Slot the entry is in, or `NONE`.
    slot: u32,
    at_ms: u64,
}

const UNLINKED: Link = Link { previous: NONE, next: NONE, slot: NONE, at_ms: 0 };

impl Default for Deadlines {
    fn default() -> Self {
        Self { heads: vec![NONE; SLOTS].into(), occupied: [0; SLOTS / 64], links: Vec::with_capacity(8192), tick: 0 }
    }
}

impl Deadlines {
    /// Sets the deadline of `key`, replacing the one it had.
    pub fn set(&mut self, key: usize, at_ms: u64) {
        self.clear(key);
        if key >= self.links.len() {
            self.links.resize(key + 1, UNLINKED);
        }
        // Rounded up, so that the whole slot is due when its tick is visited.
        let tick = at_ms.div_ceil(TICK_MS).max(self.tick);
        let slot = (tick % SLOTS as u64) as usize;
        let next = self.heads[slot];
        self.links[key] = Link { previous: NONE, next, slot: slot as u32, at_ms };
        if next != NONE {
            self.links[next as usize].previous = key as u32;
        }
        self.heads[slot] = key as u32;
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    /// Removes the deadline of `key`, if it has one.
    pub fn clear(&mut self, key: usize) {
        let Some(&link) = self.links.get(key) else { return };
        if link.slot == NONE {
            return;
        }
        if link.next != NONE {
            self.links[link.next as usize].previous = link.previous;
        }
        if link.previous != NONE {
            self.links[link.previous as usize].next = link.next;
        } else {
            let slot = link.slot as usize;
            debug_assert_eq!(self.heads[slot], key as u32, "an entry without a predecessor heads its slot");
            self.heads[slot] = link.next;
            if link.next == NONE {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        }
        self.links[key] = UNLINKED;
    }

    /// When [`expire`](Self::expire) next has something to look at, in milliseconds; `None` while nothing is set.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        let from = (self.tick % SLOTS as u64) as usize;
        // The word that holds `from` is looked at twice: its upper part first, its lower part after a full turn.
        for step in 0..=self.occupied.len() {
            let word = (from / 64 + step) % self.occupied.len();
            let mask = match step {
                0 => u64::MAX << (from % 64),
                _ if step == self.occupied.len() => !(u64::MAX << (from % 64)),
                _ => u64::MAX,
            };
            let bits = self.occupied[word] & mask;
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - from) % SLOTS;
                return Some((self.tick + ahead as u64) * TICK_MS);
            }
        }
        None
    }

    /// Moves every key that is due at `now_ms` from the wheel to `due`.
    pub fn expire(&mut self, now_ms: u64, due: &mut Vec<usize>) {
        let last = now_ms / TICK_MS;
        // After a long sleep one turn visits every slot: more would visit them again.
        let first = self.tick.max((last + 1).saturating_sub(SLOTS as u64));
        for tick in first..=last {
            let slot = (tick % SLOTS as u64) as usize;
            let mut key = self.heads[slot];
            while key != NONE {
                let link = self.links[key as usize];
                if link.at_ms <= now_ms {
                    self.clear(key as usize);
                    due.push(key as usize);
                }
                key = link.next;
            }
        }
        self.tick = self.tick.max(last + 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expire(wheel: &mut Deadlines, now_ms: u64) -> Vec<usize> {
        let mut due = Vec::new();
        wheel.expire(now_ms, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn fires_once_and_not_early() {
        let mut wheel = Deadlines::default();
        wheel.set(3, 100);
        assert!(expire(&mut wheel, 99).is_empty());
        assert_eq!(expire(&mut wheel, 100 + TICK_MS), [3]);
        assert!(expire(&mut wheel, 10_000).is_empty());
        assert_eq!(wheel.next_ms(), None);
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_tick() {
        let mut wheel = Deadlines::default();
        expire(&mut wheel, 5_000);
        wheel.set(0, 10);
        assert!(wheel.next_ms().is_some_and(|at| at <= 5_000 + TICK_MS));
        assert_eq!(expire(&mut wheel, 5_000 + TICK_MS), [0]);
    }

    #[test]
    fn a_far_deadline_survives_turns_of_the_wheel() {
        let mut wheel = Deadlines::default();
        wheel.set(1, 10 * 60 * 1000);
        let mut now = 0;
        while let Some(next) = wheel.next_ms() {
            assert!(next > now, "the wheel must not ask to be woken twice for the same tick");
            now = next;
            if !expire(&mut wheel, now).is_empty() {
                break;
            }
        }
        assert!((600_000..600_000 + TICK_MS).contains(&now), "{now}");
    }

    proptest! {
        /// Against a plain map: the same keys fire, none early, none later than a tick.
        #[test]
        fn agrees_with_a_map(steps in prop::collection::vec((0usize..20, 0u64..200_000, 0u64..3_000, any::<bool>()), 1..200)) {
            let mut wheel = Deadlines::default();
            let mut model = std::collections::BTreeMap::new();
            let mut now = 0u64;
            for (key, delay, advance, remove) in steps {
                if remove {
                    wheel.clear(key);
                    model.remove(&key);
                } else {
                    wheel.set(key, now + delay);
                    model.insert(key, now + delay);
                }
                now += advance;
                for key in expire(&mut wheel, now) {
                    let at = model.remove(&key);
                    prop_assert!(at.is_some_and(|at| at <= now), "fired early or twice");
                }
                prop_assert!(model.values().all(|&at| at + TICK_MS > now), "{model:?} at {now}");
                prop_assert_eq!(wheel.next_ms().is_some(), !model.is_empty());
            }
        }
    }
}
