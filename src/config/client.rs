//! Values about who the client is and what a connection to a target carries of it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::error::{Fault, found, quoted};
use super::node::{Node, Value};
use super::value::{Maybe, Parsed, Time, number, time, unless, word};
use crate::plan::AcceptProxy;
use crate::proxy::Version;

/// Most networks whose PROXY headers are taken.
const MOST_PROXIES: usize = 256;

pub(super) const TRANSPARENT: &str = "on, off";
pub(super) const SEND_PROXY: &str = "v1, v2, off";
pub(super) const ACCEPT_PROXY: &str = "none, networks such as [10.0.0.0/8], or a mapping of from, timeout and required such as {from: [10.0.0.0/8], timeout: 3s}";
pub(super) const MARK: &str = "none, or a number from 1 to 4294967295, such as 7 or 0x7";
pub(super) const DEVICE: &str = "none, or the name of a network device, such as eth1";
pub(super) const DSCP: &str = "none, a number from 0 to 63, or one of cs0 to cs7, af11 to af43, ef, va, le";
const NETWORK: &str = "an address or a network, such as 10.0.0.1 or 10.0.0.0/8";
const TIMEOUT: &str = "a time from 1ms to 10m, such as 500ms or 3s";
const REQUIRED: &str = "true, false";

pub(super) fn transparent(text: &str) -> Parsed<bool> {
    word(text, &[("on", true), ("off", false)], TRANSPARENT)
}

pub(super) fn send_proxy(text: &str) -> Parsed<Maybe<Version>> {
    let words = [
        ("off", Maybe(None)),
        ("none", Maybe(None)),
        ("v1", Maybe(Some(Version::V1))),
        ("v2", Maybe(Some(Version::V2))),
    ];
    word(text, &words, SEND_PROXY)
}

/// A whole number in decimal, or in hexadecimal with `0x`.
#[expect(clippy::cast_possible_truncation, reason = "its limits are those of the type")]
pub(super) fn mark(text: &str) -> Parsed<Maybe<u32>> {
    unless("none", text, |text| match text.strip_prefix("0x") {
        Some(digits) if (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            let value = u32::from_str_radix(digits, 16).ok().filter(|value| *value > 0);
            value.ok_or_else(|| found(text, MARK))
        }
        _ => number(text, 1, u64::from(u32::MAX), MARK).map(|value| value as u32),
    })
}

/// `dev_valid_name` in net/core/dev.c.
pub(super) fn device(text: &str) -> Parsed<Maybe<String>> {
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':');
    unless("none", text, |text| {
        let valid = (1..=15).contains(&text.len()) && text.chars().all(fits) && text != "." && text != "..";
        if valid { Ok(text.to_owned()) } else { Err(found(text, DEVICE)) }
    })
}

/// Names of RFC 2474, 2597, 3246, 5865 and 8622.
#[expect(clippy::cast_possible_truncation, reason = "its limits fit the type")]
pub(super) fn dscp(text: &str) -> Parsed<Maybe<u8>> {
    let named = |text: &str| match text.as_bytes() {
        b"ef" => Some(46),
        b"va" => Some(44),
        b"le" => Some(1),
        [b'c', b's', class @ b'0'..=b'7'] => Some((class - b'0') * 8),
        [b'a', b'f', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => Some((class - b'0') * 8 + (drop - b'0') * 2),
        _ => None,
    };
    unless("none", text, |text| named(text).map_or_else(|| number(text, 0, 63, DSCP).map(|n| n as u8), Ok))
}

fn network(text: &str) -> Parsed<IpNet> {
    let net: IpNet =
        text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| found(text, NETWORK))?;
    Ok(net.trunc())
}

/// Networks, each once.
#[derive(Default)]
struct Networks(Vec<IpNet>);

impl Networks {
    fn add(&mut self, text: &str) -> Parsed<()> {
        let net = network(text)?;
        if self.0.contains(&net) {
            return Err(format!("found {} a second time; allowed: each network once", quoted(text)));
        }
        if self.0.len() == MOST_PROXIES {
            return Err(format!("found more than {MOST_PROXIES} networks; allowed: at most {MOST_PROXIES}"));
        }
        self.0.push(net);
        Ok(())
    }
}

fn header_time(text: &str) -> Parsed<Duration> {
    time(text, 1, 600_000, TIMEOUT)
}

/// `10.0.0.0/8,10.9.9.9 timeout 3s optional`.
pub(super) fn accept_proxy(text: &str) -> Parsed<Maybe<AcceptProxy>> {
    let options = |text: &str| -> Option<(Networks, Duration, bool)> {
        let (text, required) = text.strip_suffix(" optional").map_or((text, true), |text| (text, false));
        let (list, timeout) = match text.split_once(" timeout ") {
            Some((list, timeout)) => (list, header_time(timeout).ok()?),
            None => (text, AcceptProxy::TIMEOUT),
        };
        let mut networks = Networks::default();
        list.split(',').try_for_each(|item| networks.add(item.trim())).ok()?;
        Some((networks, timeout, required))
    };
    unless("none", text, |text| match options(text) {
        Some((Networks(from), timeout, required)) => Ok(AcceptProxy { from, timeout, required }),
        None => Err(found(text, "none, or NETWORK[,NETWORK…] [timeout TIME] [optional], such as 10.0.0.0/8")),
    })
}

/// As text, as a list of networks, or as a mapping; each error where its item stands.
pub(super) fn accept_proxy_of(node: &Node) -> Result<Maybe<AcceptProxy>, Fault> {
    match &node.value {
        Value::List(_) => networks_of(node).map(|from| {
            let accept = AcceptProxy { from, timeout: AcceptProxy::TIMEOUT, required: true };
            Maybe(Some(accept))
        }),
        Value::Map(_) => mapping(node),
        _ => node.parse(accept_proxy, ACCEPT_PROXY),
    }
}

fn networks_of(node: &Node) -> Result<Vec<IpNet>, Fault> {
    let mut networks = Networks::default();
    for item in node.one_or_many() {
        item.parse(|text| networks.add(text), NETWORK)?;
    }
    if networks.0.is_empty() {
        return Err(Fault::new(node.mark, format!("found an empty list; allowed: {ACCEPT_PROXY}")));
    }
    Ok(networks.0)
}

fn mapping(node: &Node) -> Result<Maybe<AcceptProxy>, Fault> {
    let mut accept = AcceptProxy { from: Vec::new(), timeout: AcceptProxy::TIMEOUT, required: true };
    for (key, value) in node.entries(ACCEPT_PROXY, &["from", "timeout", "required"])? {
        match key.text.as_str() {
            "from" => accept.from = networks_of(value)?,
            "timeout" => accept.timeout = value.parse(header_time, TIMEOUT)?,
            _ => match value.value {
                Value::Bool(required) => accept.required = required,
                _ => {
                    accept.required =
                        value.parse(|text| word(text, &[("true", true), ("false", false)], REQUIRED), REQUIRED)?
                }
            },
        }
    }
    if accept.from.is_empty() {
        let message = format!("found accept_proxy without from; allowed: {ACCEPT_PROXY}");
        return Err(Fault::new(node.mark, message));
    }
    Ok(Maybe(Some(accept)))
}

/// Writes whose headers are taken so that [`accept_proxy_of`] reads the same.
pub(super) fn write_accept_proxy(accept: Option<&AcceptProxy>) -> String {
    let Some(AcceptProxy { from, timeout, required }) = accept else { return "none".to_owned() };
    let net = |net: &IpNet| match net {
        net if net.prefix_len() == net.max_prefix_len() => format!("\"{}\"", net.addr()),
        net => format!("\"{net}\""),
    };
    let from: Vec<String> = from.iter().map(net).collect();
    format!("{{from: [{}], timeout: {}, required: {required}}}", from.join(", "), Time(*timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_devices_and_classes() {
        for (text, expected) in [("none", None), ("7", Some(7)), ("0x10", Some(16)), ("0xFFFFFFFF", Some(u32::MAX))] {
            assert_eq!(mark(text), Ok(Maybe(expected)), "{text}");
        }
        for text in ["", "0", "0x", "0x0", "-1", "4294967296", "0x100000000", "7 "] {
            assert!(mark(text).is_err(), "{text}");
        }
        for (text, expected) in [("ef", 46), ("cs0", 0), ("cs7", 56), ("af11", 10), ("af43", 38), ("63", 63), ("0", 0)]
        {
            assert_eq!(dscp(text), Ok(Maybe(Some(expected))), "{text}");
        }
        for text in ["", "64", "cs8", "af44", "af51", "EF"] {
            assert!(dscp(text).is_err(), "{text}");
        }
        assert_eq!(device("eth0.1"), Ok(Maybe(Some("eth0.1".to_owned()))));
        for text in ["", "a/b", "a b", "..", "sixteen-letters1", "a:1"] {
            assert!(device(text).is_err(), "{text}");
        }
    }

    #[test]
    fn proxies_as_text() {
        let accept = accept_proxy("10.0.0.1/8, ::1 timeout 250ms optional").unwrap().0.unwrap();
        assert_eq!(accept.from, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse::<IpNet>().unwrap()]);
        assert_eq!((accept.timeout, accept.required), (Duration::from_millis(250), false));
        assert_eq!(accept_proxy("::/0").unwrap().0.unwrap().timeout, AcceptProxy::TIMEOUT);
        assert_eq!(accept_proxy("none"), Ok(Maybe(None)));
        for text in
            ["", "10.0.0.0/33", "10.*", "10.0.0.1 10.0.0.2", "10.0.0.1 timeout", "10.0.0.1 timeout 11m", "::1,::1"]
        {
            assert!(accept_proxy(text).is_err(), "{text}");
        }
    }
}
