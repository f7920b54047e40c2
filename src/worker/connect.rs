//! From a session to its backend, and back to waiting when there is no descriptor, no address or no room yet.

use std::sync::Arc;

use super::{Message, Worker};
use crate::session::{Connector, End, Session, Step};
use crate::stats::EndReason;
use crate::upstream::Endpoint;

impl Worker {
    /// Looks whether the handshake is over.
    pub(super) fn check_connect(&mut self, key: usize) -> Step {
        self.connect_with(key, Session::check_connect)
    }

    /// Runs one step of connecting with what it needs; a session that must wait for something is queued for it.
    pub(super) fn connect_with(
        &mut self,
        key: usize,
        step: impl FnOnce(&mut Session, &mut Connector<'_>) -> Step,
    ) -> Step {
        let Some(session) = self.sessions.get_mut(key) else { return Step::Wait };
        let forward = session.origin().forward;
        let route = &mut self.parts.routes[forward];
        let waited = session.wants_retry();
        let had_tried = session.attempts() > 0;
        let step = step(
            session,
            &mut Connector {
                registry: self.parts.poll.registry(),
                key,
                forward: &route.edition.forward,
                upstreams: &mut route.upstreams,
                sources: &route.sources,
                stats: &route.stats,
                trace: &self.parts.shared.trace,
                worker: self.parts.id,
                now_us: self.now_us,
            },
        );
        let (waits, starves) = (session.wants_retry(), session.wants_descriptor());
        if waits && !waited {
            self.retry.push(key);
        }
        if had_tried {
            self.tell_of_room(forward);
        }
        if starves {
            self.starve("cannot connect to a backend: out of descriptors or memory");
        }
        step
    }

    /// A session of that forward has let go of a target: sessions that wait for room there look again.
    pub(super) fn tell_of_room(&mut self, forward: usize) {
        for worker in self.parts.routes[forward].edition.targets.waiting() {
            match self.parts.peers.get(worker) {
                _ if worker == self.parts.id => self.freed = true,
                // A worker that is gone waits for nothing.
                Some(peer) => _ = peer.mailbox.post(Message::RoomFree),
                None => {}
            }
        }
    }

    /// Ends the sessions of a target; those that only connect to it go on to the next.
    pub(super) fn end_sessions_of(&mut self, endpoint: &Arc<Endpoint>) {
        let has_it = |(key, session): (usize, &Session)| session.holds(endpoint).then_some(key);
        let keys: Vec<usize> = self.sessions.iter().filter_map(has_it).collect();
        for key in keys {
            let down = End::of(EndReason::TargetDown);
            let goes_on = self.sessions.get(key).is_some_and(Session::is_connecting);
            let step =
                if goes_on { self.connect_with(key, |s, by| s.next_address(Some(down), by)) } else { Step::End(down) };
            self.settle(key, step);
        }
    }

    /// Sessions that wait for a descriptor, a name or room try again, in the order they came. The first one that finds
    /// no descriptor speaks for all behind it, and the first that finds no room for all of its forward.
    pub(super) fn retry(&mut self) {
        let (mut starved, mut full) = (false, Vec::new());
        for key in std::mem::take(&mut self.retry) {
            let Some(session) = self.sessions.get(key).filter(|session| session.wants_retry()) else { continue };
            let forward = session.origin().forward;
            if (starved && session.wants_descriptor()) || (session.wants_room() && full.contains(&forward)) {
                self.retry.push(key);
                continue;
            }
            let step = self.connect_with(key, Session::connect);
            if let Some(session) = self.sessions.get(key).filter(|session| session.wants_retry()) {
                starved |= session.wants_descriptor();
                if session.wants_room() {
                    full.push(forward);
                }
                self.retry.push(key);
            }
            self.settle(key, step);
        }
    }
}
