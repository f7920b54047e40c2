//! Errors that say where, what was found and what is allowed, in one line.

use std::error::Error;
use std::fmt;
use std::fmt::Write as _;

/// Why a file or a command line is not a plan. `Display` is always exactly one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// File, line and column, both counted from 1 and the column in characters; `None` for the command line.
    pub place: Option<(String, usize, usize)>,
    /// What was found and what is allowed.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some((file, line, column)) => write!(f, "{file}:{line}:{column}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Error for ConfigError {}

/// Where something was written, in whatever form its reader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Line and column, from 1.
    At(usize, usize),
    /// Byte offset in the text.
    Offset(usize),
    /// Ordinal of a YAML node in the order of visiting; visiting again finds its position.
    Node(u32),
    /// An argument of the command line, by its name in the help text.
    Argument(&'static str),
}

impl Mark {
    /// Line and column in `text`, both from 1; the start for what is not in it.
    pub(super) fn line_column(self, text: &str) -> (usize, usize) {
        match self {
            Self::At(line, column) => (line, column),
            Self::Offset(offset) => line_column(text, offset),
            Self::Node(ordinal) => super::tree::locate(text, ordinal).line_column(text),
            Self::Argument(_) => (1, 1),
        }
    }
}

/// An error that has not been given its file yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is about.
    pub at: Mark,
    /// What was found and what is allowed.
    pub message: String,
    /// The file it is in, where that is not the one that is read.
    file: Option<String>,
}

impl Fault {
    /// An error at that place.
    pub fn new(at: Mark, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), file: None }
    }

    /// The same in a file that the one being read refers to.
    #[must_use]
    pub(super) fn of_file(self, path: &std::path::Path) -> Self {
        Self { file: Some(path.to_string_lossy().into_owned()), ..self }
    }

    /// The error to show, with the mark turned into a line and a column of `text`.
    #[must_use]
    pub fn in_file(self, file: &str, text: &str) -> ConfigError {
        if let Mark::Argument(name) = self.at {
            return ConfigError { place: None, message: format!("{name}: {}", self.message) };
        }
        let (line, column) = self.at.line_column(text);
        let file = self.file.as_deref().unwrap_or(file);
        ConfigError { place: Some((printable(file), line, column)), message: self.message }
    }
}

/// Line and column of a byte offset, both from 1, the column in characters.
pub(super) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// What was written, in quotes, without control characters and never long: safe in a log and a terminal.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    let cut: String = text.chars().take(LONGEST).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("\"{}{dots}\"", printable(&cut))
}

/// The text with control characters and invisible ones escaped, quotes left alone.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            _ => {
                let _ = write!(out, "{}", c.escape_debug());
            }
        }
        out
    })
}

/// `found "x"; allowed: y`, the shape of every message about a value.
pub(super) fn found(text: &str, allowed: &str) -> String {
    format!("found {}; allowed: {allowed}", quoted(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_not_bytes() {
        assert_eq!(line_column("a\nüb", 0), (1, 1));
        assert_eq!(line_column("a\nüb", 4), (2, 2));
        assert_eq!(line_column("a\nüb", 3), (2, 1), "inside a character is that character");
        assert_eq!(line_column("", 9), (1, 1));
    }

    #[test]
    fn quoted_text_stays_on_one_line() {
        assert_eq!(quoted("a\nb\u{1b}[31m"), r#""a\nb\u{1b}[31m""#);
        assert!(quoted(&"x".repeat(500)).chars().count() < 90);
    }
}
