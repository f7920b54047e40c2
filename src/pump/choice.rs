//! Which path the next fill takes.

use crate::plan::Engine;

/// A fill of so many bytes costs the same on both paths; more is cheaper to splice, less to copy.
const EVEN: usize = 8 * 1024;
/// So many bytes more or less are worth one point.
const POINT: usize = 4 * 1024;
/// Most points one fill can win: what it saves grows with its size, what it tells about the next one does not.
const MOST_WON: i16 = 16;
/// Points of a read that filled its buffer, at the least: more is waiting.
const FULL: i16 = 8;
/// `auto` goes over to splice at so many points, and back to copy at as many below zero.
const TURN: i16 = 16;
/// Points are kept within this, so that a long past is soon outweighed.
const BOUND: i16 = 32;

/// The engine of one direction and, for `auto`, what it has learned.
///
/// It is asked before a fill and told after one, and a fill happens only while nothing is held: so the path never
/// changes under bytes. Mixing both within one burst would cost more than either.
///
/// `auto` weighs what each fill would have saved on the other path. A small message costs a little more to splice, a
/// burst costs far more to copy; so one burst outweighs a few small messages, and only a run of them leads back.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    engine: Engine,
    splicing: bool,
    /// splice does not work between these two sockets.
    never: bool,
    points: i16,
}

impl Choice {
    /// `auto` begins with copy: a first message is small more often than not, and copy starts without a pipe.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self { engine, splicing: engine == Engine::Splice, never: false, points: 0 }
    }

    /// Whether the next fill should go through a pipe.
    #[must_use]
    pub fn wants_splice(self) -> bool {
        self.splicing && !self.never
    }

    /// splice is impossible in this direction: copy from now on.
    pub fn never_splice(&mut self) {
        self.never = true;
    }

    /// A copy took `n` of the `asked` bytes.
    pub fn copied(&mut self, n: usize, asked: usize) {
        let least = if n == asked { FULL } else { i16::MIN };
        self.learn(worth(n).max(least));
    }

    /// A splice took `n` bytes.
    pub fn spliced(&mut self, n: usize) {
        self.learn(worth(n));
    }

    fn learn(&mut self, points: i16) {
        if self.engine != Engine::Auto {
            return;
        }
        self.points = (self.points + points).clamp(-BOUND, BOUND);
        if self.points >= TURN {
            self.splicing = true;
        } else if self.points <= -TURN {
            self.splicing = false;
        }
    }
}

/// What splicing `n` bytes is worth: the cost of a copy grows with its bytes, that of a splice hardly does.
fn worth(n: usize) -> i16 {
    let points = (n as i64 - EVEN as i64).div_euclid(POINT as i64);
    points.clamp(-2, i64::from(MOST_WON)) as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spliced_of(sizes: &[usize], rounds: usize, buffer: usize) -> f64 {
        let mut choice = Choice::new(Engine::Auto);
        let (mut spliced, mut all) = (0, 0);
        for n in std::iter::repeat_n(sizes, rounds).flatten() {
            let mut left = *n;
            while left > 0 {
                let taken = if choice.wants_splice() { left.min(1 << 20) } else { left.min(buffer) };
                if choice.wants_splice() {
                    spliced += taken;
                    choice.spliced(taken);
                } else {
                    choice.copied(taken, buffer);
                }
                all += taken;
                left -= taken;
            }
        }
        spliced as f64 / all as f64
    }

    #[test]
    fn small_messages_are_copied_and_bursts_spliced() {
        for size in [1, 64, 1448, 4096] {
            assert!(spliced_of(&[size], 10_000, 65536) == 0.0, "{size}");
        }
        for size in [65_536, 131_072, 1 << 20] {
            assert!(spliced_of(&[size], 100, 65536) > 0.95, "{size}");
        }
        assert!(spliced_of(&[1 << 20], 100, 8192) > 0.95, "a small copy buffer that is always full is a burst");
        assert!(spliced_of(&[1 << 20], 100, 1024) > 0.95);
    }

    #[test]
    fn a_small_message_before_each_burst_does_not_keep_it_from_the_pipe() {
        assert!(spliced_of(&[64, 65_536], 100, 65536) > 0.9);
        let mut mixed = vec![64; 20];
        mixed.extend([65_536; 4]);
        assert!(spliced_of(&mixed, 100, 65536) > 0.9);
    }

    #[test]
    fn a_run_of_small_messages_leads_back_to_copy() {
        let mut choice = Choice::new(Engine::Auto);
        for _ in 0..100 {
            choice.copied(65536, 65536);
        }
        assert!(choice.wants_splice());
        for _ in 0..(BOUND + TURN) / 2 - 1 {
            choice.spliced(64);
        }
        assert!(choice.wants_splice());
        choice.spliced(64);
        assert!(!choice.wants_splice());
    }

    #[test]
    fn fixed_engines_never_change() {
        let (mut copy, mut splice) = (Choice::new(Engine::Copy), Choice::new(Engine::Splice));
        for _ in 0..100 {
            copy.copied(65536, 65536);
            splice.spliced(1);
        }
        assert!(!copy.wants_splice());
        assert!(splice.wants_splice());
        splice.never_splice();
        assert!(!splice.wants_splice());
    }
}
