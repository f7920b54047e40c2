//! Two addresses at a time, one of each family of a name, and the first to answer is taken (RFC 8305).
//!
//! The one begun later is the session's present attempt; the earlier one waits beside it.

use socket2::Socket;

use super::attempt::{begin, connect_end, give_up, is_exhausted};
use super::connect::Connecting;
use super::{Connector, End, Phase, Ready, Session, Step, backend_token, key_of, millis};
use crate::address::Address;
use crate::stats::EndReason;
use crate::upstream::{Ask, Lease, Pick, Rival, Trace};

/// An attempt another one was begun beside.
#[derive(Debug)]
pub(super) struct Earlier {
    socket: Socket,
    lease: Lease,
    address: Address,
    /// Its number.
    attempt: u32,
    trace: u64,
    ready: Ready,
    failed: bool,
    /// When it has taken too long; 0 is never.
    next_ms: u64,
    /// Its rivals.
    rival: Option<Rival>,
}

impl Connecting {
    /// Sets when the other family is tried, where there is one and another attempt is allowed.
    pub(super) fn set_race(&mut self, by: &Connector<'_>) {
        let delay = by.forward.balancing.attempt_delay.filter(|_| self.rival.is_some() && !self.is_spent(by.forward));
        self.race_ms = delay.map_or(0, |delay| by.now_us / 1000 + millis(delay));
    }
}

impl Session {
    /// The time of an attempt, or the time to begin another beside it, has come.
    pub fn wake(&mut self, by: &mut Connector<'_>) -> Step {
        let now_ms = by.now_us / 1000;
        match &self.phase {
            Phase::Connecting(c) if c.race_ms > 0 && c.race_ms <= now_ms && !(1..=now_ms).contains(&c.next_ms) => {
                self.race(by);
                Step::Wait
            }
            _ => self.next_address(None, by),
        }
    }

    /// Begins to connect to an address of the other family beside the present one.
    fn race(&mut self, by: &mut Connector<'_>) {
        let Phase::Connecting(connecting) = &mut self.phase else { return };
        connecting.race_ms = 0;
        // Bytes that went with a SYN are for one server alone.
        if connecting.early > 0 || connecting.earlier.is_some() || self.backend.is_none() || self.lease.is_none() {
            return;
        }
        let (client, now_ms) = (self.origin.client, by.now_us / 1000);
        let (port_offset, tried, rival_of) = (connecting.port_offset, &connecting.tried, connecting.rival);
        let pick = by.upstreams.choose(&Ask { client, port_offset, tried, rival_of, now_ms });
        let Pick::To { lease, address, left, rival } = pick else { return };
        let begun = match begin(address, client, by, connecting.attempts, &[]) {
            Ok(begun) => begun,
            Err(e) if is_exhausted(&e) => return,
            Err(e) => {
                let last = connecting.last.take();
                connecting.failed(&lease, connect_end(&e), by);
                // What the session says in the end is what the address it waits for comes to.
                connecting.last = last.or(connecting.last);
                return;
            }
        };
        let trace = begun.remember(address, connecting.hop, self.origin.forward, by);
        let (Some(before), Some(held)) = (self.backend.replace(begun.socket), self.lease.replace(lease)) else {
            return;
        };
        connecting.earlier = Some(Earlier {
            socket: before,
            lease: held,
            address: self.target.unwrap_or(address),
            attempt: self.attempt,
            trace: std::mem::replace(&mut self.trace, trace),
            ready: std::mem::take(&mut self.backend_ready),
            failed: std::mem::take(&mut self.backend_failed),
            next_ms: connecting.next_ms,
            rival: connecting.rival,
        });
        self.attempt = connecting.attempts;
        connecting.attempts += 1;
        connecting.rival = rival;
        connecting.set_next(left, by.forward, now_ms);
        self.target = Some(address);
    }

    /// The earlier attempt's flags, for an event of its socket.
    pub(super) fn earlier_flags(&mut self, token: mio::Token) -> Option<(&mut Ready, &mut bool)> {
        let Phase::Connecting(connecting) = &mut self.phase else { return None };
        let earlier = connecting.earlier.as_mut()?;
        let is_it = token == backend_token(key_of(token), earlier.attempt);
        is_it.then_some((&mut earlier.ready, &mut earlier.failed))
    }

    /// Looks whether the earlier attempt is over: it becomes the present one where it has answered.
    pub(super) fn check_earlier(&mut self, by: &mut Connector<'_>) {
        let Phase::Connecting(connecting) = &mut self.phase else { return };
        let Some(earlier) = connecting.earlier.as_ref().filter(|earlier| earlier.ready.writable) else { return };
        let error = if earlier.failed { earlier.socket.take_error().ok().flatten() } else { None };
        match error {
            Some(error) => self.fail_earlier(connect_end(&error), by),
            None => {
                if let Some(late) = self.backend.take() {
                    give_up(&late);
                }
                by.trace.forget(std::mem::take(&mut self.trace));
                self.return_to_earlier();
            }
        }
    }

    /// Makes the earlier attempt the present one; whether there was one.
    fn return_to_earlier(&mut self) -> bool {
        let Phase::Connecting(connecting) = &mut self.phase else { return false };
        let Some(earlier) = connecting.earlier.take() else { return false };
        let Earlier { socket, lease, address, attempt, trace, ready, failed, next_ms, rival } = earlier;
        (self.backend, self.lease, self.target) = (Some(socket), Some(lease), Some(address));
        (self.attempt, self.trace, self.backend_ready, self.backend_failed) = (attempt, trace, ready, failed);
        (connecting.next_ms, connecting.rival) = (next_ms, rival);
        true
    }

    /// The present attempt has failed: the earlier one is waited for, unless its time is over too. Whether it is.
    pub(super) fn fall_back(&mut self, by: &mut Connector<'_>) -> bool {
        let Phase::Connecting(connecting) = &self.phase else { return false };
        let Some(earlier) = &connecting.earlier else { return false };
        if (1..=by.now_us / 1000).contains(&earlier.next_ms) {
            self.fail_earlier(End::of(EndReason::ConnectTimeout), by);
            return false;
        }
        if let Some(late) = self.backend.take() {
            give_up(&late);
        }
        by.trace.forget(std::mem::take(&mut self.trace));
        self.return_to_earlier();
        if let Phase::Connecting(connecting) = &mut self.phase {
            connecting.set_race(by);
        }
        true
    }

    /// The earlier attempt has failed.
    pub(super) fn fail_earlier(&mut self, why: End, by: &mut Connector<'_>) {
        let Phase::Connecting(connecting) = &mut self.phase else { return };
        let Some(earlier) = connecting.earlier.take() else { return };
        give_up(&earlier.socket);
        by.trace.forget(earlier.trace);
        connecting.failed(&earlier.lease, why, by);
    }

    /// The present attempt has answered. The earlier one has not failed, it has lost: the other family goes first for a
    /// while.
    pub(super) fn end_race(&mut self, by: &Connector<'_>) {
        if let Some(earlier) = self.leave_race(by.trace) {
            earlier.endpoint().lost(by.now_us / 1000);
        }
    }

    /// Gives up the earlier attempt, for no fault of its own.
    pub fn leave_race(&mut self, trace: &Trace) -> Option<Lease> {
        let Phase::Connecting(connecting) = &mut self.phase else { return None };
        let earlier = connecting.earlier.take()?;
        give_up(&earlier.socket);
        trace.forget(earlier.trace);
        Some(earlier.lease)
    }
}
