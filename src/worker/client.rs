//! From a connection to a client that is known: its PROXY header, where one is expected, then limits and access.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;

use super::{Life, Worker};
use crate::limits::Ticket;
use crate::plan::Refusal;
use crate::pump::Choice;
use crate::session::{Awaited, Connecting, End, Session, client_token};
use crate::stats::EndReason;
use crate::sys;
use crate::upstream::Hop;

impl Worker {
    /// Counts a new connection for its source. A proxy's own address counts nowhere: its clients are counted once they
    /// are known.
    pub(super) fn count_source(&self, forward: usize, peer: IpAddr) -> Result<Option<Box<Ticket>>, EndReason> {
        let edition = &self.parts.routes[forward].edition;
        if edition.forward.accept_proxy.as_ref().is_some_and(|accept| accept.lists(peer)) {
            return Ok(None);
        }
        self.parts.shared.limits.enter(&edition.limits, peer, self.now_us)
    }

    /// Has the poller watch a session's client; false when that cannot be and the session has ended.
    pub(super) fn watch_client(&mut self, key: usize) -> bool {
        let Some(session) = self.sessions.get(key) else { return false };
        let fd = session.client().as_raw_fd();
        match self.parts.poll.registry().register(&mut SourceFd(&fd), client_token(key), sys::interest()) {
            Ok(()) => true,
            Err(e) => {
                log::warn!("cannot watch a connection: {e}; fs.epoll.max_user_watches limits how many there may be");
                self.end(key, End { reason: EndReason::Error, errno: e.raw_os_error() });
                false
            }
        }
    }

    /// Reads what has come of a client's PROXY header.
    pub(super) fn read_header(&mut self, key: usize) {
        let required = self.requires_header(key);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let awaited = session.read_header(required);
        self.after_header(key, awaited);
    }

    /// The time for a client's header is over.
    pub(super) fn header_overdue(&mut self, key: usize) {
        let required = self.requires_header(key);
        let Some(session) = self.sessions.get(key) else { return };
        let awaited = session.header_overdue(required);
        self.after_header(key, awaited);
    }

    fn requires_header(&self, key: usize) -> bool {
        let plan = |session: &Session| self.parts.routes[session.origin().forward].forward();
        self.sessions.get(key).and_then(|session| plan(session).accept_proxy.as_ref()).is_none_or(|a| a.required)
    }

    fn after_header(&mut self, key: usize, awaited: Awaited) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some((port_offset, hop)) = session.arrival() else { return };
        let (forward, client) = (session.origin().forward, session.origin().client);
        match awaited {
            Awaited::More => return self.arm(key),
            Awaited::End(end) => return self.end(key, end),
            Awaited::Introduced => self.parts.routes[forward].stats.proxy_received.add(1),
            Awaited::Silent => {}
        }
        let limits = &self.parts.routes[forward].edition.limits;
        match self.parts.shared.limits.enter(limits, client.ip(), self.now_us) {
            Ok(ticket) => self.passes.begin(key, ticket),
            Err(reason) => return self.end(key, End::of(reason)),
        }
        self.introduced(key, port_offset, hop, true);
    }

    /// It is known who a session's client is: it is refused, or connects.
    pub(super) fn introduced(&mut self, key: usize, port_offset: u16, hop: Hop, is_watched: bool) {
        let Some(session) = self.sessions.get(key) else { return };
        let (forward, client) = (session.origin().forward, session.origin().client);
        let plan = self.parts.routes[forward].forward();
        let refused = match plan.access.refuses(client.ip()) {
            _ if self.life == Life::Stopping => Some(EndReason::Drain),
            Some(Refusal::Denied) => Some(EndReason::Denied),
            Some(Refusal::NotAllowed) => Some(EndReason::NotAllowed),
            None if hop.is_loop(forward) => Some(EndReason::Loop),
            None => None,
        };
        if let Some(reason) = refused {
            // A client that is refused moves no byte by any engine: it belongs to no arm.
            return self.end(key, End::of(reason));
        }
        let route = &self.parts.routes[forward];
        let plan = route.forward();
        let arm = if plan.arms.is_empty() { None } else { Some(self.trial.deal(&plan.arms)) };
        let connecting = Connecting::new(port_offset, hop, plan.timeouts.connect, self.now_us);
        let session = &mut self.sessions[key];
        session.begin_to_connect(connecting);
        if let Some(arm) = arm {
            session.deal_to(arm, Choice::new(plan.arms[arm.get()].engine));
            self.trial.open(key, &route.stats.arms[arm.get()]);
        }
        if !is_watched && !self.watch_client(key) {
            return;
        }
        let step = self.connect_first(key);
        self.settle(key, step);
    }
}
