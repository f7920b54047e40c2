//! Plans: lists of plain steps, each traced, and all of them taken back in reverse order at the end.

pub mod command;
pub mod runner;
pub mod stop;
pub mod trace;

use std::io;

use command::CommandLine;
use runner::{Outcome, Step, StepError};

/// The plainest step: a program that is run, and another that takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandStep {
    /// What it is for, in a few words.
    pub name: String,
    /// What is run.
    pub line: CommandLine,
    /// What takes it back; without one it goes with another step.
    pub back: Option<CommandLine>,
}

impl CommandStep {
    /// A step that goes with another one.
    pub fn new(name: impl Into<String>, line: CommandLine) -> Self {
        Self { name: name.into(), line, back: None }
    }

    /// The same with what takes it back.
    #[must_use]
    pub fn back(self, line: CommandLine) -> Self {
        Self { back: Some(line), ..self }
    }
}

impl Step for CommandStep {
    type Bench = ();

    fn name(&self) -> String {
        self.name.clone()
    }

    fn tried(&self) -> String {
        self.line.text()
    }

    fn take(&self, (): &mut ()) -> Result<Outcome, StepError> {
        self.line.run()
    }

    fn take_back(&self, (): &mut ()) -> Option<Result<Outcome, StepError>> {
        let line = self.back.as_ref()?;
        // Going back is not cut short by the wish to stop, which is often why we go back.
        Some(line.run_through())
    }
}

/// The error of a file, with its path and what was tried with it.
pub(crate) fn about(what: &str, path: &std::path::Path) -> impl Fn(io::Error) -> io::Error {
    let what = format!("cannot {what} {}", path.display());
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
