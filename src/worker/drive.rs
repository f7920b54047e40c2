//! What a turn does with sessions: those the poller named are driven, those whose time has passed end.

use mio::{Events, Token};

use super::{LISTENER, MAILBOX, Worker, stall};
use crate::session::{End, Session, Step, Turn, key_of};
use crate::udp::table::{DATAGRAMS, Ready};

impl Worker {
    /// Notes every event before anything is done, so that a session is driven once for both its sockets.
    pub(super) fn note(&mut self, events: &Events) {
        std::mem::swap(&mut self.ready, &mut self.again);
        for event in events {
            let Token(token) = event.token();
            if event.token() == MAILBOX {
                continue;
            }
            if token & LISTENER != 0 {
                self.listener_ready(token & !LISTENER);
                continue;
            }
            if token & DATAGRAMS != 0 {
                self.datagrams.note(Ready::of(event.token()));
                continue;
            }
            let key = key_of(event.token());
            let Some(session) = self.sessions.get_mut(key) else { continue };
            if session.note(event) && !session.queued {
                session.queued = true;
                self.ready.push(key);
            }
        }
    }

    /// Drives what was noted.
    pub(super) fn drive_ready(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for key in &ready {
            self.drive(*key);
        }
        self.ready = ready;
        self.ready.clear();
    }

    /// Lets a session connect, or move bytes, as far as that goes in one turn.
    pub(super) fn drive(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.queued = false;
        let forward = session.origin().forward;
        if session.awaits_header() {
            return self.read_header(key);
        }
        let step = if session.is_open() { Step::Again } else { self.check_connect(key) };
        let step = match (step, self.sessions.get_mut(key)) {
            (Step::Again, Some(session)) if session.is_open() => {
                let route = &self.parts.routes[forward];
                let plan = route.forward();
                let mut turn = Turn {
                    pumps: &mut self.parts.pumps,
                    stats: &route.stats,
                    copy_buffer: plan.copy_buffer,
                    pool: route.edition.pool,
                    now_us: self.now_us,
                    calls: 0,
                    pace: self.passes.pace(key, &route.edition.limits, self.now_us),
                    moved: 0,
                };
                let step = match session.arm {
                    None => session.advance(&mut turn),
                    Some(arm) => self.trial.advance(key, session, &mut turn, &plan.arms[arm.get()]),
                };
                self.bursts.note(turn.moved);
                if let Some(pace) = turn.pace {
                    turn.stats.rate_waits.add(pace.waits());
                }
                step
            }
            _ => step,
        };
        if !matches!(step, Step::End(_)) && self.move_away(key) {
            return;
        }
        self.settle(key, step);
    }

    /// Does what a session wants after it was driven.
    pub(super) fn settle(&mut self, key: usize, step: Step) {
        match step {
            Step::End(end) => self.end(key, end),
            Step::Again | Step::Wait => {
                self.arm(key);
                let Some(session) = self.sessions.get_mut(key) else { return };
                if step == Step::Again && !session.queued {
                    session.queued = true;
                    self.again.push(key);
                }
            }
        }
    }

    /// Sets the session's timer, unless it already fires early enough: a deadline that moves away with every byte is
    /// looked at again when the old one fires.
    pub(super) fn arm(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let plan = self.parts.routes[session.origin().forward].forward();
        let look_ms = match plan.stall_warning {
            Some(limit) if session.holds_bytes() => Some(self.now_us / 1000 + stall::period_ms(limit)),
            _ => None,
        };
        // A session that waits for bytes of its rate is not idle by its own choice: no other time runs meanwhile.
        let at_ms = self.passes.wake_ms(key).or_else(|| session.deadline_ms(&plan.timeouts));
        match at_ms.into_iter().chain(look_ms).min() {
            Some(at_ms) if session.armed_ms == 0 || at_ms < session.armed_ms => {
                session.armed_ms = at_ms.max(1);
                self.deadlines.set(key, at_ms);
            }
            // A session that holds bytes every now and then keeps the timer of its last look: setting it anew each time
            // would cost more than one that fires for nothing.
            None if session.armed_ms != 0 && plan.stall_warning.is_none() => {
                session.armed_ms = 0;
                self.deadlines.clear(key);
            }
            _ => {}
        }
    }

    /// Looks at every session whose timer has fired.
    pub(super) fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        let now_ms = self.now_ms();
        self.deadlines.expire(now_ms, &mut due);
        for key in due.drain(..) {
            let Some(session) = self.sessions.get_mut(key) else { continue };
            session.armed_ms = 0;
            if let Some(wake_ms) = self.passes.wake_ms(key) {
                match session.queued {
                    // Its next turn sets the timer again.
                    true => {}
                    false if wake_ms <= now_ms => self.drive(key),
                    false => self.arm(key),
                }
                // One direction may wait for its rate while the other stalls.
                if self.sessions.get(key).is_some_and(|session| session.holds_bytes() && !session.queued) {
                    self.look_for_stall(key);
                }
                continue;
            }
            let timeouts = &self.parts.routes[session.origin().forward].forward().timeouts;
            match session.deadline_ms(timeouts) {
                Some(at_ms) if at_ms <= now_ms => {
                    if session.awaits_header() {
                        self.header_overdue(key);
                    } else if session.may_try_next(now_ms) {
                        let step = self.connect_with(key, Session::wake);
                        self.settle(key, step);
                    } else if !session.is_open() {
                        let step = self.connect_with(key, Session::run_out);
                        self.settle(key, step);
                    } else {
                        let reason = session.overdue(timeouts);
                        self.end(key, End::of(reason));
                    }
                }
                _ => {
                    self.look_for_stall(key);
                    self.arm(key);
                }
            }
        }
        self.stalls.summarise(now_ms);
        self.due = due;
    }
}
