//! Which sockets a worker takes datagrams from.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::Interest;
use mio::unix::SourceFd;
use socket2::Socket;

use crate::udp::flow::Listener;
use crate::udp::table::{Listening, Ready};
use crate::worker::Worker;

impl Worker {
    /// Takes datagrams from these sockets from now on. Others are left to the flows that came by them.
    pub(in crate::worker) fn set_datagram_listeners(&mut self, listeners: Vec<Listener>) {
        let mut wanted: HashMap<*const Socket, Listener> =
            listeners.into_iter().map(|listener| (Arc::as_ptr(&listener.socket), listener)).collect();
        let (mut closing, mut before) = (Vec::new(), Vec::new());
        for (number, listening) in &mut self.datagrams.listeners {
            match wanted.remove(&Arc::as_ptr(&listening.listener.socket)) {
                Some(new) => {
                    before.push(listening.listener.forward);
                    (listening.listener, listening.closing) = (new, false);
                }
                None => {
                    listening.closing = true;
                    closing.push(number);
                }
            }
        }
        closing.into_iter().for_each(|number| self.drop_spent_listener(number));
        // An edition that a listener was the last to hold.
        before.into_iter().for_each(|forward| self.sweep(forward));
        for listener in wanted.into_values() {
            let fd = listener.socket.as_raw_fd();
            let listening = Listening { listener, flows: 0, ready: false, watched: true, closing: false, lost: None };
            let number = self.datagrams.listeners.insert(listening);
            let token = Ready::Listener(number).token();
            if let Err(e) = self.parts.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE) {
                log::error!("cannot watch a listener: {e}; fs.epoll.max_user_watches limits how many there may be");
            }
            // Of one that another worker has had, nobody tells what waits in its queue.
            self.datagrams.note(Ready::Listener(number));
        }
    }

    /// Gives a listener up that is to go, once no flow needs it.
    pub(super) fn drop_spent_listener(&mut self, number: usize) {
        let spent = |listening: &Listening| listening.closing && listening.flows == 0;
        if !self.datagrams.listeners.get(number).is_some_and(spent) {
            return;
        }
        let listening = self.datagrams.listeners.remove(number);
        self.datagrams.listening.retain(|other| *other != number);
        if listening.watched {
            self.unwatch(&listening.listener.socket);
        }
        self.sweep(listening.listener.forward);
    }

    /// Takes no datagram any more; answers still go out by the sockets.
    pub(in crate::worker) fn leave_datagrams(&mut self) {
        self.datagrams.listening.clear();
        let all: Vec<usize> = self.datagrams.listeners.iter().map(|(number, _)| number).collect();
        for number in all {
            let listening = &mut self.datagrams.listeners[number];
            (listening.closing, listening.ready) = (true, false);
            if std::mem::replace(&mut listening.watched, false) {
                self.unwatch(&self.datagrams.listeners[number].listener.socket);
            }
            self.drop_spent_listener(number);
        }
    }

    fn unwatch(&self, socket: &Socket) {
        if let Err(e) = self.parts.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd())) {
            log::debug!("a listener was not watched: {e}");
        }
    }
}
