//! From a session to its backend, and back to waiting when there is no descriptor or no address yet.

use super::Worker;
use crate::session::{Connector, Session, Step};

impl Worker {
    /// Looks whether the handshake is over.
    pub(super) fn check_connect(&mut self, key: usize) -> Step {
        self.connect_with(key, Session::check_connect)
    }

    /// Runs one step of connecting with what it needs; a session that must wait for something is queued for it.
    pub(super) fn connect_with(&mut self, key: usize, step: impl FnOnce(&mut Session, &Connector<'_>) -> Step) -> Step {
        let Some(session) = self.sessions.get_mut(key) else { return Step::Wait };
        let route = &self.parts.routes[session.origin().forward];
        let waited = session.wants_retry();
        let step = step(
            session,
            &Connector {
                registry: self.parts.poll.registry(),
                key,
                forward: route.forward(),
                upstreams: &route.upstreams,
                sources: &route.sources,
                stats: &route.stats,
                trace: &self.parts.shared.trace,
                now_us: self.now_us,
            },
        );
        let (waits, starves) = (session.wants_retry(), session.wants_descriptor());
        if waits && !waited {
            self.retry.push(key);
        }
        if starves {
            self.starve("cannot connect to a backend: out of descriptors or memory");
        }
        step
    }

    /// Sessions that wait for a descriptor or a name try again, in the order they came. The first one that finds no
    /// descriptor speaks for all behind it.
    pub(super) fn retry(&mut self) {
        let mut starved = false;
        for key in std::mem::take(&mut self.retry) {
            let Some(session) = self.sessions.get(key).filter(|session| session.wants_retry()) else { continue };
            if starved && session.wants_descriptor() {
                self.retry.push(key);
                continue;
            }
            let step = self.connect_with(key, Session::connect);
            if let Some(session) = self.sessions.get(key).filter(|session| session.wants_retry()) {
                starved |= session.wants_descriptor();
                self.retry.push(key);
            }
            self.settle(key, step);
        }
    }
}
