//! A [`Plan`] as our YAML, complete: every value is written, also where it is the default.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use super::client::write_accept_proxy;
use super::limit::{write_bytes, write_connections};
use super::target::{write_check, write_health, write_target};
use super::value::{Size, Time};
use crate::plan::{Forward, LogFormat, NetFile, Pattern, Pin, Plan, Resolving, Scheduling};

/// The plan as YAML that reads back to the same plan. What all forwards have in common stands at the top level.
#[must_use]
pub fn render(plan: &Plan) -> String {
    let mut out = String::new();
    for (key, value) in process(plan) {
        let _ = writeln!(out, "{key}: {value}");
    }
    let options: Vec<_> = plan.forwards.iter().map(options).collect();
    let common = |index: usize| options.iter().all(|own| own[index] == options[0][index]);
    let is_common: Vec<bool> = options.first().map_or_else(Vec::new, |first| (0..first.len()).map(common).collect());
    for ((key, value), _) in options.first().into_iter().flatten().zip(&is_common).filter(|(_, common)| **common) {
        let _ = writeln!(out, "{key}: {value}");
    }
    out.push_str("forwards:\n");
    for (plan, options) in plan.forwards.iter().zip(&options) {
        let mut start = "  - ";
        for (key, value) in own(plan) {
            let _ = writeln!(out, "{start}{key}: {value}");
            start = "    ";
        }
        for ((key, value), _) in options.iter().zip(&is_common).filter(|(_, common)| !**common) {
            let _ = writeln!(out, "    {key}: {value}");
        }
    }
    out
}

/// What is said once for the process.
pub(super) fn process(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let mut line = |key: &'static str, value: String| out.push((key, value));
    line("workers", plan.workers.map_or("auto".into(), |n| n.to_string()));
    let pin = match plan.pin {
        Pin::Auto => "auto",
        Pin::On => "on",
        Pin::Off => "off",
    };
    line("pin", pin.to_owned());
    line("gather", if plan.gather { "on" } else { "off" }.to_owned());
    let scheduling = match plan.scheduling {
        Scheduling::Auto => "auto",
        Scheduling::Batch => "batch",
        Scheduling::Normal => "normal",
    };
    line("scheduling", scheduling.to_owned());
    line("spin", plan.spin.map_or("none".into(), |time| format!("{}us", time.as_micros())));
    line("max_connections", plan.max_connections.map_or("none".into(), |n| n.to_string()));
    line("max_connections_per_source", plan.max_connections_per_source.map_or("none".into(), |n| n.to_string()));
    line("drain_delay", Time(plan.drain_delay).to_string());
    line("drain_timeout", time(plan.drain));
    line("upgrade_drain_timeout", time(plan.upgrade_drain));
    let Resolving { how, servers, interval, least, most } = &plan.resolving;
    line("resolve", how.to_string());
    line("resolve_interval", interval.map_or("ttl".to_owned(), |interval| Time(interval).to_string()));
    line("resolve_max", Time(*most).to_string());
    line("resolve_min", Time(*least).to_string());
    if !servers.is_empty() {
        line("resolvers", list(servers.iter().map(|server| quote(&server.to_string()))));
    }
    if let Some(metrics) = plan.metrics {
        line("metrics", quote(&metrics.to_string()));
    }
    let format = match plan.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
        LogFormat::Rinetd => "rinetd",
        LogFormat::Common => "common",
    };
    line("log_format", format.to_owned());
    for (key, path) in [("control", &plan.control), ("log_file", &plan.log.file), ("pid_file", &plan.pid_file)] {
        if let Some(path) = path {
            line(key, quote(&path.to_string_lossy()));
        }
    }
    if let Some(user) = &plan.privileges.user {
        line("user", quote(&user.to_string()));
    }
    line("keep_capabilities", plan.privileges.keep.to_string());
    line("sandbox", plan.privileges.sandbox.to_string());
    out.extend(global_access(plan));
    out
}

/// Rules of all forwards, which every forward has.
fn global_access(plan: &Plan) -> Vec<(&'static str, String)> {
    let Some(access) = plan.forwards.first().map(|forward| &forward.access) else { return Vec::new() };
    let mut out = Vec::new();
    for (key, list) in [("allow", &access.global_allow), ("deny", &access.global_deny)] {
        if !list.is_empty() {
            out.push((key, patterns(list)));
        }
    }
    for (key, list) in [("allow_file", &access.files.global_allow), ("deny_file", &access.files.global_deny)] {
        if !list.is_empty() {
            out.push((key, paths(list)));
        }
    }
    out
}

/// What a forward alone can say, its name first.
pub(super) fn own(forward: &Forward) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let mut line = |key: &'static str, value: String| out.push((key, value));
    line("name", quote(&forward.name));
    line("listen", list(forward.listeners().map(|listen| quote(&listen))));
    line("to", list(forward.targets.iter().map(|target| write_target(forward, target))));
    for (key, most) in
        [("max_connections", forward.max_connections), ("max_connections_per_source", forward.limits.max_per_source)]
    {
        if let Some(most) = most {
            line(key, most.to_string());
        }
    }
    for (key, rules) in [("allow", &forward.access.allow), ("deny", &forward.access.deny)] {
        if !rules.is_empty() {
            line(key, patterns(rules));
        }
    }
    for (key, files) in [("allow_file", &forward.access.files.allow), ("deny_file", &forward.access.files.deny)] {
        if !files.is_empty() {
            line(key, paths(files));
        }
    }
    out
}

/// The options that may stand at the top level or in a forward, always all and in one order.
pub(super) fn options(forward: &Forward) -> [(&'static str, String); 41] {
    let size = |size: Option<usize>| size.map_or("auto".to_owned(), |size| Size(size).to_string());
    [
        ("engine", engine(forward)),
        ("copy_buffer", Size(forward.copy_buffer).to_string()),
        ("pipe_size", size(forward.pipe_size)),
        ("balance", forward.balancing.balance.to_string()),
        ("retries", forward.balancing.retries.map_or("all".to_owned(), |n| n.to_string())),
        ("connect_attempt_delay", time(forward.balancing.attempt_delay)),
        ("connect_attempt_timeout", forward.balancing.attempt_timeout.map_or("auto".to_owned(), |at| time(Some(at)))),
        ("health", write_health(forward.balancing.health.as_ref())),
        ("check", write_check(forward.balancing.check.as_ref())),
        ("on_down", forward.balancing.on_down.to_string()),
        ("when_full", forward.limits.when_full.to_string()),
        ("connection_rate", write_connections(forward.limits.connection_rate)),
        ("connection_rate_per_source", write_connections(forward.limits.connection_rate_per_source)),
        ("rate", write_bytes(forward.limits.rate)),
        ("rate_per_source", write_bytes(forward.limits.rate_per_source)),
        ("connect_timeout", time(forward.timeouts.connect)),
        ("idle_timeout", time(forward.timeouts.idle)),
        ("half_closed_timeout", time(forward.timeouts.half_closed)),
        ("stall_warning", time(forward.stall_warning)),
        ("keepalive", time(forward.tcp.keepalive)),
        ("user_timeout", time(forward.tcp.user_timeout)),
        ("udp_timeout", Time(forward.udp.timeout).to_string()),
        ("udp_responses", forward.udp.responses.map_or("none".to_owned(), |n| n.to_string())),
        ("receive_buffer", size(forward.tcp.receive_buffer)),
        ("send_buffer", size(forward.tcp.send_buffer)),
        ("backlog", forward.tcp.backlog.to_string()),
        ("fast_open", forward.tcp.fast_open.map_or("off".to_owned(), |queue| queue.to_string())),
        ("mptcp", switch(forward.tcp.mptcp)),
        ("v6only", switch(forward.listen_options.v6_only)),
        ("device", forward.listen_options.device.as_ref().map_or("none".to_owned(), |device| quote(device))),
        ("netns", forward.listen_options.netns.as_ref().map_or("none".to_owned(), |netns| quote(netns))),
        ("unix_mode", forward.listen_options.unix_mode.map_or("auto".to_owned(), |mode| format!("\"{mode:04o}\""))),
        (
            "unix_owner",
            forward.listen_options.unix_owner.as_ref().map_or("none".to_owned(), |owner| quote(&owner.to_string())),
        ),
        ("source", sources(&forward.sources)),
        ("dscp", forward.tcp.dscp.map_or("none".to_owned(), |dscp| dscp.to_string())),
        ("mark", forward.egress.mark.map_or("none".to_owned(), |mark| mark.to_string())),
        ("bind_device", forward.egress.device.as_deref().map_or("none".to_owned(), quote)),
        ("to_netns", forward.egress.netns.as_deref().map_or("none".to_owned(), quote)),
        ("transparent", if forward.egress.transparent { "on" } else { "off" }.to_owned()),
        ("send_proxy", forward.egress.send_proxy.map_or("off".to_owned(), |version| version.to_string())),
        ("accept_proxy", write_accept_proxy(forward.accept_proxy.as_ref())),
    ]
}

fn switch(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}

fn sources(sources: &[IpAddr]) -> String {
    if sources.is_empty() { "none".to_owned() } else { list(sources.iter().map(|ip| quote(&ip.to_string()))) }
}

fn engine(forward: &Forward) -> String {
    if forward.arms.is_empty() { forward.engine.to_string() } else { quote(&forward.engine_text()) }
}

fn time(time: Option<Duration>) -> String {
    time.map_or("none".to_owned(), |time| Time(time).to_string())
}

/// One item alone, several as a list.
fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if let [only] = items.as_slice() { only.clone() } else { format!("[{}]", items.join(", ")) }
}

fn paths(files: &[NetFile]) -> String {
    list(files.iter().map(|file| quote(&file.path.to_string_lossy())))
}

fn patterns(patterns: &[Pattern]) -> String {
    let items = patterns.iter().map(|pattern| match pattern {
        Pattern::Net(net) if net.prefix_len() == net.max_prefix_len() => quote(&net.addr().to_string()),
        Pattern::Net(net) => quote(&net.to_string()),
        Pattern::Text(text) => quote(text),
    });
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// A double-quoted YAML scalar (YAML 1.2, 7.3.1), with everything escaped that a reader could take for a line break.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}
