//! What is different between the plan that runs and another one, line by line.
//!
//! It compares what [`render`](super::render()) would write, so that an option the renderer knows is never left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::render;
use crate::plan::{AccessFiles, Forward, NetFile, Plan};

/// Options of the process that change while it runs. All others need a restart.
const AT_ONCE: &[&str] = &[
    "allow",
    "allow_file",
    "deny",
    "deny_file",
    "drain_delay",
    "drain_timeout",
    "gather",
    "log_file",
    "log_format",
    "max_connections",
    "max_connections_per_source",
    "metrics",
    "resolve",
    "resolve_interval",
    "resolve_max",
    "resolve_min",
    "resolvers",
    "scheduling",
    "spin",
    "upgrade_drain_timeout",
    "workers",
];

/// The differences, a line each: `+` added, `-` removed, `~` changed, `!` not before a restart, `=` unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    lines: Vec<String>,
    unchanged: usize,
}

/// What a change from one plan to the other does.
#[must_use]
pub fn diff(from: &Plan, to: &Plan) -> Diff {
    let mut lines = Vec::new();
    for (key, old, new) in changes(&process(from), &process(to)) {
        if AT_ONCE.contains(&key) {
            lines.push(format!("~ {key} {old} -> {new}"));
        } else {
            lines.push(format!("! {key} {old} -> {new} needs a restart"));
        }
    }
    let old: BTreeMap<&str, &Forward> = from.forwards.iter().map(|forward| (forward.name.as_str(), forward)).collect();
    let names: BTreeSet<&str> = to.forwards.iter().map(|forward| forward.name.as_str()).collect();
    let gone = from.forwards.iter().filter(|forward| !names.contains(forward.name.as_str()));
    lines.extend(gone.map(|forward| format!("- {}", describe(forward))));
    let mut unchanged = 0;
    for forward in &to.forwards {
        let Some(old) = old.get(forward.name.as_str()) else {
            lines.push(format!("+ {}", describe(forward)));
            continue;
        };
        let changed = changes(&all(old), &all(forward));
        if changed.is_empty() {
            unchanged += 1;
            continue;
        }
        let changed: Vec<String> = changed.iter().map(|(key, old, new)| format!("{key} {old} -> {new}")).collect();
        lines.push(format!("~ forward {:?}: {}", forward.name, changed.join(", ")));
        lines.extend(kept_buffers(old, forward));
        lines.extend(kept_sockets(old, forward));
    }
    Diff { lines, unchanged }
}

/// The plan to run when one was read while another runs: what cannot change stays as it is.
#[must_use]
pub fn keep_fixed(running: &Plan, read: Plan) -> Plan {
    Plan {
        pin: running.pin,
        control: running.control.clone(),
        pid_file: running.pid_file.clone(),
        privileges: running.privileges.clone(),
        ..read
    }
}

impl Diff {
    /// The lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().chain([format!("= {} unchanged", self.unchanged)]).collect()
    }

    /// Whether both plans are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines().iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Key, old and new value of what is not the same; a key that is missing has the value `none`.
fn changes(old: &[(&'static str, String)], new: &[(&'static str, String)]) -> Vec<(&'static str, String, String)> {
    let value = |list: &[(&'static str, String)], key: &str| {
        let found = list.iter().find(|(other, _)| *other == key);
        found.map_or_else(|| "none".to_owned(), |(_, value)| value.replace('"', ""))
    };
    let mut keys: Vec<&'static str> = new.iter().map(|(key, _)| *key).collect();
    keys.extend(old.iter().map(|(key, _)| *key).filter(|key| new.iter().all(|(other, _)| other != key)));
    let both = keys.into_iter().map(|key| (key, value(old, key), value(new, key)));
    both.filter(|(_, old, new)| old != new).collect()
}

fn all(forward: &Forward) -> Vec<(&'static str, String)> {
    let files = &forward.access.files;
    let all = render::own(forward).into_iter().chain(render::options(forward)).collect();
    with_contents(all, &files.allow, &files.deny)
}

fn process(plan: &Plan) -> Vec<(&'static str, String)> {
    let all = render::process(plan);
    let Some(AccessFiles { global_allow, global_deny, .. }) = plan.forwards.first().map(|f| &f.access.files) else {
        return all;
    };
    with_contents(all, global_allow, global_deny)
}

/// A file that has the same name may hold something else.
fn with_contents(
    mut values: Vec<(&'static str, String)>,
    allow: &[NetFile],
    deny: &[NetFile],
) -> Vec<(&'static str, String)> {
    for (key, value) in &mut values {
        let files = match *key {
            "allow_file" => allow,
            "deny_file" => deny,
            _ => continue,
        };
        let held: Vec<String> = files.iter().map(|file| file.nets.summary().to_string()).collect();
        *value = format!("{value} ({})", held.join("; "));
    }
    values
}

fn describe(forward: &Forward) -> String {
    let list = |items: Vec<String>| items.join(", ");
    let listen = list(forward.listeners().collect());
    let to = list(forward.written_targets().collect());
    format!("forward {:?} listen {listen} to {to} engine {}", forward.name, forward.engine_text())
}

/// A socket whose buffer size was set is not tuned by the kernel any more (socket(7)): listeners cannot go back.
fn kept_buffers(old: &Forward, new: &Forward) -> Option<String> {
    let sizes = [("receive_buffer", old.tcp.receive_buffer, new.tcp.receive_buffer)];
    let sizes = sizes.into_iter().chain([("send_buffer", old.tcp.send_buffer, new.tcp.send_buffer)]);
    let kept: Vec<&str> = sizes.filter(|(_, old, new)| old.is_some() && new.is_none()).map(|(key, ..)| key).collect();
    let stays = old.listen.iter().any(|listen| new.listen.contains(listen));
    let text = || format!("! forward {:?}: {} of listeners that stay needs a restart", new.name, kept.join(", "));
    (stays && !kept.is_empty()).then(text)
}

/// What a socket is bound to, and by which protocol, is settled when it is made.
fn kept_sockets(old: &Forward, new: &Forward) -> Option<String> {
    let of = |forward: &Forward| {
        let options = &forward.listen_options;
        [("mptcp", u64::from(forward.tcp.mptcp).to_string()), ("v6only", options.v6_only.to_string())]
            .into_iter()
            .chain([("device", options.device.clone().unwrap_or_default())])
            .chain([("netns", options.netns.clone().unwrap_or_default())])
            .collect::<Vec<_>>()
    };
    let changed = of(old).into_iter().zip(of(new)).filter(|(old, new)| old != new);
    let changed: Vec<&str> = changed.map(|((key, _), _)| key).collect();
    let stays = old.listen.iter().any(|listen| listen.ip().is_some() && new.listen.contains(listen));
    let text = || format!("! forward {:?}: {} of listeners that stay needs a restart", new.name, changed.join(", "));
    (stays && !changed.is_empty()).then(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Lookup, Overrides, parse_as};
    use super::*;

    fn plan(text: &str) -> Plan {
        parse_as(Format::Yaml, "test", text, &Overrides::default(), &Lookup::host()).unwrap()
    }

    #[test]
    fn every_kind_of_difference_has_its_line() {
        let from = plan(
            "workers: 2\ncontrol: /a\nforwards:\n  - {name: a, listen: '127.0.0.1:1', to: '127.0.0.1:11'}\n  \
             - {name: b, listen: '127.0.0.1:2', to: '127.0.0.1:12', receive_buffer: 1MiB}\n  \
             - {name: c d, listen: '127.0.0.1:3', to: '127.0.0.1:13'}\n",
        );
        let to = plan(
            "workers: 3\ncontrol: /b\nmetrics: 127.0.0.1:9\nforwards:\n  \
             - {name: a, listen: '127.0.0.1:1', to: '127.0.0.1:11'}\n  \
             - {name: b, listen: '127.0.0.1:2', to: ['127.0.0.1:14', {address: '127.0.0.1:15', weight: 2}], \
               engine: splice, max_connections: 7}\n  \
             - {name: d, listen: ['127.0.0.1:3', '127.0.0.1:4'], to: '127.0.0.1:13'}\n",
        );
        assert_eq!(
            diff(&from, &to).lines(),
            [
                "~ workers 2 -> 3",
                "~ metrics none -> 127.0.0.1:9",
                "! control /a -> /b needs a restart",
                "- forward \"c d\" listen 127.0.0.1:3 to 127.0.0.1:13 engine auto",
                "~ forward \"b\": to 127.0.0.1:12 -> [127.0.0.1:14, {address: 127.0.0.1:15, weight: 2}], \
                 max_connections none -> 7, engine auto -> splice, receive_buffer 1MiB -> auto",
                "! forward \"b\": receive_buffer of listeners that stay needs a restart",
                "+ forward \"d\" listen 127.0.0.1:3, 127.0.0.1:4 to 127.0.0.1:13 engine auto",
                "= 1 unchanged",
            ]
        );
        assert!(diff(&to, &to).is_empty());
        let kept = keep_fixed(&from, to.clone());
        assert_eq!((kept.control, kept.workers, kept.forwards), (from.control, to.workers, to.forwards));
    }
}
