//! How many sessions there may be at once, exactly, over all workers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Stands for no limit.
const UNLIMITED: u64 = u64::MAX;
/// Words with a bit for each of as many workers as a configuration may ask for, 1024: their number may change.
const WORDS: usize = 16;

/// A number of slots shared by all workers.
///
/// Slots are counted without a limit too, so that one can be set while sessions are open. A worker that finds none and
/// has connections waiting says so with [`take_or_wait`](Self::take_or_wait), and whoever gives a slot back learns which
/// worker to tell; the workers that wait are told in turn. So nobody has to ask again and again.
///
/// Invariant: while a slot is free and a worker waits, some worker has been told and has not asked since. A worker marks
/// itself before it asks a second time, and a giver looks for marks after it has given: with sequentially consistent
/// operations one of the two sees the other.
#[derive(Debug)]
#[repr(align(64))]
pub struct Slots {
    most: AtomicU64,
    taken: AtomicU64,
    /// One bit per worker that waits.
    waiting: [AtomicU64; WORDS],
    /// The worker that was told last.
    told: AtomicUsize,
}

impl Slots {
    /// So many slots, or no limit.
    #[must_use]
    pub fn new(most: Option<u64>) -> Self {
        Self {
            most: AtomicU64::new(most.unwrap_or(UNLIMITED)),
            taken: AtomicU64::new(0),
            waiting: Default::default(),
            told: AtomicUsize::new(0),
        }
    }

    /// Changes the number of slots. Where more are taken than that, none is free until enough have been given back.
    pub fn update(&self, most: Option<u64>) {
        self.most.store(most.unwrap_or(UNLIMITED), Ordering::SeqCst);
    }

    /// Takes a slot; false when all are taken.
    #[must_use]
    pub fn take(&self) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1)).is_ok()
    }

    /// As [`take`](Self::take), for a worker that waits for a slot when there is none.
    #[must_use]
    pub fn take_or_wait(&self, worker: usize) -> bool {
        if self.take() {
            return true;
        }
        let (word, bit) = place(worker);
        self.waiting[word].fetch_or(bit, Ordering::SeqCst);
        // A slot given back just before the mark was set has told nobody.
        let taken = self.take();
        if taken {
            self.waiting[word].fetch_and(!bit, Ordering::SeqCst);
        }
        taken
    }

    /// The worker does not wait any more, because it asks again by itself.
    pub fn forget(&self, worker: usize) {
        let (word, bit) = place(worker);
        if self.waiting[word].load(Ordering::Relaxed) & bit != 0 {
            self.waiting[word].fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Gives a taken slot back; the worker to be told of it, if one waits.
    #[must_use]
    pub fn give(&self) -> Option<usize> {
        let before = self.taken.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "a slot is given back once");
        self.next_waiting()
    }

    /// Slots taken now.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes the mark from the worker whose turn it is.
    fn next_waiting(&self) -> Option<usize> {
        let after = self.told.load(Ordering::Relaxed) + 1;
        // The first word is looked at twice: from the one after the last that was told, and at the end from its start.
        for step in 0..=WORDS {
            let word = (after / 64 + step) % WORDS;
            let mut marks = self.waiting[word].load(Ordering::SeqCst);
            if step == 0 {
                marks &= u64::MAX << (after % 64);
            }
            while marks != 0 {
                let bit = marks & marks.wrapping_neg();
                marks ^= bit;
                if self.waiting[word].fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
                    let chosen = word * 64 + bit.trailing_zeros() as usize;
                    self.told.store(chosen, Ordering::Relaxed);
                    return Some(chosen);
                }
            }
        }
        None
    }
}

/// Word and bit of a worker.
fn place(worker: usize) -> (usize, u64) {
    (worker / 64, 1 << (worker % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_under_threads() {
        let slots = Slots::new(Some(7));
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let won = (0..100).filter(|_| slots.take()).count();
                    taken.fetch_add(won as u64, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(taken.load(Ordering::Relaxed), 7);
        assert_eq!(slots.give(), None);
        assert!(slots.take());
        assert!(!slots.take());
        let unlimited = Slots::new(None);
        assert!(unlimited.take());
        assert_eq!(unlimited.taken(), 1);
    }

    #[test]
    fn waiting_workers_are_told_in_turn() {
        let slots = Slots::new(Some(1));
        assert!(slots.take());
        for worker in [3, 70, 99] {
            assert!(!slots.take_or_wait(worker));
        }
        assert_eq!(slots.give(), Some(3));
        assert!(slots.take_or_wait(3));
        assert_eq!(slots.give(), Some(70));
        assert!(slots.take());
        assert!(!slots.take_or_wait(3));
        assert_eq!(slots.give(), Some(99), "worker 3 had its turn");
        assert!(slots.take());
        assert_eq!(slots.give(), Some(3));
        assert!(slots.take());
        assert_eq!(slots.give(), None);
        assert!(slots.take());
        assert!(!slots.take_or_wait(5));
        slots.forget(5);
        assert_eq!(slots.give(), None);
    }

    #[test]
    fn a_limit_that_changes_holds_from_then_on() {
        let slots = Slots::new(None);
        assert!((0..5).all(|_| slots.take()));
        slots.update(Some(4));
        assert!(!slots.take());
        let _ = slots.give();
        assert!(!slots.take(), "4 of 4");
        let _ = slots.give();
        assert!(slots.take());
        slots.update(Some(5));
        assert!(slots.take() && !slots.take());
    }

    /// Workers that sleep unless they are told: if a slot were ever free without anybody being told, this would hang.
    #[test]
    fn no_slot_is_lost_while_somebody_waits() {
        use std::sync::mpsc;
        use std::time::Duration;

        const ROUNDS: usize = 2_000;
        let slots = &Slots::new(Some(2));
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel::<()>()).unzip();
        let senders = &senders;
        std::thread::scope(|scope| {
            for (me, inbox) in receivers.into_iter().enumerate() {
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        while !slots.take_or_wait(me) {
                            inbox.recv_timeout(Duration::from_secs(10)).expect("a worker that waits is told");
                        }
                        if let Some(told) = slots.give() {
                            senders[told].send(()).expect("it listens");
                        }
                    }
                    // As a worker does whose queue is empty: the slot it was told of goes on to the next.
                    slots.forget(me);
                    while inbox.try_recv().is_ok() {
                        if slots.take()
                            && let Some(told) = slots.give()
                        {
                            let _ = senders[told].send(());
                        }
                    }
                });
            }
        });
        assert_eq!(slots.taken(), 0);
    }
}
