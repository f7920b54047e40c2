//! Many bulk streams at once, every byte verified at the server.

use std::io;
use std::sync::Arc;

use mio::net::TcpStream;
use spliced::ab::pattern::{self, Pattern};

use super::client::{Client, Tally};
use super::engine::{Got, Step, Work, cut_off, read, write};
use super::wire::{HEADER, Header, RECEIPT, u64_at};

/// Bytes one stream may send in a row before others have their turn.
const BUDGET: usize = 1 << 20;

/// Streams that send as fast as they can.
#[derive(Debug)]
pub(super) struct Bulk {
    pub(super) message: usize,
    pub(super) pattern: Arc<Pattern>,
    /// Told apart from other threads' streams.
    pub(super) thread: u64,
    pub(super) running: bool,
    pub(super) tally: Tally,
}

#[derive(Debug)]
pub(super) struct BulkSession {
    seed: u64,
    /// Pattern bytes sent, and how many when the window began.
    bytes: u64,
    /// The header under way.
    header: [u8; HEADER],
    /// Bytes of it and of its message that have been sent; `None` between messages.
    sent: Option<usize>,
    /// The end has been said.
    ended: bool,
    receipt: Vec<u8>,
}

impl Work for Bulk {
    type Session = BulkSession;

    fn begin(&mut self, number: u64) -> BulkSession {
        let seed = pattern::seed(self.thread, number as u32);
        BulkSession { seed, bytes: 0, header: [0; HEADER], sent: None, ended: false, receipt: Vec::new() }
    }

    fn advance(&mut self, session: &mut BulkSession, socket: &mut TcpStream, _: bool) -> io::Result<Step> {
        let mut budget = BUDGET;
        loop {
            if session.ended && session.sent.is_none() {
                return receipt(session, socket);
            }
            let Some(mut sent) = session.sent else {
                if !self.running && session.bytes == 0 {
                    return Ok(Step::Park);
                }
                session.ended = !self.running;
                let len = if session.ended { 0 } else { self.message };
                session.header = Header { len, last: session.ended, seed: session.seed }.encode();
                session.sent = Some(0);
                continue;
            };
            let length = if session.ended { 0 } else { self.message };
            while sent < HEADER + length {
                let rest = if sent < HEADER {
                    &session.header[sent..]
                } else {
                    self.pattern.bytes(session.seed, session.bytes, HEADER + length - sent)
                };
                let Some(n) = write(socket, rest)? else {
                    session.sent = Some(sent);
                    return Ok(Step::Wait);
                };
                session.bytes += if sent < HEADER { 0 } else { n as u64 };
                sent += n;
                budget = budget.saturating_sub(n);
            }
            session.sent = None;
            if budget == 0 && !session.ended {
                return Ok(Step::Again);
            }
        }
    }

    fn end(&mut self, session: BulkSession, result: io::Result<()>) -> bool {
        match result {
            Ok(()) => self.tally.stream_bytes.push(session.bytes),
            Err(error) => self.tally.errors.add(&error),
        }
        false
    }
}

/// Waits for the server's account of the stream.
fn receipt(session: &mut BulkSession, socket: &mut TcpStream) -> io::Result<Step> {
    let mut bytes = [0; RECEIPT];
    while session.receipt.len() < RECEIPT {
        match read(socket, &mut bytes[session.receipt.len()..])? {
            Got::Nothing => return Ok(Step::Wait),
            Got::End => return Err(cut_off("before the server's account")),
            Got::Bytes(n) => {
                let at = session.receipt.len();
                session.receipt.extend_from_slice(&bytes[at..at + n]);
            }
        }
    }
    let received = u64_at(&session.receipt, 0);
    if received == session.bytes {
        return Ok(Step::Done);
    }
    Err(io::Error::other(format!("{} bytes were sent, {received} arrived", session.bytes)))
}

impl Client for Bulk {
    fn run(&mut self, running: bool) {
        self.running = running;
    }

    fn take(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}
