//! Which path the next fill takes.

use crate::plan::Engine;

/// A fill of at least this many bytes is a burst: from here on splice is the cheaper path.
const LARGE: usize = 8 * 1024;
/// So many bursts in a row, and `auto` goes over to splice.
const BURSTS: u8 = 3;
/// A spliced fill below this is a small message: copy would have been no dearer.
const SMALL: usize = 4 * 1024;
/// So many small messages in a row, and `auto` goes back to copy.
const SMALLS: u8 = 16;

/// The engine of one direction and, for `auto`, what it has learned.
///
/// It is asked before a fill and told after one, and a fill happens only while nothing is held: so the path never
/// changes under bytes. Mixing both within one burst would cost more than either.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    engine: Engine,
    splicing: bool,
    streak: u8,
    /// splice does not work between these two sockets.
    never: bool,
}

impl Choice {
    /// `auto` begins with copy: a first message is small more often than not, and copy starts without a pipe.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self { engine, splicing: engine == Engine::Splice, streak: 0, never: false }
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
        if self.engine != Engine::Auto || self.splicing {
            return;
        }
        self.streak = if n >= LARGE.min(asked) { self.streak + 1 } else { 0 };
        if self.streak >= BURSTS {
            (self.splicing, self.streak) = (true, 0);
        }
    }

    /// A splice took `n` bytes.
    pub fn spliced(&mut self, n: usize) {
        if self.engine != Engine::Auto {
            return;
        }
        self.streak = if n < SMALL { self.streak + 1 } else { 0 };
        if self.streak >= SMALLS {
            (self.splicing, self.streak) = (false, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_goes_to_splice_on_bursts_and_comes_back_on_small_messages() {
        let mut choice = Choice::new(Engine::Auto);
        assert!(!choice.wants_splice());
        for _ in 0..100 {
            choice.copied(64, 65536);
            choice.copied(65536, 65536);
            choice.copied(65536, 65536);
        }
        assert!(!choice.wants_splice(), "bursts must follow one another");
        choice.copied(65536, 65536);
        assert!(choice.wants_splice());
        for _ in 0..SMALLS - 1 {
            choice.spliced(64);
        }
        choice.spliced(100_000);
        assert!(choice.wants_splice(), "one burst resets the count");
        for _ in 0..SMALLS {
            choice.spliced(64);
        }
        assert!(!choice.wants_splice());
    }

    #[test]
    fn a_small_copy_buffer_that_is_always_full_counts_as_bursts() {
        let mut choice = Choice::new(Engine::Auto);
        for _ in 0..BURSTS {
            choice.copied(1024, 1024);
        }
        assert!(choice.wants_splice());
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
