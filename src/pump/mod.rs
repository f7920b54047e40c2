//! How bytes move: through a pipe, or through the worker's scratch buffer.
//!
//! A [`Pump`] is what one direction keeps between turns: nothing while it is idle, a pipe that still holds bytes, or
//! the rest of a copy the target did not take. [`Pumps`] is what all directions of a worker share. A [`Lane`] joins
//! the two with a source and a target for one turn and is what a [`Flow`](crate::flow::Flow) drives.

mod choice;
mod copy;
mod splice;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::Socket;

pub use self::choice::Choice;
use self::copy::Rest;
use crate::flow::Transfer;
use crate::stats::{Fallback, ForwardStats, PathBytes};
use crate::sys::pipes::{Pipe, PipeBudget, PipePool};

/// What one direction holds between turns, and how it moves bytes.
#[derive(Debug)]
pub struct Pump {
    held: Held,
    choice: Choice,
}

#[derive(Debug, Default)]
enum Held {
    /// Nothing: an idle direction costs neither a pipe nor a buffer.
    #[default]
    Nothing,
    /// The worker's scratch buffer, only within a turn.
    Scratch,
    /// Bytes of a copy the target did not take.
    Rest(Rest),
    /// A pipe; between turns it holds bytes, within a turn it may be empty.
    Pipe(Pipe),
}

/// What all directions of one worker share.
#[derive(Debug)]
pub struct Pumps {
    scratch: Box<[u8]>,
    /// The part of `scratch` that is filled and not drained. Empty between turns.
    filled: std::ops::Range<usize>,
    /// One pool per pipe size of the plan.
    pools: Vec<PipePool>,
    /// Set for the whole process once the kernel or a filter has refused splice.
    splice_off: Arc<AtomicBool>,
}

/// What the poller said about one socket. Hints: only a system call's result clears them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ready {
    /// There may be bytes or an end to read.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The peer has ended its half, or the connection has failed: a short read does not mean "drained".
    pub read_closed: bool,
    /// An urgent byte is on its way: splice stops at it for ever, and a short read does not mean "drained".
    pub urgent: bool,
}

/// Which way a lane leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// One direction for one turn: a pump between two sockets.
#[derive(Debug)]
pub struct Lane<'a> {
    /// What the direction holds.
    pub pump: &'a mut Pump,
    /// What the worker shares.
    pub pumps: &'a mut Pumps,
    /// Where bytes come from.
    pub source: &'a Socket,
    /// Where bytes go.
    pub target: &'a Socket,
    /// What is known about the source.
    pub source_ready: &'a mut Ready,
    /// What is known about the target.
    pub target_ready: &'a mut Ready,
    /// Bytes delivered in this direction, by path.
    pub bytes: &'a mut PathBytes,
    /// Counters of the forward.
    pub stats: &'a ForwardStats,
    /// Which way.
    pub direction: Direction,
    /// Most bytes one read may take.
    pub copy_buffer: usize,
    /// Index of the pool with the forward's pipe size.
    pub pool: usize,
    /// The other direction is done: closing both sockets passes this end on without a shutdown.
    pub last: bool,
    /// Bytes this direction may still fill in this turn, by its rate; `usize::MAX` without one.
    pub allowance: usize,
    /// System calls made: recv, send, splice, shutdown. Beside any of them an addition costs nothing, so it is not
    /// asked whether anybody wants to know.
    pub calls: u32,
}

impl Pumps {
    /// A worker's share: a scratch buffer of `scratch` bytes and its pools.
    #[must_use]
    pub fn new(scratch: usize, pools: Vec<PipePool>, splice_off: Arc<AtomicBool>) -> Self {
        Self { scratch: vec![0; scratch].into(), filled: 0..0, pools, splice_off }
    }

    /// Makes room for larger reads and divides pipes anew; `budgets` has one entry per pool. What is in use stays.
    pub fn change(&mut self, budgets: &[PipeBudget], scratch: usize) {
        if self.scratch.len() < scratch {
            self.scratch = vec![0; scratch].into();
        }
        for (index, budget) in budgets.iter().enumerate() {
            match self.pools.get_mut(index) {
                Some(pool) => pool.share_anew(budget),
                None => self.pools.push(budget.pool()),
            }
        }
    }

    /// Takes back what a direction held when its session ends; undelivered bytes are dropped with their pipe.
    pub fn release(&mut self, pump: &mut Pump, pool: usize) {
        if let Held::Pipe(pipe) = std::mem::take(&mut pump.held) {
            self.pools[pool].put(pipe);
        }
    }

    /// Stops counting the pipe a direction holds, whose session moves to another worker with all its bytes.
    pub fn let_go(&mut self, pump: &Pump, pool: usize) {
        if let Held::Pipe(pipe) = &pump.held {
            self.pools[pool].release(pipe);
        }
    }

    /// Counts the pipe of a direction whose session another worker has let go.
    pub fn adopt(&mut self, pump: &Pump, pool: usize) {
        if let Held::Pipe(pipe) = &pump.held {
            self.pools[pool].adopt(pipe);
        }
    }

    /// Closes pipes that were not needed since the last call.
    pub fn trim(&mut self) {
        for pool in &mut self.pools {
            pool.trim();
        }
    }

    /// Closes every pipe that holds nothing, for whoever needs descriptors; whether there were any.
    pub fn give_up_pipes(&mut self) -> bool {
        self.pools.iter_mut().map(PipePool::clear).sum::<usize>() > 0
    }

    /// Pipes in use, pipes kept empty for the next burst, pipes allowed, and the size of one.
    #[must_use]
    pub fn pipes(&self) -> [usize; 4] {
        let sum = |f: fn(&PipePool) -> usize| self.pools.iter().map(f).sum();
        let size = self.pools.iter().map(PipePool::size).max().unwrap_or(0);
        [sum(PipePool::in_use), sum(PipePool::pooled), sum(PipePool::limit), size]
    }

    fn splice_is_off(&self) -> bool {
        self.splice_off.load(Ordering::Relaxed)
    }
}

impl Pump {
    /// A pump that holds nothing.
    #[must_use]
    pub fn new(choice: Choice) -> Self {
        Self { held: Held::Nothing, choice }
    }

    /// Whether nothing is held: no pipe, no buffer.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.held, Held::Nothing)
    }

    /// Bytes held between turns.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.held {
            Held::Nothing | Held::Scratch => 0,
            Held::Rest(rest) => rest.len(),
            Held::Pipe(pipe) => pipe.pending(),
        }
    }
}

impl Lane<'_> {
    /// Fills by the path of the engine's choice.
    fn fill_chosen(&mut self) -> io::Result<usize> {
        if self.pump.choice.wants_splice()
            && !self.pumps.splice_is_off()
            && let Some(result) = self.fill_pipe()
        {
            return result;
        }
        // An empty pipe may be left from an earlier fill of this turn: a pool must be given back what it gave.
        self.park_pipe();
        self.fill_scratch()
    }

    fn count(&self, reason: Fallback) {
        self.stats.fallbacks[reason as usize].add(1);
    }

    fn delivered(&mut self, spliced: usize, copied: usize) {
        let (spliced, copied) = (spliced as u64, copied as u64);
        self.bytes.splice += spliced;
        self.bytes.copy += copied;
        let (splice, copy) = match self.direction {
            Direction::Up => (&self.stats.up_splice, &self.stats.up_copy),
            Direction::Down => (&self.stats.down_splice, &self.stats.down_copy),
        };
        if spliced > 0 {
            splice.add(spliced);
        }
        if copied > 0 {
            copy.add(copied);
        }
    }
}

impl Transfer for Lane<'_> {
    fn may_fill(&self) -> bool {
        self.source_ready.readable && self.allowance > 0
    }

    fn fill(&mut self) -> io::Result<usize> {
        debug_assert_eq!(self.held(), 0, "fill only when nothing is held");
        let filled = self.fill_chosen()?;
        self.allowance -= filled;
        Ok(filled)
    }

    fn may_drain(&self) -> bool {
        self.target_ready.writable
    }

    fn drain(&mut self) -> io::Result<usize> {
        let result = match &mut self.pump.held {
            Held::Nothing => Ok(0),
            Held::Scratch => self.drain_scratch(),
            Held::Rest(_) => self.drain_rest(),
            Held::Pipe(_) => self.drain_pipe(),
        };
        if matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            self.target_ready.writable = false;
        }
        result
    }

    fn held(&self) -> usize {
        match &self.pump.held {
            Held::Nothing => 0,
            Held::Scratch => self.pumps.filled.len(),
            Held::Rest(rest) => rest.len(),
            Held::Pipe(pipe) => pipe.pending(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.last {
            return Ok(());
        }
        self.calls += 1;
        self.target.shutdown(Shutdown::Write)
    }

    fn park(&mut self) {
        self.pump.held = match std::mem::take(&mut self.pump.held) {
            Held::Scratch => self.park_scratch(),
            held => held,
        };
        if matches!(&self.pump.held, Held::Pipe(pipe) if pipe.is_empty()) {
            self.park_pipe();
        }
        debug_assert!(self.pumps.filled.is_empty(), "the scratch buffer is free between turns");
    }
}
