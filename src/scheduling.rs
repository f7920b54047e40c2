//! How the kernel's scheduler is to take a worker.
//!
//! An ordinary thread that wakes up may take the CPU from whoever runs there. For a message that is right: somebody
//! waits for it. For a stream it is waste: the sender is interrupted after every few segments, and each wake-up moves
//! little. Under `SCHED_BATCH` (sched(7)) a thread that wakes up waits until the CPU is free or its share is due, and
//! then finds more to move at once. On a CPU that is idle the two are alike. So a worker is a batch job while most of
//! what it does is moving streams, and an ordinary thread otherwise.

use crate::plan::Scheduling;

/// A turn of a session that moved so many bytes was one of a stream.
const STREAM: u64 = 16 << 10;
/// Nothing is decided more often.
const WINDOW_US: u64 = 10_000;
/// After so long it is decided however little has happened.
const LONG_US: u64 = 100_000;
/// So many turns are enough to decide.
const ENOUGH: u32 = 16;
/// Among them so many of streams for each of messages.
const MOSTLY: u32 = 3;

/// What a worker has moved since it last decided.
#[derive(Debug, Default)]
pub struct Bursts {
    since_us: u64,
    messages: u32,
    streams: u32,
    /// Streams prevailed in the last window too.
    again: bool,
    batch: bool,
}

impl Bursts {
    /// Notes a turn of a session.
    pub fn note(&mut self, moved: u64) {
        match moved {
            0 => {}
            STREAM.. => self.streams = self.streams.saturating_add(1),
            _ => self.messages = self.messages.saturating_add(1),
        }
    }

    /// Whether the worker should be a batch job, where that has changed.
    pub fn look(&mut self, wanted: Scheduling, now_us: u64) -> Option<bool> {
        let window_us = now_us.saturating_sub(self.since_us);
        let turns = self.streams.saturating_add(self.messages);
        if window_us < WINDOW_US || (turns < ENOUGH && window_us < LONG_US) {
            return None;
        }
        let batch = match wanted {
            Scheduling::Batch => true,
            Scheduling::Normal => false,
            Scheduling::Auto => self.is_streaming(turns),
        };
        (self.since_us, self.messages, self.streams) = (now_us, 0, 0);
        (std::mem::replace(&mut self.batch, batch) != batch).then_some(batch)
    }

    fn is_streaming(&mut self, turns: u32) -> bool {
        let mostly = turns >= ENOUGH && self.streams >= self.messages.saturating_mul(MOSTLY);
        let before = std::mem::replace(&mut self.again, mostly);
        // Twice before it begins; then it goes on until messages prevail.
        mostly && before || self.batch && turns >= ENOUGH && self.streams >= self.messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of so many turns of streams and of messages each; what is decided after each of them.
    fn decided(bursts: &mut Bursts, now_us: &mut u64, windows: &[(u32, u32)]) -> Vec<Option<bool>> {
        let window = |&(streams, messages)| {
            (0..streams).for_each(|_| bursts.note(1 << 20));
            (0..messages).for_each(|_| bursts.note(64));
            *now_us += WINDOW_US;
            bursts.look(Scheduling::Auto, *now_us)
        };
        windows.iter().map(window).collect()
    }

    #[test]
    fn streams_make_a_batch_job_and_messages_end_it() {
        let (mut bursts, mut now_us) = (Bursts::default(), 0);
        let all = [(40, 0), (40, 5), (40, 30), (40, 0), (10, 30), (0, 40), (40, 0)];
        let expected = [None, Some(true), None, None, Some(false), None, None];
        assert_eq!(decided(&mut bursts, &mut now_us, &all), expected);
    }

    #[test]
    fn one_message_in_four_turns_is_no_stream() {
        let (mut bursts, mut now_us) = (Bursts::default(), 0);
        assert_eq!(decided(&mut bursts, &mut now_us, &[(20, 10), (20, 10), (20, 10)]), [None; 3]);
    }

    #[test]
    fn a_worker_with_little_to_do_is_no_batch_job() {
        let (mut bursts, mut now_us) = (Bursts::default(), 0);
        decided(&mut bursts, &mut now_us, &[(40, 0), (40, 0)]);
        bursts.note(1 << 20);
        assert_eq!(bursts.look(Scheduling::Auto, now_us + WINDOW_US), None, "too early to say");
        assert_eq!(bursts.look(Scheduling::Auto, now_us + LONG_US), Some(false));
    }

    #[test]
    fn what_is_asked_for_is_done() {
        let mut bursts = Bursts::default();
        assert_eq!(bursts.look(Scheduling::Batch, LONG_US), Some(true));
        assert_eq!(bursts.look(Scheduling::Batch, 2 * LONG_US), None);
        assert_eq!(bursts.look(Scheduling::Normal, 3 * LONG_US), Some(false));
    }
}
