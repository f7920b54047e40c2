//! The forwarders of a file.

use serde_json::{Map, Value as Json};
use spliced::config::marked::{Fault, Key, Node, Value};

use super::{ARM_NAME, Written, arm_name, bytes, found, number, word};
use crate::experiment::arm::{Arm, ENGINES, What};
use crate::experiment::engine::EngineOptions;
use crate::peers::{self, Given};
use crate::place::User;
use crate::results::{Kind, Missing};

const FORWARDERS: &str = "a list of forwarders, each a name such as splice, or a mapping with a name";
const ENGINE: &str = "auto, splice, copy";
const COPY_BUFFER: &str = "a size from 1KiB to 16MiB, such as 64KiB";
const PIPE_SIZE: &str = "a size from 64KiB to 1GiB, such as 256KiB";
const WORKERS: &str = "a number from 1 to 1024";
const OPTIONS: &str = "a mapping of keys of spliced's configuration, such as {transparent: on}";
const USER: &str = "a user of this host, such as nobody";
const COMMAND: &str = "a command with {listen} and {target} in it, or the program of a forwarder the lab knows";

/// Fills in what is compared and what is missing of it; the names of all.
pub(super) fn forwarders(list: &Node, given: &[Given], written: &mut Written) -> Result<Vec<String>, Fault> {
    let mut names: Vec<String> = Vec::new();
    for node in list.items(FORWARDERS)? {
        let arm = match &node.value {
            Value::Text(name) => named(node, name, given)?,
            Value::Map(_) => forwarder(node, given)?,
            _ => return Err(node.wrong(FORWARDERS)),
        };
        let name = match &arm {
            Ok(arm) => &arm.name,
            Err(missing) => &missing.name,
        };
        if names.contains(name) {
            return Err(Fault::new(
                node.mark,
                format!("found forwarder {name:?} a second time; allowed: each name once"),
            ));
        }
        names.push(name.clone());
        match arm {
            Ok(arm) => written.arms.push(arm),
            Err(missing) => written.missing.push(missing),
        }
    }
    if names.is_empty() {
        return Err(list.wrong(FORWARDERS));
    }
    Ok(names)
}

/// An arm the lab knows by name, or what it misses to run it.
fn named(node: &Node, name: &str, given: &[Given]) -> Result<Result<Arm, Missing>, Fault> {
    if !given.iter().any(|given| given.name == name) {
        if let Some(arm) = Arm::engine(name) {
            return Ok(Ok(arm));
        }
        if !peers::names().contains(&name) {
            let allowed = [&ENGINES[..], &peers::names()].concat().join(", ");
            let message = found(name, &format!("{allowed}, copy-SIZE, or a mapping with name and engine or command"));
            return Err(Fault::new(node.mark, message));
        }
    }
    Ok(peers::find(name, given).map(Arm::peer))
}

fn forwarder(node: &Node, given: &[Given]) -> Result<Result<Arm, Missing>, Fault> {
    let known =
        ["name", "engine", "copy_buffer", "pipe_size", "workers", "environment", "options", "command", "peer", "user"];
    let (mut name, mut command, mut peer, mut user, mut engine) = (None, None, None, None, None::<&Key>);
    let mut options = EngineOptions { engine: "auto".to_owned(), ..EngineOptions::default() };
    for (key, node) in node.entries(FORWARDERS, &known)? {
        match key.text.as_str() {
            "name" => name = Some(node.text(arm_name, ARM_NAME)?),
            "command" => command = Some((node, node.text(|text| Ok(text.to_owned()), COMMAND)?)),
            "peer" => peer = Some((node, node.text(|text| Ok(text.to_owned()), FORWARDERS)?)),
            "user" => user = Some((node, node.text(User::named, USER)?)),
            "engine" => options.engine = node.text(|text| word(text, ENGINE), ENGINE)?,
            "copy_buffer" => {
                options.copy_buffer = Some(node.parse(|text| bytes(text, 1 << 10, 16 << 20, COPY_BUFFER), COPY_BUFFER)?)
            }
            "pipe_size" => {
                options.pipe_size = Some(node.parse(|text| bytes(text, 64 << 10, 1 << 30, PIPE_SIZE), PIPE_SIZE)?)
            }
            "workers" => options.workers = Some(node.parse(|text| number(text, 1, 1024, WORKERS), WORKERS)?.into()),
            "environment" => options.environment = environment(node)?,
            _ => {
                options.options = further(node)?;
                let checked = options.check();
                checked.map_err(|why| Fault::new(node.mark, format!("spliced does not take these options: {why}")))?;
            }
        }
        if !matches!(key.text.as_str(), "name" | "command" | "peer" | "user") {
            engine = Some(key);
        }
    }
    let Some(name) = name else {
        return Err(Fault::new(node.mark, format!("found a forwarder without name; allowed: {FORWARDERS}")));
    };
    let beside = |mark, found: &str, other: &str| {
        Err(Fault::new(mark, format!("found {found} beside {other}; allowed: one of command, peer and engine")))
    };
    let mut arm = match (command, peer, engine) {
        (Some(_), _, Some(key)) => return beside(key.mark, &key.text, "command"),
        (None, Some(_), Some(key)) => return beside(key.mark, &key.text, "peer"),
        (Some(_), Some((node, _)), None) => return beside(node.mark, "peer", "command"),
        (Some((node, command)), ..) => {
            let given = format!("{name}={command}").parse::<Given>().map_err(|message| {
                Fault::new(node.mark, format!("found {command:?}: {message}; allowed: {COMMAND}"))
            })?;
            named(node, &name, &[given])
        }
        (None, Some((node, peer)), None) => named(node, &peer, given),
        (None, None, Some(_)) => {
            Ok(Ok(Arm { name: name.clone(), kind: Kind::Engine, what: What::Engine(options), user: None }))
        }
        (None, None, None) => named(node, &name, given),
    }?;
    match &mut arm {
        Ok(arm) => arm.rename(&name),
        Err(missing) => missing.name = name,
    }
    if let (Ok(arm), Some((node, user))) = (&mut arm, user) {
        run_as(arm, user, node)?;
    }
    Ok(arm)
}

fn run_as(arm: &mut Arm, user: User, node: &Node) -> Result<(), Fault> {
    if arm.kind == Kind::Limit {
        let message = format!("found a user for {}, which is the kernel's; allowed: none", arm.name);
        return Err(Fault::new(node.mark, message));
    }
    arm.user = Some(user);
    Ok(())
}

fn environment(node: &Node) -> Result<Vec<(String, String)>, Fault> {
    let allowed = "a mapping of names to values";
    let Value::Map(entries) = &node.value else { return Err(node.wrong(allowed)) };
    let plain = |text: &str| text.chars().all(|c| !c.is_control());
    entries
        .iter()
        .map(|(key, value)| {
            if key.text.is_empty() || key.text.contains('=') || !plain(&key.text) {
                return Err(Fault::new(key.mark, found(&key.text, "the name of a variable")));
            }
            let text =
                |text: &str| if plain(text) { Ok(text.to_owned()) } else { Err(found(text, "visible characters")) };
            Ok((key.text.clone(), value.parse(text, "text")?))
        })
        .collect()
}

/// Keys of spliced's own configuration; what they may say is its to judge.
fn further(node: &Node) -> Result<Map<String, Json>, Fault> {
    let Value::Map(entries) = &node.value else { return Err(node.wrong(OPTIONS)) };
    let own = ["control", "forwards", "log_file", "timeouts"];
    entries
        .iter()
        .map(|(key, node)| {
            if own.contains(&key.text.as_str()) {
                return Err(Fault::new(
                    key.mark,
                    found(&key.text, &format!("other keys than the lab's own, {}", own.join(", "))),
                ));
            }
            Ok((key.text.clone(), json(node)?))
        })
        .collect()
}

fn json(node: &Node) -> Result<Json, Fault> {
    Ok(match &node.value {
        Value::Nothing => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        // As it was written: 0x7 is a number to some and a text to others, and spliced reads both.
        Value::Number(text) => text.parse().map_or_else(|_| Json::String(text.clone()), Json::Number),
        Value::Text(text) => Json::String(text.clone()),
        Value::Other(_) => return Err(node.wrong(OPTIONS)),
        Value::List(items) => Json::Array(items.iter().map(json).collect::<Result<_, _>>()?),
        Value::Map(entries) => {
            let entries = entries.iter().map(|(key, node)| Ok((key.text.clone(), json(node)?)));
            Json::Object(entries.collect::<Result<_, Fault>>()?)
        }
    })
}
