//! What a worker serves changes while it runs.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::Socket;

use super::{Change, LISTENER, Learn, Life, Worker};
use crate::listener::Listener;

/// Watches a listener under its number.
pub(super) fn watch(registry: &Registry, index: usize, listener: &Listener) -> io::Result<()> {
    registry.register(&mut SourceFd(&listener.socket.as_raw_fd()), Token(LISTENER | index), Interest::READABLE)
}

impl Worker {
    /// Learns of editions, before any connection comes for them.
    pub(super) fn learn(&mut self, learn: Learn) {
        self.parts.pumps.change(&learn.budgets, learn.scratch);
        learn.routes.into_iter().for_each(|route| self.parts.routes.add(route));
    }

    /// Serves something else from now on. Sessions, and listeners that are to stay, are not touched.
    pub(super) fn change(&mut self, change: Change) {
        let Change { current, listeners, datagrams, peers, serving, board, log, done } = change;
        self.parts.routes.iter_mut().for_each(|route| route.current = current.contains(&route.edition.id));
        (self.parts.peers, self.parts.serving, self.parts.board, self.parts.log) = (peers, serving, board, log);
        self.leaving = self.parts.id >= serving;
        if !self.leaving && self.life == Life::Draining {
            self.life = Life::Serving;
        }
        self.set_listeners(listeners);
        self.set_datagram_listeners(datagrams);
        // Limits may be others.
        self.freed = true;
        self.look_again();
        // Nobody may wait for it any more.
        let _ = done.send(());
    }

    fn set_listeners(&mut self, listeners: Vec<Listener>) {
        self.closing = listeners.iter().any(|listener| listener.closing);
        let mut wanted: HashMap<*const Socket, Listener> =
            listeners.into_iter().map(|listener| (Arc::as_ptr(&listener.socket), listener)).collect();
        let mut dropped = Vec::new();
        for (index, listener) in &mut self.parts.listeners {
            match wanted.remove(&Arc::as_ptr(&listener.socket)) {
                // A pause was for a limit that may be another now: the queue is looked at again in any case.
                Some(new) => *listener = new,
                None => dropped.push(index),
            }
        }
        self.accepting.clear();
        dropped.into_iter().for_each(|index| self.drop_listener(index));
        for listener in wanted.into_values() {
            let index = self.parts.listeners.insert(listener);
            if let Err(e) = watch(self.parts.poll.registry(), index, &self.parts.listeners[index]) {
                log::error!("cannot watch a listener: {e}; fs.epoll.max_user_watches limits how many there may be");
            }
        }
        // Every queue is looked at once more: one that is to be given up says by that that it is empty.
        self.accepting.extend(self.parts.listeners.iter().map(|(index, _)| index));
    }

    /// Lets go of a listener. Its socket stays open as long as the fleet or somebody else holds it, and an open socket
    /// goes on to make events unless it is taken out of the poller.
    pub(super) fn drop_listener(&mut self, index: usize) {
        let Some(listener) = self.parts.listeners.try_remove(index) else { return };
        if let Some(route) = self.parts.routes.get(listener.forward) {
            self.parts.shared.limits.forget(&route.edition.limits, self.parts.id);
        }
        self.accepting.retain(|other| *other != index);
        if let Err(e) = self.parts.poll.registry().deregister(&mut SourceFd(&listener.socket.as_raw_fd())) {
            log::debug!("a listener was not watched: {e}");
        }
        self.sweep(listener.forward);
    }

    /// Gives up listeners that are to go and whose queue is empty.
    pub(super) fn drop_closed(&mut self) {
        if !self.closing {
            return;
        }
        let over = |(index, listener): (usize, &Listener)| (listener.closing && !listener.ready).then_some(index);
        let closed: Vec<usize> = self.parts.listeners.iter().filter_map(over).collect();
        // What the other listeners wait for was forgotten with it.
        self.told |= !closed.is_empty();
        closed.into_iter().for_each(|index| self.drop_listener(index));
        self.closing = self.parts.listeners.iter().any(|(_, listener)| listener.closing);
    }

    /// Editions no worker accepts for any more.
    pub(super) fn retire(&mut self, editions: &[usize]) {
        for id in editions {
            if self.parts.routes.retire(*id) {
                self.sweep(*id);
            }
        }
    }

    /// Gives up a route nobody needs any more.
    pub(super) fn sweep(&mut self, id: usize) {
        if self.parts.routes.is_spent(id)
            && !self.datagrams.leads_to(id)
            && self.parts.listeners.iter().all(|(_, listener)| listener.forward != id)
        {
            self.parts.routes.remove(id);
        }
    }
}
