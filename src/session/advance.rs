//! Moving the bytes of a connected session, and what a failure on the way means.

use std::io;
use std::time::Duration;

use super::{End, Phase, Session, Step, Turn};
use crate::flow::{Flow, Progress};
use crate::pump::{Direction, Lane};
use crate::stats::{EndReason, Side};

/// Bytes one direction may move in a turn before others have theirs.
const BUDGET: usize = 1 << 20;

impl Session {
    /// Moves bytes both ways as far as they go.
    pub fn advance(&mut self, turn: &mut Turn<'_>) -> Step {
        debug_assert!(matches!(self.phase, Phase::Open), "only a connected session moves bytes");
        self.turns = self.turns.saturating_add(1);
        let before = (self.moved(), self.is_half_closed());
        let up = self.advance_way(Direction::Up, turn);
        let down = self.advance_way(Direction::Down, turn);
        let step = self.judge(up, down, turn);
        turn.moved = self.moved() - before.0;
        // The first FIN counts like a byte: the time for the other half begins with it.
        if (self.moved(), self.is_half_closed()) != before {
            self.active_us = turn.now_us;
        }
        step
    }

    fn judge(&mut self, up: Progress, down: Progress, turn: &mut Turn<'_>) -> Step {
        let failure = match (up, down) {
            (Progress::Done, Progress::Done) => return Step::End(End::of(EndReason::Done)),
            (Progress::SourceFailed(e), _) | (_, Progress::TargetFailed(e)) => Some((Side::Client, e)),
            (Progress::TargetFailed(e), _) | (_, Progress::SourceFailed(e)) => Some((Side::Backend, e)),
            (Progress::Yield, _) | (_, Progress::Yield) => return Step::Again,
            // Both wait. A socket that failed while its data cannot move on is found only here.
            _ => self
                .failed(Side::Client)
                .map(|e| (Side::Client, e))
                .or_else(|| self.failed(Side::Backend).map(|e| (Side::Backend, e))),
        };
        let Some((side, error)) = failure else { return Step::Wait };
        self.salvage(side, turn);
        Step::End(End { reason: blame(side, &error), errno: error.raw_os_error() })
    }

    /// What a failed socket had sent before it failed still goes to the other side, as far as that takes it at once.
    fn salvage(&mut self, failed: Side, turn: &mut Turn<'_>) {
        let direction = match failed {
            Side::Client => Direction::Up,
            Side::Backend => Direction::Down,
        };
        let ready = match failed {
            Side::Client => &mut self.client_ready,
            Side::Backend => &mut self.backend_ready,
        };
        ready.readable = true;
        // An end found now is not a clean one: it must not be passed on as such.
        let flow = match direction {
            Direction::Up => self.up.flow,
            Direction::Down => self.down.flow,
        };
        if matches!(flow, Flow::Fill | Flow::Drain) {
            // Now or never: what that is more than the rate allows, others have less.
            let (pace, before) = (turn.pace.take(), self.moved());
            let _ = self.drive(direction, turn, true, 4 * BUDGET);
            if let Some(mut pace) = pace {
                pace.charge(direction, usize::try_from(self.moved() - before).unwrap_or(0));
                turn.pace = Some(pace);
            }
        }
    }

    fn advance_way(&mut self, direction: Direction, turn: &mut Turn<'_>) -> Progress {
        let other = match direction {
            Direction::Up => self.down.flow,
            Direction::Down => self.up.flow,
        };
        let first_byte = direction == Direction::Down && self.downloaded() == 0;
        let progress = self.drive(direction, turn, other == Flow::Done, BUDGET);
        if first_byte && self.downloaded() > 0 {
            turn.stats.first_byte_time.record(Duration::from_micros(turn.now_us.saturating_sub(self.origin.opened_us)));
        }
        progress
    }

    fn drive(&mut self, direction: Direction, turn: &mut Turn<'_>, last: bool, budget: usize) -> Progress {
        let Some(backend) = &self.backend else { return Progress::Blocked };
        let (client, client_ready, backend_ready) = (&self.client, &mut self.client_ready, &mut self.backend_ready);
        let (way, bytes, source, target, source_ready, target_ready) = match direction {
            Direction::Up => {
                (&mut self.up, &mut self.bytes.client_to_backend, client, backend, client_ready, backend_ready)
            }
            Direction::Down => {
                (&mut self.down, &mut self.bytes.backend_to_client, backend, client, backend_ready, client_ready)
            }
        };
        let may_move = match way.flow {
            Flow::Fill => source_ready.readable,
            Flow::Drain => source_ready.readable && target_ready.writable,
            Flow::Finish | Flow::Done => false,
        };
        let mut pace = if may_move { turn.pace.as_mut() } else { None };
        let allowance = pace.as_mut().map_or(usize::MAX, |pace| pace.allowance(direction, BUDGET));
        let mut lane = Lane {
            pump: &mut way.pump,
            pumps: turn.pumps,
            source,
            target,
            source_ready,
            target_ready,
            bytes,
            stats: turn.stats,
            direction,
            copy_buffer: turn.copy_buffer,
            pool: turn.pool,
            last,
            allowance,
            calls: 0,
        };
        let progress = way.flow.advance(&mut lane, budget);
        let left = lane.allowance;
        turn.calls += lane.calls;
        match pace {
            Some(pace) if allowance > 0 => {
                let wants_more = left == 0 && way.flow == Flow::Fill && source_ready.readable;
                let goes_on = pace.settle(direction, left, if wants_more { BUDGET } else { 0 });
                if goes_on && matches!(progress, Progress::Blocked) { Progress::Yield } else { progress }
            }
            _ => progress,
        }
    }
}

/// What an error of one socket is called.
pub(super) fn blame(side: Side, error: &io::Error) -> EndReason {
    let pick = |client, backend| if side == Side::Client { client } else { backend };
    match error.raw_os_error() {
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ENOTCONN) => {
            pick(EndReason::ResetByClient, EndReason::ResetByBackend)
        }
        Some(libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => {
            pick(EndReason::ClientVanished, EndReason::BackendVanished)
        }
        _ => EndReason::Error,
    }
}
