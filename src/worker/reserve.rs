//! Descriptors a worker keeps, so that a client is only taken out of the queue when there is one for its backend too.
//!
//! Without them the last descriptor would be a client's: it would be ended for want of a second one, while those behind
//! it, in the kernel's queue, live on. A client that finds no descriptor for its backend gets one of the reserve, and
//! nobody else is accepted until that has been filled up again.
//!
//! The last few descriptors of the process are not for sessions at all, but for the control thread: statistics, metrics
//! and a reload work without competing for what a session gives back. A new descriptor is the lowest number that is
//! free, so its number tells how many are left.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use socket2::Socket;

use super::{GONE, Peer, Worker};
use crate::limits;
use crate::session::{Session, Step};
use crate::sys;

/// One would do, but between giving it up and using its number another thread may be quicker.
pub(super) const RESERVE: usize = 2;
/// Descriptors a session holds at most: two sockets, and a pipe each way.
const PER_SESSION: usize = 6;
/// Descriptors of anything else, at most: this errs on the safe side.
const OTHERS: usize = 64;

/// What a worker keeps back.
#[derive(Debug)]
pub(super) struct Reserve {
    held: Vec<Socket>,
    /// Descriptors the process may have, and the first number that is not for sessions.
    allowed: usize,
    bound: usize,
    /// A number that is not for sessions has been given out: whether there are others is to be seen.
    doubtful: bool,
}

impl Reserve {
    /// Filled, if that can be.
    pub(super) fn new() -> Self {
        let allowed = usize::try_from(sys::descriptor_limit()).unwrap_or(usize::MAX);
        let bound = limits::for_sessions(allowed);
        let mut reserve = Self { held: Vec::with_capacity(RESERVE), allowed, bound, doubtful: false };
        // Whoever needs it finds out, and says why.
        let _ = reserve.fill();
        reserve
    }

    /// Fills it up.
    ///
    /// # Errors
    /// Descriptors or memory have run out.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        while self.held.len() < RESERVE || self.doubtful {
            match sys::stream(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into(), false) {
                Ok(socket) if self.is_for_control(&socket) => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
                Ok(socket) => {
                    self.doubtful = false;
                    self.add(Some(socket));
                }
                Err(e) if is_short(&e) => return Err(e),
                // A host without IPv4: nothing is kept, and nothing goes wrong by that before descriptors run out.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Notes which number a client has got.
    pub(super) fn note(&mut self, client: &Socket) {
        self.doubtful |= self.is_for_control(client);
    }

    fn is_for_control(&self, socket: &Socket) -> bool {
        usize::try_from(socket.as_raw_fd()).is_ok_and(|number| number >= self.bound)
    }

    /// Takes one, to be closed or passed on.
    fn take(&mut self) -> Option<Socket> {
        self.held.pop()
    }

    /// Keeps what another worker has passed on, or closes it.
    pub(super) fn add(&mut self, passed_on: Option<Socket>) {
        self.held.extend(passed_on.filter(|_| self.held.len() < RESERVE));
    }
}

impl Worker {
    /// A descriptor to go with a connection to another worker, which may have none left for its backend; `None` where
    /// descriptors abound.
    pub(super) fn provision(&mut self) -> Option<Socket> {
        let load = |peer: &Peer| peer.load.load(Ordering::Relaxed) % GONE;
        let sessions = self.serving().map(|peer| load(peer)).fold(0, usize::saturating_add);
        let plenty = sessions.saturating_mul(PER_SESSION).saturating_add(OTHERS) < self.reserve.allowed;
        if plenty { None } else { self.reserve.take() }
    }

    /// Fills the reserve up, if that can be: who accepts next would otherwise say why not.
    pub(super) fn refill(&mut self) {
        let _ = self.reserve.fill();
    }

    /// Begins to connect a session, with a descriptor of the reserve if there is no other.
    pub(super) fn connect_first(&mut self, key: usize) -> Step {
        let mut step = self.connect_with(key, Session::connect);
        while self.sessions.get(key).is_some_and(Session::wants_descriptor) {
            let Some(spare) = self.reserve.take() else { break };
            drop(spare);
            step = self.connect_with(key, Session::connect);
            if self.sessions.get(key).is_some_and(|session| !session.wants_retry()) {
                // It waits for nothing any more.
                self.retry.retain(|waiting| *waiting != key);
            }
        }
        step
    }
}

fn is_short(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
