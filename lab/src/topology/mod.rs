//! The founding topology: `ns_client` 10.0.1.2 — 10.0.1.1 `ns_forwarder` 10.0.0.1 — 10.0.0.2 `ns_server`, 9000 → 9001.

pub mod links;
pub mod sandbox;
pub mod state;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::place::{Forward, Place, Wiring};
use crate::plan::CommandStep;
use crate::plan::command::CommandLine;
use links::Links;

/// Where load comes from.
pub const CLIENT: &str = "ns_client";
/// Where the forwarder runs.
pub const FORWARDER: &str = "ns_forwarder";
/// Where servers run.
pub const SERVER: &str = "ns_server";
/// Every namespace, in the order of making.
pub const NAMESPACES: [&str; 3] = [CLIENT, FORWARDER, SERVER];

const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const FRONT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const BACK_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LISTEN_PORT: u16 = 9000;
const SERVER_PORT: u16 = 9001;

/// One end of a link: its namespace, its device and its address.
#[derive(Debug, Clone, Copy)]
struct End(&'static str, &'static str, Ipv4Addr);

/// Both links.
const LINKS: [(End, End); 2] = [
    (End(CLIENT, "eth0", CLIENT_IP), End(FORWARDER, "to_client", FRONT_IP)),
    (End(SERVER, "eth0", SERVER_IP), End(FORWARDER, "to_server", BACK_IP)),
];

/// The places and addresses.
#[must_use]
pub fn wiring() -> Wiring {
    let at = |ip: Ipv4Addr, port| SocketAddr::new(IpAddr::V4(ip), port);
    let listen = at(FRONT_IP, LISTEN_PORT);
    let same = |port| Forward { listen: at(FRONT_IP, port), to: at(SERVER_IP, port) };
    Wiring {
        client: Place::namespace(CLIENT),
        forwarder: Place::namespace(FORWARDER),
        server: Place::namespace(SERVER),
        listen,
        server_addr: at(SERVER_IP, SERVER_PORT),
        target: listen,
        more: vec![same(Wiring::NETPERF_CONTROL), same(Wiring::NETPERF_DATA)],
    }
}

/// The steps that make the topology.
#[must_use]
pub fn steps(links: &Links) -> Vec<CommandStep> {
    let here = Place::here();
    let line = |text: String| CommandLine::new(&here, &text);
    let mut steps = Vec::new();
    for name in NAMESPACES {
        let step = CommandStep::new(format!("make namespace {name}"), line(format!("ip netns add {name}")));
        steps.push(step.back(line(format!("ip netns delete {name}"))));
        steps.push(CommandStep::new(format!("loopback of {name}"), line(format!("ip -n {name} link set lo up"))));
    }
    for (a, b) in LINKS {
        steps.extend(link(a, b, links));
    }
    for (name, gateway) in [(CLIENT, FRONT_IP), (SERVER, BACK_IP)] {
        let text = format!("ip -n {name} route add default via {gateway}");
        steps.push(CommandStep::new(format!("route of {name}"), line(text)));
    }
    // The kernel routes between the links, for the ways with no forwarder in between.
    let text = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"];
    steps.push(CommandStep::new("let the kernel route", CommandLine::of(&Place::namespace(FORWARDER), text)));
    // Without an offset of its own for each pair of addresses, so that a port may be used again at once: the server
    // remembers closed connections of one address, and takes another's place only by a later time stamp, whichever
    // namespace it was begun in (address translation begins them in the client's).
    let text = ["sh", "-c", "echo 2 > /proc/sys/net/ipv4/tcp_timestamps"];
    let stamps =
        |name| CommandStep::new(format!("time stamps of {name}"), CommandLine::of(&Place::namespace(name), text));
    steps.extend(NAMESPACES.map(stamps));
    // Thousands of sessions for each forwarder in turn, all to one address: without this the ports of those that were
    // closed last are not to be had for a minute (ip-sysctl of the kernel, tcp_tw_reuse).
    let text = ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse"];
    let ports =
        |name| CommandStep::new(format!("closed ports of {name}"), CommandLine::of(&Place::namespace(name), text));
    steps.extend(NAMESPACES.map(ports));
    if let Some(loss) = links.loss {
        steps.extend(NAMESPACES.map(|name| lose(name, loss)));
    }
    steps
}

fn link(a: End, b: End, links: &Links) -> Vec<CommandStep> {
    let here = Place::here();
    let line = |text: String| CommandLine::new(&here, &text);
    let (End(a_space, a_device, _), End(b_space, b_device, _)) = (a, b);
    let name = format!("link {a_space} and {b_space}");
    let add = format!("ip link add {a_device} netns {a_space} type veth peer name {b_device} netns {b_space}");
    let delete = format!("ip -n {a_space} link delete {a_device}");
    let mut steps = vec![CommandStep::new(name, line(add)).back(line(delete))];
    for End(space, device, ip) in [a, b] {
        let mut step = |what: &str, text: String| {
            steps.push(CommandStep::new(format!("{what} of {device} in {space}"), line(text)));
        };
        step("address", format!("ip -n {space} address add {ip}/24 dev {device}"));
        if let Some(mtu) = links.mtu {
            step("packet size", format!("ip -n {space} link set {device} mtu {mtu}"));
        }
        if !links.offloads {
            step("offloads", format!("ip netns exec {space} ethtool -K {device} tso off gso off gro off"));
        }
        if let Some(rate) = links.rate {
            let burst = rate.burst();
            step(
                "rate",
                format!("tc -n {space} qdisc add dev {device} root tbf rate {rate} burst {burst} latency 50ms"),
            );
        }
        step("start", format!("ip -n {space} link set {device} up"));
    }
    steps
}

/// Packets that arrive in a namespace get lost; those of its loopback do not.
fn lose(space: &str, loss: links::Loss) -> CommandStep {
    let rules = format!(
        "add table inet lab_loss; \
         add chain inet lab_loss arrive {{ type filter hook prerouting priority -300 ; }}; \
         add rule inet lab_loss arrive iifname != \"lo\" numgen random mod 1000000 < {} counter drop",
        loss.0
    );
    let place = Place::namespace(space);
    CommandStep::new(format!("loss of packets in {space}"), CommandLine::of(&place, ["nft", &rules]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::links::{Loss, Rate};

    #[test]
    fn every_setting_is_a_step() {
        let all = Links { mtu: Some(9000), offloads: false, rate: Some(Rate(1_000_000_000)), loss: Some(Loss(1000)) };
        let text = |links: &Links| Vec::from_iter(steps(links).iter().map(|step| step.line.text())).join("\n");
        let (plain, changed) = (text(&Links::default()), text(&all));
        for (part, times) in
            [("mtu 9000", 4), ("gro off", 4), ("tbf rate 1gbit burst 500000", 4), ("< 1000 counter drop", 3)]
        {
            assert_eq!(plain.matches(part).count(), 0, "{plain}");
            assert_eq!(changed.matches(part).count(), times, "{changed}");
        }
        assert!(plain.contains("ip -n ns_client address add 10.0.1.2/24 dev eth0"), "{plain}");
    }
}
