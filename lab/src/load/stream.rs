//! The traffic of a language model's clients: many streams of small chunks at a steady pace.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;

use super::client::{Client, Tally};
use super::engine::{Got, Step, Work, cut_off, now, read, write};
use super::wire::{Request, take_chunk};

/// How long the first chunk may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Streams that are read.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) request: Request,
    pub(super) scratch: Vec<u8>,
    pub(super) running: bool,
    pub(super) tally: Tally,
}

#[derive(Debug, Default)]
pub(super) struct StreamSession {
    begun: u64,
    sent: usize,
    sequence: u32,
    /// When the chunk before arrived; forgotten when the window begins, so that no gap reaches into it.
    last: u64,
    counted: bool,
    /// A chunk of which only a part has arrived.
    part: Vec<u8>,
}

impl Stream {
    fn chunk(&mut self, session: &mut StreamSession, sent_ns: u64, at: u64) {
        if session.sequence == 0 {
            self.tally.first_bytes.record(at.saturating_sub(session.begun));
        }
        session.sequence = session.sequence.wrapping_add(1);
        if self.running {
            if session.counted {
                self.tally.times.record(at.saturating_sub(session.last));
            }
            self.tally.delays.record(at.saturating_sub(sent_ns));
            self.tally.done += 1;
        }
        session.counted = self.running;
        session.last = at;
    }
}

impl Work for Stream {
    type Session = StreamSession;

    fn begin(&mut self, _: u64) -> StreamSession {
        StreamSession { begun: now(), ..StreamSession::default() }
    }

    fn advance(&mut self, session: &mut StreamSession, socket: &mut TcpStream, ending: bool) -> io::Result<Step> {
        let request = self.request.encode();
        while session.sent < request.len() {
            match write(socket, &request[session.sent..])? {
                Some(n) => session.sent += n,
                None => return Ok(Step::Wait),
            }
        }
        loop {
            let mut scratch = std::mem::take(&mut self.scratch);
            let got = read(socket, &mut scratch);
            let at = now();
            let taken = match &got {
                Ok(Got::Bytes(n)) => self.take_chunks(session, &scratch[..*n], at),
                _ => Ok(()),
            };
            let longest = scratch.len();
            self.scratch = scratch;
            taken?;
            let dry = match got? {
                Got::Nothing => true,
                Got::End => return Err(cut_off(&format!("after {} chunks", session.sequence))),
                Got::Bytes(n) => n < longest && !ending,
            };
            if dry {
                // Ready as soon as the first chunk was there; the rest comes by itself.
                return Ok(if session.sequence > 0 { Step::Park } else { Step::Wait });
            }
        }
    }

    fn end(&mut self, _: StreamSession, result: io::Result<()>) -> bool {
        if let Err(error) = result {
            self.tally.errors.add(&error);
        }
        false
    }
}

impl Stream {
    fn take_chunks(&mut self, session: &mut StreamSession, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut joined = std::mem::take(&mut session.part);
        // Most often there is no part, and what arrived is one chunk.
        let mut rest: &[u8] = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        while let Some((sent_ns, len)) = take_chunk(rest, session.sequence)? {
            self.chunk(session, sent_ns, at);
            rest = &rest[len..];
        }
        session.part = rest.to_vec();
        Ok(())
    }
}

impl Client for Stream {
    fn run(&mut self, running: bool) {
        self.running = running;
        if running {
            // First bytes are measured while the streams get ready.
            let first_bytes = std::mem::take(&mut self.tally.first_bytes);
            self.tally = Tally { first_bytes, ..Tally::default() };
        }
    }

    fn take(&mut self) -> Tally {
        let errors = std::mem::take(&mut self.tally.errors);
        Tally { errors, ..self.tally.clone() }
    }
}

/// Connects, asks for one chunk, and takes the time until it is there.
///
/// # Errors
/// When nothing comes.
pub(super) fn first_byte(target: SocketAddr, request: Request) -> io::Result<u64> {
    let begun = now();
    let mut socket = std::net::TcpStream::connect_timeout(&target, PATIENCE)
        .map_err(|error| crate::process::failed(&error, &format!("cannot connect to {target}")))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&Request { chunks: 1, ..request }.encode())?;
    let mut bytes = vec![0; request.chunk];
    socket.read_exact(&mut bytes[..1])?;
    let taken = now() - begun;
    socket.read_exact(&mut bytes[1..])?;
    match take_chunk(&bytes, 0)? {
        Some(_) => Ok(taken),
        None => Err(cut_off("within the first chunk")),
    }
}
