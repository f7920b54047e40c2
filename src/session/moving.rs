//! A session on its way from one worker to another.

use std::io;
use std::os::fd::AsRawFd;

use mio::Registry;
use mio::unix::SourceFd;

use super::{Phase, Session, backend_token, client_token};
use crate::pump::Pumps;
use crate::sys;

/// A session is moved only after so many turns: what wakes its worker seldom may stay where it is, and what is over
/// soon would not repay the move.
const LIVELY: u8 = 100;
/// Or so many bytes.
const HEAVY: u64 = 1 << 20;

impl Session {
    /// Whether another worker may take it over: it is connected, has shown that it is busy, and is measured by nobody. What
    /// it holds moves with it.
    #[must_use]
    pub fn is_movable(&self, anyway: bool) -> bool {
        let is_busy = self.turns >= LIVELY || self.moved() >= HEAVY;
        (anyway || is_busy) && self.arm.is_none() && matches!(self.phase, Phase::Open)
    }

    /// Leaves a worker: its poller, and its pools' accounts.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports; the session is then watched by nobody and must end.
    pub fn leave(&mut self, registry: &Registry, pumps: &mut Pumps, pool: usize) -> io::Result<()> {
        pumps.let_go(&self.up.pump, pool);
        pumps.let_go(&self.down.pump, pool);
        (self.armed_ms, self.queued) = (0, false);
        registry.deregister(&mut SourceFd(&self.client.as_raw_fd()))?;
        self.backend.as_ref().map_or(Ok(()), |backend| registry.deregister(&mut SourceFd(&backend.as_raw_fd())))
    }

    /// Enters a worker under a new key. The poller reports whatever is ready, so that nothing that came on the way is
    /// missed.
    ///
    /// # Errors
    /// What epoll_ctl(2) reports; the session must end.
    pub fn enter(&mut self, key: usize, registry: &Registry, pumps: &mut Pumps, pool: usize) -> io::Result<()> {
        pumps.adopt(&self.up.pump, pool);
        pumps.adopt(&self.down.pump, pool);
        registry.register(&mut SourceFd(&self.client.as_raw_fd()), client_token(key), sys::interest())?;
        let Some(backend) = &self.backend else { return Ok(()) };
        registry.register(&mut SourceFd(&backend.as_raw_fd()), backend_token(key, self.attempt), sys::interest())
    }
}
