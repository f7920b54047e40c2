//! Sessions that are only there: idle after one exchange, or stalled behind a reader that stopped.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::Duration;

use mio::net::TcpStream;
use serde::{Deserialize, Serialize};
use spliced::ab::role::{answer, commands, say};

use super::client::Errors;
use super::engine::{Engine, Got, Step, Work, cut_off, now, read, write};

/// Longest time to wait for sessions to come to rest.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Stalled sessions are at rest once no byte went for so long.
const QUIET: Duration = Duration::from_millis(300);

/// Sessions that do nothing.
#[derive(Debug)]
struct Hold {
    stalled: bool,
    block: Vec<u8>,
    written: u64,
    last_written: u64,
    errors: Errors,
}

/// How far an idle session's one exchange is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    ToSend,
    Sent,
    Answered,
}

/// What there is after a `grow`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Sessions that are there and at rest: connected, and answered where they are idle.
    pub open: u64,
    /// Sessions that failed, all in all.
    pub failed: u64,
    /// The first of their errors.
    pub first_errors: Vec<String>,
    /// Bytes the kernel took of stalled sessions, all in all.
    pub written: u64,
    /// Bytes still went when patience was over.
    pub moving: bool,
    /// What this host ran out of, where that ended the growth.
    #[serde(default)]
    pub limit: Option<String>,
}

impl Held {
    /// Why there are fewer than were asked for.
    #[must_use]
    pub fn why(&self) -> String {
        if let Some(limit) = &self.limit {
            return limit.clone();
        }
        let waiting = format!("the others were not answered within {} s", PATIENCE.as_secs());
        self.first_errors.first().map_or(waiting, |first| format!("{} failed, the first: {first}", self.failed))
    }
}

impl Work for Hold {
    type Session = Greeting;

    fn begin(&mut self, _: u64) -> Greeting {
        Greeting::ToSend
    }

    fn advance(&mut self, session: &mut Greeting, socket: &mut TcpStream, _: bool) -> io::Result<Step> {
        if self.stalled {
            while let Some(n) = write(socket, &self.block)? {
                self.written += n as u64;
                self.last_written = now();
            }
            return Ok(Step::Park);
        }
        if *session == Greeting::ToSend {
            if write(socket, b"?")?.is_none() {
                return Ok(Step::Wait);
            }
            *session = Greeting::Sent;
        }
        match read(socket, &mut [0; 8])? {
            Got::Nothing if *session == Greeting::Sent => Ok(Step::Wait),
            Got::Bytes(1) if *session == Greeting::Sent => {
                *session = Greeting::Answered;
                Ok(Step::Park)
            }
            Got::Nothing => Ok(Step::Park),
            Got::Bytes(n) => Err(io::Error::other(format!("{n} bytes came unasked"))),
            Got::End => Err(cut_off("while it was idle")),
        }
    }

    fn end(&mut self, _: Greeting, result: io::Result<()>) -> bool {
        if let Err(error) = result {
            self.errors.add(&error);
        }
        false
    }
}

/// Serves `grow N` (up to N sessions; answered by [`Held`]) until standard input closes.
pub(super) fn run(target: SocketAddr, stalled: bool) -> io::Result<()> {
    let block = if stalled { vec![0x5a; 64 * 1024] } else { Vec::new() };
    let work = Hold { stalled, block, written: 0, last_written: 0, errors: Errors::default() };
    let mut engine = Engine::new(work)?;
    let (lines, waker) = (commands()?, engine.waker());
    let (send, receive) = channel();
    thread::Builder::new().name("commands".into()).spawn(move || {
        for line in lines {
            if send.send(line).is_err() || waker.wake().is_err() {
                return;
            }
        }
    })?;
    say("ready")?;
    loop {
        match receive.try_recv() {
            Ok(line) => {
                let total = line.strip_prefix("grow ").and_then(|n| n.parse::<usize>().ok());
                let total = total
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("unknown command {line:?}")))?;
                engine.open(target, total.saturating_sub(engine.len()));
                answer(&settle(&mut engine)?)?;
            }
            Err(TryRecvError::Empty) => engine.turn(None)?,
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

fn settle(engine: &mut Engine<Hold>) -> io::Result<Held> {
    let limit = now() + PATIENCE.as_nanos() as u64;
    loop {
        let quiet_at = engine.work.last_written + QUIET.as_nanos() as u64;
        let at_rest = engine.all_parked() && (!engine.work.stalled || now() >= quiet_at);
        if at_rest || now() >= limit {
            return Ok(Held { moving: !at_rest && engine.all_parked(), ..held(engine) });
        }
        engine.turn(Some(if engine.all_parked() { quiet_at.min(limit) } else { limit }))?;
    }
}

/// A session that waits in a queue for its answer, or is still being made, is not open.
fn held(engine: &Engine<Hold>) -> Held {
    let Errors { count: failed, kept: first_errors } = engine.work.errors.clone();
    let (open, written) = (engine.parked() as u64, engine.work.written);
    Held { open, failed, first_errors, written, ..Held::default() }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_session_that_nobody_answers_is_not_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let work = Hold { stalled: false, block: Vec::new(), written: 0, last_written: 0, errors: Errors::default() };
        let mut engine = Engine::new(work).unwrap();
        engine.open(listener.local_addr().unwrap(), 1);
        engine.turn(Some(now() + 50_000_000)).unwrap();
        let (mut server, mut byte) = (None, [0]);
        for open in [0, 1] {
            assert_eq!((held(&engine).open, engine.len()), (open, 1));
            let (socket, _) = server.get_or_insert_with(|| listener.accept().unwrap());
            if open == 0 {
                // The engine's turns send the question; only then is there something to answer.
                engine.turn(Some(now() + 50_000_000)).unwrap();
                socket.read_exact(&mut byte).unwrap();
                socket.write_all(&byte).unwrap();
                let limit = now() + 10_000_000_000;
                while !engine.all_parked() && now() < limit {
                    engine.turn(Some(limit)).unwrap();
                }
            }
        }
        let waiting = Held { open: 1, ..Held::default() };
        assert!(waiting.why().contains("not answered"), "{}", waiting.why());
    }
}
