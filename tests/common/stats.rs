//! The counters of a running process, as its control socket gives them.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::deadline::LONG;

/// One reading.
#[derive(Debug, Clone)]
pub(crate) struct Stats(pub(crate) Value);

/// Bytes of one direction by path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moved {
    /// Through a pipe.
    pub(crate) splice: u64,
    /// Through memory.
    pub(crate) copy: u64,
}

impl Moved {
    /// By either path.
    pub(crate) fn all(self) -> u64 {
        self.splice + self.copy
    }
}

impl Stats {
    /// Asks the control socket.
    pub(crate) fn ask(control: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(control)?;
        stream.set_read_timeout(Some(LONG))?;
        stream.write_all(b"stats\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        serde_json::from_str(&answer).map(Self).map_err(io::Error::other)
    }

    /// The number at a place such as `/pipes/in_use`.
    pub(crate) fn number(&self, place: &str) -> u64 {
        self.0.pointer(place).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number at {place} in {}", self.0))
    }

    /// Sessions open now.
    pub(crate) fn open(&self) -> u64 {
        self.number("/total/sessions_open")
    }

    /// Sessions that ended for a reason.
    pub(crate) fn ends(&self, reason: &str) -> u64 {
        self.number(&format!("/total/ends/{reason}"))
    }

    /// Times bytes had to be copied for a reason.
    pub(crate) fn fallbacks(&self, reason: &str) -> u64 {
        self.number(&format!("/total/fallbacks/{reason}"))
    }

    /// From the client to the backend.
    pub(crate) fn up(&self) -> Moved {
        self.moved("client_to_backend")
    }

    /// From the backend to the client.
    pub(crate) fn down(&self) -> Moved {
        self.moved("backend_to_client")
    }

    fn moved(&self, direction: &str) -> Moved {
        let path = |path: &str| self.number(&format!("/total/bytes/{direction}/{path}"));
        Moved { splice: path("splice"), copy: path("copy") }
    }

    /// Pipes that hold bytes.
    pub(crate) fn pipes_in_use(&self) -> u64 {
        self.number("/pipes/in_use")
    }

    /// Empty pipes kept.
    pub(crate) fn pipes_pooled(&self) -> u64 {
        self.number("/pipes/pooled")
    }
}
