//! Targets as people write them: how sessions are dealt to them, and how their health is told.

use std::time::Duration;

use super::address;
use super::error::{Fault, Mark, found, quoted};
use super::node::{Node, Value, set_once};
use super::render::quote;
use super::value::{MAX_CONNECTIONS, Maybe, Time, WEIGHT, max_connections, number, time, weight};
use crate::plan::{Balance, Check, Forward, Health, OnDown, Ports, Target, Transport};

pub(super) const BALANCE: &str = "round_robin, least_connections, source_hash, random_two";
pub(super) const ON_DOWN: &str = "keep, end";
pub(super) const RETRIES: &str = "all, or a number from 0 to 1000";
pub(super) const ATTEMPT_TIMEOUT: &str = "auto, or a time from 1ms to 365d, such as 250ms or 2s";
pub(super) const ATTEMPT_DELAY: &str = "none, or a time from 10ms to 1h, such as 250ms";
pub(super) const HEALTH: &str = "none, or fails (1 to 1000), eject and eject_max (100ms to 1d, eject_max not below eject), such \
     as fails=3,eject=10s,eject_max=5m, in a file also {fails: 3, eject: 10s, eject_max: 5m}";
pub(super) const CHECK: &str = "none, connect, or interval (100ms to 1d), timeout (10ms to 1h), rise and fall (1 to 100) and \
     port, such as interval=2s,timeout=1s,rise=2,fall=3, in a file also {send: \"PING\\r\\n\", expect: \"+PONG\", interval: 2s}";
pub(super) const TARGET: &str =
    "HOST:PORT, srv:NAME, or a mapping of address (or to, or srv), weight, backup, max_connections and slow_start";
const SLOW_START: &str = "none, or a time from 1s to 1d, such as 30s or 2m";
const BACKUP: &str = "true, false";
const TEXT: &str = "text of 1 to 1024 bytes";
/// Bytes of what a check sends or expects.
const MOST_TEXT: usize = 1024;
const DAY_MS: u64 = 24 * 3_600_000;

pub(super) fn balance(text: &str) -> Result<Balance, String> {
    match text {
        "round_robin" => Ok(Balance::RoundRobin),
        "least_connections" => Ok(Balance::LeastConnections),
        "source_hash" => Ok(Balance::SourceHash),
        "random_two" => Ok(Balance::RandomTwo),
        _ => Err(found(text, BALANCE)),
    }
}

pub(super) fn on_down(text: &str) -> Result<OnDown, String> {
    match text {
        "keep" => Ok(OnDown::Keep),
        "end" => Ok(OnDown::End),
        _ => Err(found(text, ON_DOWN)),
    }
}

pub(super) fn retries(text: &str) -> Result<Maybe<u32>, String> {
    if text == "all" {
        return Ok(Maybe(None));
    }
    small(text, 0, 1000, RETRIES).map(|n| Maybe(Some(n)))
}

pub(super) fn attempt_timeout(text: &str) -> Result<Maybe<Duration>, String> {
    if text == "auto" {
        return Ok(Maybe(None));
    }
    time(text, 1, 365 * DAY_MS, ATTEMPT_TIMEOUT).map(|time| Maybe(Some(time)))
}

pub(super) fn attempt_delay(text: &str) -> Result<Maybe<Duration>, String> {
    if text == "none" {
        return Ok(Maybe(None));
    }
    time(text, 10, DAY_MS / 24, ATTEMPT_DELAY).map(|time| Maybe(Some(time)))
}

#[expect(clippy::cast_possible_truncation, reason = "the limits fit")]
fn small(text: &str, least: u64, most: u64, allowed: &str) -> Result<u32, String> {
    number(text, least, most, allowed).map(|n| n as u32)
}

/// `none`, or `name=value` with commas, each name once.
fn parts(text: &str, allowed: &str, mut set: impl FnMut(&str, &str) -> Result<(), String>) -> Result<(), String> {
    let mut seen = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (name, value) = part.split_once('=').ok_or_else(|| found(part, allowed))?;
        if seen.contains(&name) {
            return Err(format!("found {name} a second time; allowed: each once, {allowed}"));
        }
        seen.push(name);
        set(name, value)?;
    }
    Ok(())
}

pub(super) fn health(text: &str) -> Result<Maybe<Health>, String> {
    if text == "none" {
        return Ok(Maybe(None));
    }
    let mut health = Health::default();
    parts(text, HEALTH, |name, value| set_health(&mut health, name, value))?;
    ordered(&health)?;
    Ok(Maybe(Some(health)))
}

fn set_health(health: &mut Health, name: &str, value: &str) -> Result<(), String> {
    match name {
        "fails" => health.fails = small(value, 1, 1000, HEALTH)?,
        "eject" => health.eject = time(value, 100, DAY_MS, HEALTH)?,
        "eject_max" => health.eject_max = time(value, 100, DAY_MS, HEALTH)?,
        _ => return Err(found(name, HEALTH)),
    }
    Ok(())
}

fn ordered(health: &Health) -> Result<(), String> {
    let (eject, most) = (Time(health.eject), Time(health.eject_max));
    let message = || format!("found eject {eject} above eject_max {most}; allowed: {HEALTH}");
    if health.eject > health.eject_max { Err(message()) } else { Ok(()) }
}

/// The same as a mapping, or as text.
pub(super) fn health_of(node: &Node) -> Result<Maybe<Health>, Fault> {
    let Value::Map(_) = &node.value else { return node.parse(health, HEALTH) };
    let mut health = Health::default();
    for (key, value) in node.entries(HEALTH, &["fails", "eject", "eject_max"])? {
        value.parse(|text| set_health(&mut health, &key.text, text), HEALTH)?;
    }
    ordered(&health).map_err(|message| Fault::new(node.mark, message))?;
    Ok(Maybe(Some(health)))
}

pub(super) fn check(text: &str) -> Result<Maybe<Check>, String> {
    let mut check = Check::default();
    match text {
        "none" => return Ok(Maybe(None)),
        "connect" => return Ok(Maybe(Some(check))),
        _ => {}
    }
    parts(text, CHECK, |name, value| set_check(&mut check, name, value))?;
    Ok(Maybe(Some(check)))
}

#[expect(clippy::cast_possible_truncation, reason = "the limits fit")]
fn set_check(check: &mut Check, name: &str, value: &str) -> Result<(), String> {
    match name {
        "interval" => check.interval = time(value, 100, DAY_MS, CHECK)?,
        "timeout" => check.timeout = time(value, 10, DAY_MS / 24, CHECK)?,
        "rise" => check.rise = small(value, 1, 100, CHECK)?,
        "fall" => check.fall = small(value, 1, 100, CHECK)?,
        "port" => check.port = Some(number(value, 1, 65535, CHECK)? as u16),
        _ => return Err(found(name, CHECK)),
    }
    Ok(())
}

/// The same as a mapping, which can also say what is sent and expected, or as text.
pub(super) fn check_of(node: &Node) -> Result<Maybe<Check>, Fault> {
    let Value::Map(_) = &node.value else { return node.parse(check, CHECK) };
    let mut check = Check::default();
    for (key, value) in node.entries(CHECK, &["send", "expect", "interval", "timeout", "rise", "fall", "port"])? {
        match key.text.as_str() {
            "send" => check.send = value.parse(said, TEXT)?,
            "expect" => check.expect = value.parse(said, TEXT)?,
            name => value.parse(|text| set_check(&mut check, name, text), CHECK)?,
        }
    }
    Ok(Maybe(Some(check)))
}

fn said(text: &str) -> Result<String, String> {
    if (1..=MOST_TEXT).contains(&text.len()) { Ok(text.to_owned()) } else { Err(found(text, TEXT)) }
}

fn slow_start(text: &str) -> Result<Maybe<Duration>, String> {
    if text == "none" {
        return Ok(Maybe(None));
    }
    time(text, 1000, DAY_MS, SLOW_START).map(|time| Maybe(Some(time)))
}

/// A weight, or the word for the configured one.
pub(crate) fn weight_or_default(text: &str) -> Result<Maybe<u16>, String> {
    if text == "default" { Ok(Maybe(None)) } else { weight(text).map(|weight| Maybe(Some(weight))) }
}

/// One item of `to`.
pub(super) fn target(node: &Node) -> Result<(Mark, Option<Transport>, Target), Fault> {
    let Value::Map(_) = &node.value else {
        let (transport, host, ports) = node.parse(address::target, TARGET)?;
        return Ok((node.mark, transport, Target::new(host, ports)));
    };
    let (mut to, mut share, mut most, mut slow, mut backup) = (None, None, None, None, false);
    for (key, value) in
        node.entries(TARGET, &["address", "srv", "to", "weight", "backup", "max_connections", "slow_start"])?
    {
        match key.text.as_str() {
            name @ ("address" | "to") => {
                set_once(&mut to, name, key, value, |text| Ok((value.mark, address::target(text)?)), address::TARGET)?;
            }
            "srv" => {
                let service = |text: &str| Ok((value.mark, (None, address::service(text)?, Ports::BY_RECORD)));
                set_once(&mut to, "srv", key, value, service, address::SERVICE)?;
            }
            "backup" => match value.value {
                Value::Bool(is) => backup = is,
                _ => return Err(value.wrong(BACKUP)),
            },
            "max_connections" => {
                set_once(&mut most, "max_connections", key, value, max_connections, MAX_CONNECTIONS)?;
            }
            "slow_start" => set_once(&mut slow, "slow_start", key, value, slow_start, SLOW_START)?,
            _ => set_once(&mut share, "weight", key, value, weight, WEIGHT)?,
        }
    }
    let Some((mark, (transport, host, ports))) = to else {
        return Err(Fault::new(node.mark, "found a target without address; allowed: {address: HOST:PORT, weight: N}"));
    };
    let target = Target {
        weight: share.unwrap_or(1),
        backup,
        max_connections: most.and_then(|most| most.0),
        slow_start: slow.and_then(|slow| slow.0),
        ..Target::new(host, ports)
    };
    Ok((mark, transport, target))
}

/// Refuses what is there twice: a weight says better that a target is to have more than the others.
pub(super) fn each_once(targets: &[Target], marks: &[Mark]) -> Result<(), Fault> {
    for (at, (target, mark)) in targets.iter().zip(marks).enumerate() {
        let same = |other: &&Target| (&other.host, other.ports) == (&target.host, target.ports);
        if targets[..at].iter().find(same).is_some() {
            let text = quoted(&target.to_string());
            return Err(Fault::new(
                *mark,
                format!("found target {text} a second time; allowed: each once, with a weight"),
            ));
        }
    }
    Ok(())
}

/// Writes a target so that [`target`] reads the same.
pub(super) fn write_target(forward: &Forward, target: &Target) -> String {
    let address = quote(&forward.written_target(target));
    let mut parts = Vec::new();
    if target.weight != 1 {
        parts.push(format!("weight: {}", target.weight));
    }
    if target.backup {
        parts.push("backup: true".to_owned());
    }
    parts.extend(target.max_connections.map(|most| format!("max_connections: {most}")));
    parts.extend(target.slow_start.map(|time| format!("slow_start: {}", Time(time))));
    if parts.is_empty() { address } else { format!("{{address: {address}, {}}}", parts.join(", ")) }
}

/// Writes `health` so that [`health_of`] reads the same.
pub(super) fn write_health(health: Option<&Health>) -> String {
    let Some(Health { fails, eject, eject_max }) = health else { return "none".to_owned() };
    format!("{{fails: {fails}, eject: {}, eject_max: {}}}", Time(*eject), Time(*eject_max))
}

/// Writes `check` so that [`check_of`] reads the same.
pub(super) fn write_check(check: Option<&Check>) -> String {
    let Some(check) = check else { return "none".to_owned() };
    let mut text = String::from("{");
    for (name, said) in [("send", &check.send), ("expect", &check.expect)] {
        if !said.is_empty() {
            text += &format!("{name}: {}, ", quote(said));
        }
    }
    let (interval, timeout) = (Time(check.interval), Time(check.timeout));
    text += &format!("interval: {interval}, timeout: {timeout}, rise: {}, fall: {}", check.rise, check.fall);
    if let Some(port) = check.port {
        text += &format!(", port: {port}");
    }
    text + "}"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_and_checks_as_text() {
        assert_eq!(health("none"), Ok(Maybe(None)));
        let some = Health { fails: 5, eject: Duration::from_secs(1), ..Health::default() };
        assert_eq!(health("fails=5, eject=1s"), Ok(Maybe(Some(some))));
        for bad in
            ["", "fails", "fails=0", "fails=1,fails=2", "eject=10m", "eject=1s,eject_max=500ms", "x=1", "eject=5"]
        {
            assert!(health(bad).unwrap_err().contains("allowed: "), "{bad}");
        }
        let some = Check { rise: 1, fall: 1, port: Some(80), ..Check::default() };
        assert_eq!(check("rise=1,fall=1,port=80"), Ok(Maybe(Some(some))));
        assert_eq!(check("connect"), Ok(Maybe(Some(Check::default()))));
        for bad in ["", "http", "rise=0", "interval=1ms", "port=0", "port=65536", "send=x", "timeout=2h"] {
            assert!(check(bad).unwrap_err().contains("allowed: "), "{bad}");
        }
        assert_eq!(retries("all"), Ok(Maybe(None)));
        assert_eq!(retries("0"), Ok(Maybe(Some(0))));
        assert!(retries("none").is_err() && balance("rr").is_err() && on_down("cut").is_err());
    }
}
