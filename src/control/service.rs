//! A small request-and-answer server on the control thread: bounded in connections, bytes and time, so that a slow
//! or hostile client costs nothing. The control socket and the metrics endpoint are both one of these.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use log::{debug, warn};
use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use slab::Slab;

/// Connections one service holds at a time; a next one takes the place of one that stands still.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Descriptors a service keeps, so that it answers when sessions have all others.
const SPARES: usize = 2;
/// Bytes of one request.
pub(super) const MAX_REQUEST: usize = 8 * 1024;
/// From accepting a connection to its end, answer included.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(5);
/// The same for an answer that comes later.
pub(super) const LATER_LIMIT: Duration = Duration::from_secs(60);
/// Tokens a service uses: one for the listener, then one per connection.
pub(super) const TOKENS: usize = 1 + MAX_CONNECTIONS;

/// Connections accepted in one go, so that a storm of them leaves time for signals, and for those whose request or room
/// for their answer is there and not seen yet: they would look as if they stood still.
const ACCEPT_BATCH: usize = MAX_CONNECTIONS / 4;
/// Pause after a full batch. Events are edge-triggered: nobody would tell again.
const BATCH_PAUSE: Duration = Duration::from_millis(25);
/// The same after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read and thrown away after the answer, while the client has not closed.
const MAX_DISCARD: usize = 64 * 1024;

/// What a protocol says to the bytes that have arrived so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The request is not complete.
    More,
    /// The whole answer; the connection closes after it.
    Reply(Vec<u8>),
    /// The request is complete; [`Service::resolve`] brings the answer.
    Later,
}

/// A listening socket of either family.
pub(super) trait Acceptor: Source + fmt::Debug {
    /// The connections it gives.
    type Stream: Channel;
    /// Takes one connection, or says `WouldBlock`.
    fn accept_one(&self) -> io::Result<Self::Stream>;
}

/// A connection of either family.
pub(super) trait Channel: Source + Read + Write + fmt::Debug {
    /// Whether bytes that arrive after a close could cost the client its answer. On TCP they cause a reset; on a unix
    /// socket the answer is in the client's queue already.
    const LINGERS: bool;
    /// Tells the client that nothing more comes.
    fn finish_writing(&self) -> io::Result<()>;
}

impl Acceptor for UnixListener {
    type Stream = UnixStream;
    fn accept_one(&self) -> io::Result<UnixStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Acceptor for TcpListener {
    type Stream = TcpStream;
    fn accept_one(&self) -> io::Result<TcpStream> {
        self.accept().map(|(stream, _)| stream)
    }
}

impl Channel for UnixStream {
    const LINGERS: bool = false;
    fn finish_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Channel for TcpStream {
    const LINGERS: bool = true;
    fn finish_writing(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A listener and its connections.
#[derive(Debug)]
pub(super) struct Service<A: Acceptor> {
    name: &'static str,
    /// `None` once another process answers in its place.
    listener: Option<A>,
    first_token: usize,
    connections: Slab<Connection<A::Stream>>,
    accept_again: Option<Instant>,
    accept_failing: bool,
    /// Descriptors in reserve, as sockets that are never used.
    spares: Vec<UnixDatagram>,
}

#[derive(Debug)]
struct Connection<S> {
    stream: S,
    until: Instant,
    /// Since when it stands still: it began, or took a part of its answer.
    since: Instant,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Bytes of the request so far.
    Reading(Vec<u8>),
    /// The answer comes later.
    Waiting,
    /// The answer and how much of it is written.
    Writing(Vec<u8>, usize),
    /// Answered. Closing with unread bytes would reset the connection and could lose the answer, so they are thrown
    /// away, and where it lingers also what the client sends until it closes.
    Closing(usize),
}

impl<A: Acceptor> Service<A> {
    /// Registers a bound listener. Tokens `first_token .. first_token + TOKENS` belong to the service.
    ///
    /// # Errors
    /// When the poller refuses the listener.
    pub(super) fn new(
        name: &'static str,
        mut listener: A,
        registry: &Registry,
        first_token: usize,
    ) -> io::Result<Self> {
        registry.register(&mut listener, Token(first_token), Interest::READABLE)?;
        let connections = Slab::with_capacity(MAX_CONNECTIONS);
        let listener = Some(listener);
        let spares = Vec::with_capacity(SPARES);
        let accept_failing = false;
        let mut service = Self { name, listener, first_token, connections, accept_again: None, accept_failing, spares };
        service.fill_spares();
        Ok(service)
    }

    /// The listening socket, while it is ours.
    pub(super) fn listener(&self) -> Option<&A> {
        self.listener.as_ref()
    }

    /// Takes no more connections; those there are get their answers.
    pub(super) fn stop_listening(&mut self, registry: &Registry) {
        self.accept_again = None;
        if let Some(mut listener) = self.listener.take() {
            // Another process may hold the socket, and then closing ours does not take it out of the poller.
            let _ = registry.deregister(&mut listener);
        }
        self.spares.clear();
    }

    /// Whether an event with this token is for this service.
    pub(super) fn owns(&self, token: Token) -> bool {
        (self.first_token..self.first_token + TOKENS).contains(&token.0)
    }

    /// Handles an event. `answer` sees all bytes of a request that have arrived.
    pub(super) fn ready(
        &mut self,
        token: Token,
        registry: &Registry,
        now: Instant,
        answer: &mut dyn FnMut(&[u8]) -> Answer,
    ) {
        if token.0 == self.first_token {
            self.accept(registry, now, answer);
        } else {
            self.advance(token.0 - self.first_token - 1, registry, answer);
        }
    }

    /// Answers every request that waits for an answer.
    pub(super) fn resolve(&mut self, reply: &[u8], registry: &Registry) {
        let waits = |(key, connection): (usize, &mut Connection<A::Stream>)| {
            matches!(connection.step, Step::Waiting).then(|| {
                connection.step = Step::Writing(reply.to_vec(), 0);
                key
            })
        };
        let keys: Vec<usize> = self.connections.iter_mut().filter_map(waits).collect();
        for key in keys {
            self.advance(key, registry, &mut |_| Answer::More);
        }
    }

    /// Closes connections whose time is over and takes up a paused accept.
    pub(super) fn tick(&mut self, registry: &Registry, now: Instant, answer: &mut dyn FnMut(&[u8]) -> Answer) {
        for key in self.keys_until(now) {
            debug!("{}: a connection took longer than {TIME_LIMIT:?} and was closed", self.name);
            self.close(key, registry);
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept(registry, now, answer);
        }
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.connections.iter().map(|(_, connection)| connection.until).chain(self.accept_again).min()
    }

    fn keys_until(&self, now: Instant) -> Vec<usize> {
        self.connections.iter().filter(|(_, connection)| connection.until <= now).map(|(key, _)| key).collect()
    }

    fn accept(&mut self, registry: &Registry, now: Instant, answer: &mut dyn FnMut(&[u8]) -> Answer) {
        self.accept_again = None;
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = &self.listener else { return };
            match listener.accept_one() {
                Ok(stream) => {
                    self.accept_failing = false;
                    self.add(stream, registry, now, answer);
                    self.fill_spares();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The sessions have all descriptors: whoever wants to know why gets one that was kept for that.
                Err(error) if is_exhausted(&error) && self.spares.pop().is_some() => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_failing, true) {
                        warn!("{}: cannot accept: {error}; trying again every {ACCEPT_PAUSE:?}", self.name);
                    }
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_again = Some(now + BATCH_PAUSE);
    }

    fn add(
        &mut self,
        mut stream: A::Stream,
        registry: &Registry,
        now: Instant,
        answer: &mut dyn FnMut(&[u8]) -> Answer,
    ) {
        if self.connections.len() >= MAX_CONNECTIONS {
            let Some(stillest) = self.dispensable() else {
                debug!("{}: {MAX_CONNECTIONS} requests wait for their answers, one more was refused", self.name);
                return;
            };
            debug!(
                "{}: {MAX_CONNECTIONS} connections are open, the one that stood still for longest was closed",
                self.name
            );
            self.close(stillest, registry);
        }
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let token = Token(self.first_token + 1 + key);
        if let Err(error) = registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE) {
            debug!("{}: a connection could not be watched: {error}", self.name);
            return;
        }
        entry.insert(Connection { stream, until: now + TIME_LIMIT, since: now, step: Step::Reading(Vec::new()) });
        self.advance(key, registry, answer);
    }

    /// The connection that is given up for a new one: the one that has stood still for longest of those that are the
    /// more, without a request or with an answer. So clients who send no request keep nobody out and cut no answer that
    /// is read slowly, and those who do not read theirs keep nobody out either. The bytes of a request are no movement:
    /// it comes at once from whoever means it. One whose answer is still to come is never given up.
    fn dispensable(&self) -> Option<usize> {
        let of = |asked: bool| {
            self.connections.iter().filter(move |(_, connection)| match connection.step {
                Step::Reading(_) => !asked,
                Step::Waiting => false,
                Step::Writing(..) | Step::Closing(_) => asked,
            })
        };
        let more = of(of(true).count() > of(false).count());
        more.min_by_key(|(_, connection)| connection.since).map(|(key, _)| key)
    }

    fn advance(&mut self, key: usize, registry: &Registry, answer: &mut dyn FnMut(&[u8]) -> Answer) {
        // An event of the same batch may be for a connection that is closed by now.
        let Some(connection) = self.connections.get_mut(key) else { return };
        match connection.advance(answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                debug!("{}: a connection failed: {error}", self.name);
                self.close(key, registry);
            }
            Ok(()) => self.close(key, registry),
        }
    }

    fn close(&mut self, key: usize, registry: &Registry) {
        if let Some(mut connection) = self.connections.try_remove(key) {
            // Closing the descriptor takes it out of the poller anyway; an error here changes nothing.
            let _ = registry.deregister(&mut connection.stream);
            drop(connection);
            self.fill_spares();
        }
    }

    /// Keeps descriptors for when there are none; where there are none now, the next connection that closes gives one.
    fn fill_spares(&mut self) {
        while self.listener.is_some() && self.spares.len() < SPARES {
            match UnixDatagram::unbound() {
                Ok(socket) => self.spares.push(socket),
                Err(_) => break,
            }
        }
    }
}

impl<S: Channel> Connection<S> {
    /// Goes on as far as the socket allows: `WouldBlock` to wait, `Ok` when the connection is over.
    fn advance(&mut self, answer: &mut dyn FnMut(&[u8]) -> Answer) -> io::Result<()> {
        let mut chunk = [0; 2048];
        loop {
            match &mut self.step {
                Step::Reading(request) => {
                    let room = chunk.len().min(MAX_REQUEST - request.len());
                    let n = read(&mut self.stream, &mut chunk[..room])?;
                    request.extend_from_slice(&chunk[..n]);
                    match answer(request) {
                        Answer::Reply(reply) => self.step = Step::Writing(reply, 0),
                        Answer::Later => {
                            self.until = Instant::now() + LATER_LIMIT;
                            self.step = Step::Waiting;
                        }
                        Answer::More if n == 0 || request.len() == MAX_REQUEST => return Ok(()),
                        Answer::More => {}
                    }
                }
                // A client that closes its half may still wait for the answer. What else it sends is no request.
                Step::Waiting => {
                    if read(&mut self.stream, &mut chunk)? == 0 {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                }
                Step::Writing(reply, written) if *written < reply.len() => {
                    match self.stream.write(&reply[*written..]) {
                        Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                        Ok(n) => (*written, self.since) = (*written + n, Instant::now()),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Step::Writing(..) => {
                    if S::LINGERS {
                        self.stream.finish_writing()?;
                    }
                    self.step = Step::Closing(0);
                }
                Step::Closing(discarded) => {
                    let n = match read(&mut self.stream, &mut chunk) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !S::LINGERS => return Ok(()),
                        result => result?,
                    };
                    *discarded += n;
                    if n == 0 || *discarded > MAX_DISCARD {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn read(stream: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests;
