//! oi (oxidinetd) as it comes.

use std::io;

use super::{Definition, Running, Setup, rinetd, usable};
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "oi",
    kind: Kind::Peer,
    program: Some("oi"),
    version: &["--version"],
    how: "cargo install --git https://github.com/DaZuo0122/oxidinetd oxidinetd",
    accounting: Accounting::Waited,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let file = setup.write("oi.conf", &rinetd::lines(&setup.forwards))?;
    let mut running = Running::new(setup);
    running.start(setup.command, &["--config".into(), file])?;
    running.ready()
}
