//! How the control thread and other workers tell a worker things.
//!
//! A mailbox has no bound of its own, as whoever posts must not wait. What may be in it is bounded by what stands behind
//! it: a descriptor for each connection and session, one word for each time the worker has marked itself as waiting for a
//! slot or for room, and what the control thread says, which waits for a change before it begins the next one.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use mio::Waker;
use socket2::Socket;

use super::Route;
use crate::address::Address;
use crate::gather::Board;
use crate::limits::Ticket;
use crate::listener::Listener;
use crate::names::Place;
use crate::plan::Host;
use crate::session::Session;
use crate::stats::SessionRecord;
use crate::sys::pipes::PipeBudget;
use crate::udp;
use crate::upstream::{Endpoint, Hop};

/// How a worker is told things.
#[derive(Debug)]
pub struct Mailbox {
    sender: Sender<Message>,
    waker: Waker,
}

/// A worker as others see it.
#[derive(Debug)]
pub struct Peer {
    /// Sessions it holds, those on their way to its mailbox included.
    pub load: AtomicUsize,
    /// Where it is told things.
    pub mailbox: Mailbox,
}

/// What a worker may be told.
#[derive(Debug)]
pub enum Message {
    /// A connection another worker has accepted.
    Accepted(Accepted),
    /// A session another worker has let go, and what limits per source count it as.
    Moved(Box<Session>, Option<Box<Ticket>>),
    /// Where a name leads.
    Resolved(Arc<Host>, Arc<[Place]>),
    /// A slot this worker waits for has come free.
    SlotFree,
    /// There may be room at a target its sessions wait for.
    RoomFree,
    /// That target is down: its sessions are to end.
    TargetDown(Arc<Endpoint>),
    /// Editions others may soon pass on connections for.
    Learn(Box<Learn>),
    /// What it serves from now on.
    Change(Box<Change>),
    /// Editions no connection will come for any more.
    Retire(Arc<[usize]>),
    /// Its place is taken away: end when the last session has, unless a change says otherwise before.
    Leave,
    /// Take no datagram of clients any more: they are somebody else's. Answers still go out.
    LeaveDatagrams,
    /// Accept no more; end when the last session has.
    Drain,
    /// The same, and what waits in the queues of the listeners is somebody else's.
    LetGo,
    /// End every session now.
    Stop,
    /// Fail, to test what the process makes of it.
    #[cfg(test)]
    Panic,
}

/// Editions a worker does not know yet. Every worker is told of them before any is told to serve them.
#[derive(Debug)]
pub struct Learn {
    /// With what it keeps for each.
    pub routes: Vec<Route>,
    /// Its share of pipes, by pool.
    pub budgets: Vec<PipeBudget>,
    /// Bytes the largest read may take.
    pub scratch: usize,
}

/// What a worker serves from now on: all of it, whatever was before.
#[derive(Debug)]
pub struct Change {
    /// Editions that are not replaced.
    pub current: Arc<[usize]>,
    /// Every listener it accepts from.
    pub listeners: Vec<Listener>,
    /// Every socket it takes datagrams from.
    pub datagrams: Vec<udp::flow::Listener>,
    /// All workers by number.
    pub peers: Arc<[Arc<Peer>]>,
    /// The first so many serve.
    pub serving: usize,
    /// How busy each of them is.
    pub board: Arc<Board>,
    /// Where finished sessions are reported.
    pub log: Option<SyncSender<Vec<SessionRecord>>>,
    /// Told, or closed, when this is in effect or the worker is gone.
    pub done: Sender<()>,
}

/// A connection on its way to the worker that will hold it.
#[derive(Debug)]
pub struct Accepted {
    pub(super) socket: Socket,
    pub(super) client: Address,
    pub(super) forward: usize,
    pub(super) listener: usize,
    pub(super) port_offset: u16,
    pub(super) hop: Hop,
    /// What limits per source count it as.
    pub(super) ticket: Option<Box<Ticket>>,
    /// A descriptor that is as good as its backend's, when they are scarce.
    pub(super) spare: Option<Socket>,
}

#[cfg(test)]
impl Accepted {
    /// A connection to the first forward, as if another worker had accepted it.
    pub(crate) fn of(socket: Socket, client: std::net::SocketAddr) -> Self {
        let client = client.into();
        Self { socket, client, forward: 0, listener: 0, port_offset: 0, hop: Hop::default(), ticket: None, spare: None }
    }
}

impl Peer {
    /// A worker without sessions, and the other end of its mailbox.
    #[must_use]
    pub fn new(waker: Waker) -> (Arc<Self>, Receiver<Message>) {
        let (sender, receiver) = channel();
        (Arc::new(Self { load: AtomicUsize::new(0), mailbox: Mailbox { sender, waker } }), receiver)
    }
}

impl Mailbox {
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
        while let Err(e) = self.waker.wake() {
            // An idle worker would not find a new connection before something else wakes it.
            if e.kind() != std::io::ErrorKind::Interrupted {
                log::debug!("cannot wake a worker: {e}");
                break;
            }
        }
    }
}
