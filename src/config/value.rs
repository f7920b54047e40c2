//! Single values as people write them: sizes, times, numbers, words.
//!
//! Every parser takes the text and returns the value or the whole message (`found …; allowed: …`), so that the
//! command line and every file format say the same thing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub(super) use super::client::{
    ACCEPT_PROXY, DEVICE, DSCP, MARK, SEND_PROXY, TRANSPARENT, accept_proxy, device, dscp, mark, send_proxy,
    transparent,
};
pub(super) use super::engine::{ENGINE, engine};
use super::error::{found, quoted};
pub(super) use super::limit::{
    BYTE_RATE, CONNECTION_RATE, SOURCES, WHEN_FULL, byte_rate, connection_rate, sources, when_full,
};
pub(super) use super::names::{
    RESOLVE, RESOLVE_BOUND, RESOLVE_INTERVAL, RESOLVERS, resolve, resolve_bound, resolve_interval, resolvers,
};
pub(super) use super::target::{
    ATTEMPT_DELAY, ATTEMPT_TIMEOUT, BALANCE, CHECK, HEALTH, ON_DOWN, RETRIES, attempt_delay, attempt_timeout, balance,
    check, health, on_down, retries,
};
use crate::plan::{Confinement, Keep, LogFormat, Pin, RunAs, Scheduling};

/// A value, or the word for "no limit" or "leave it to the system" (`none`, `auto`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maybe<T>(pub Option<T>);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const YEAR_MS: u64 = 365 * 24 * 3_600_000;

pub(super) const PIN: &str = "auto, on, off";
pub(super) const GATHER: &str = "on, off";
pub(super) const SWITCH: &str = "on, off";
pub(super) const FAST_OPEN: &str = "on, off, or a number from 1 to 65535";
pub(super) const NETNS: &str = "none, a name of `ip netns`, or an absolute path";
pub(super) const SPIN: &str = "none, or a time from 1us to 10ms, such as 50us";
pub(super) const SCHEDULING: &str = "auto, batch, normal";
pub(super) const LOG_FORMAT: &str = "text, json, rinetd, common";
pub(super) const WORKERS: &str = "auto, or a number from 1 to 1024";
pub(super) const MAX_CONNECTIONS: &str = "none, or a number from 1 to 1000000000";
pub(super) const BACKLOG: &str = "a number from 1 to 1000000";
pub(super) const WEIGHT: &str = "a number from 1 to 256";
pub(super) const COPY_BUFFER: &str = "a size from 1KiB to 16MiB, such as 65536, 64KiB or 1MiB";
pub(super) const PIPE_SIZE: &str = "auto, or a size from 64KiB to 1GiB, such as 256KiB or 1MiB";
pub(super) const SOCKET_BUFFER: &str = "auto, or a size from 1KiB to 1GiB, such as 256KiB or 4MiB";
pub(super) const TIMEOUT: &str = "none, or a time from 1ms to 365d, such as 250ms, 5s, 10m or 1h";
pub(super) const DRAIN: &str = "none, or a time from 0s to 365d, such as 30s or 10m";
pub(super) const DRAIN_DELAY: &str = "a time from 0s to 365d, such as 10s";
pub(super) const KEEPALIVE: &str = "none, or whole seconds from 1s to 32767s, such as 30s or 2m";
pub(super) const USER_TIMEOUT: &str = "none, or a time from 1ms to 24d, such as 30s or 2m";
pub(super) const UDP_TIMEOUT: &str = "a time from 1ms to 365d, such as 250ms, 30s or 10m";
pub(super) const UDP_RESPONSES: &str = "none, or a number from 0 to 1000000";
pub(super) const METRICS: &str = "ADDRESS:PORT with a port from 1 to 65535, such as 127.0.0.1:9464";
pub(super) const PATH: &str = "a path";
pub(super) const UNIX_MODE: &str = "auto, or permission bits in octal that let the owner write, such as 0660 or 0666";
pub(super) const UNIX_OWNER: &str = "none, a user such as redis or 65534, or with a group such as redis:adm";
pub(super) const USER: &str = "a user such as nobody or 65534, or with a group such as spliced:adm";
pub(super) const KEEP_CAPABILITIES: &str =
    "auto, none, net_admin, net_bind_service, sys_resource, or several with commas";
pub(super) const SANDBOX: &str = "auto, strict, off";
pub(super) const NAME: &str = "1 to 128 visible characters";

pub(super) type Parsed<T> = Result<T, String>;

/// One of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)], allowed: &str) -> Parsed<T> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| found(text, allowed))
}

pub(super) fn pin(text: &str) -> Parsed<Pin> {
    word(text, &[("auto", Pin::Auto), ("on", Pin::On), ("off", Pin::Off)], PIN)
}

pub(super) fn gather(text: &str) -> Parsed<bool> {
    word(text, &[("on", true), ("off", false)], GATHER)
}

pub(super) fn switch(text: &str) -> Parsed<bool> {
    word(text, &[("on", true), ("off", false)], SWITCH)
}

/// Handshakes with data a listener has at once; `off` is none.
#[expect(clippy::cast_possible_truncation, reason = "the limits of each value fit its type")]
pub(super) fn fast_open(text: &str) -> Parsed<Maybe<u32>> {
    match text {
        "on" => Ok(Maybe(Some(256))),
        _ => unless("off", text, |text| number(text, 1, 65_535, FAST_OPEN).map(|n| n as u32)),
    }
}

/// A name below /run/netns (ip-netns(8)), or a path.
pub(super) fn netns(text: &str) -> Parsed<Maybe<String>> {
    unless("none", text, |text| {
        let fits = (1..=255).contains(&text.len()) && text != "." && text != "..";
        let plain = !text.chars().any(char::is_control) && (text.starts_with('/') || !text.contains('/'));
        if fits && plain { Ok(text.to_owned()) } else { Err(found(text, NETNS)) }
    })
}

pub(super) fn scheduling(text: &str) -> Parsed<Scheduling> {
    let words = [("auto", Scheduling::Auto), ("batch", Scheduling::Batch), ("normal", Scheduling::Normal)];
    word(text, &words, SCHEDULING)
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    use LogFormat::{Common, Json, Rinetd, Text};
    word(text, &[("text", Text), ("json", Json), ("rinetd", Rinetd), ("common", Common)], LOG_FORMAT)
}

/// A whole number of decimal digits only: no sign, no blank.
pub(super) fn number(text: &str, least: u64, most: u64, allowed: &str) -> Parsed<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = if digits { text.parse().ok() } else { None };
    value.filter(|value| (least..=most).contains(value)).ok_or_else(|| found(text, allowed))
}

/// The parser's result, unless the text is the word for "nothing set".
pub(super) fn unless<T>(none: &str, text: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Parsed<Maybe<T>> {
    if text == none { Ok(Maybe(None)) } else { parse(text).map(|value| Maybe(Some(value))) }
}

#[expect(clippy::cast_possible_truncation, reason = "the limits of each value fit its type")]
pub(super) fn workers(text: &str) -> Parsed<Maybe<usize>> {
    unless("auto", text, |text| number(text, 1, 1024, WORKERS).map(|n| n as usize))
}

pub(super) fn max_connections(text: &str) -> Parsed<Maybe<u64>> {
    unless("none", text, |text| number(text, 1, 1_000_000_000, MAX_CONNECTIONS))
}

#[expect(clippy::cast_possible_truncation, reason = "the limits of each value fit its type")]
pub(super) fn backlog(text: &str) -> Parsed<u32> {
    number(text, 1, 1_000_000, BACKLOG).map(|n| n as u32)
}

#[expect(clippy::cast_possible_truncation, reason = "the limits of each value fit its type")]
pub(super) fn weight(text: &str) -> Parsed<u16> {
    number(text, 1, 256, WEIGHT).map(|n| n as u16)
}

/// Splits `64KiB` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..unit_at].parse().ok()?, &text[unit_at..]))
}

/// Bytes: a bare number, or one with B, K, KiB, M, MiB, G or GiB in any case, all powers of 1024.
///
/// # Errors
/// What was found and what is allowed.
pub fn size(text: &str, least: u64, most: u64, allowed: &str) -> Parsed<usize> {
    let Some((value, unit)) = number_and_unit(text) else { return Err(found(text, allowed)) };
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "kb" | "mb" | "gb" => {
            let clear = &unit[..1];
            return Err(format!(
                "found {}, which is 1000 to some and 1024 to others (write {value}{}iB); allowed: {allowed}",
                quoted(text),
                clear.to_ascii_uppercase()
            ));
        }
        _ => return Err(found(text, allowed)),
    };
    let bytes = value.checked_mul(factor).filter(|bytes| (least..=most).contains(bytes));
    bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| found(text, allowed))
}

pub(super) fn copy_buffer(text: &str) -> Parsed<usize> {
    size(text, KIB, 16 * MIB, COPY_BUFFER)
}

pub(super) fn pipe_size(text: &str) -> Parsed<Maybe<usize>> {
    unless("auto", text, |text| size(text, 64 * KIB, GIB, PIPE_SIZE))
}

pub(super) fn socket_buffer(text: &str) -> Parsed<Maybe<usize>> {
    unless("auto", text, |text| size(text, KIB, GIB, SOCKET_BUFFER))
}

/// A time with its unit: ms, s, m, h or d. Whole milliseconds within the limits.
pub(super) fn time(text: &str, least_ms: u64, most_ms: u64, allowed: &str) -> Parsed<Duration> {
    let Some((value, unit)) = number_and_unit(text) else { return Err(found(text, allowed)) };
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        "" => return Err(format!("found {}, a time without a unit; allowed: {allowed}", quoted(text))),
        _ => return Err(found(text, allowed)),
    };
    let ms = value.checked_mul(factor).filter(|ms| (least_ms..=most_ms).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| found(text, allowed))
}

pub(super) fn timeout(text: &str) -> Parsed<Maybe<Duration>> {
    unless("none", text, |text| time(text, 1, YEAR_MS, TIMEOUT))
}

pub(super) fn drain(text: &str) -> Parsed<Maybe<Duration>> {
    unless("none", text, |text| time(text, 0, YEAR_MS, DRAIN))
}

/// The only time that is shorter than a millisecond.
pub(super) fn spin(text: &str) -> Parsed<Maybe<Duration>> {
    unless("none", text, |text| {
        let time = match text.strip_suffix("us") {
            Some(digits) => number(digits, 1, 10_000, SPIN).map(Duration::from_micros),
            None => time(text, 1, 10, SPIN),
        };
        time.map_err(|_| found(text, SPIN))
    })
}

pub(super) fn drain_delay(text: &str) -> Parsed<Duration> {
    time(text, 0, YEAR_MS, DRAIN_DELAY)
}

/// `TCP_KEEPIDLE` takes whole seconds up to 32767 (`MAX_TCP_KEEPIDLE`, include/net/tcp.h).
pub(super) fn keepalive(text: &str) -> Parsed<Maybe<Duration>> {
    unless("none", text, |text| {
        let time = time(text, 1_000, 32_767_000, KEEPALIVE)?;
        if time.subsec_nanos() == 0 { Ok(time) } else { Err(found(text, KEEPALIVE)) }
    })
}

/// `TCP_USER_TIMEOUT` is an int of milliseconds: a little over 24 days.
pub(super) fn user_timeout(text: &str) -> Parsed<Maybe<Duration>> {
    unless("none", text, |text| time(text, 1, 24 * 24 * 3_600_000, USER_TIMEOUT))
}

/// A time as rinetd and oi write it.
pub(super) fn seconds(text: &str) -> Parsed<Duration> {
    const SECONDS: &str = "whole seconds from 1 to 31536000";
    number(text, 1, YEAR_MS / 1000, SECONDS).map(Duration::from_secs)
}

/// Unlike a session a flow never says that it is over, so there is always a time.
pub(super) fn udp_timeout(text: &str) -> Parsed<Duration> {
    time(text, 1, YEAR_MS, UDP_TIMEOUT)
}

#[expect(clippy::cast_possible_truncation, reason = "the limits of each value fit its type")]
pub(super) fn udp_responses(text: &str) -> Parsed<Maybe<u32>> {
    unless("none", text, |text| number(text, 0, 1_000_000, UDP_RESPONSES).map(|n| n as u32))
}

/// One local address to connect from.
pub(super) fn source(text: &str) -> Parsed<IpAddr> {
    let ip = text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| found(text, SOURCES))?;
    if ip.is_unspecified() || ip.is_multicast() { Err(found(text, SOURCES)) } else { Ok(ip) }
}

pub(super) fn metrics(text: &str) -> Parsed<SocketAddr> {
    text.parse().ok().filter(|at: &SocketAddr| at.port() != 0).ok_or_else(|| found(text, METRICS))
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(found(text, "a path without control characters"));
    }
    Ok(PathBuf::from(text))
}

/// Permission bits. Who may not write a socket may not connect to it, so the owner must; that also finds the 0o660 of
/// YAML 1.2, which comes here in decimal.
pub(super) fn unix_mode(text: &str) -> Parsed<Maybe<u32>> {
    unless("auto", text, |text| {
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let mode = if octal { u32::from_str_radix(text, 8).ok() } else { None };
        mode.filter(|mode| (0o200..=0o777).contains(mode) && mode & 0o200 != 0).ok_or_else(|| found(text, UNIX_MODE))
    })
}

/// Who owns a file, `none` for who makes it.
pub(super) fn unix_owner(text: &str) -> Parsed<Maybe<RunAs>> {
    unless("none", text, |text| user(text).map_err(|_| found(text, UNIX_OWNER)))
}

/// NAME or NAME:GROUP. Whether the host knows them is seen once the whole file is read.
pub(super) fn user(text: &str) -> Parsed<RunAs> {
    let fits = |name: &str| {
        let visible = name.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != ':');
        (1..=64).contains(&name.len()) && visible && !name.starts_with('-')
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if !fits(user) || !group.is_none_or(fits) {
        return Err(found(text, USER));
    }
    Ok(RunAs { user: user.to_owned(), group: group.map(str::to_owned) })
}

pub(super) fn keep_capabilities(text: &str) -> Parsed<Keep> {
    let mut keep = Keep { bind: Some(false), net: Some(false), pipes: false };
    if text == "none" {
        return Ok(keep);
    }
    // Named ones stay whatever else is written.
    let unless_named = |kept: Option<bool>| if kept == Some(true) { kept } else { None };
    for name in text.split(',').map(str::trim) {
        match name {
            "auto" => (keep.bind, keep.net) = (unless_named(keep.bind), unless_named(keep.net)),
            "net_admin" => keep.net = Some(true),
            "net_bind_service" => keep.bind = Some(true),
            "sys_resource" => keep.pipes = true,
            _ => return Err(found(text, KEEP_CAPABILITIES)),
        }
    }
    Ok(keep)
}

pub(super) fn sandbox(text: &str) -> Parsed<Confinement> {
    use Confinement::{Auto, Off, Strict};
    word(text, &[("auto", Auto), ("strict", Strict), ("off", Off)], SANDBOX)
}

pub(super) fn name(text: &str) -> Parsed<String> {
    let fits = (1..=128).contains(&text.chars().count());
    let visible = !text.chars().any(char::is_control) && text.trim() == text;
    if fits && visible { Ok(text.to_owned()) } else { Err(found(text, NAME)) }
}

/// Writes bytes so that [`size`] reads the same number.
pub(crate) struct Size(pub(crate) usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as u64;
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if bytes != 0 && bytes.is_multiple_of(unit) {
                return write!(f, "{}{name}", bytes / unit);
            }
        }
        write!(f, "{bytes}")
    }
}

/// Writes a time so that [`time`] reads the same number; below a millisecond is not kept.
pub(super) struct Time(pub(super) Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if ms != 0 && ms.is_multiple_of(unit) {
                return write!(f, "{}{name}", ms / unit);
            }
        }
        if ms == 0 { f.write_str("0s") } else { write!(f, "{ms}ms") }
    }
}

#[cfg(test)]
mod tests;
