//! Request and answer, again and again, on connections that stay; or a connection for each.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use spliced::ab::pattern::{self, Pattern};

use super::client::{Client, Tally};
use super::engine::{Engine, Got, Step, Work, cut_off, now, read, write};

/// Failed connections after which a thread makes no more.
const HOPELESS: u64 = 100;

/// Exchanges of fixed lengths.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) request: usize,
    pub(super) reply: usize,
    /// A new connection for each exchange, closed by the server; this many at once.
    pub(super) reconnect: Option<(SocketAddr, usize)>,
    pub(super) pattern: Arc<Pattern>,
    /// Told apart from other threads' connections.
    pub(super) thread: u64,
    /// When exchanges begin where they do not follow upon each other.
    pub(super) pace: Option<Pace>,
    pub(super) scratch: Vec<u8>,
    pub(super) running: bool,
    pub(super) tally: Tally,
}

/// When exchanges are due: evenly spread over time and, in turn, over all connections of all threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From one exchange to the next, whichever connections they are on.
    step_ns: f64,
    connections: u64,
    threads: u64,
    /// When the window began.
    begun: u64,
}

impl Pace {
    /// So many a second.
    pub(super) fn new(rate: f64, connections: usize, threads: usize) -> Self {
        let step_ns = 1e9 / rate.clamp(0.01, 1e7);
        Self { step_ns, connections: connections.max(1) as u64, threads: threads as u64, begun: 0 }
    }

    /// When the exchange after `done` others is due on the connection of a thread with that number.
    fn due(&self, thread: u64, number: u64, done: u64) -> u64 {
        let place = (number * self.threads + thread) % self.connections;
        self.begun + ((place + done * self.connections) as f64 * self.step_ns) as u64
    }
}

#[derive(Debug)]
pub(super) struct ExchangeSession {
    number: u64,
    /// Exchanges of the window.
    done: u64,
    seed: u64,
    offset: u64,
    begun: u64,
    sent: usize,
    answer: Vec<u8>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next request may go.
    Idle,
    Busy,
    /// Answered; the server is about to close.
    Closing,
}

impl Exchange {
    /// The first exchange of a connection that stays gets it ready, before the window begins.
    fn may_send(&self, session: &ExchangeSession) -> bool {
        self.running || (self.reconnect.is_none() && session.offset == 0)
    }

    fn send(&self, session: &mut ExchangeSession, socket: &mut TcpStream) -> io::Result<()> {
        let request = self.pattern.bytes(session.seed, session.offset, self.request);
        while session.sent < request.len() {
            match write(socket, &request[session.sent..])? {
                Some(n) => session.sent += n,
                None => break,
            }
        }
        Ok(())
    }

    /// When the next exchange is due; `None` where it may begin at once.
    fn due(&self, session: &ExchangeSession) -> Option<u64> {
        let pace = self.pace.filter(|_| self.running)?;
        Some(pace.due(self.thread, session.number, session.done))
    }

    /// Compares an answer with what was asked.
    fn check(&self, session: &ExchangeSession) -> io::Result<()> {
        let request = self.pattern.bytes(session.seed, session.offset, self.request);
        let right = session.answer.chunks(self.request).all(|part| part == &request[..part.len()]);
        if right { Ok(()) } else { Err(io::Error::other("an answer differs from its request")) }
    }

    fn record(&mut self, session: &ExchangeSession) {
        self.tally.done += 1;
        self.tally.times.record(now().saturating_sub(session.begun));
    }
}

impl Work for Exchange {
    type Session = ExchangeSession;

    fn begin(&mut self, number: u64) -> ExchangeSession {
        // A connection's time begins with its making.
        let seed = pattern::seed(self.thread, number as u32);
        ExchangeSession {
            number,
            done: 0,
            seed,
            offset: 0,
            begun: now(),
            sent: 0,
            answer: Vec::new(),
            state: State::Idle,
        }
    }

    fn advance(&mut self, session: &mut ExchangeSession, socket: &mut TcpStream, ending: bool) -> io::Result<Step> {
        loop {
            if session.state == State::Idle {
                if !self.may_send(session) && self.reconnect.is_none() {
                    return Ok(Step::Park);
                }
                let due = self.due(session);
                if let Some(due) = due.filter(|due| *due > now()) {
                    return Ok(Step::At(due));
                }
                if self.reconnect.is_none() {
                    // Time in which it was due and could not begin counts.
                    session.begun = due.unwrap_or_else(now);
                }
                session.state = State::Busy;
                session.sent = 0;
            }
            if session.state == State::Busy && session.sent < self.request {
                self.send(session, socket)?;
            }
            let n = match read(socket, &mut self.scratch)? {
                Got::Nothing => return Ok(Step::Wait),
                Got::End if session.state == State::Closing => {
                    self.record(session);
                    return Ok(Step::Done);
                }
                Got::End => return Err(cut_off("before the answer")),
                Got::Bytes(n) => n,
            };
            session.answer.extend_from_slice(&self.scratch[..n]);
            if session.answer.len() > self.reply || session.state == State::Closing {
                return Err(io::Error::other("an answer is longer than asked for"));
            }
            if session.answer.len() < self.reply {
                if n < self.scratch.len() && !ending {
                    return Ok(Step::Wait);
                }
                continue;
            }
            self.check(session)?;
            session.answer.clear();
            if self.reconnect.is_some() {
                session.state = State::Closing;
                continue;
            }
            if self.running {
                session.done += 1;
                self.record(session);
            }
            session.offset += self.request as u64;
            session.state = State::Idle;
            // The next request goes at once; its answer cannot be here yet.
            if !self.may_send(session) {
                return Ok(Step::Park);
            }
            if self.pace.is_some() {
                continue;
            }
            (session.begun, session.state, session.sent) = (now(), State::Busy, 0);
            self.send(session, socket)?;
            if !ending {
                return Ok(Step::Wait);
            }
        }
    }

    fn end(&mut self, _: ExchangeSession, result: io::Result<()>) -> bool {
        if let Err(error) = result {
            self.tally.errors.add(&error);
        }
        self.reconnect.is_some() && self.running && self.tally.errors.count < HOPELESS
    }
}

impl Client for Exchange {
    fn run(&mut self, running: bool) {
        if running {
            self.tally = Tally::default();
            self.pace = self.pace.map(|pace| Pace { begun: now(), ..pace });
        }
        self.running = running;
    }

    fn take(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    fn open_late(engine: &mut Engine<Self>) {
        if let Some((target, count)) = engine.work.reconnect {
            engine.open(target, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_even_over_all_connections_and_threads() {
        let pace = Pace { begun: 1000, ..Pace::new(1e6, 5, 2) };
        // Of five connections the first thread has three.
        let of = |thread, numbers: u64| (0..numbers).flat_map(move |number| [0, 1].map(|done| (thread, number, done)));
        let mut due: Vec<u64> = of(0, 3).chain(of(1, 2)).map(|(t, n, done)| pace.due(t, n, done)).collect();
        due.sort_unstable();
        assert_eq!(due, (0..10).map(|n| 1000 + n * 1000).collect::<Vec<u64>>());
    }
}
