//! Checks across values: what no single value shows.

mod loops;
mod sockets;

use std::collections::HashSet;

use self::loops::loops;
use self::sockets::{Sockets, is_dual};
use super::address::Lookup;
use super::draft::Marks;
use super::error::{Fault, quoted};
use super::target;
use crate::plan::{Forward, Host, Plan, Target, Transport};

/// Most targets one forward may have: together with the ports it bounds the work of looking for loops.
const MOST_TARGETS: usize = 256;

/// Checks a plan; `marks` has one entry per forward.
pub(super) fn check(plan: &Plan, marks: &[Marks], lookup: &Lookup) -> Result<(), Fault> {
    for (forward, marks) in plan.forwards.iter().zip(marks) {
        ranges(forward, marks)?;
        target::each_once(&forward.targets, &marks.targets)?;
        source(forward, marks)?;
        streams(forward, marks)?;
        datagrams(forward, marks)?;
        questions(forward, marks)?;
        namespace(forward, marks)?;
    }
    // Two forwards on one address have one default name too, and the address is what to complain about.
    let sockets = Sockets::of(plan, marks)?;
    names(plan, marks)?;
    metrics(plan, marks, &sockets)?;
    loops(plan, marks, &sockets, lookup)
}

fn names(plan: &Plan, marks: &[Marks]) -> Result<(), Fault> {
    let mut seen = HashSet::new();
    for (forward, marks) in plan.forwards.iter().zip(marks) {
        if !seen.insert(forward.name.as_str()) {
            let name = quoted(&forward.name);
            let message = format!("found name {name} for a second forward; allowed: a name of its own for each");
            return Err(Fault::new(marks.name, message));
        }
    }
    Ok(())
}

/// What is said in a stream, or of one, has no place among datagrams.
fn datagrams(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    let Some(mark) = marks.udp.first() else { return Ok(()) };
    let egress = &forward.egress;
    let stray = [
        ("accept_proxy", forward.accept_proxy.is_some()),
        ("send_proxy", egress.send_proxy.is_some()),
        ("transparent", egress.transparent),
        ("netns", forward.listen_options.netns.is_some()),
        // The client's address would be one by which no answer can be sent.
        ("v6only: off", !forward.listen_options.v6_only),
    ];
    match stray.into_iter().find(|(_, is)| *is) {
        Some((key, _)) => {
            let message =
                format!("found {key} in a forward that listens to datagrams; allowed: a forward of its own for udp:");
            Err(Fault::new(*mark, message))
        }
        None => Ok(()),
    }
}

/// Who takes datagrams says nothing before it is asked something it answers.
fn questions(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    let Some(check) = forward.balancing.check.as_ref().filter(|_| forward.checked_by() == Transport::Udp) else {
        return Ok(());
    };
    if !check.send.is_empty() && !check.expect.is_empty() {
        return Ok(());
    }
    let message = "found a check of targets that take datagrams without send or expect; allowed: both, such as check: {send: \
                   \"PING\", expect: \"PONG\"}";
    Err(Fault::new(marks.udp.first().copied().unwrap_or(marks.name), message))
}

/// A range goes to one port, or to a range of the same length.
fn ranges(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if let Some(mark) = marks.targets.get(MOST_TARGETS) {
        let message = format!("found more than {MOST_TARGETS} targets in one forward; allowed: at most {MOST_TARGETS}");
        return Err(Fault::new(*mark, message));
    }
    for (target, mark) in forward.targets.iter().zip(&marks.targets) {
        for listen in forward.listen.iter().chain(&forward.udp.listen) {
            if target.ports.len() != 1 && target.ports.len() != listen.ports.len() {
                let message = format!(
                    "found a target of {} ports for the listener {listen} of {}; allowed: one port, or as many as the listener has",
                    target.ports.len(),
                    listen.ports.len(),
                );
                return Err(Fault::new(*mark, message));
            }
        }
    }
    Ok(())
}

/// Connections leave from an address of the target's family.
fn source(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if forward.sources.is_empty() {
        return Ok(());
    }
    if forward.egress.transparent {
        let message =
            "found transparent together with source; allowed: one of them, as both say where connections come from";
        return Err(Fault::new(marks.name, message));
    }
    for (target, mark) in forward.targets.iter().zip(&marks.targets) {
        if let Host::Ip(ip) = target.host
            && !forward.sources.iter().any(|source| source.is_ipv4() == ip.is_ipv4())
        {
            let sources: Vec<String> = forward.sources.iter().map(ToString::to_string).collect();
            let sources = sources.join(", ");
            let message =
                format!("found target {target} for connections from source {sources}; allowed: both IPv4 or both IPv6");
            return Err(Fault::new(*mark, message));
        }
    }
    Ok(())
}

/// Only TCP connections are made in another network namespace. A unix socket with a file is the same in all of them.
fn namespace(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if forward.egress.netns.is_none() {
        return Ok(());
    }
    let has_unix = |target: &Target| matches!(target.host, Host::Unix(_));
    if let Some(at) = forward.targets.iter().position(has_unix) {
        let message = format!(
            "found target {} with to_netns; allowed: targets with an address and a port, as a unix socket with a file is \
             the same in all network namespaces",
            forward.targets[at]
        );
        return Err(Fault::new(marks.targets[at], message));
    }
    let to_datagrams = forward.udp.targets == Some(Transport::Udp);
    match marks.udp.first().or(marks.targets.first().filter(|_| to_datagrams)) {
        Some(mark) => {
            let message = "found to_netns in a forward with datagrams; allowed: to_netns for TCP on both sides, and for \
                           datagrams a spliced of its own in that namespace (ip netns exec)";
            Err(Fault::new(*mark, message))
        }
        None => Ok(()),
    }
}

/// A unix socket is a stream.
fn streams(forward: &Forward, marks: &Marks) -> Result<(), Fault> {
    if forward.udp.listen.is_empty() && forward.udp.targets.is_none() {
        return Ok(());
    }
    let targets = forward.targets.iter().zip(&marks.targets).filter(|(target, _)| matches!(target.host, Host::Unix(_)));
    let targets = targets.map(|(target, mark)| (format!("target {target} for a listener of datagrams"), mark));
    let listens = forward.listen.iter().zip(&marks.listen).filter(|(listen, _)| listen.ip().is_none());
    let listens = listens.filter(|_| forward.udp.targets == Some(Transport::Udp));
    let listens = listens.map(|(listen, mark)| (format!("listener {listen} for a target of datagrams"), mark));
    match targets.chain(listens).next() {
        Some((what, mark)) => Err(Fault::new(*mark, format!("found {what}; allowed: an address and a port"))),
        None => Ok(()),
    }
}

/// The metrics endpoint is a listener too.
fn metrics(plan: &Plan, marks: &[Marks], sockets: &Sockets) -> Result<(), Fault> {
    let Some(metrics) = plan.metrics else { return Ok(()) };
    let clash = sockets.all.iter().filter(|socket| socket.transport == Transport::Tcp).find(|socket| {
        let Some(at) = socket.at.socket() else { return false };
        let is_dual = is_dual(&plan.forwards[socket.forward].listen_options, socket.transport, at);
        let same_family = at.is_ipv4() == metrics.is_ipv4() || is_dual;
        let any = at.ip().is_unspecified() || metrics.ip().is_unspecified();
        at.port() == metrics.port() && (at.ip() == metrics.ip() || (same_family && any))
    });
    match clash {
        None => Ok(()),
        Some(socket) => Err(Fault::new(
            marks[socket.forward].listen[socket.listen],
            format!(
                "found a listener on {metrics}, which is the address of metrics; allowed: an address of its own for each"
            ),
        )),
    }
}
