//! Moving a session to the worker that should hold it; [`crate::gather`] says which.

use std::sync::atomic::Ordering;

use super::{GONE, Life, Message, Worker};
use crate::limits::Ticket;
use crate::session::{End, Session, Step};
use crate::stats::EndReason;
use crate::sys;

impl Worker {
    /// Measures this worker from time to time and decides what it gives away.
    pub(super) fn look_round(&mut self) {
        let board = &self.parts.shared.board;
        if board.gathers() && self.gatherer.is_due(self.now_us) {
            self.gatherer.look(board, self.now_us, sys::thread_cpu_ns());
        }
    }

    /// Moves a session that was just driven, if another worker should hold it; whether it is gone.
    pub(super) fn move_away(&mut self, key: usize) -> bool {
        // One that waits for bytes of its rate has booked them here.
        if !self.gatherer.gives() || self.life != Life::Serving || self.passes.wake_ms(key).is_some() {
            return false;
        }
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.is_movable()) else {
            return false;
        };
        let Some(to) = self.gatherer.home_of(&mut session.seen) else { return false };
        if self.parts.shared.loads[to].load(Ordering::Relaxed) >= GONE {
            return false;
        }
        self.send(key, to);
        true
    }

    fn send(&mut self, key: usize, to: usize) {
        self.parts.shared.board.leaves();
        let mut session = self.sessions.remove(key);
        self.deadlines.clear(key);
        let forward = session.origin().forward;
        let ticket = self.passes.end(key, &self.parts.routes[forward].limits);
        let left = session.leave(self.parts.poll.registry(), &mut self.parts.pumps, self.parts.routes[forward].pool);
        self.parts.stats.forwards[forward].open.sub(1);
        self.stalls.forget(key, &self.parts.stats.forwards[forward]);
        let loads = &self.parts.shared.loads;
        loads[self.parts.id].fetch_sub(1, Ordering::Relaxed);
        if let Err(e) = left {
            log::debug!("cannot stop watching a session that moves: {e}");
        }
        loads[to].fetch_add(1, Ordering::Relaxed);
        match self.parts.shared.mailboxes[to].post(Message::Moved(Box::new(session), ticket)) {
            Ok(()) => self.parts.stats.moved.add(1),
            Err(Message::Moved(back, ticket)) => {
                loads[to].store(GONE, Ordering::Relaxed);
                loads[self.parts.id].fetch_add(1, Ordering::Relaxed);
                self.take_over(*back, ticket);
            }
            Err(_) => {}
        }
    }

    /// Takes over a session another worker has let go. Its place in the load table is taken already.
    pub(super) fn take_over(&mut self, session: Session, ticket: Option<Box<Ticket>>) {
        let forward = session.origin().forward;
        self.parts.stats.forwards[forward].open.add(1);
        self.parts.shared.board.arrives();
        let key = self.sessions.insert(session);
        self.passes.begin(key, ticket);
        let session = &mut self.sessions[key];
        let pool = self.parts.routes[forward].pool;
        let entered = session.enter(key, self.parts.poll.registry(), &mut self.parts.pumps, pool);
        match entered {
            _ if self.life == Life::Stopping => self.end(key, End::of(EndReason::Drain)),
            Ok(()) => self.settle(key, Step::Wait),
            Err(e) => {
                log::warn!("cannot watch a session: {e}; fs.epoll.max_user_watches limits how many there may be");
                self.end(key, End { reason: EndReason::Error, errno: e.raw_os_error() });
            }
        }
    }
}
