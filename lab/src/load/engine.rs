//! One thread that serves many connections: what our own generators have in common.
//!
//! A [`Work`] says what a connection does; the engine polls, accepts, connects and keeps the time. Sockets are
//! registered once for both directions, edge-triggered, so that an exchange costs one wait, one read and one write.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use slab::Slab;

/// Connections under way at once: fewer than the shortest queue of a listener that has to take them.
const OPENING: usize = 64;
/// How soon a listener that ran out of descriptors tries again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);
const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
const ALARM: Token = Token(usize::MAX - 2);

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// For its peer.
    Wait,
    /// For a word from outside: it has nothing to do.
    Park,
    /// For this time, see [`now`], or its peer.
    At(u64),
    /// For its next turn: it could go on, but others have to as well.
    Again,
    /// It is over and is closed.
    Done,
}

/// What connections do, and what one thread knows of all of them.
pub(super) trait Work {
    /// One connection.
    type Session;

    /// A connection was accepted, or begins to be made.
    fn begin(&mut self, number: u64) -> Self::Session;

    /// Goes on until it would have to wait. `ending` says that the peer may have closed: then a read that was short
    /// does not mean that there is nothing more to learn.
    fn advance(&mut self, session: &mut Self::Session, socket: &mut TcpStream, ending: bool) -> io::Result<Step>;

    /// It ended; true to have another made.
    fn end(&mut self, session: Self::Session, result: io::Result<()>) -> bool;
}

/// The connections of one thread.
#[derive(Debug)]
pub(super) struct Engine<W: Work> {
    pub(super) work: W,
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    sessions: Slab<Entry<W::Session>>,
    timers: BinaryHeap<Reverse<(u64, usize, u64)>>,
    /// Wakes to the microsecond, where that matters: epoll_wait(2) counts in milliseconds.
    alarm: Option<Alarm>,
    again: Vec<usize>,
    listener: Option<TcpListener>,
    accept_again: bool,
    target: Option<SocketAddr>,
    to_open: usize,
    opening: usize,
    parked: usize,
    serial: u64,
}

/// A timer of the kernel.
#[derive(Debug)]
struct Alarm {
    timer: TimerFd,
    /// When it goes off, or went.
    set: u64,
}

impl Alarm {
    fn set(&mut self, due: Option<u64>) -> io::Result<()> {
        let Some(due) = due.filter(|due| *due != self.set) else { return Ok(()) };
        self.set = due;
        let at = TimeSpec::from_duration(Duration::from_nanos(due.max(1)));
        Ok(self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }
}

#[derive(Debug)]
struct Entry<S> {
    socket: TcpStream,
    session: S,
    serial: u64,
    connecting: bool,
    parked: bool,
    due: Option<u64>,
}

impl<W: Work> Engine<W> {
    pub(super) fn new(work: W) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        Ok(Self {
            work,
            poll,
            events: Events::with_capacity(1024),
            waker,
            sessions: Slab::new(),
            timers: BinaryHeap::new(),
            alarm: None,
            again: Vec::new(),
            listener: None,
            accept_again: false,
            target: None,
            to_open: 0,
            opening: 0,
            parked: 0,
            serial: 0,
        })
    }

    /// Ends a [`Self::turn`] that waits.
    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Has timers go off when they are due, not at the next full millisecond; costs a system call for each.
    pub(super) fn keep_exact_time(&mut self) -> io::Result<()> {
        let timer =
            TimerFd::new(timerfd::ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let descriptor = timer.as_fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&descriptor), ALARM, Interest::READABLE)?;
        self.alarm = Some(Alarm { timer, set: 0 });
        Ok(())
    }

    /// Takes connections from here.
    pub(super) fn listen(&mut self, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        self.poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Makes so many more connections.
    pub(super) fn open(&mut self, target: SocketAddr, count: usize) {
        self.target = Some(target);
        self.to_open += count;
    }

    /// Connections there are and still to be made.
    pub(super) fn len(&self) -> usize {
        self.sessions.len() + self.to_open
    }

    /// Connections that are made and have nothing to do.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// Whether every connection is made and has nothing to do.
    pub(super) fn all_parked(&self) -> bool {
        self.parked == self.len()
    }

    /// Gives every connection a turn, for the work may have something new for it.
    pub(super) fn kick(&mut self) {
        let keys: Vec<usize> =
            self.sessions.iter().filter(|(_, entry)| !entry.connecting).map(|(key, _)| key).collect();
        for key in keys {
            self.advance(key, true);
        }
    }

    /// Waits for something to happen, at most until `until`, and lets everything concerned go on.
    pub(super) fn turn(&mut self, until: Option<u64>) -> io::Result<()> {
        self.connect_more();
        let timeout = self.timeout(until)?;
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let ready: Vec<(Token, bool)> =
            self.events.iter().map(|event| (event.token(), event.is_read_closed() || event.is_error())).collect();
        for key in std::mem::take(&mut self.again) {
            self.advance(key, true);
        }
        let mut accept = std::mem::take(&mut self.accept_again);
        for (token, ending) in ready {
            match token {
                LISTENER => accept = true,
                WAKER | ALARM => {}
                Token(key) => self.advance(key, ending),
            }
        }
        self.run_timers();
        // Last, so that a key freed in this batch is not given to another connection in it.
        if accept {
            self.accept();
        }
        Ok(())
    }

    fn timeout(&mut self, until: Option<u64>) -> io::Result<Option<Duration>> {
        if !self.again.is_empty() {
            return Ok(Some(Duration::ZERO));
        }
        let mut due = self.timers.peek().map(|Reverse((due, ..))| *due);
        if let Some(alarm) = &mut self.alarm {
            alarm.set(due)?;
            due = None;
        }
        let first = due.into_iter().chain(until).min();
        let timeout = first.map(|at| Duration::from_nanos(at.saturating_sub(now())));
        Ok(if self.accept_again { Some(timeout.map_or(ACCEPT_AGAIN, |t| t.min(ACCEPT_AGAIN))) } else { timeout })
    }

    fn run_timers(&mut self) {
        let now = now();
        while let Some(Reverse((due, key, serial))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            let current = |entry: &Entry<W::Session>| entry.serial == serial && entry.due == Some(due);
            if self.sessions.get(key).is_some_and(current) {
                self.advance(key, true);
            }
        }
    }

    fn accept(&mut self) {
        while let Some(listener) = &self.listener {
            match listener.accept() {
                Ok((socket, _)) => self.add(socket, false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // Most likely out of descriptors.
                Err(_) => {
                    self.accept_again = true;
                    return;
                }
            }
        }
    }

    fn connect_more(&mut self) {
        let Some(target) = self.target else { return };
        while self.to_open > 0 && self.opening < OPENING {
            self.to_open -= 1;
            match TcpStream::connect(target) {
                Ok(socket) => {
                    self.opening += 1;
                    self.add(socket, true);
                }
                Err(error) => {
                    let session = self.work.begin(self.serial);
                    self.serial += 1;
                    self.finish(session, Err(error));
                }
            }
        }
    }

    fn add(&mut self, mut socket: TcpStream, connecting: bool) {
        let serial = self.serial;
        self.serial += 1;
        let session = self.work.begin(serial);
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered =
            socket.set_nodelay(true).and_then(|()| self.poll.registry().register(&mut socket, Token(key), interest));
        match registered {
            Ok(()) => {
                entry.insert(Entry { socket, session, serial, connecting, parked: false, due: None });
            }
            Err(error) => {
                self.opening -= usize::from(connecting);
                self.finish(session, Err(error));
            }
        }
    }

    fn advance(&mut self, key: usize, ending: bool) {
        let Some(entry) = self.sessions.get_mut(key) else { return };
        if entry.connecting {
            match connected(&entry.socket) {
                Ok(false) => return,
                Ok(true) => {
                    entry.connecting = false;
                    self.opening -= 1;
                }
                Err(error) => return self.remove(key, Err(error)),
            }
        }
        if std::mem::take(&mut entry.parked) {
            self.parked -= 1;
        }
        entry.due = None;
        match self.work.advance(&mut entry.session, &mut entry.socket, ending) {
            Ok(Step::Wait) => {}
            Ok(Step::Park) => {
                entry.parked = true;
                self.parked += 1;
            }
            Ok(Step::At(due)) => {
                entry.due = Some(due);
                self.timers.push(Reverse((due, key, entry.serial)));
            }
            Ok(Step::Again) => self.again.push(key),
            Ok(Step::Done) => self.remove(key, Ok(())),
            Err(error) => self.remove(key, Err(error)),
        }
    }

    fn remove(&mut self, key: usize, result: io::Result<()>) {
        let entry = self.sessions.remove(key);
        self.opening -= usize::from(entry.connecting);
        self.parked -= usize::from(entry.parked);
        drop(entry.socket);
        self.finish(entry.session, result);
    }

    fn finish(&mut self, session: W::Session, result: io::Result<()>) {
        if self.work.end(session, result) {
            self.to_open += 1;
        }
    }
}

/// Whether a connection is made; an error when it never will be.
fn connected(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// Nanoseconds of the monotonic clock, which all processes of a machine share, whatever their namespaces.
pub(super) fn now() -> u64 {
    let nanoseconds = || {
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
        Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
    };
    nanoseconds().unwrap_or(0)
}

/// What a read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(usize),
    /// The peer has ended its stream.
    End,
    /// Nothing for now.
    Nothing,
}

/// Reads once.
pub(super) fn read(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Got> {
    loop {
        match socket.read(buffer) {
            Ok(0) => return Ok(Got::End),
            Ok(n) => return Ok(Got::Bytes(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Got::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes once; `None` when the kernel takes nothing for now.
pub(super) fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => return Ok(Some(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The peer closed in the middle of something.
pub(super) fn cut_off(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the stream ended {what}"))
}
