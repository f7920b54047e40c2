//! What a transparent forwarder needs of its namespace: the answers to its connections go to the clients' addresses,
//! and must come to it instead.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::place::Place;
use crate::plan::about;
use crate::process;

/// Packets of connections that are ours get a mark; `socket transparent` is of nft(8).
const RULES: &str = "table inet lab_transparent {
    chain prerouting {
        type filter hook prerouting priority mangle;
        meta l4proto tcp socket transparent 1 meta mark set 0x51 accept
    }
}
";

/// How it is undone, and done.
const STEPS: [[&str; 2]; 3] = [
    ["nft delete table inet lab_transparent", "nft -f FILE"],
    // What has the mark is delivered here.
    ["ip rule delete fwmark 0x51 lookup 81", "ip rule add fwmark 0x51 lookup 81"],
    ["ip route flush table 81", "ip route add local 0.0.0.0/0 dev lo table 81"],
];

/// Rules and routes of a namespace; taken back when dropped.
#[derive(Debug)]
pub(super) struct Routes {
    undo: Vec<Command>,
}

impl Routes {
    /// Sets them up for the arm `name` in its namespace; the rules are kept in `directory`.
    ///
    /// # Errors
    /// Which command failed, and what it said; those before are taken back.
    pub(super) fn open(name: &str, place: &Place, directory: &Path) -> io::Result<Self> {
        let file = directory.join("transparent.nft");
        fs::write(&file, RULES).map_err(about("write", &file))?;
        let mut routes = Self { undo: Vec::new() };
        for [undo, step] in STEPS {
            let command = |text: &str| {
                let mut words = text.split(' ');
                let mut command = place.command(words.next().unwrap_or_default());
                for word in words {
                    if word == "FILE" {
                        command.arg(&file)
                    } else {
                        command.arg(word)
                    };
                }
                command
            };
            process::run(name, &mut command(step))?;
            routes.undo.push(command(undo));
        }
        Ok(routes)
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        while let Some(mut command) = self.undo.pop() {
            // The namespace may be gone, and with it what is to be taken back.
            let _ = command.output();
        }
    }
}
