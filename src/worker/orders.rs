//! What a worker is told by others, and how far it goes towards its end by that.

use super::{Life, Message, Worker, accept};
use crate::session::End;
use crate::stats::EndReason;

impl Worker {
    /// Does what the mailbox asks for.
    pub(super) fn read_mailbox(&mut self) {
        while let Ok(message) = self.parts.inbox.try_recv() {
            match message {
                Message::Accepted(accepted) => self.begin(accepted),
                Message::Moved(session, ticket) => self.take_over(*session, ticket),
                Message::Resolved(host, places) => {
                    self.parts.routes.iter_mut().for_each(|route| route.upstreams.resolved(&host, &places));
                    self.freed = true;
                }
                Message::SlotFree => self.slot_free(),
                Message::RoomFree => self.freed = true,
                Message::TargetDown(endpoint) => {
                    self.end_sessions_of(&endpoint);
                    self.end_flows_of(&endpoint);
                }
                Message::Learn(learn) => self.learn(*learn),
                Message::Change(change) => self.change(*change),
                Message::Retire(editions) => self.retire(&editions),
                Message::Leave if self.leaving && self.life == Life::Serving => self.life = Life::Draining,
                Message::Leave => {}
                Message::Drain => self.drain(),
                Message::LeaveDatagrams => self.leave_datagrams(),
                Message::LetGo => {
                    self.life = Life::Draining;
                    self.leave_datagrams();
                    self.close_listeners();
                }
                Message::Stop => self.stop(),
                #[cfg(test)]
                Message::Panic => panic!("asked to"),
            }
        }
    }

    fn drain(&mut self) {
        // From here on new connections stay with this worker: the others drain too and may be gone.
        self.life = Life::Draining;
        // A listener that closes resets what waits in its queue: take those first, but no more than a queue holds, or
        // a storm of clients would keep the drain from its end.
        let longest = self.parts.routes.iter_mut().map(|r| r.forward().tcp.backlog as usize).max().unwrap_or(0);
        self.resume();
        for _ in 0..=longest / accept::BATCH {
            self.accept();
        }
        self.close_listeners();
    }

    fn stop(&mut self) {
        self.close_listeners();
        self.life = Life::Stopping;
        self.end_all(EndReason::Drain);
    }

    /// Limits have changed: listeners and sessions that wait for one ask again.
    pub(super) fn look_again(&mut self) {
        self.told = true;
        for key in self.passes.forget_bookings() {
            let Some(session) = self.sessions.get_mut(key).filter(|session| !session.queued) else { continue };
            session.queued = true;
            self.again.push(key);
        }
    }

    fn close_listeners(&mut self) {
        self.accepting.clear();
        let all: Vec<usize> = self.parts.listeners.iter().map(|(index, _)| index).collect();
        all.into_iter().for_each(|index| self.drop_listener(index));
    }

    /// Ends every session for one reason.
    pub(super) fn end_all(&mut self, reason: EndReason) {
        for key in 0..self.sessions.capacity() {
            if self.sessions.contains(key) {
                self.end(key, End::of(reason));
            }
        }
        self.end_flows(reason);
    }
}
