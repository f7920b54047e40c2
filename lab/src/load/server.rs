//! The server's side of our own generators.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mio::net::TcpStream;
use spliced::ab::pattern::Pattern;

use super::engine::{Got, Step, Work, cut_off, now, read, write};
use super::wire::{CHUNK_HEADER, HEADER, Header, RECEIPT, Request, chunk, receipt};

/// Bytes one read may take.
pub(super) const READ: usize = 256 * 1024;
/// Bytes one connection may be read in a row before others have their turn.
const BUDGET: usize = 1 << 20;

/// What all threads of a server count together.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Connections accepted.
    pub(super) accepted: AtomicU64,
    /// Bytes of bulk streams received and found right.
    pub(super) bytes: AtomicU64,
    /// Chunks that left more than a millisecond after they were due.
    pub(super) late: AtomicU64,
    /// Connections that ended with an error.
    pub(super) broken: AtomicU64,
}

impl Counts {
    fn ended(&self, result: &io::Result<()>) {
        if result.is_err() {
            self.broken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Answers requests of one length by answers of another.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) request: usize,
    pub(super) reply: usize,
    /// Close after the first answer.
    pub(super) close: bool,
    pub(super) scratch: Vec<u8>,
    pub(super) counts: Arc<Counts>,
}

#[derive(Debug, Default)]
pub(super) struct EchoSession {
    request: Vec<u8>,
    /// The answer under way and how much of it has been sent.
    answer: Vec<u8>,
    sent: usize,
}

impl EchoSession {
    /// Sends what is left of an answer; false when the kernel did not take all of it.
    fn flush(&mut self, socket: &mut TcpStream) -> io::Result<bool> {
        while self.sent < self.answer.len() {
            match write(socket, &self.answer[self.sent..])? {
                Some(n) => self.sent += n,
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Work for Echo {
    type Session = EchoSession;

    fn begin(&mut self, _: u64) -> EchoSession {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        EchoSession::default()
    }

    fn advance(&mut self, session: &mut EchoSession, socket: &mut TcpStream, ending: bool) -> io::Result<Step> {
        loop {
            if !session.flush(socket)? {
                return Ok(Step::Wait);
            }
            if self.close && !session.answer.is_empty() {
                return Ok(Step::Done);
            }
            let n = match read(socket, &mut self.scratch)? {
                Got::Nothing => return Ok(Step::Wait),
                Got::End if session.request.is_empty() => return Ok(Step::Done),
                Got::End => return Err(cut_off("within a request")),
                Got::Bytes(n) => n,
            };
            session.request.extend_from_slice(&self.scratch[..n]);
            if session.request.len() > self.request {
                return Err(io::Error::other("more arrived than one request"));
            }
            if session.request.len() == self.request {
                session.sent = 0;
                session.answer.clear();
                answer(&session.request, self.reply, &mut session.answer);
                session.request.clear();
            }
            // A short read took all there was: the next event comes with the next byte.
            if n < self.scratch.len() && !ending {
                let flushed = session.flush(socket)?;
                let over = flushed && self.close && !session.answer.is_empty();
                return Ok(if over { Step::Done } else { Step::Wait });
            }
        }
    }

    fn end(&mut self, _: EchoSession, result: io::Result<()>) -> bool {
        self.counts.ended(&result);
        false
    }
}

/// The request again and again, up to `len` bytes.
pub(super) fn answer(request: &[u8], len: usize, out: &mut Vec<u8>) {
    while out.len() < len {
        let take = request.len().min(len - out.len());
        out.extend_from_slice(&request[..take]);
    }
}

/// Receives bulk streams, compares every byte, and says at the end how many there were.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) pattern: Arc<Pattern>,
    pub(super) scratch: Vec<u8>,
    pub(super) counts: Arc<Counts>,
}

#[derive(Debug, Default)]
pub(super) struct SinkSession {
    header: Vec<u8>,
    current: Option<Header>,
    /// Bytes of the current message that have arrived.
    have: usize,
    received: u64,
    receipt: Option<[u8; RECEIPT]>,
    sent: usize,
}

impl Work for Sink {
    type Session = SinkSession;

    fn begin(&mut self, _: u64) -> SinkSession {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        SinkSession::default()
    }

    fn advance(&mut self, session: &mut SinkSession, socket: &mut TcpStream, ending: bool) -> io::Result<Step> {
        let mut budget = BUDGET;
        loop {
            if let Some(receipt) = session.receipt {
                match write(socket, &receipt[session.sent..])? {
                    Some(n) => session.sent += n,
                    None => return Ok(Step::Wait),
                }
                if session.sent == RECEIPT {
                    session.receipt = None;
                }
                continue;
            }
            let mut scratch = std::mem::take(&mut self.scratch);
            let got = read(socket, &mut scratch);
            let taken = match &got {
                Ok(Got::Bytes(n)) => self.take(session, &scratch[..*n]),
                _ => Ok(()),
            };
            let longest = scratch.len();
            self.scratch = scratch;
            taken?;
            match got? {
                Got::Nothing => return Ok(Step::Wait),
                Got::End if session.current.is_none() && session.header.is_empty() => return Ok(Step::Done),
                Got::End => return Err(cut_off(&format!("within a message, after {} bytes", session.received))),
                Got::Bytes(n) if n < longest && !ending && session.receipt.is_none() => return Ok(Step::Wait),
                Got::Bytes(n) if n >= budget => return Ok(Step::Again),
                Got::Bytes(n) => budget -= n,
            }
        }
    }

    fn end(&mut self, _: SinkSession, result: io::Result<()>) -> bool {
        self.counts.ended(&result);
        false
    }
}

impl Sink {
    /// Goes through what arrived: headers and messages in turn.
    fn take(&self, session: &mut SinkSession, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let Some(header) = session.current else {
                let take = (HEADER - session.header.len()).min(bytes.len());
                session.header.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
                if session.header.len() == HEADER {
                    let header = Header::decode(&session.header)?;
                    session.header.clear();
                    if header.last {
                        session.receipt = Some(receipt(session.received));
                        session.sent = 0;
                    } else {
                        session.current = Some(header);
                        session.have = 0;
                    }
                }
                continue;
            };
            let take = (header.len - session.have).min(bytes.len());
            self.pattern
                .verify(header.seed, session.received, &bytes[..take])
                .map_err(|mismatch| io::Error::other(mismatch.to_string()))?;
            bytes = &bytes[take..];
            session.have += take;
            session.received += take as u64;
            self.counts.bytes.fetch_add(take as u64, Ordering::Relaxed);
            if session.have == header.len {
                session.current = None;
            }
        }
        Ok(())
    }
}

/// Accepts, and reads nothing: senders fill every buffer on the way.
#[derive(Debug)]
pub(super) struct Stall {
    pub(super) counts: Arc<Counts>,
}

impl Work for Stall {
    type Session = ();

    fn begin(&mut self, _: u64) {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn advance(&mut self, (): &mut (), socket: &mut TcpStream, ending: bool) -> io::Result<Step> {
        // A FIN is behind data that is never read; only a reset ends it from there.
        match socket.take_error()? {
            Some(error) => Err(error),
            None if ending && empty(socket)? => Ok(Step::Done),
            None => Ok(Step::Wait),
        }
    }

    fn end(&mut self, (): (), result: io::Result<()>) -> bool {
        self.counts.ended(&result);
        false
    }
}

/// Whether the stream has ended with nothing in front of the end.
fn empty(socket: &TcpStream) -> io::Result<bool> {
    match socket.peek(&mut [0]) {
        Ok(n) => Ok(n == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Streams of small chunks at a steady rate, as a language model answers.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) counts: Arc<Counts>,
    pub(super) buffer: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct TokenSession {
    number: u64,
    asked: Vec<u8>,
    request: Option<Request>,
    sequence: u32,
    due: u64,
    /// What the kernel did not take of a chunk.
    rest: Vec<u8>,
}

impl TokenSession {
    /// Time from the first chunk, which is sent at once, to the second: spreads streams that begin together evenly.
    fn phase(&self, interval_ns: u64) -> u64 {
        // Multiples of the golden ratio fill a circle evenly, however many there are.
        let fraction = (self.number as f64 * 0.618_033_988_749_895).fract();
        (interval_ns as f64 * fraction) as u64
    }
}

impl Work for Tokens {
    type Session = TokenSession;

    fn begin(&mut self, number: u64) -> TokenSession {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        TokenSession { number, ..TokenSession::default() }
    }

    fn advance(&mut self, session: &mut TokenSession, socket: &mut TcpStream, _: bool) -> io::Result<Step> {
        let mut bytes = [0; 64];
        loop {
            match read(socket, &mut bytes)? {
                Got::Nothing => break,
                // The client leaves when it has seen enough.
                Got::End => return Ok(Step::Done),
                Got::Bytes(n) if session.request.is_some() => {
                    return Err(io::Error::other(format!("{n} bytes after the request")));
                }
                Got::Bytes(n) => session.asked.extend_from_slice(&bytes[..n]),
            }
            if let Some(request) = Request::decode(&session.asked)? {
                session.request = Some(request);
                session.due = now();
            }
        }
        let Some(request) = session.request else { return Ok(Step::Wait) };
        while !session.rest.is_empty() {
            match write(socket, &session.rest)? {
                Some(n) => drop(session.rest.drain(..n)),
                None => return Ok(Step::Wait),
            }
        }
        while request.chunks == 0 || session.sequence < request.chunks {
            let at = now();
            if session.due > at {
                return Ok(Step::At(session.due));
            }
            if at - session.due > 1_000_000 {
                self.counts.late.fetch_add(1, Ordering::Relaxed);
            }
            chunk(session.sequence, at, request.chunk.max(CHUNK_HEADER), &mut self.buffer);
            session.due += if session.sequence == 0 { session.phase(request.interval_ns) } else { request.interval_ns };
            session.sequence = session.sequence.wrapping_add(1);
            let sent = write(socket, &self.buffer)?.unwrap_or(0);
            if sent < self.buffer.len() {
                session.rest.extend_from_slice(&self.buffer[sent..]);
                return Ok(Step::Wait);
            }
        }
        Ok(Step::Wait)
    }

    fn end(&mut self, _: TokenSession, _: io::Result<()>) -> bool {
        // A client that closes while chunks are under way resets the stream: that is no fault.
        false
    }
}
