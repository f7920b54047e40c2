//! A log disk that is really full, and then is not: lines are lost, counted and said once; bytes are not.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use common::cannot_run;
use common::deadline::{LONG, until};
use common::path::Via;
use common::pattern::exchange;
use common::peer::{Reserved, accept, backend, connect};
use common::spliced::{Launcher, Spliced};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

common::scenarios!(also_direct: [], engines: [a_disk_that_fills_up_and_has_room_again]);

/// How to come to a mount namespace of one's own here.
fn unshare() -> Option<&'static str> {
    let works = |flags: &&str| Command::new("unshare").args([flags, "true"]).status().is_ok_and(|s| s.success());
    let found = ["-m", "-Urm"].into_iter().find(works);
    if found.is_none() {
        cannot_run("no mount namespace: unshare -m and unshare -Urm are refused; run it as root");
    }
    found
}

/// The log as the process sees it.
fn log(spliced: &Spliced, directory: &TempDir) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{}/root", spliced.process().0));
    root.join(directory.path().strip_prefix("/").expect("an absolute path")).join("sessions.log")
}

fn a_disk_that_fills_up_and_has_room_again(via: Via) {
    let Some(flags) = unshare() else { return };
    let Via::Engine(engine) = via else { return };
    let disk = TempDir::with_prefix("spliced-disk-").expect("a temporary directory");
    let mount = format!("mount -t tmpfs -o size=16k none {} && exec \"$0\" \"$@\"", disk.path().display());
    let (port, backend) = (Reserved::loopback(), backend());
    let front = port.address();
    let spliced = Launcher::forward(front, backend.local_addr().expect("bound"))
        .option("--engine", engine)
        .option("--log-format", "json")
        .option("--log-file", disk.path().join("sessions.log"))
        .through(["unshare", flags, "sh", "-c", &mount])
        .start();
    let session = || drop((connect(front), accept(&backend)));
    let (client, server) = (connect(front), accept(&backend));
    let len = 60 * MIB + 3;
    thread::scope(|scope| {
        let (client, server) = (&client, &server);
        let transfer = scope.spawn(move || exchange(client, server, len, len));
        until("lines are lost and counted", LONG, || {
            session();
            spliced.stats().number("/log_lost") > 50
        });
        transfer.join().expect("every byte arrives");
    });
    drop((client, server));
    let said = |text: &str| spliced.logged(text).len();
    assert_eq!(said("lines are lost and counted"), 1, "said once: {}", spliced.text());
    assert_eq!(said("session log: written again"), 0, "{}", spliced.text());
    // An operator makes room.
    let path = log(&spliced, &disk);
    spliced.stats_until("all sessions have ended", |stats| stats.open() == 0);
    let full = fs::read_to_string(&path).expect("the log");
    assert!(full.len() > 8000, "a disk of 16 KiB holds {} bytes of log", full.len());
    fs::OpenOptions::new().write(true).truncate(true).open(&path).expect("our own file");
    until("lines are written again", LONG, || {
        session();
        said("session log: written again") == 1
    });
    until("a line arrives", LONG, || fs::read_to_string(&path).is_ok_and(|text| text.contains("\"reason\":\"done\"")));
    spliced.finish();
}
