//! realm as it comes.

use std::fmt::Write;
use std::io;

use super::{Definition, Running, Setup, usable};
use crate::results::Kind;
use crate::sample::Accounting;

pub(super) const DEFINITION: Definition = Definition {
    name: "realm",
    kind: Kind::Peer,
    program: Some("realm"),
    version: &["--version"],
    how: "cargo install --git https://github.com/zhboner/realm realm",
    accounting: Accounting::Waited,
    unusable: usable,
    start,
};

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let mut text = String::from("[log]\nlevel = \"warn\"\n");
    for forward in &setup.forwards {
        // Infallible on a string.
        let _ = write!(text, "\n[[endpoints]]\nlisten = \"{}\"\nremote = \"{}\"\n", forward.listen, forward.to);
    }
    let file = setup.write("realm.toml", &text)?;
    let mut running = Running::new(setup);
    running.start(setup.command, &["-c".into(), file])?;
    running.ready()
}
