//! Mistakes around a running instance: each is told in a clear line, and the instance has noticed nothing. Configurations
//! that cannot be reloaded are in `changes.rs`, programs that cannot take over in `tests/upgrade/sandbox.rs`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::cannot_run;
use common::pattern::exchange;
use common::peer::{Reserved, accept, backend, connect};
use common::spliced::{Launcher, Spliced, copy_for, ordinary_user};
use nix::unistd::Uid;

/// A running instance with a session open.
struct Running {
    spliced: Spliced,
    pid_file: PathBuf,
    port: Reserved,
    backend: TcpListener,
    session: (TcpStream, TcpStream),
}

impl Running {
    /// As root that has become `user`, or as whoever runs the tests.
    fn new(user: Option<u32>) -> Self {
        let (port, backend) = (Reserved::loopback(), backend());
        let (listen, to) = (port.address(), backend.local_addr().unwrap());
        let user_line = user.map_or_else(String::new, |uid| format!("user: \"{uid}:{uid}\"\n"));
        let text = format!("{user_line}workers: 2\nforwards: [{{ listen: \"{listen}\", to: \"{to}\" }}]\n");
        let mut launcher = Launcher::config(&text);
        if let Some(uid) = user {
            launcher = launcher.place_of(uid);
        }
        let pid_file = launcher.directory().join("pid");
        let spliced = launcher.option("--pid-file", &pid_file).start();
        let client = connect(port.address());
        let session = (client, accept(&backend));
        Self { spliced, pid_file, port, backend, session }
    }

    fn to(&self) -> SocketAddr {
        self.backend.local_addr().unwrap()
    }

    /// The same process with the same configuration, files and sessions, and it takes new ones.
    fn unharmed(&mut self) {
        let stats = self.spliced.stats();
        assert!(self.spliced.runs());
        assert_eq!(stats.number("/pid"), u64::from(self.spliced.process().0));
        assert_eq!((stats.number("/reloads/generation"), stats.open()), (1, 1), "{}", stats.0);
        assert_eq!(fs::read_to_string(&self.pid_file).unwrap().trim(), self.spliced.process().0.to_string());
        let (mut client, mut server) = (&self.session.0, &self.session.1);
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let another = connect(self.port.address());
        exchange(&another, &accept(&self.backend), 1 << 16, 1 << 16);
        drop(another);
        self.spliced.stats_until("it has ended", |stats| stats.open() == 1);
    }

    fn finish(self) {
        drop(self.session);
        self.spliced.stats_until("all have ended", |stats| stats.open() == 0);
        self.spliced.finish();
        assert!(!self.pid_file.exists());
    }
}

/// A start that fails with exit status 1 and a line that has all of these parts.
fn turned_away(launcher: Launcher<'_>, parts: &[&str]) {
    let outcome = launcher.outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    for part in parts {
        assert!(outcome.text.contains(part), "no {part:?} in {}", outcome.text);
    }
    assert!(!outcome.text.contains("panicked") && !outcome.text.contains("ready:"), "{}", outcome.text);
}

#[test]
fn a_second_instance_is_turned_away() {
    let mut running = Running::new(None);
    let (listen, to) = (running.port.address(), running.to());
    let elsewhere = Reserved::loopback();
    // SO_REUSEPORT would let it share the address, and take half of the connections.
    let same_address = Launcher::forward(listen, to);
    turned_away(same_address, &[&format!("cannot listen on {listen}"), "another process listens there"]);
    running.unharmed();
    let same_control = Launcher::forward(elsewhere.address(), to).option("--control", running.spliced.control());
    turned_away(same_control, &["control socket", "a running instance answers on it", "--control"]);
    running.unharmed();
    let same_pid_file = Launcher::forward(elsewhere.address(), to).option("--pid-file", &running.pid_file);
    turned_away(same_pid_file, &["pid file", &format!("process {}", running.spliced.process().0), "holds it"]);
    running.unharmed();
    // All of it at once: the very same command again.
    let file = running.spliced.config();
    let same = Launcher::with_arguments(["run".as_ref(), "--config".as_ref(), file.as_os_str()]);
    turned_away(same.option("--pid-file", &running.pid_file), &["a running instance"]);
    running.unharmed();
    running.finish();
}

/// Runs a command of the program as another user; what it said on standard error.
fn denied(program: &Path, uid: u32, command: &str, control: &Path) -> String {
    let mut ask = Command::new(program);
    let output = ask.args([command, "--control"]).arg(control).uid(uid).gid(uid).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{command}: {:?} {text}", output.status);
    assert!(output.stdout.is_empty(), "{command} told something");
    text
}

#[test]
fn the_control_socket_is_for_nobody_else() {
    if !Uid::effective().is_root() {
        return cannot_run("only root may become another user");
    }
    for user in [None, Some(ordinary_user())] {
        let mut running = Running::new(user);
        let stranger = ordinary_user();
        let place = tempfile::tempdir().unwrap();
        let program = copy_for(stranger, env!("CARGO_BIN_EXE_spliced").as_ref(), place.path());
        let control = running.spliced.control().to_owned();
        let above = control.parent().unwrap();
        // A directory nobody else may enter, then one everybody may.
        for mode in [0o700, 0o755] {
            fs::set_permissions(above, fs::Permissions::from_mode(mode)).unwrap();
            for command in ["stats", "reload", "upgrade"] {
                let text = denied(&program, stranger, command, &control);
                assert!(text.contains(control.to_str().unwrap()) && text.contains("only the user who runs"), "{text}");
            }
        }
        running.unharmed();
        // A socket that lost its mode: its owner's mistake, and nobody else's gain.
        fs::set_permissions(&control, fs::Permissions::from_mode(0o400)).unwrap();
        let text = denied(&program, stranger, "stats", &control);
        assert!(text.contains("only the user who runs"), "{text}");
        fs::set_permissions(&control, fs::Permissions::from_mode(0o600)).unwrap();
        // Whoever may ask, asks in vain for what is not there.
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.write_all(b"stop\n").unwrap();
        let answer = std::io::read_to_string(stream).unwrap();
        assert!(answer.contains("unknown command"), "{answer}");
        running.unharmed();
        running.finish();
    }
}

/// Places the user may not write are named, with what to do, and nothing of a start is left.
#[test]
fn places_of_others_are_named() {
    if !Uid::effective().is_root() {
        return cannot_run("only root may become another user");
    }
    let mut running = Running::new(None);
    let uid = ordinary_user();
    let (place, port) = (tempfile::tempdir().unwrap(), Reserved::loopback());
    port.give_to(uid);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for option in ["--control", "--pid-file"] {
        let launcher = Launcher::forward(port.address(), running.to()).user(uid);
        turned_away(
            launcher.option(option, place.path().join("file")),
            &["Permission denied", "choose a path this user may write"],
        );
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    running.unharmed();
    running.finish();
}
