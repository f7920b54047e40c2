//! The kernel's own forwarder: nft rewrites addresses, and no byte reaches user space.

use std::fmt::Write;
use std::io;

use super::{Definition, Running, Setup, direct};
use crate::place::Forward;
use crate::results::Kind;
use crate::sample::Accounting;
use crate::tools;

pub(super) const DEFINITION: Definition = Definition {
    name: "dnat",
    kind: Kind::Limit,
    program: None,
    version: &[],
    how: "apt install nftables",
    accounting: Accounting::Waited,
    unusable,
    start,
};

/// Name of the table; everything is in it, so that taking it away takes everything away.
const TABLE: &str = "lab_dnat";

fn unusable(_: &[String]) -> Option<String> {
    tools::on_path("nft").is_none().then(|| format!("nft is not on PATH; {}", DEFINITION.how))
}

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let nft = tools::on_path("nft").unwrap_or_else(|| "nft".into());
    let file = setup.write("dnat.nft", &rules(&setup.forwards))?;
    let mut running = Running::new(setup);
    direct::route(&mut running, &setup.wiring.forwarder)?;
    let mut load = running.place().command(&nft);
    load.args(["-f", &file]);
    running.step(load)?;
    let mut remove = running.place().command(&nft);
    remove.args(["delete", "table", "ip", TABLE]);
    running.push_undo(remove);
    Ok(running)
}

/// The server sees the forwarder's address, as behind every other forwarder, and so needs no way back to the client.
fn rules(forwards: &[Forward]) -> String {
    let mut text = format!("table ip {TABLE} {{\n    chain in {{\n        type nat hook prerouting priority dstnat;\n");
    for Forward { listen, to } in forwards {
        // Infallible on a string, here and below.
        let _ = writeln!(text, "        ip daddr {} tcp dport {} dnat to {to}", listen.ip(), listen.port());
    }
    text.push_str("    }\n    chain out {\n        type nat hook postrouting priority srcnat;\n");
    for Forward { to, .. } in forwards {
        let _ = writeln!(text, "        ip daddr {} tcp dport {} ct status dnat masquerade", to.ip(), to.port());
    }
    text + "    }\n}\n"
}
