//! The text of a file: read with a limit, and which format it has.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use super::error::{ConfigError, Fault, Mark, printable, quoted};
use super::{Format, regular};

/// Most bytes a file may have.
pub const MOST_BYTES: u64 = 1 << 20;

const ANY_FORMAT: &str =
    "a text file with our YAML (`forwards:` …), rinetd or oi lines (`0.0.0.0 9000 10.0.0.2 9001`), or oi TOML";

/// Name and text of a file; `-` is standard input. Never reads more than one byte over the limit.
///
/// # Errors
/// A file that cannot be read, is larger than [`MOST_BYTES`] or no UTF-8.
pub fn read(path: &Path) -> Result<(String, String), ConfigError> {
    read_opened(path, |path| File::open(path))
}

/// The same of a regular file alone, which nobody has to wait for.
///
/// # Errors
/// As [`read`], and what the file is instead.
pub(super) fn read_again(path: &Path) -> Result<(String, String), ConfigError> {
    read_opened(path, regular::open)
}

fn read_opened(path: &Path, open: impl FnOnce(&Path) -> io::Result<File>) -> Result<(String, String), ConfigError> {
    let name = if path == Path::new("-") { "<stdin>".to_owned() } else { path.to_string_lossy().into_owned() };
    let fault = |message: String| ConfigError { place: Some((printable(&name), 1, 1)), message };
    let mut bytes = Vec::new();
    let result = if path == Path::new("-") {
        io::stdin().lock().take(MOST_BYTES + 1).read_to_end(&mut bytes)
    } else {
        open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(fault(format!("found a directory; allowed: {ANY_FORMAT}")));
        }
        Err(error) => {
            return Err(fault(format!("found a file that cannot be read ({error}); allowed: {ANY_FORMAT}")));
        }
        Ok(_) if bytes.len() as u64 > MOST_BYTES => {
            return Err(fault(format!("found more than {MOST_BYTES} bytes; allowed: a file of at most 1MiB")));
        }
        Ok(_) => {}
    }
    match String::from_utf8(bytes) {
        // A byte order mark says nothing here and is part of no format.
        Ok(text) => Ok((name, text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))),
        Err(error) => {
            let (bytes, at) = (error.as_bytes(), error.utf8_error().valid_up_to());
            let valid = String::from_utf8_lossy(&bytes[..at]);
            let message = format!("found byte 0x{:02x}, which is no UTF-8 text; allowed: {ANY_FORMAT}", bytes[at]);
            Err(Fault::new(Mark::Offset(at), message).in_file(&name, &valid))
        }
    }
}

/// Refuses what no format can hold: nothing at all, and control characters.
pub(super) fn refuse_unreadable(text: &str) -> Result<(), Fault> {
    let bad = |c: char| (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{fffe}' | '\u{ffff}');
    if let Some((offset, c)) = text.char_indices().find(|(_, c)| bad(*c)) {
        let message = format!("found control character U+{:04X}; allowed: {ANY_FORMAT}", u32::from(c));
        return Err(Fault::new(Mark::Offset(offset), message));
    }
    if first_line(text).is_none() {
        return Err(Fault::new(Mark::At(1, 1), format!("found an empty configuration; allowed: {ANY_FORMAT}")));
    }
    Ok(())
}

/// The first line that says something.
fn first_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Tells the format by the first line that says something; a file's name means nothing.
pub(super) fn format_of(text: &str) -> Format {
    let Some(line) = first_line(text) else { return Format::Yaml };
    let mut words = line.split_ascii_whitespace();
    let first = words.next().unwrap_or_default();
    let second = words.next();
    let is_address = |word: &str| {
        let bare = word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(word);
        bare == "0" || bare.parse::<IpAddr>().is_ok()
    };
    let keyword =
        ["allow", "deny", "logfile", "pidlogfile", "logcommon"].contains(&first.to_ascii_lowercase().as_str());
    let assigned = second.is_some_and(|second| second.starts_with(['=', ':']));
    if (keyword && !assigned) || (second.is_some() && !assigned && is_address(first)) {
        return Format::Lines;
    }
    if is_toml_table(line) || is_toml_assignment(line) {
        return Format::Toml;
    }
    let yaml_start = first.starts_with(['{', '[', '"', '\'', '&', '*', '!', '|', '>', '%', '@', '`', '?', '-']);
    let yaml_key = line.ends_with(':') || line.contains(": ") || line.contains(":\t");
    if yaml_start || yaml_key { Format::Yaml } else { Format::Lines }
}

/// `[table]` or `[[table]]`, perhaps with a comment.
fn is_toml_table(line: &str) -> bool {
    let Some(inner) = line.strip_prefix('[') else { return false };
    let inner = inner.strip_prefix('[').unwrap_or(inner);
    let Some((name, rest)) = inner.split_once(']') else { return false };
    let rest = rest.strip_prefix(']').unwrap_or(rest).trim_start();
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"' | ' ');
    !name.is_empty() && name.chars().all(bare) && (rest.is_empty() || rest.starts_with('#'))
}

/// `key = …`.
fn is_toml_assignment(line: &str) -> bool {
    let Some((key, _)) = line.split_once('=') else { return false };
    let key = key.trim();
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"');
    !key.is_empty() && key.chars().all(bare)
}

/// What a text that is no rule of a line format could have been meant as.
pub(super) fn no_rule(line: &str, allowed: &str) -> String {
    format!("found {}; allowed: {allowed}", quoted(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (text, format) in [
            ("forwards:\n", Format::Yaml),
            ("# c\n\n---\nforwards: []", Format::Yaml),
            ("{\"forwards\": []}", Format::Yaml),
            ("- listen: a", Format::Yaml),
            ("[[[[[", Format::Yaml),
            ("workers : 2", Format::Yaml),
            ("allow: [10.0.0.1]", Format::Yaml),
            ("deny : [10.0.0.1]", Format::Yaml),
            ("a: &a [1]", Format::Yaml),
            ("10.0.1.1 9000 10.0.0.2 9001", Format::Lines),
            (":: 9000 10.0.0.2 9001", Format::Lines),
            ("[::1] 9000 10.0.0.2 9001", Format::Lines),
            ("0 9000 10.0.0.2 9001", Format::Lines),
            ("myhost http other http", Format::Lines),
            ("10.0.1.1 9000", Format::Lines),
            ("Allow 10.*", Format::Lines),
            ("logfile /var/log/x", Format::Lines),
            ("logcommon", Format::Lines),
            ("nonsense", Format::Lines),
            ("log_file = \"x\"", Format::Toml),
            ("forwarding_rules = []", Format::Toml),
            ("[[forwarding_rules]]", Format::Toml),
            ("[table] # c", Format::Toml),
        ] {
            assert_eq!(format_of(text), format, "{text}");
        }
    }
}
