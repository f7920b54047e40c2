//! The loads of a file.

use std::time::Duration;

use spliced::config::marked::{Fault, Node, Value};

use super::{ROUNDS, arm_name, bytes, found, number, topology, word};
use crate::cli::{self, SECONDS};
use crate::experiment::case::Case;
use crate::experiment::load;
use crate::load::{HoldKind, Load, iperf3};
use crate::topology::links::{self, Rate};

const LOAD: &str = "a mapping with kind, such as {kind: bulk, streams: 8}";
const KINDS: &str = "bulk, rr, crr, stream, sessions, idle, stalled";
const WAY: &str = "forward, reverse, bidirectional";
const COUNT: &str = "a number from 1 to 50000";
const RATE: &str = "a number from 1 to 200000";
const STREAMS: &str = "a number from 1 to 128";
const BYTES: &str = "a size from 1 to 1MiB, such as 64 or 16KiB";
const CHUNK: &str = "a size from 16 to 64KiB, such as 64 or 16KiB";
const NAME: &str = "1 to 40 letters, digits, - . and _";
const ARMS: &str = "a list of names of forwarders of this file";
/// Keys that every load has.
const COMMON: [&str; 6] = ["kind", "name", "forwarders", "rounds", "seconds", "topology"];

/// The keys of each kind of load beside those.
fn keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "bulk" => &["streams", "way", "offered"],
        "rr" => &["connections", "exchanges_per_second", "size"],
        "crr" => &["clients", "size"],
        "stream" => &["streams", "chunks_per_second", "offered", "size"],
        "sessions" => &["sessions", "size"],
        _ => &["sessions"],
    }
}

/// One load; `names` are those of the forwarders of the file.
pub(super) fn case(node: &Node, seconds: Duration, names: &[String]) -> Result<Case, Fault> {
    let Value::Map(entries) = &node.value else { return Err(node.wrong(LOAD)) };
    let Some((_, kind)) = entries.iter().find(|(key, _)| key.text == "kind") else {
        return Err(Fault::new(node.mark, format!("found a load without kind; allowed: {LOAD}")));
    };
    let kind = kind.text(|text| word(text, KINDS), KINDS)?;
    let known = [&COMMON, keys(&kind)].concat();
    let entries = node.entries(LOAD, &known)?;
    let find = |name: &str| entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
    let seconds = find("seconds").map_or(Ok(seconds), |node| node.parse(cli::seconds, SECONDS))?;
    let mut case = Case::from(load_of(&kind, &find, seconds)?);
    case.name = find("name").map(|node| node.parse(arm_name, NAME)).transpose()?;
    case.links = find("topology").map(topology).transpose()?;
    case.rounds = find("rounds").map(|node| node.parse(|text| number(text, 1, 1000, ROUNDS), ROUNDS)).transpose()?;
    for node in find("forwarders").map_or(Ok(&[][..]), |node| node.items(ARMS))? {
        let known = |text: &str| match names.iter().find(|name| *name == text) {
            Some(name) => Ok(name.clone()),
            None => Err(found(text, &names.join(", "))),
        };
        case.arms.push(node.text(known, ARMS)?);
    }
    Ok(case)
}

fn load_of<'a>(kind: &str, find: &dyn Fn(&str) -> Option<&'a Node>, seconds: Duration) -> Result<Load, Fault> {
    let count = |name: &str, default: u32| {
        find(name).map_or(Ok(default), |node| node.parse(|text| number(text, 1, 50_000, COUNT), COUNT))
    };
    let sized = |default: u32, least: u64, most: u64, allowed: &'static str| {
        let parse = |node: &Node| node.parse(|text| bytes(text, least, most, allowed), allowed);
        find("size").map_or(Ok(u64::from(default)), parse).map(|size| u32::try_from(size).unwrap_or(u32::MAX))
    };
    let size = |default: u32| sized(default, 1, 1 << 20, BYTES);
    let offered = || find("offered").map(|node| node.text(Rate::parse, links::RATE)).transpose();
    Ok(match kind {
        "bulk" => {
            let way = find("way").map_or(Ok(iperf3::Direction::Up), |node| {
                node.text(|text| load::direction(text).ok_or_else(|| found(text, WAY)), WAY)
            })?;
            let parse = |node: &Node| node.parse(|text| number(text, 1, 128, STREAMS), STREAMS);
            load::bulk(find("streams").map_or(Ok(8), parse)?, way, offered()?, seconds)
        }
        "rr" => {
            let parse = |node: &Node| node.parse(|text| number(text, 1, 200_000, RATE), RATE);
            let per_second = find("exchanges_per_second").map(parse).transpose()?;
            load::exchanges(false, count("connections", 16)?, size(64)?, per_second, seconds)
        }
        "crr" => load::exchanges(true, count("clients", 8)?, size(1)?, None, seconds),
        "sessions" => load::sessions(count("sessions", 1000)?, size(128 << 10)?, seconds),
        "idle" => load::held(count("sessions", 1000)?, HoldKind::Idle, seconds),
        "stalled" => load::held(count("sessions", 100)?, HoldKind::Stalled, seconds),
        _ => {
            let (streams, chunk) = (count("streams", 1000)?, sized(64, 16, 64 << 10, CHUNK)?);
            let rate = match (offered()?, find("chunks_per_second")) {
                (Some(_), Some(node)) => {
                    let message = "found chunks_per_second beside offered; allowed: one of the two";
                    return Err(Fault::new(node.mark, message.to_owned()));
                }
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                (Some(rate), None) => rate.0 as f64 / 8.0 / f64::from(chunk) / f64::from(streams),
                (None, _) => count("chunks_per_second", 20)?.into(),
            };
            load::streams(streams, rate, chunk, seconds)
        }
    })
}
