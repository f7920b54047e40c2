//! Live A/B in one worker: sessions are dealt to arms, and some of their turns measured.

use std::time::Duration;

use crate::arms::{ArmIndex, ArmStats, Random, Sampled, Sampler, deal};
use crate::plan::Arm;
use crate::session::{Session, Step, Turn};

/// What a worker keeps for live A/B beside the counters.
#[derive(Debug)]
pub(super) struct Trial {
    random: Random,
    /// Made for the first session that is dealt.
    sampler: Option<Sampler>,
    /// Measured turns of the session with that slab key. Not in the session: those without an arm shall not grow.
    sampled: Vec<Sampled>,
}

impl Trial {
    pub(super) fn new() -> Self {
        Self { random: Random::unforeseen(), sampler: None, sampled: Vec::new() }
    }

    /// The arm of a new session.
    pub(super) fn deal(&mut self, arms: &[Arm]) -> ArmIndex {
        deal(arms, &mut self.random)
    }

    /// A session with an arm begins.
    pub(super) fn open(&mut self, key: usize, stats: &ArmStats) {
        stats.sessions.add(1);
        stats.open.add(1);
        if self.sampled.len() <= key {
            self.sampled.resize(key + 1, Sampled::default());
        }
        self.sampled[key] = Sampled::default();
    }

    /// Moves a session's bytes as its arm says, and counts what that took.
    pub(super) fn advance(&mut self, key: usize, session: &mut Session, turn: &mut Turn<'_>, arm: &Arm) -> Step {
        let Some(stats) = session.arm.and_then(|index| turn.stats.arms.get(index.get())) else {
            return session.advance(turn);
        };
        turn.copy_buffer = arm.copy_buffer;
        let sampler = self.sampler.get_or_insert_with(|| Sampler::new(Random::unforeseen()));
        let before = session.bytes();
        let begun = sampler.begin();
        let step = session.advance(turn);
        let cpu_ns = begun.map(|begun| sampler.end(begun));
        let after = session.bytes();
        stats.moved(before, after, turn.calls);
        if before.backend_to_client.total() == 0 && after.backend_to_client.total() > 0 {
            stats.first_byte.record(Duration::from_micros(turn.now_us.saturating_sub(session.origin().opened_us)));
        }
        if let Some(cpu_ns) = cpu_ns {
            stats.measured(&mut self.sampled[key], after.total() - before.total(), cpu_ns);
        }
        step
    }
}
