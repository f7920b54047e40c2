//! Where a newer program and its configuration may be, and as whom it may run, when the process before has given up its
//! rights: what UPGRADING.md says, and nothing else.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::cannot_run;
use common::pattern::exchange;
use common::peer::{Reserved, accept, backend, connect};
use common::spliced::{Launcher, ordinary_user};
use common::upgraded::{Installed, Upgraded, install};
use nix::unistd::Uid;

const MIB: u64 = 1 << 20;

fn has_landlock() -> bool {
    let on = |part: &spliced::sandbox::Part| matches!(part.state, spliced::sandbox::State::On(_));
    let found = spliced::sandbox::support().iter().any(|part| part.name == "landlock" && on(part));
    if !found {
        cannot_run("no Landlock here");
    }
    found
}

/// A byte each way.
fn lives(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"?").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// Who has become somebody cannot become somebody else, nor read what only root may: the reason says so.
#[test]
fn what_the_user_may_not_takes_a_restart() {
    if !Uid::effective().is_root() {
        return cannot_run("only root may become another user");
    }
    let (installed, port, backend) = (Installed::new(), Reserved::loopback(), backend());
    let text = |user: u32| {
        let (listen, to) = (port.address(), backend.local_addr().unwrap());
        format!("user: \"{user}:{user}\"\nforwards: [{{ listen: \"{listen}\", to: \"{to}\" }}]")
    };
    let (first, second) = (ordinary_user(), ordinary_user());
    let launcher = Launcher::config(&text(first)).place_of(first);
    let pid_file = launcher.directory().join("pid");
    let mut upgraded = installed.start(launcher.option("--pid-file", &pid_file));
    let client = connect(port.address());
    let session = (client, accept(&backend));
    upgraded.spliced.replace_config(&text(second));
    upgraded.fails("another user", &[&format!("cannot become user {second}"), "start spliced anew as root"]);
    lives(&session.0, &session.1);
    // It had everything in hand when it failed: files and lock are still the first one's.
    let other = Reserved::loopback();
    let second_instance = Launcher::forward(other.address(), backend.local_addr().unwrap());
    let outcome = second_instance.option("--pid-file", &pid_file).outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    assert!(outcome.text.contains(&format!("process {}", upgraded.pid())), "{}", outcome.text);
    upgraded.spliced.replace_config(&text(first));
    let file = upgraded.spliced.config();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    upgraded.fails("a file of root's", &["exit status: 2", "spliced.yaml", "Permission denied"]);
    lives(&session.0, &session.1);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    upgraded.upgrade();
    lives(&session.0, &session.1);
    drop(session);
    upgraded.finish();
}

/// Where a newer program may be: what the README says, and nothing else.
#[test]
fn what_can_be_upgraded_to_where() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    for directory in ["bin", "versions", "versions/1", "versions/2", "elsewhere"] {
        fs::create_dir(at(directory)).unwrap();
    }
    for version in ["versions/1", "versions/2", "elsewhere"] {
        install(env!("CARGO_BIN_EXE_spliced").as_ref(), &at(version).join("spliced"));
    }
    let link = |to: &str| {
        symlink(at(to).join("spliced"), at("bin/new")).unwrap();
        fs::rename(at("bin/new"), at("bin/spliced")).unwrap();
    };
    link("versions/1");
    let (port, back) = (Reserved::loopback(), backend());
    let launcher = Launcher::forward(port.address(), back.local_addr().unwrap()).program(&at("bin/spliced"));
    let mut upgraded = Upgraded::start(launcher);
    let runs = |upgraded: &Upgraded| fs::read_link(format!("/proc/{}/exe", upgraded.pid())).unwrap();
    let mut upgrade = |directory: &str| {
        upgraded.upgrade();
        assert_eq!(runs(&upgraded), at(directory).join("spliced"));
        let client = connect(port.address());
        exchange(&client, &accept(&back), MIB, MIB);
    };
    link("versions/2");
    upgrade("versions/2");
    link("versions/1");
    upgrade("versions/1");
    if has_landlock() {
        link("elsewhere");
        upgraded.fails("elsewhere", &["Permission denied", "the sandbox allows programs in", "versions/1"]);
    }
    let mut upgrade = |directory: &str| {
        upgraded.upgrade();
        assert_eq!(runs(&upgraded), at(directory).join("spliced"));
    };
    install(env!("CARGO_BIN_EXE_spliced").as_ref(), &at("bin/spliced"));
    upgrade("bin");
    upgrade("bin");
    upgraded.finish();
}

/// A program the user may not execute is said at the start, and not on the day of the upgrade.
#[test]
fn a_program_the_user_cannot_execute_is_said() {
    if !Uid::effective().is_root() {
        return cannot_run("only root may become another user");
    }
    let (installed, port, backend) = (Installed::new(), Reserved::loopback(), backend());
    installed.install_copy(env!("CARGO_BIN_EXE_spliced"), 0o700);
    let uid = ordinary_user();
    let launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
    let upgraded = installed.start(launcher.place_of(uid).option("--user", format!("{uid}:{uid}")));
    let path = installed.path();
    let said = upgraded.spliced.logged(&format!("cannot execute {}: an upgrade will fail", path.display()));
    assert_eq!(said.len(), 1, "{}", upgraded.spliced.text());
    upgraded.fails("as it was said", &[path.to_str().unwrap(), "Permission denied"]);
    upgraded.finish();
}
