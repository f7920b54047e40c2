//! rinetd as it comes.

use std::fmt::Write;
use std::io;

use super::{Definition, Running, Setup, usable};
use crate::place::Forward;
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "rinetd",
    kind: Kind::Peer,
    program: Some("rinetd"),
    version: &["-v"],
    how: "apt install rinetd (and systemctl disable --now rinetd)",
    accounting: Accounting::Waited,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let pid_file = setup.directory.join("rinetd.pid");
    let text = format!("{}pidlogfile {}\n", lines(&setup.forwards), pid_file.display());
    let file = setup.write("rinetd.conf", &text)?;
    let mut running = Running::new(setup);
    running.start(setup.command, &["-f".into(), "-c".into(), file])?;
    running.ready()
}

/// One line for each forward: address and port twice, separated by blanks.
pub(super) fn lines(forwards: &[Forward]) -> String {
    forwards.iter().fold(String::new(), |mut text, Forward { listen, to }| {
        // Infallible on a string.
        let _ = writeln!(text, "{} {} {} {}", listen.ip(), listen.port(), to.ip(), to.port());
        text
    })
}
