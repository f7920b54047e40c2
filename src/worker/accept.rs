//! From a listener's queue to a session that connects.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use socket2::Socket;

use super::{Accepted, GONE, Life, Message, PAUSE_MS, Peer, SLOT_PAUSE_MS, Worker};
use crate::address::Address;
use crate::limits::{Admission, Told};
use crate::listener::AcceptError;
use crate::plan::{AcceptProxy, Transport};
use crate::pump::Choice;
use crate::session::{Awaiting, Connecting, End, Origin, Session, millis};
use crate::stats::EndReason;
use crate::sys;
use crate::upstream::Hop;

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
        self.drop_closed();
    }

    fn accept_one(&mut self, index: usize) {
        if let Err(e) = self.reserve.fill() {
            return self.starve(&format!("cannot accept connections: {e}"));
        }
        let forward = self.parts.listeners[index].forward;
        let limits = &self.parts.routes[forward].edition.limits;
        // Nobody waits in the queue here. A slot taken for a connection that may not be there would have another worker
        // refuse one that is.
        if limits.refuses() {
            return self.take_from(index, None);
        }
        let (admission, told) = self.parts.shared.limits.admit(limits, self.parts.id, self.now_us);
        self.tell(told);
        let until_ms = match admission {
            Admission::Enter | Admission::Refuse(_) => return self.take_from(index, Some(admission)),
            Admission::Wait => self.now_ms() + SLOT_PAUSE_MS,
            Admission::WaitUntil(us) => us.div_ceil(1000),
        };
        self.parts.listeners[index].paused = true;
        self.pause(until_ms);
    }

    /// Takes one connection, if there is one, and does with it what has been decided, or is now.
    fn take_from(&mut self, index: usize, decided: Option<Admission>) {
        let listener = &mut self.parts.listeners[index];
        let forward = listener.forward;
        match sys::accept(&listener.socket) {
            Ok((socket, client)) => {
                self.reserve.note(&socket);
                let (listener, port_offset) = (listener.index, listener.port_offset);
                let hop = match client.socket() {
                    Some(address) => self.parts.shared.trace.look_up(address, || sys::meant_for(&socket)),
                    None => {
                        self.set_options(&socket, client, forward);
                        Hop::default()
                    }
                };
                let accepted =
                    Accepted { socket, client, forward, listener, port_offset, hop, ticket: None, spare: None };
                let refused = match decided {
                    Some(Admission::Refuse(reason)) => Err(reason),
                    Some(_) => Ok(()),
                    None => self.admit_at_once(forward),
                };
                if let Err(reason) = refused {
                    return self.turn_down(&accepted, reason);
                }
                match self.count_source(forward, client) {
                    Ok(ticket) => self.hand_on(Accepted { ticket, ..accepted }),
                    Err(reason) => {
                        let limits = &self.parts.routes[forward].edition.limits;
                        let told = self.parts.shared.limits.withdraw(limits);
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
                if decided == Some(Admission::Enter) {
                    let told = self.parts.shared.limits.withdraw(&self.parts.routes[forward].edition.limits);
                    self.tell(told);
                }
                if kind == AcceptError::Exhausted {
                    self.starve(&format!("cannot accept connections: {e}"));
                }
            }
        }
    }

    /// Takes a slot for a connection that is there, or says which limit it would break.
    fn admit_at_once(&mut self, forward: usize) -> Result<(), EndReason> {
        let limits = &self.parts.routes[forward].edition.limits;
        let (admitted, told) = self.parts.shared.limits.admit_at_once(limits, self.now_us);
        self.tell(told);
        admitted
    }

    /// A connection to a unix socket inherits nothing from its listener.
    fn set_options(&self, socket: &Socket, client: Address, forward: usize) {
        if let Err(e) = sys::set_options(socket, client, &self.parts.routes[forward].forward().tcp) {
            log::debug!("{client}: cannot set the options of a connection: {e}; it keeps the system's own");
        }
    }

    /// Passes it on that slots have come free.
    pub(super) fn tell(&mut self, told: Told) {
        for worker in told.into_iter().flatten() {
            match self.parts.peers.get(worker) {
                _ if worker == self.parts.id => self.told = true,
                // A worker that is gone waits for nothing.
                Some(peer) => _ = peer.mailbox.post(Message::SlotFree),
                None => {}
            }
        }
    }

    /// A slot has come free that this worker waits for, or has waited for: without a listener it passes it on.
    pub(super) fn slot_free(&mut self) {
        self.told = true;
        if self.parts.listeners.is_empty() {
            for peer in self.serving().filter(|peer| !Arc::ptr_eq(peer, &self.parts.me)) {
                let _ = peer.mailbox.post(Message::SlotFree);
            }
        }
    }

    /// The workers that serve.
    pub(super) fn serving(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.parts.peers.iter().take(self.parts.serving)
    }

    /// Keeps a new connection, or gives it to the least loaded worker when this one holds clearly more: the kernel
    /// spreads connections by hash, which is uneven for few and heavy sessions. Where sessions are gathered they move
    /// later, once they have shown that they last.
    fn hand_on(&mut self, accepted: Accepted) {
        let load = |peer: &Peer| peer.load.load(Ordering::Relaxed);
        let me = &self.parts.me;
        if self.parts.board.gathers() {
            me.load.fetch_add(1, Ordering::Relaxed);
            return self.begin(accepted);
        }
        let mine = load(me);
        let least = self.serving().min_by_key(|peer| load(peer)).unwrap_or(me);
        let surplus = mine.saturating_sub(load(least));
        // Exact while sessions are few; with many, an eighth more is not worth a wake-up each.
        if surplus > mine / 8 && !Arc::ptr_eq(least, me) && self.life == Life::Serving {
            least.load.fetch_add(1, Ordering::Relaxed);
            let least = Arc::clone(least);
            let spare = self.provision();
            match least.mailbox.post(Message::Accepted(Accepted { spare, ..accepted })) {
                Ok(()) => {
                    self.refill();
                    return self.parts.stats.handed_over.add(1);
                }
                // That worker is gone; its count stays high, so that it is not asked again.
                Err(Message::Accepted(back)) => {
                    least.load.store(GONE, Ordering::Relaxed);
                    self.parts.me.load.fetch_add(1, Ordering::Relaxed);
                    return self.begin(back);
                }
                Err(_) => return,
            }
        }
        me.load.fetch_add(1, Ordering::Relaxed);
        self.begin(accepted);
    }

    /// Makes a session of a connection. Its slot and its place in the load table are taken already.
    pub(super) fn begin(&mut self, mut accepted: Accepted) {
        self.reserve.add(accepted.spare.take());
        if self.parts.routes[accepted.forward].forward().udp.targets == Some(Transport::Udp) {
            return self.begin_tunnel(accepted);
        }
        let Accepted { socket, client, forward, listener, port_offset, hop, ticket, spare: _ } = accepted;
        self.parts.routes.open(forward);
        let route = &self.parts.routes[forward];
        let plan = route.forward();
        route.stats.accepted.add(1);
        route.stats.open.add(1);
        let origin = Origin { client, forward, listener, opened_us: self.now_us };
        let accept = plan.accept_proxy.as_ref();
        // Proxies are listed by their addresses.
        let is_listed = |accept: &&AcceptProxy| client.ip().is_some_and(|ip| accept.lists(ip));
        let expected = accept.filter(|_| self.life != Life::Stopping).filter(is_listed);
        let until_ms = expected.map_or(0, |accept| self.now_us / 1000 + millis(accept.timeout));
        let is_stranger = expected.is_none() && accept.is_some_and(|accept| accept.required);
        let choice = Choice::new(plan.engine);
        let session = match expected {
            Some(_) => Session::awaiting(socket, origin, choice, Awaiting::new(until_ms, port_offset, hop)),
            None => Session::new(socket, origin, choice, Connecting::new(port_offset, hop, None, self.now_us)),
        };
        let waits = expected.is_some();
        let key = self.sessions.insert(session);
        self.passes.begin(key, ticket);
        if is_stranger {
            self.end(key, End::of(EndReason::ProxyUnlisted));
        } else if !waits {
            self.introduced(key, port_offset, hop, false);
        } else if self.watch_client(key) {
            self.arm(key);
        }
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
                let limits = &self.parts.routes[listener.forward].edition.limits;
                self.parts.shared.limits.forget(limits, self.parts.id);
            }
        }
    }
}
