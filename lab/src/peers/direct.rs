//! Nothing in between: the client talks to the server, and the kernel of the forwarder's namespace routes.

use std::io;

use super::{Definition, Running, Setup, usable};
use crate::place::Place;
use crate::process::failed;
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "direct",
    kind: Kind::Limit,
    program: None,
    version: &[],
    how: "it is the kernel's",
    accounting: Accounting::Waited,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let mut running = Running::new(setup);
    route(&mut running, &setup.wiring.forwarder)?;
    Ok(running)
}

/// Lets the kernel pass packets on, until `running` is stopped.
pub(super) fn route(running: &mut Running, place: &Place) -> io::Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    let output = place.command("cat").arg(SWITCH).output();
    let output = output.map_err(|error| failed(&error, &format!("cannot read {SWITCH} in {}", place.name)))?;
    if output.stdout.trim_ascii() == b"1" {
        return Ok(());
    }
    let set = |value| {
        let mut command = place.command("sh");
        command.args(["-c", &format!("echo {value} > {SWITCH}")]);
        command
    };
    running.step(set(1))?;
    running.push_undo(set(0));
    Ok(())
}
