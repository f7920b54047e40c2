//! HAProxy in TCP mode, with splice where it thinks it pays, and a thread for each core.

use std::fmt::Write;
use std::io;

use super::{Definition, Running, Setup, usable};
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "haproxy",
    kind: Kind::Peer,
    program: Some("haproxy"),
    version: &["-v"],
    how: "apt install haproxy",
    accounting: Accounting::Waited,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let file = setup.write("haproxy.cfg", &configuration(setup))?;
    let mut running = Running::new(setup);
    // -db: in the foreground, in this process.
    running.start(setup.command, &["-db".into(), "-f".into(), file])?;
    running.ready()
}

/// `maxconn` is left out: HAProxy then takes what its descriptors allow.
fn configuration(setup: &Setup<'_>) -> String {
    let mut text = format!("global\n    nbthread {}\n\n", setup.cores);
    text.push_str("defaults\n    mode tcp\n    option splice-auto\n    timeout connect 10s\n    timeout client 1h\n    timeout server 1h\n");
    for (number, forward) in setup.forwards.iter().enumerate() {
        // Infallible on a string.
        let _ = write!(
            text,
            "\nlisten forward{number}\n    bind {}\n    server server{number} {}\n",
            forward.listen, forward.to
        );
    }
    text
}
