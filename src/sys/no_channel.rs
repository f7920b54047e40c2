//! Stands in for the channel where it does not exist: a [`Channel`] cannot be made, and the compiler knows.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// Bytes of one message.
pub const MAX_MESSAGE: usize = 4096;
/// Descriptors with one message.
pub const MAX_DESCRIPTORS: usize = 64;

/// A channel nobody can make.
#[derive(Debug)]
pub struct Channel(Infallible);

/// A message and the descriptors that came with it.
pub type Received = (Vec<u8>, Vec<OwnedFd>);

impl Channel {
    /// Cannot be made.
    ///
    /// # Errors
    /// Always `Unsupported`.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "handing over to a new process needs Linux"))
    }

    /// Cannot be made.
    ///
    /// # Errors
    /// Always `Unsupported`.
    pub fn from_stdin(_patience: Duration) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "taking over from a running process needs Linux"))
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn wait_for(&self, _patience: Option<Duration>) -> io::Result<()> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn send(&self, _message: &[u8], _descriptors: &[BorrowedFd<'_>], _wait: bool) -> io::Result<()> {
        match self.0 {}
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn receive(&self, _wait: bool) -> io::Result<Option<Received>> {
        match self.0 {}
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        match self.0 {}
    }
}
