//! Our own format.

use super::address::{self, Lookup};
use super::draft::{Draft, DraftForward, nothing_to_forward};
use super::error::Fault;
use super::node::{Key, Node};
use super::options::{ForwardOptions, ProcessOptions};
use super::{client, limit, names, nets, target, tree, value};
use crate::plan::Pattern;

const ROOT: &str = "a mapping with forwards, such as `forwards: [{listen: \"0.0.0.0:9000\", to: \"10.0.0.2:9001\"}]`";
const FORWARDS: &str = "a list of forwards, each with listen and to";
const FORWARD: &str = "a mapping with listen and to";
const TIMEOUTS: &str = "a mapping of connect, connect_attempt, idle, half_closed, drain and upgrade_drain to times";
const PATTERNS: &str = "a list of patterns such as [10.0.0.0/8, \"192.168.*\"]";

/// Reads YAML text.
pub(super) fn read(text: &str, lookup: &Lookup) -> Result<Draft, Fault> {
    let root = tree::parse(text)?;
    let known: Vec<&str> = [
        ProcessOptions::KEYS,
        ForwardOptions::KEYS,
        &["timeouts", "allow", "allow_file", "deny", "deny_file", "forwards"],
    ]
    .concat();
    let mut draft = Draft::default();
    let mut written = None;
    for (key, node) in root.entries(ROOT, &known)? {
        match key.text.as_str() {
            "timeouts" => timeouts(node, &mut draft.defaults, Some(&mut draft.process))?,
            "allow" => draft.allow = patterns(node)?,
            "allow_file" => draft.allow_files = nets::paths(node)?,
            "deny" => draft.deny = patterns(node)?,
            "deny_file" => draft.deny_files = nets::paths(node)?,
            "forwards" => written = Some(node),
            "resolvers" => draft.process.resolvers = Some(names::resolver_list(node)?),
            "health" => draft.defaults.health = Some(target::health_of(node)?),
            "check" => draft.defaults.check = Some(target::check_of(node)?),
            "source" => draft.defaults.source = Some(limit::source_list(node)?),
            "accept_proxy" => draft.defaults.accept_proxy = Some(client::accept_proxy_of(node)?),
            name => {
                if name == "user" {
                    draft.user = Some(node.mark);
                }
                if !draft.process.set(name, key, node)? {
                    draft.defaults.set(name, key, node)?;
                }
            }
        }
    }
    let Some(written) = written else {
        return Err(Fault::new(root.mark, format!("found no key \"forwards\"; allowed: {ROOT}")));
    };
    for node in written.items(FORWARDS)? {
        draft.forwards.push(forward(node, lookup)?);
    }
    if draft.forwards.is_empty() {
        return Err(nothing_to_forward(written.mark, "{listen: \"0.0.0.0:9000\", to: \"10.0.0.2:9001\"}"));
    }
    Ok(draft)
}

/// What a forward has beside its options.
const OWN: &[&str] = &[
    "name",
    "listen",
    "to",
    "max_connections",
    "max_connections_per_source",
    "timeouts",
    "allow",
    "allow_file",
    "deny",
    "deny_file",
];

fn forward(node: &Node, lookup: &Lookup) -> Result<DraftForward, Fault> {
    let known: Vec<&str> = [OWN, ForwardOptions::KEYS].concat();
    refuse_process_options(node, &known)?;
    let mut forward = DraftForward::default();
    for (key, node) in node.entries(FORWARD, &known)? {
        match key.text.as_str() {
            "name" => forward.name = Some((node.mark, node.text(value::name, value::NAME)?)),
            "listen" => {
                for item in node.one_or_many() {
                    let (transport, listens) = item.parse(|text| address::listen(text, lookup), address::LISTEN)?;
                    forward.listen.push((item.mark, transport, listens));
                }
            }
            "to" => {
                for item in node.one_or_many() {
                    let (mark, transport, target) = target::target(item)?;
                    forward.push_target(mark, transport, target)?;
                }
            }
            "max_connections" => {
                let value = node.parse(value::max_connections, value::MAX_CONNECTIONS)?;
                forward.max_connections = Some(value);
            }
            "max_connections_per_source" => {
                let value = node.parse(value::max_connections, value::MAX_CONNECTIONS)?;
                forward.max_per_source = Some(value);
            }
            "health" => forward.options.health = Some(target::health_of(node)?),
            "check" => forward.options.check = Some(target::check_of(node)?),
            "source" => forward.options.source = Some(limit::source_list(node)?),
            "accept_proxy" => forward.options.accept_proxy = Some(client::accept_proxy_of(node)?),
            "timeouts" => timeouts(node, &mut forward.options, None)?,
            "allow" => forward.allow = patterns(node)?,
            "allow_file" => forward.allow_files = nets::paths(node)?,
            "deny" => forward.deny = patterns(node)?,
            "deny_file" => forward.deny_files = nets::paths(node)?,
            name => {
                forward.options.set(name, key, node)?;
            }
        }
    }
    for (name, empty) in [("listen", forward.listen.is_empty()), ("to", forward.to.is_empty())] {
        if empty {
            let message = format!("found a forward without {name}; allowed: {FORWARD}");
            return Err(Fault::new(node.mark, message));
        }
    }
    Ok(forward)
}

/// Says of an option of the process that it is in the wrong place, rather than unknown.
fn refuse_process_options(node: &Node, known: &[&str]) -> Result<(), Fault> {
    let super::node::Value::Map(entries) = &node.value else { return Ok(()) };
    let misplaced = |(key, _): &&(Key, Node)| {
        !known.contains(&key.text.as_str()) && ProcessOptions::KEYS.contains(&key.text.as_str())
    };
    match entries.iter().find(misplaced) {
        None => Ok(()),
        Some((key, _)) => Err(Fault::new(
            key.mark,
            format!(
                "found \"{}\" in a forward, but it belongs to the top level; allowed: {}",
                key.text,
                known.join(", ")
            ),
        )),
    }
}

/// The short form of the `…_timeout` options; those of draining only where there is a process to drain.
fn timeouts(node: &Node, options: &mut ForwardOptions, mut process: Option<&mut ProcessOptions>) -> Result<(), Fault> {
    let known: &[&str] = if process.is_some() {
        &["connect", "connect_attempt", "idle", "half_closed", "drain", "upgrade_drain"]
    } else {
        &["connect", "connect_attempt", "idle", "half_closed"]
    };
    for (key, value) in node.entries(TIMEOUTS, known)? {
        let name = format!("{}_timeout", key.text);
        let of_process = match process.as_deref_mut() {
            Some(process) => process.set(&name, key, value)?,
            None => false,
        };
        if !of_process {
            options.set(&name, key, value)?;
        }
    }
    Ok(())
}

fn patterns(node: &Node) -> Result<Vec<Pattern>, Fault> {
    node.one_or_many().iter().map(|item| item.parse(address::pattern, PATTERNS)).collect()
}
