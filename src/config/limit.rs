//! Limits as people write them: rates with a burst, what happens when a limit is reached, and local addresses.

use std::net::IpAddr;

use super::error::{found, quoted};
use super::node::Node;
use super::value::{Maybe, Size, number, size};
use super::{error::Fault, value};
use crate::plan::{Rate, WhenFull};

pub(super) const WHEN_FULL: &str = "queue, refuse";
pub(super) const CONNECTION_RATE: &str =
    "none, or connections per second from 1/s to 1000000/s, such as 100/s or \"100/s burst 500\" (burst up to a day's)";
pub(super) const BYTE_RATE: &str = "none, or bytes per second from 1KiB/s to 1024GiB/s, such as 10MiB/s or \
     \"10MiB/s burst 20MiB\" (burst from a tenth of a second's to a day's)";
pub(super) const SOURCES: &str = "none, or addresses of this host such as 10.0.0.1 or fd00::1, several with commas";

/// Seconds a burst may be worth.
const LONGEST_BURST: u64 = 24 * 3600;
/// Parts of a second a burst of bytes is worth, at the least and by default: a direction that waits looks for bytes
/// that are due only every 32 ms, and must then get all that have become due.
const SHORTEST_BYTE_BURST: u64 = 10;
/// Local addresses of one forward.
const MOST_SOURCES: usize = 256;

/// Local addresses to connect from; empty leaves the choice to the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(pub Vec<IpAddr>);

pub(super) fn when_full(text: &str) -> Result<WhenFull, String> {
    match text {
        "queue" => Ok(WhenFull::Queue),
        "refuse" => Ok(WhenFull::Refuse),
        _ => Err(found(text, WHEN_FULL)),
    }
}

/// The rate and, where it is given, the burst.
fn parts(text: &str) -> (&str, Option<&str>) {
    match text.split_once(" burst ") {
        Some((rate, burst)) => (rate.trim_end(), Some(burst.trim_start())),
        None => (text, None),
    }
}

pub(super) fn connection_rate(text: &str) -> Result<Maybe<Rate>, String> {
    if text == "none" {
        return Ok(Maybe(None));
    }
    let (rate, burst) = parts(text);
    let whole = |_| found(text, CONNECTION_RATE);
    let per_second = number(rate.strip_suffix("/s").unwrap_or(rate), 1, 1_000_000, CONNECTION_RATE).map_err(whole)?;
    let most = per_second * LONGEST_BURST;
    let burst = burst.map_or(Ok(per_second), |burst| number(burst, 1, most, CONNECTION_RATE)).map_err(whole)?;
    Ok(Maybe(Some(Rate { per_second, burst })))
}

pub(super) fn byte_rate(text: &str) -> Result<Maybe<Rate>, String> {
    if text == "none" {
        return Ok(Maybe(None));
    }
    let (rate, burst) = parts(text);
    let bare = rate.strip_suffix("/s").unwrap_or(rate);
    if bare.to_ascii_lowercase().contains("bit") {
        return Err(format!("found {}, which counts bits; allowed: {BYTE_RATE}", quoted(text)));
    }
    let bytes = |text: &str, least, most| size(text, least, most, BYTE_RATE).map(|bytes| bytes as u64);
    let per_second = bytes(bare, 1 << 10, 1 << 40)?;
    let least = per_second / SHORTEST_BYTE_BURST;
    let burst = burst.map_or(Ok(least), |burst| bytes(burst, least, per_second * LONGEST_BURST))?;
    Ok(Maybe(Some(Rate { per_second, burst })))
}

pub(super) fn sources(text: &str) -> Result<Sources, String> {
    let mut sources = Sources::default();
    if text == "none" {
        return Ok(sources);
    }
    for part in text.split(',') {
        sources.add(part.trim())?;
    }
    Ok(sources)
}

/// One address or a list of them, each error where its item stands.
pub(super) fn source_list(node: &Node) -> Result<Sources, Fault> {
    let super::node::Value::List(items) = &node.value else { return node.parse(sources, SOURCES) };
    let mut sources = Sources::default();
    for item in items {
        item.parse(|text| sources.add(text), SOURCES)?;
    }
    Ok(sources)
}

impl Sources {
    /// Adds one address as it is written.
    fn add(&mut self, text: &str) -> Result<(), String> {
        let ip = value::source(text)?;
        if self.0.contains(&ip) {
            return Err(format!("found {} a second time; allowed: each address once", quoted(text)));
        }
        if self.0.len() == MOST_SOURCES {
            return Err(format!("found more than {MOST_SOURCES} addresses; allowed: at most {MOST_SOURCES}"));
        }
        self.0.push(ip);
        Ok(())
    }
}

/// Writes connections per second so that [`connection_rate`] reads the same.
pub(super) fn write_connections(rate: Option<Rate>) -> String {
    match rate {
        None => "none".to_owned(),
        Some(Rate { per_second, burst }) if burst == per_second => format!("{per_second}/s"),
        Some(Rate { per_second, burst }) => format!("{per_second}/s burst {burst}"),
    }
}

/// Writes bytes per second so that [`byte_rate`] reads the same.
#[expect(clippy::cast_possible_truncation, reason = "both have been read as a usize")]
pub(super) fn write_bytes(rate: Option<Rate>) -> String {
    let Some(Rate { per_second, burst }) = rate else { return "none".to_owned() };
    let text = format!("{}/s", Size(per_second as usize));
    if burst == per_second / SHORTEST_BYTE_BURST { text } else { format!("{text} burst {}", Size(burst as usize)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let rate = |per_second, burst| Ok(Maybe(Some(Rate { per_second, burst })));
        for (text, expected) in [
            ("100", rate(100, 100)),
            ("100/s", rate(100, 100)),
            ("100/s burst 500", rate(100, 500)),
            ("1/s burst 86400", rate(1, 86_400)),
            ("none", Ok(Maybe(None))),
        ] {
            assert_eq!(connection_rate(text), expected, "{text}");
        }
        for (text, expected) in [
            ("10MiB/s", rate(10 << 20, 1 << 20)),
            ("10MiB", rate(10 << 20, 1 << 20)),
            ("1KiB/s burst 1MiB", rate(1 << 10, 1 << 20)),
            ("none", Ok(Maybe(None))),
        ] {
            assert_eq!(byte_rate(text), expected, "{text}");
        }
        for text in ["", "0", "-1/s", "1.5/s", "100/m", "100/s burst", "100/s burst 0", "1000001/s", "1/s burst 86401"]
        {
            let error = connection_rate(text).unwrap_err();
            assert!(error.contains("allowed: none, or connections per second"), "{text}: {error}");
        }
        for text in ["", "0", "1023", "10MB/s", "10Mbit/s", "2048GiB/s", "10MiB/s burst 1KiB", "1MiB/s burst"] {
            let error = byte_rate(text).unwrap_err();
            assert!(error.contains("allowed: none, or bytes per second"), "{text}: {error}");
        }
        assert!(byte_rate("10Mbit/s").unwrap_err().contains("counts bits"));
    }

    #[test]
    fn rates_are_read_back() {
        for (per_second, burst) in [(1, 1), (100, 100), (100, 1), (7, 604_800)] {
            let rate = Some(Rate { per_second, burst });
            assert_eq!(connection_rate(&write_connections(rate)), Ok(Maybe(rate)));
        }
        for (per_second, burst) in [(1 << 10, 102), (10 << 20, 1 << 20), (1_000_003, 100_000), (5000, 5001)] {
            let rate = Some(Rate { per_second, burst });
            assert_eq!(byte_rate(&write_bytes(rate)), Ok(Maybe(rate)));
        }
    }

    #[test]
    fn source_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(sources("none"), Ok(Sources(Vec::new())));
        assert_eq!(sources("10.0.0.1, fd00::1"), Ok(Sources(vec![ip("10.0.0.1"), ip("fd00::1")])));
        for text in ["", "10.0.0.1,", "0.0.0.0", "host", "10.0.0.1,10.0.0.1"] {
            assert!(sources(text).is_err(), "{text}");
        }
    }
}
