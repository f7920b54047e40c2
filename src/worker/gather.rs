//! Moving a session to the worker that should hold it; [`crate::gather`] says which.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{GONE, Life, Message, Peer, Worker};
use crate::limits::Ticket;
use crate::session::{End, Session, Step};
use crate::stats::EndReason;
use crate::sys;

impl Worker {
    /// Measures this worker from time to time and decides what it gives away.
    pub(super) fn look_round(&mut self) {
        let board = &self.parts.board;
        if board.gathers() && self.gatherer.is_due(self.now_us) {
            self.gatherer.look(board, self.now_us, sys::thread_cpu_ns().saturating_sub(self.spun_ns));
        }
    }

    /// Tells the scheduler what kind of work this is, where that has changed.
    pub(super) fn schedule(&mut self) {
        if !self.ordinary {
            return;
        }
        let Some(batch) = self.bursts.look(self.parts.board.scheduling(), self.now_us) else { return };
        match sys::be_batch(batch) {
            Ok(()) => self.parts.stats.batch.set(u64::from(batch)),
            Err(e) => {
                self.ordinary = false;
                // It may have got halfway.
                self.parts.stats.batch.set(u64::from(sys::is_batch()));
                log::info!(
                    "worker {}: cannot change how the scheduler takes it: {e}; it goes on as it is",
                    self.parts.id
                );
            }
        }
    }

    /// Moves a session that was just driven, if another worker should hold it; whether it is gone.
    pub(super) fn move_away(&mut self, key: usize) -> bool {
        // One that waits for bytes of its rate has booked them here.
        if !(self.gatherer.gives() || self.leaves()) || self.passes.wake_ms(key).is_some() {
            return false;
        }
        let leaves = self.leaves();
        let Some(session) = self.sessions.get_mut(key).filter(|session| session.is_movable(leaves)) else {
            return false;
        };
        if !self.parts.routes[session.origin().forward].current {
            return false;
        }
        let load = |peer: &Peer| peer.load.load(Ordering::Relaxed);
        let to = match self.life {
            _ if leaves => self.serving().min_by_key(|peer| load(peer)).map(Arc::clone),
            Life::Serving => {
                let home = self.gatherer.home_of(&mut session.seen);
                // One whose place was taken away since may be on its way out.
                home.and_then(|to| self.serving().nth(to).map(Arc::clone))
            }
            Life::Draining | Life::Stopping => None,
        };
        let Some(to) = to.filter(|to| load(to) < GONE) else { return false };
        self.send(key, &to);
        true
    }

    /// Whether its place was taken away: every session that can goes to one that stays.
    fn leaves(&self) -> bool {
        self.leaving && self.life != Life::Stopping
    }

    fn send(&mut self, key: usize, to: &Peer) {
        self.parts.shared.transit.leaves();
        let mut session = self.sessions.remove(key);
        self.deadlines.clear(key);
        let forward = session.origin().forward;
        let route = &self.parts.routes[forward];
        let ticket = self.passes.end(key, &route.edition.limits);
        let left = session.leave(self.parts.poll.registry(), &mut self.parts.pumps, route.edition.pool);
        route.stats.open.sub(1);
        self.stalls.forget(key, &route.stats);
        self.parts.me.load.fetch_sub(1, Ordering::Relaxed);
        if self.parts.routes.close(forward) {
            self.sweep(forward);
        }
        if let Err(e) = left {
            log::debug!("cannot stop watching a session that moves: {e}");
        }
        to.load.fetch_add(1, Ordering::Relaxed);
        match to.mailbox.post(Message::Moved(Box::new(session), ticket)) {
            Ok(()) => self.parts.stats.moved.add(1),
            Err(Message::Moved(back, ticket)) => {
                to.load.store(GONE, Ordering::Relaxed);
                self.parts.me.load.fetch_add(1, Ordering::Relaxed);
                self.take_over(*back, ticket);
            }
            Err(_) => {}
        }
    }

    /// Takes over a session another worker has let go. Its place in the load table is taken already.
    pub(super) fn take_over(&mut self, session: Session, ticket: Option<Box<Ticket>>) {
        let forward = session.origin().forward;
        self.parts.routes.open(forward);
        let route = &self.parts.routes[forward];
        route.stats.open.add(1);
        self.parts.shared.transit.arrives();
        let pool = route.edition.pool;
        let key = self.sessions.insert(session);
        self.passes.begin(key, ticket);
        let session = &mut self.sessions[key];
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
