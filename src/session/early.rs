//! What a client has sent before its session is connected, for the SYN of a target (`fast_open`).
//!
//! It stays in the client's socket until a target has taken the connection: an attempt that fails has taken nothing,
//! and the next one sends it again.

use std::io::{self, Read};

use socket2::Socket;

use super::{Connector, Session};
use crate::sys;

/// Most bytes that go with a SYN: what fits one segment on any usual path.
pub(super) const EARLY: usize = 1200;

/// What the client has sent already.
pub(super) fn look_ahead<'b>(client: &Socket, buffer: &'b mut [u8; EARLY]) -> &'b [u8] {
    match sys::peek(client, buffer) {
        Ok(n) => &buffer[..n],
        // There is nothing, or an error that is found again when the session moves bytes.
        Err(_) => &[],
    }
}

impl Session {
    /// Takes out of the client's socket what went with the SYN: it has been seen there, so it is there.
    pub(super) fn take_early(&mut self, early: usize, by: &Connector<'_>) -> io::Result<()> {
        let mut buffer = [0; EARLY];
        let mut taken = 0;
        while taken < early {
            match (&self.client).read(&mut buffer[..early - taken]) {
                // Only a reset takes back what was there.
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(n) => taken += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.bytes.client_to_backend.copy += taken as u64;
        by.stats.up_copy.add(taken as u64);
        Ok(())
    }
}
