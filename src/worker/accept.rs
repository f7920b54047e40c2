//! From a listener's queue to a session that connects.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use mio::unix::SourceFd;

use super::{Accepted, GONE, Life, Message, PAUSE_MS, SLOT_PAUSE_MS, Worker};
use crate::limits::{Admission, Told};
use crate::listener::AcceptError;
use crate::plan::Refusal;
use crate::pump::Choice;
use crate::session::{Connecting, End, Origin, Session, client_token};
use crate::stats::EndReason;
use crate::sys;

/// Connections taken from one listener in a turn.
pub(super) const BATCH: usize = 64;

impl Worker {
    /// Notes that a listener may have connections.
    pub(super) fn listener_ready(&mut self, index: usize) {
        if let Some(listener) = self.parts.listeners.get_mut(index)
            && !listener.ready
        {
            listener.ready = true;
            self.accepting.push(index);
        }
    }

    /// Whether there may be a connection to take now.
    pub(super) fn may_accept(&self) -> bool {
        !self.halted && self.accepting.iter().any(|index| !self.parts.listeners[*index].paused)
    }

    /// Takes connections from every listener that may have some.
    pub(super) fn accept(&mut self) {
        let mut accepting = std::mem::take(&mut self.accepting);
        accepting.retain(|index| {
            for _ in 0..BATCH {
                let listener = &self.parts.listeners[*index];
                if self.halted || !listener.ready || listener.paused {
                    break;
                }
                self.accept_one(*index);
            }
            self.parts.listeners[*index].ready
        });
        self.accepting = accepting;
    }

    fn accept_one(&mut self, index: usize) {
        let forward = self.parts.listeners[index].forward;
        let (admission, told) = self.parts.shared.limits.admit(forward, self.parts.id, self.now_us);
        self.tell(told);
        let until_ms = match admission {
            Admission::Enter | Admission::Refuse(_) => return self.take_from(index, admission),
            Admission::Wait => self.now_ms() + SLOT_PAUSE_MS,
            Admission::WaitUntil(us) => us.div_ceil(1000),
        };
        self.parts.listeners[index].paused = true;
        self.pause(until_ms);
    }

    /// Takes one connection, if there is one, and does with it what has been decided.
    fn take_from(&mut self, index: usize, admission: Admission) {
        let listener = &mut self.parts.listeners[index];
        let forward = listener.forward;
        match sys::accept(&listener.socket) {
            Ok((socket, client)) => {
                let (listener, port_offset) = (listener.index, listener.port_offset);
                let hop = self.parts.shared.trace.look_up(client, || sys::meant_for(&socket));
                let accepted = Accepted { socket, client, forward, listener, port_offset, hop, ticket: None };
                if let Admission::Refuse(reason) = admission {
                    return self.turn_down(&accepted, reason);
                }
                match self.parts.shared.limits.enter(forward, client.ip(), self.now_us) {
                    Ok(ticket) => self.hand_on(Accepted { ticket, ..accepted }),
                    Err(reason) => {
                        let told = self.parts.shared.limits.withdraw(forward);
                        self.tell(told);
                        self.turn_down(&accepted, reason);
                    }
                }
            }
            Err(e) => {
                let kind = AcceptError::of(&e);
                if kind == AcceptError::Empty {
                    listener.ready = false;
                }
                if admission == Admission::Enter {
                    let told = self.parts.shared.limits.withdraw(forward);
                    self.tell(told);
                }
                if kind == AcceptError::Exhausted {
                    self.starve(&format!("cannot accept connections: {e}"));
                }
            }
        }
    }

    /// Passes it on that slots have come free.
    pub(super) fn tell(&mut self, told: Told) {
        for worker in told.into_iter().flatten() {
            if worker == self.parts.id {
                self.told = true;
            } else {
                // A worker that is gone waits for nothing.
                let _ = self.parts.shared.mailboxes[worker].post(Message::SlotFree);
            }
        }
    }

    /// Keeps a new connection, or gives it to the least loaded worker when this one holds clearly more: the kernel
    /// spreads connections by hash, which is uneven for few and heavy sessions. Where sessions are gathered they move
    /// later, once they have shown that they last.
    fn hand_on(&mut self, accepted: Accepted) {
        let loads = &self.parts.shared.loads;
        if self.parts.shared.board.gathers() {
            loads[self.parts.id].fetch_add(1, Ordering::Relaxed);
            return self.begin(accepted);
        }
        let mine = loads[self.parts.id].load(Ordering::Relaxed);
        let least = (0..loads.len()).min_by_key(|i| loads[*i].load(Ordering::Relaxed)).unwrap_or(self.parts.id);
        let surplus = mine.saturating_sub(loads[least].load(Ordering::Relaxed));
        // Exact while sessions are few; with many, an eighth more is not worth a wake-up each.
        if surplus > mine / 8 && least != self.parts.id && self.life == Life::Serving {
            loads[least].fetch_add(1, Ordering::Relaxed);
            match self.parts.shared.mailboxes[least].post(Message::Accepted(accepted)) {
                Ok(()) => return self.parts.stats.handed_over.add(1),
                // That worker is gone; its count stays high, so that it is not asked again.
                Err(Message::Accepted(back)) => {
                    loads[least].store(GONE, Ordering::Relaxed);
                    loads[self.parts.id].fetch_add(1, Ordering::Relaxed);
                    return self.begin(back);
                }
                Err(_) => return,
            }
        }
        loads[self.parts.id].fetch_add(1, Ordering::Relaxed);
        self.begin(accepted);
    }

    /// Makes a session of a connection. Its slot and its place in the load table are taken already.
    pub(super) fn begin(&mut self, accepted: Accepted) {
        let Accepted { socket, client, forward, listener, port_offset, hop, ticket } = accepted;
        let plan = &self.parts.plan.forwards[forward];
        self.parts.stats.forwards[forward].accepted.add(1);
        self.parts.stats.forwards[forward].open.add(1);
        let origin = Origin { client, forward, listener, opened_us: self.now_us };
        let first = self.parts.routes[forward].upstreams.pick();
        let connecting = Connecting::new(first, port_offset, hop, plan.timeouts.connect, self.now_us);
        let refused = match plan.access.refuses(client.ip()) {
            _ if self.life == Life::Stopping => Some(EndReason::Drain),
            Some(Refusal::Denied) => Some(EndReason::Denied),
            Some(Refusal::NotAllowed) => Some(EndReason::NotAllowed),
            None if hop.is_loop(forward) => Some(EndReason::Loop),
            None => None,
        };
        let fd = socket.as_raw_fd();
        // A client that is refused moves no byte by any engine: it belongs to no arm.
        let arm = if plan.arms.is_empty() || refused.is_some() { None } else { Some(self.trial.deal(&plan.arms)) };
        let engine = arm.map_or(plan.engine, |arm| plan.arms[arm.get()].engine);
        let key = self.sessions.insert(Session::new(socket, origin, Choice::new(engine), connecting));
        self.passes.begin(key, ticket);
        if let Some(arm) = arm {
            self.sessions[key].arm = Some(arm);
            self.trial.open(key, &self.parts.stats.forwards[forward].arms[arm.get()]);
        }
        if let Some(reason) = refused {
            return self.end(key, End::of(reason));
        }
        if let Err(e) = self.parts.poll.registry().register(&mut SourceFd(&fd), client_token(key), sys::interest()) {
            log::warn!("cannot watch a connection: {e}; fs.epoll.max_user_watches limits how many there may be");
            return self.end(key, End { reason: EndReason::Error, errno: e.raw_os_error() });
        }
        let step = self.connect_with(key, Session::connect);
        self.settle(key, step);
    }

    /// Descriptors have run out: empty pipes give theirs up, and accepting pauses.
    pub(super) fn starve(&mut self, what: &str) {
        if self.parts.shared.shortage.begins() {
            log::error!(
                "{what}; {} descriptors are allowed (ulimit -n, LimitNOFILE=); clients wait in the queue until one is free",
                sys::descriptor_limit()
            );
        }
        self.freed |= self.parts.pumps.give_up_pipes();
        self.halted = true;
        self.pause(self.now_ms() + PAUSE_MS);
    }

    /// Stops accepting for a while, from one listener or from all. The connections stay in the kernel's queue, and
    /// nothing spins.
    fn pause(&mut self, until_ms: u64) {
        if self.pause_until_ms == 0 {
            self.parts.stats.accept_pauses.add(1);
            self.pause_until_ms = until_ms;
        }
        self.pause_until_ms = self.pause_until_ms.min(until_ms);
        self.parts.stats.accept_paused.set(1);
    }

    /// Ends a pause when its time is over or what it waits for may be there; whether it did.
    pub(super) fn unpause(&mut self, freed: bool, told: bool) -> bool {
        let over = self.pause_until_ms > 0 && (told || self.now_ms() >= self.pause_until_ms || (freed && self.halted));
        if over {
            self.resume();
        }
        over
    }

    /// Lets every listener be asked again. One whose queue was not empty is still known to be ready: a queue that has
    /// not been emptied makes no new event.
    pub(super) fn resume(&mut self) {
        self.pause_until_ms = 0;
        self.halted = false;
        self.parts.stats.accept_paused.set(0);
        for index in &self.accepting {
            let listener = &mut self.parts.listeners[*index];
            if std::mem::take(&mut listener.paused) {
                self.parts.shared.limits.forget(listener.forward, self.parts.id);
            }
        }
    }
}
