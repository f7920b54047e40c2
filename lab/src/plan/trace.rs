//! What every step did, one JSON object a line, so that a plan that failed can be read afterwards.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of the file in the directory of the results.
pub const FILE: &str = "trace.jsonl";

/// One step that was taken, or taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Number of the step, from 1; a step taken back has the number it was taken with.
    pub step: u64,
    /// What it is for.
    pub name: String,
    /// The command line, or what else was tried.
    pub tried: String,
    /// Done or undone.
    pub phase: Phase,
    /// When it began, RFC 3339.
    pub started: String,
    /// How long it took.
    pub seconds: f64,
    /// How it ended.
    pub status: Status,
    /// Exit status of the program, where one was run to its end.
    pub exit: Option<i32>,
    /// What it said, and why it failed.
    pub output: String,
}

/// Which way a step was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Forward.
    Do,
    /// Back.
    Undo,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Well.
    Ok,
    /// With an error.
    Failed,
    /// Cut short because the lab was asked to stop.
    Stopped,
}

/// The file being written.
#[derive(Debug)]
pub struct Trace(Option<File>);

impl Trace {
    /// Begins a new trace in `directory`.
    ///
    /// # Errors
    /// Names the file that cannot be made.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        File::create(&path)
            .map(|file| Self(Some(file)))
            .map_err(|error| io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display())))
    }

    /// Keeps nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When the disk is full or the file cannot be written any more.
    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let Some(file) = &mut self.0 else { return Ok(()) };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

/// Seconds for people and JSON, to the microsecond.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}
