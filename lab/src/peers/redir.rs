//! redir: one process for each forward, and one more for each connection.

use std::io;

use super::{Definition, Running, Setup, usable};
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "redir",
    kind: Kind::Peer,
    program: Some("redir"),
    version: &["-v"],
    how: "apt install redir",
    // It forks twice for each connection, so that nobody has to wait for the second child.
    accounting: Accounting::Watched,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let mut running = Running::new(setup);
    for forward in &setup.forwards {
        let arguments = ["-n".into(), forward.listen.to_string(), forward.to.to_string()];
        running.start(setup.command, &arguments)?;
    }
    running.ready()
}
