//! How the control thread and other workers tell a worker things.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;
use socket2::Socket;

use crate::upstream::Hop;

/// How a worker is told things.
#[derive(Debug)]
pub struct Mailbox {
    sender: Sender<Message>,
    waker: Waker,
}

/// What a worker may be told.
#[derive(Debug)]
pub enum Message {
    /// A connection another worker has accepted.
    Accepted(Accepted),
    /// The addresses of a name: forward, target, addresses.
    Resolved(usize, usize, Vec<IpAddr>),
    /// Accept no more; end when the last session has.
    Drain,
    /// The same, and what waits in the queues of the listeners is somebody else's, but for those on these addresses.
    LetGo(Arc<[SocketAddr]>),
    /// End every session now.
    Stop,
    /// Fail, to test what the process makes of it.
    #[cfg(test)]
    Panic,
}

/// A connection on its way to the worker that will hold it.
#[derive(Debug)]
pub struct Accepted {
    pub(super) socket: Socket,
    pub(super) client: SocketAddr,
    pub(super) forward: usize,
    pub(super) listener: usize,
    pub(super) port_offset: u16,
    pub(super) hop: Hop,
}

#[cfg(test)]
impl Accepted {
    /// A connection to the first forward, as if another worker had accepted it.
    pub(crate) fn of(socket: Socket, client: SocketAddr) -> Self {
        Self { socket, client, forward: 0, listener: 0, port_offset: 0, hop: Hop::default() }
    }
}

impl Mailbox {
    /// A mailbox and its other end.
    #[must_use]
    pub fn new(waker: Waker) -> (Self, Receiver<Message>) {
        let (sender, receiver) = channel();
        (Self { sender, waker }, receiver)
    }

    /// Leaves a message; given back when the worker is gone.
    ///
    /// # Errors
    /// The message, when nobody will read it.
    pub fn post(&self, message: Message) -> Result<(), Message> {
        self.sender.send(message).map_err(|e| e.0)?;
        self.nudge();
        Ok(())
    }

    /// Makes the worker turn, without a message.
    pub fn nudge(&self) {
        if let Err(e) = self.waker.wake() {
            // The message is read at the worker's next turn all the same.
            log::debug!("cannot wake a worker: {e}");
        }
    }
}
