//! One client and its upstream: connecting, two flows, the end and its reason.
//!
//! Invariant: an error is latched. The first error either socket reports decides how the session ends, because the
//! next system call on the same socket would report a clean end instead.
//!
//! Invariant: only a session whose both directions ended cleanly is closed cleanly; every other end resets both
//! sockets, so that a truncated stream never looks complete.

mod advance;
mod attempt;
mod connect;
mod early;
mod header;
mod moving;
mod race;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use self::advance::blame;
pub use self::connect::{Connecting, Connector};
use self::header::{Announcing, Introduction};
pub use self::header::{Awaited, Awaiting};
use crate::address::Address;
use crate::arms::ArmIndex;
use crate::flow::Flow;
use crate::limits::Pace;
use crate::plan::Timeouts;
use crate::pump::{Choice, Pump, Pumps, Ready};
pub use crate::stats::Side;
use crate::stats::{Bytes, EndReason, ForwardStats};
use crate::upstream::{Endpoint, Lease};

/// The token of the client's socket of the session with that slab key.
#[must_use]
pub fn client_token(key: usize) -> mio::Token {
    mio::Token(key << 4)
}

/// The token of the backend's socket; it carries the number of the attempt, so that an event of an attempt that was
/// given up within the same batch is told from one of its successor.
#[must_use]
pub fn backend_token(key: usize, attempt: u32) -> mio::Token {
    mio::Token(key << 4 | (attempt as usize & 7) << 1 | 1)
}

/// The slab key in a token.
#[must_use]
pub fn key_of(token: mio::Token) -> usize {
    token.0 >> 4
}

/// What is fixed about a session from the start.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// The client's address.
    pub client: Address,
    /// Number of the forward's edition.
    pub forward: usize,
    /// Number of the listening address among those of its forward.
    pub listener: usize,
    /// Microseconds of the worker's clock at accept.
    pub opened_us: u64,
}

/// A client and its upstream.
#[derive(Debug)]
pub struct Session {
    origin: Origin,
    client: Socket,
    backend: Option<Socket>,
    client_ready: Ready,
    backend_ready: Ready,
    client_failed: bool,
    backend_failed: bool,
    up: Way,
    down: Way,
    bytes: Bytes,
    phase: Phase,
    /// What the client's PROXY header said, where there was one.
    introduction: Option<Box<Introduction>>,
    target: Option<Address>,
    /// Its hold of that target.
    lease: Option<Lease>,
    /// Number of the connect attempt `backend` belongs to.
    attempt: u32,
    active_us: u64,
    /// The time its timer is set to, in milliseconds; 0 for none.
    pub armed_ms: u64,
    /// Already in the queue of this or the next turn.
    pub queued: bool,
    /// Turns in which it was driven, as far as it matters.
    turns: u8,
    /// The worker's note of when it last thought of moving it.
    pub seen: u8,
    /// The arm it was dealt to, in a live A/B.
    pub arm: Option<ArmIndex>,
    /// What the trace of our own connections holds for it.
    trace: u64,
}

#[derive(Debug)]
struct Way {
    flow: Flow,
    pump: Pump,
}

#[derive(Debug)]
enum Phase {
    /// For the client to say who it is.
    Awaiting(Box<Awaiting>),
    /// Boxed: for most of its life a session is connected.
    Connecting(Box<Connecting>),
    /// The backend is being told.
    Announcing(Box<Announcing>),
    Open,
}

/// What a session wants after it was driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing until an event or its deadline.
    Wait,
    /// Another turn without an event.
    Again,
    /// It is over.
    End(End),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The reason.
    pub reason: EndReason,
    /// The kernel's error behind it.
    pub errno: Option<i32>,
}

/// What a session needs of its worker to move bytes.
#[derive(Debug)]
pub struct Turn<'a> {
    /// Scratch buffer and pipes.
    pub pumps: &'a mut Pumps,
    /// Counters of its forward.
    pub stats: &'a ForwardStats,
    /// Most bytes one read may take.
    pub copy_buffer: usize,
    /// Index of the pool with the forward's pipe size.
    pub pool: usize,
    /// The turn's clock reading, in microseconds.
    pub now_us: u64,
    /// System calls its lanes have made.
    pub calls: u32,
    /// What rates allow, where there is one.
    pub pace: Option<Pace<'a>>,
    /// Bytes that have moved.
    pub moved: u64,
}

impl End {
    /// An end without an error of the kernel.
    #[must_use]
    pub fn of(reason: EndReason) -> Self {
        Self { reason, errno: None }
    }
}

impl Session {
    /// A session that has been accepted, and whose client is still to say who it is.
    #[must_use]
    pub fn awaiting(client: Socket, origin: Origin, choice: Choice, awaiting: Awaiting) -> Self {
        Self::in_phase(client, origin, choice, Phase::Awaiting(Box::new(awaiting)))
    }

    /// A session that has been accepted and is not connected yet.
    #[must_use]
    pub fn new(client: Socket, origin: Origin, choice: Choice, connecting: Connecting) -> Self {
        Self::in_phase(client, origin, choice, Phase::Connecting(Box::new(connecting)))
    }

    fn in_phase(client: Socket, origin: Origin, choice: Choice, phase: Phase) -> Self {
        let way = || Way { flow: Flow::default(), pump: Pump::new(choice) };
        Self {
            origin,
            client,
            backend: None,
            client_ready: Ready::default(),
            backend_ready: Ready::default(),
            client_failed: false,
            backend_failed: false,
            up: way(),
            down: way(),
            bytes: Bytes::default(),
            phase,
            introduction: None,
            target: None,
            lease: None,
            attempt: 0,
            active_us: origin.opened_us,
            armed_ms: 0,
            queued: false,
            turns: 0,
            seen: 0,
            arm: None,
            trace: 0,
        }
    }

    /// What is fixed about it.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The accepted socket.
    #[must_use]
    pub fn client(&self) -> &Socket {
        &self.client
    }

    /// The target it is connected or connecting to.
    #[must_use]
    pub fn target(&self) -> Option<Address> {
        self.target
    }

    /// Whether that target is its own.
    #[must_use]
    pub fn holds(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.lease.as_ref().is_some_and(|lease| Arc::ptr_eq(lease.endpoint(), endpoint))
    }

    /// Gives up its hold of the target; whether it had one.
    pub fn release(&mut self) -> bool {
        self.lease.take().is_some()
    }

    /// Bytes delivered so far.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Whether a direction holds bytes its target has not taken.
    #[must_use]
    pub fn holds_bytes(&self) -> bool {
        !(self.up.pump.is_idle() && self.down.pump.is_idle())
    }

    /// Takes the targets of held bytes for writable, so that the next turn tries; whether there are any.
    pub fn try_held(&mut self) -> bool {
        let [up, down] = self.held();
        self.backend_ready.writable |= up > 0;
        self.client_ready.writable |= down > 0;
        self.holds_bytes()
    }

    /// Bytes held between turns, towards the backend and towards the client.
    #[must_use]
    pub fn held(&self) -> [usize; 2] {
        [self.up.pump.held(), self.down.pump.held()]
    }

    /// The entry to remove from the trace of our own connections.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Notes what the poller said; nothing is done yet. False when the event is about a socket it has no more.
    pub fn note(&mut self, event: &mio::event::Event) -> bool {
        let token = event.token();
        let (ready, failed) = if token == client_token(key_of(token)) {
            (&mut self.client_ready, &mut self.client_failed)
        } else if token == backend_token(key_of(token), self.attempt) {
            (&mut self.backend_ready, &mut self.backend_failed)
        } else if let Some(flags) = self.earlier_flags(token) {
            flags
        } else {
            return false;
        };
        ready.readable |= event.is_readable() || event.is_error();
        ready.writable |= event.is_writable() || event.is_error();
        ready.read_closed |= event.is_read_closed() || event.is_error();
        ready.urgent |= crate::sys::is_urgent(event);
        *failed |= event.is_error();
        true
    }

    /// Whether the poller said that a socket has failed. A hint: `take_error` decides.
    fn failed(&mut self, side: Side) -> Option<io::Error> {
        let (socket, failed) = match side {
            Side::Client => (Some(&self.client), &mut self.client_failed),
            Side::Backend => (self.backend.as_ref(), &mut self.backend_failed),
        };
        if !std::mem::take(failed) {
            return None;
        }
        socket?.take_error().ok().flatten()
    }

    /// When it ends by itself if nothing happens, in milliseconds of the worker's clock.
    #[must_use]
    pub fn deadline_ms(&self, timeouts: &Timeouts) -> Option<u64> {
        match &self.phase {
            Phase::Awaiting(awaiting) => Some(awaiting.until_ms),
            Phase::Connecting(connecting) => connecting.deadline_ms(),
            Phase::Announcing(announcing) => Some(announcing.give_up_ms).filter(|ms| *ms > 0),
            Phase::Open => {
                let half = if self.is_half_closed() { timeouts.half_closed } else { None };
                let timeout = [half, timeouts.idle].into_iter().flatten().min()?;
                Some(self.active_us / 1000 + millis(timeout))
            }
        }
    }

    /// Why it ends when its deadline has passed.
    #[must_use]
    pub fn overdue(&self, timeouts: &Timeouts) -> EndReason {
        match &self.phase {
            Phase::Awaiting(_) => EndReason::ProxyTimeout,
            Phase::Connecting(connecting) => connecting.overdue(),
            Phase::Announcing(_) => EndReason::ConnectTimeout,
            Phase::Open => match (self.is_half_closed(), timeouts.half_closed, timeouts.idle) {
                (true, Some(half), Some(idle)) if half <= idle => EndReason::HalfClosed,
                (true, Some(_), None) => EndReason::HalfClosed,
                _ => EndReason::Idle,
            },
        }
    }

    /// Closes it. Anything but a clean end resets both sockets.
    pub fn close(mut self, reason: EndReason, pumps: &mut Pumps, pool: usize) {
        pumps.release(&mut self.up.pump, pool);
        pumps.release(&mut self.down.pump, pool);
        if reason != EndReason::Done {
            self.reset();
        }
    }

    /// Makes closing the sockets send a reset. Errors are ignored: a socket that cannot be reset is gone already.
    pub fn reset(&self) {
        let _ = self.client.set_linger(Some(Duration::ZERO));
        if let Some(backend) = &self.backend {
            let _ = backend.set_linger(Some(Duration::ZERO));
        }
    }

    fn is_half_closed(&self) -> bool {
        (self.up.flow == Flow::Done) != (self.down.flow == Flow::Done)
    }

    fn downloaded(&self) -> u64 {
        self.bytes.backend_to_client.splice + self.bytes.backend_to_client.copy
    }

    fn moved(&self) -> u64 {
        self.downloaded() + self.bytes.client_to_backend.splice + self.bytes.client_to_backend.copy
    }
}

/// Whole milliseconds, at least 1, so that "soon" is never "never".
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4).clamp(1, u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_is_small() {
        // Two sockets, two flows and what a log line needs; with its timer it stays well below 512 bytes.
        assert!(size_of::<Session>() <= 304, "{}", size_of::<Session>());
    }

    #[test]
    fn tokens_tell_sockets_attempts_and_keys_apart() {
        for key in [0, 1, 7999] {
            let mut tokens = vec![client_token(key)];
            tokens.extend((0..8).map(|attempt| backend_token(key, attempt)));
            assert!(tokens.iter().all(|token| key_of(*token) == key));
            tokens.sort_unstable_by_key(|t| t.0);
            tokens.dedup();
            assert_eq!(tokens.len(), 9);
        }
    }
}
