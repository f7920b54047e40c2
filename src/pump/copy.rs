//! The copy path: `recv` into the worker's scratch buffer, `send` from it.

use std::io::{self, Read};

use super::{Held, Lane};
use crate::sys::SEND_FLAGS;

/// What a target did not take, exactly as long as it is.
#[derive(Debug)]
pub(super) struct Rest {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Rest {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), sent: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }
}

impl Lane<'_> {
    pub(super) fn fill_scratch(&mut self) -> io::Result<usize> {
        let room = self.copy_buffer.min(self.pumps.scratch.len());
        let asked = room.min(self.allowance);
        let mut source = self.source;
        self.calls += 1;
        let result = source.read(&mut self.pumps.scratch[..asked]);
        match &result {
            Ok(0) => {}
            Ok(n) => {
                self.pump.held = Held::Scratch;
                self.pumps.filled = 0..*n;
                // A read that a rate cut short has filled no buffer and says no more than its size.
                self.pump.choice.copied(*n, room);
                // A short read has emptied the socket, and what comes later makes a new event; unless an end or an
                // urgent byte cut it short, for those have had their event already.
                if *n < asked && !self.source_ready.read_closed && !self.source_ready.urgent {
                    self.source_ready.readable = false;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.source_ready.readable = false;
                self.source_ready.urgent = false;
            }
            Err(_) => {}
        }
        result
    }

    pub(super) fn drain_scratch(&mut self) -> io::Result<usize> {
        self.calls += 1;
        let sent = self.target.send_with_flags(&self.pumps.scratch[self.pumps.filled.clone()], SEND_FLAGS)?;
        self.pumps.filled.start += sent;
        if self.pumps.filled.is_empty() {
            self.pump.held = Held::Nothing;
        }
        self.delivered(0, sent);
        Ok(sent)
    }

    pub(super) fn drain_rest(&mut self) -> io::Result<usize> {
        let Held::Rest(rest) = &mut self.pump.held else { return Ok(0) };
        self.calls += 1;
        let sent = self.target.send_with_flags(&rest.bytes[rest.sent..], SEND_FLAGS)?;
        rest.sent += sent;
        if rest.len() == 0 {
            self.pump.held = Held::Nothing;
        }
        self.delivered(0, sent);
        Ok(sent)
    }

    /// Moves what is left in the scratch buffer into a box of its own, so that the next direction can use it.
    pub(super) fn park_scratch(&mut self) -> Held {
        let filled = std::mem::take(&mut self.pumps.filled);
        if filled.is_empty() { Held::Nothing } else { Held::Rest(Rest::new(&self.pumps.scratch[filled])) }
    }
}
