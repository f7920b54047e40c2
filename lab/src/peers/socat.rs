//! socat: one process for each forward, and a child for each connection.

use std::io;

use super::{Definition, Running, Setup, usable};
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "socat",
    kind: Kind::Peer,
    program: Some("socat"),
    version: &["-V"],
    how: "apt install socat",
    accounting: Accounting::Waited,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let mut running = Running::new(setup);
    for forward in &setup.forwards {
        let (listen, to) = (forward.listen, forward.to);
        let listen =
            format!("TCP-LISTEN:{},bind={},fork,reuseaddr,nodelay,backlog=4096", listen.port(), bracketed(listen.ip()));
        // -b: 64 KiB as the others have; -t: a half-closed connection may go on, its default is half a second.
        let arguments = ["-b".into(), "65536".into(), "-t".into(), "600".into(), listen, format!("TCP:{to},nodelay")];
        running.start(setup.command, &arguments)?;
    }
    running.ready()
}

fn bracketed(ip: std::net::IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}
