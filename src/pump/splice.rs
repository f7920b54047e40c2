//! The splice path: socket → pipe → socket, and every way out of it when the kernel says no.

use std::io;
use std::sync::atomic::Ordering;

use super::copy::Rest;
use super::{Held, Lane};
use crate::stats::Fallback;
use crate::sys::pipes::{NoPipe, Pipe};

/// Most bytes one splice may move: enough for any pipe, small enough to be fair to other sessions.
const MOST: usize = 1 << 20;

/// What a refusal by splice means.
enum Refusal {
    /// The kernel has no splice or a filter forbids it: for the whole process.
    Process,
    /// These sockets cannot do it.
    Lane,
}

fn refusal(error: &io::Error) -> Option<Refusal> {
    match error.raw_os_error()? {
        libc::ENOSYS | libc::EPERM => Some(Refusal::Process),
        libc::EINVAL | libc::EBADF => Some(Refusal::Lane),
        _ => None,
    }
}

impl Lane<'_> {
    /// Fills a pipe from the source; `None` means: copy this time.
    pub(super) fn fill_pipe(&mut self) -> Option<io::Result<usize>> {
        let mut pipe = self.take_pipe()?;
        self.calls += 1;
        let result = pipe.fill_from(self.source, MOST.min(self.allowance));
        self.pump.held = Held::Pipe(pipe);
        match &result {
            // In front of an urgent byte splice says that the stream has ended as soon as the peer has ended its half
            // (tcp_splice_read in net/ipv4/tcp.c), and everything from that byte on would be lost. recv tells such an
            // end from a true one.
            Ok(0) => {
                self.park_pipe();
                let result = self.fill_scratch();
                if matches!(result, Ok(1..)) {
                    self.count(Fallback::Urgent);
                }
                return Some(result);
            }
            Ok(n) => self.pump.choice.spliced(*n),
            // splice stops in front of an urgent byte and will for ever; recv steps over the mark.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.source_ready.urgent => {
                self.count(Fallback::Urgent);
                return None;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.source_ready.readable = false,
            Err(e) => {
                if let Some(refused) = refusal(e) {
                    self.refused(&refused, Fallback::Source);
                    return None;
                }
            }
        }
        Some(result)
    }

    /// The pipe of this turn, or one from the pool.
    fn take_pipe(&mut self) -> Option<Pipe> {
        if let Held::Pipe(pipe) = std::mem::take(&mut self.pump.held) {
            return Some(pipe);
        }
        match self.pumps.pools[self.pool].get() {
            Ok(pipe) => Some(pipe),
            Err(e) => {
                self.count(match e {
                    NoPipe::Descriptors(_) => Fallback::NoDescriptors,
                    NoPipe::Budget | NoPipe::Other(_) => Fallback::Budget,
                });
                None
            }
        }
    }

    /// Gives the pipe back to its pool, if there is one.
    pub(super) fn park_pipe(&mut self) {
        if let Held::Pipe(pipe) = std::mem::take(&mut self.pump.held) {
            self.pumps.pools[self.pool].put(pipe);
        }
    }

    fn refused(&mut self, refused: &Refusal, lane: Fallback) {
        match refused {
            Refusal::Process => {
                self.count(Fallback::Refused);
                if !self.pumps.splice_off.swap(true, Ordering::Relaxed) {
                    log::warn!("the kernel or a system-call filter refuses splice: every session copies from now on");
                }
            }
            Refusal::Lane => {
                self.count(lane);
                self.pump.choice.never_splice();
            }
        }
    }

    pub(super) fn drain_pipe(&mut self) -> io::Result<usize> {
        let Held::Pipe(pipe) = &mut self.pump.held else { return Ok(0) };
        self.calls += 1;
        match pipe.drain_into(self.target) {
            Ok(n) => {
                self.delivered(n, 0);
                Ok(n)
            }
            Err(e) => match refusal(&e) {
                Some(refused) => self.rescue(&refused, e),
                None => Err(e),
            },
        }
    }

    /// The pipe cannot be spliced out: reads it into memory and goes on from there. Nothing is lost.
    fn rescue(&mut self, refused: &Refusal, error: io::Error) -> io::Result<usize> {
        let Held::Pipe(pipe) = &mut self.pump.held else { return Err(error) };
        self.calls += 1;
        let bytes = pipe.read_out()?;
        self.park_pipe();
        self.pump.held = Held::Rest(Rest::new(&bytes));
        self.refused(refused, Fallback::Target);
        self.drain_rest()
    }
}
