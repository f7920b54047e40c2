//! How far an experiment is: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// Tells on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    done: u64,
    total: u64,
}

impl Progress {
    /// Of so many measurements.
    #[must_use]
    pub fn new(total: u64) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} {wide_msg}");
        let bar = match style {
            Ok(style) if io::stderr().is_terminal() => Some(ProgressBar::new(total).with_style(style)),
            _ => None,
        };
        Self { bar, done: 0, total }
    }

    /// What is being measured now.
    pub fn begin(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
            bar.tick();
        }
    }

    /// A measurement is over.
    pub fn end(&mut self, line: &str) {
        self.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.println(line);
                bar.inc(1);
            }
            None => crate::tell!("[{}/{}] {line}", self.done, self.total),
        }
    }

    /// Something else to say.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => crate::tell!("{line}"),
        }
    }

    /// No longer.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
