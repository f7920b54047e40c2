//! oi's TOML. What oi reads and ignores (access rules, log file, pid file, source address) is enforced here.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::address::{self, Lookup};
use super::draft::{Draft, DraftForward, nothing_to_forward, push_rule};
use super::error::{Fault, Mark, found, printable};
use super::limit::Sources;
use super::lines::RINETD_TIMEOUT;
use super::node::{Key, Node, Value};
use super::value;
use crate::plan::{Host, Listen, LogFormat, Pattern, Ports, Target, Transport};

const TOP: &[&str] = &["forwarding_rules", "global_rules", "log_file", "pid_file", "log_format"];
const RULE: &[&str] =
    &["bind_address", "bind_port", "connect_address", "connect_port", "protocol", "timeout", "source_address", "rules"];
const TABLE: &str = "a table with bind_address, bind_port, connect_address and connect_port";
const PROTOCOL: &str = "tcp, udp, udptotcp, tcptoudp";
const ACCESS: &str = "a table such as { type = \"allow\", pattern = \"10.0.0.0/8\" }";
const ACCESS_LIST: &str = "a list of tables such as { type = \"allow\", pattern = \"10.0.0.0/8\" }";
const LOG_FORMAT: &str = "rinetd, common";
const ADDRESS: &str = "an IPv4 or IPv6 address, or a host name";

/// Reads TOML text.
pub(super) fn read(text: &str, lookup: &Lookup) -> Result<Draft, Fault> {
    let document = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let problem = printable(error.message());
        Fault::new(
            Mark::Offset(at),
            format!("found text that is not TOML: {problem}; allowed: TOML such as [[forwarding_rules]]"),
        )
    })?;
    let root = table(document.span().start, document.get_ref());
    let mut draft = Draft::default();
    let mut written = None;
    draft.process.log_format = Some(LogFormat::Rinetd);
    for (key, node) in root.entries("tables of rules", TOP)? {
        match key.text.as_str() {
            "forwarding_rules" => written = Some(node),
            "global_rules" => access(node, &mut draft.allow, &mut draft.deny)?,
            "log_file" => draft.process.log_file = Some(node.text(value::path, value::PATH)?),
            "pid_file" => draft.process.pid_file = Some(node.text(value::path, value::PATH)?),
            _ => draft.process.log_format = Some(node.text(log_format, LOG_FORMAT)?),
        }
    }
    let Some(written) = written else {
        return Err(Fault::new(Mark::At(1, 1), "found no forwarding_rules; allowed: [[forwarding_rules]] with a rule"));
    };
    for node in written.items("a list of tables")? {
        draft.forwards.push(rule(node, lookup)?);
    }
    if draft.forwards.is_empty() {
        return Err(nothing_to_forward(written.mark, "[[forwarding_rules]] with a rule"));
    }
    Ok(draft)
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "rinetd" => Ok(LogFormat::Rinetd),
        "common" => Ok(LogFormat::Common),
        _ => Err(found(text, LOG_FORMAT)),
    }
}

fn rule(node: &Node, lookup: &Lookup) -> Result<DraftForward, Fault> {
    let mut forward = DraftForward::default();
    let (mut bind, mut bind_port, mut connect, mut connect_port) = (None, None, None, None);
    let (mut transport, mut to_transport, mut timeout) = (Transport::Tcp, None, RINETD_TIMEOUT);
    for (key, value) in node.entries(TABLE, RULE)? {
        match key.text.as_str() {
            "bind_address" => {
                let ips = value.text(|text| address::addresses(host(text)?, lookup), ADDRESS)?;
                bind = Some((value.mark, ips));
            }
            "bind_port" => bind_port = Some(value.parse(port, address::PORT)?),
            "connect_address" => connect = Some((value.mark, value.text(host, ADDRESS)?)),
            "connect_port" => connect_port = Some(value.parse(port, address::PORT)?),
            "protocol" => (transport, to_transport) = value.text(protocol, PROTOCOL)?,
            // A TCP rule may carry it without an effect.
            "timeout" => timeout = value.parse(value::seconds, "whole seconds")?,
            "source_address" => {
                let ip = value.text(|text| address::addresses(host(text)?, lookup), ADDRESS)?.into_iter().next();
                forward.options.source = Some(Sources(ip.filter(|ip| !ip.is_unspecified()).into_iter().collect()));
            }
            _ => access(value, &mut forward.allow, &mut forward.deny)?,
        }
    }
    let missing = |name: &str| Fault::new(node.mark, format!("found a rule without {name}; allowed: {TABLE}"));
    let (bind_mark, ips) = bind.ok_or_else(|| missing("bind_address"))?;
    let ports = bind_port.ok_or_else(|| missing("bind_port"))?;
    let (target_mark, host) = connect.ok_or_else(|| missing("connect_address"))?;
    let target = Target::new(host, connect_port.ok_or_else(|| missing("connect_port"))?);
    forward.listen = vec![(bind_mark, transport, ips.into_iter().map(|ip| Listen { ip, ports }).collect())];
    forward.push_target(target_mark, to_transport, target)?;
    if transport == Transport::Udp || to_transport.is_some() {
        forward.options.udp_timeout = Some(timeout);
    }
    Ok(forward)
}

/// A host, with brackets where somebody wrote them.
fn host(text: &str) -> Result<Host, String> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    address::host(inner.filter(|inner| inner.contains(':')).unwrap_or(text))
}

fn port(text: &str) -> Result<Ports, String> {
    if text.contains('-') { Err(found(text, "one port from 1 to 65535")) } else { address::ports(text) }
}

/// What clients speak, and what targets do where it is something else.
fn protocol(text: &str) -> Result<(Transport, Option<Transport>), String> {
    use Transport::{Tcp, Udp};
    match text {
        "tcp" => Ok((Tcp, None)),
        "udp" => Ok((Udp, None)),
        "udptotcp" => Ok((Udp, Some(Tcp))),
        "tcptoudp" => Ok((Tcp, Some(Udp))),
        _ => Err(found(text, PROTOCOL)),
    }
}

/// Access rules in their order.
fn access(node: &Node, allow: &mut Vec<Pattern>, deny: &mut Vec<Pattern>) -> Result<(), Fault> {
    for item in node.items(ACCESS_LIST)? {
        let (mut is_allow, mut pattern) = (None, None);
        for (key, value) in item.entries(ACCESS, &["type", "pattern"])? {
            match key.text.as_str() {
                "type" => is_allow = Some(value.text(allow_or_deny, "allow, deny")?),
                _ => pattern = Some(value.text(address::pattern, address::PATTERN)?),
            }
        }
        match (is_allow, pattern) {
            (Some(is_allow), Some(pattern)) => push_rule(allow, deny, is_allow, pattern),
            _ => {
                return Err(Fault::new(
                    item.mark,
                    format!("found an access rule without type and pattern; allowed: {ACCESS}"),
                ));
            }
        }
    }
    Ok(())
}

fn allow_or_deny(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "allow" => Ok(true),
        "deny" => Ok(false),
        _ => Err(found(text, "allow, deny")),
    }
}

fn table(at: usize, entries: &DeTable<'_>) -> Node {
    let entries = entries.iter().map(|(key, value)| {
        (Key { mark: Mark::Offset(key.span().start), text: key.get_ref().to_string() }, node(value))
    });
    Node { mark: Mark::Offset(at), value: Value::Map(entries.collect()) }
}

/// Depth is bounded by the parser, which stops at 80 levels.
fn node(value: &Spanned<DeValue<'_>>) -> Node {
    let at = value.span().start;
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Value::Number(number.as_str().to_owned()),
        DeValue::Integer(number) => Value::Number(number.to_string()),
        DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(items.iter().map(node).collect()),
        DeValue::Table(entries) => return table(at, entries),
    };
    Node { mark: Mark::Offset(at), value }
}
