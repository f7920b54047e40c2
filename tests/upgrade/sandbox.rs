//! Upgrades under the sandbox and without it, by root, by root that became somebody else, and by an ordinary user: what
//! may take over does, what may not changes nothing, and nobody gains or loses a right by it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;

use common::cannot_run;
use common::deadline::{LONG, eventually, until};
use common::netns::{Netns, with_namespaces};
use common::pattern::exchange;
use common::peer::{Reserved, accept, backend, connect};
use common::process::{Process, Thread, filters_around_us};
use common::spliced::{Launcher, ordinary_user};
use common::upgraded::{Installed, Upgraded};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Uid, mkfifo};

const MIB: u64 = 1 << 20;
/// `CAP_NET_BIND_SERVICE` of include/uapi/linux/capability.h.
const BIND: u64 = 1 << 10;

/// As whom and how confined the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    /// Who runs the tests, with the sandbox that is there by default.
    Us,
    /// The same without it.
    Off,
    /// Root that becomes another user.
    Dropped,
    /// The same, with nothing of the sandbox but that.
    DroppedOff,
    /// Somebody else from the start.
    Ordinary,
}

struct Service {
    installed: Installed,
    upgraded: Upgraded,
    run_as: As,
    uid: Option<u32>,
    pid_file: PathBuf,
    port: Reserved,
    backend: TcpListener,
}

fn has_landlock() -> bool {
    let on = |part: &spliced::sandbox::Part| matches!(part.state, spliced::sandbox::State::On(_));
    let found = spliced::sandbox::support().iter().any(|part| part.name == "landlock" && on(part));
    if !found {
        cannot_run("no Landlock here");
    }
    found
}

impl Service {
    /// `None`, and why, where only root can start it.
    fn new(run_as: As, launcher: impl FnOnce(SocketAddr, SocketAddr) -> Launcher<'static>) -> Option<Self> {
        let (installed, port, backend) = (Installed::new(), Reserved::loopback(), backend());
        let uid = match run_as {
            As::Us | As::Off => None,
            _ if !Uid::effective().is_root() => {
                cannot_run("only root may become another user");
                return None;
            }
            _ => Some(ordinary_user()),
        };
        let mut launcher = launcher(port.address(), backend.local_addr().unwrap());
        match (run_as, uid) {
            (As::Dropped | As::DroppedOff, Some(uid)) => {
                launcher = launcher.place_of(uid).option("--user", format!("{uid}:{uid}"));
            }
            (As::Ordinary, Some(uid)) => {
                port.give_to(uid);
                launcher = launcher.user(uid);
            }
            _ => {}
        }
        if matches!(run_as, As::Off | As::DroppedOff) {
            launcher = launcher.option("--sandbox", "off");
        }
        let pid_file = launcher.directory().join("pid");
        let upgraded = installed.start(launcher.option("--pid-file", &pid_file).option("--workers", "2"));
        Some(Self { installed, upgraded, run_as, uid, pid_file, port, backend })
    }

    fn forward(run_as: As) -> Option<Self> {
        Self::new(run_as, Launcher::forward)
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = connect(self.port.address());
        (client, accept(&self.backend))
    }

    /// Every thread of the process that serves has exactly the rights it is to have.
    fn confined(&self) {
        let sandboxed = !matches!(self.run_as, As::Off | As::DroppedOff);
        for thread in threads(self.upgraded.pid(), if sandboxed { 2 } else { 0 }) {
            let name = &thread.name;
            if sandboxed {
                assert_eq!((thread.field("NoNewPrivs"), thread.field("Seccomp")), ("1", "2"), "{name}");
            }
            if sandboxed || self.uid.is_some() {
                for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                    assert_eq!(thread.capabilities(set), 0, "{set} of {name}");
                }
            }
            if let Some(uid) = self.uid {
                assert_eq!(thread.field("Uid"), format!("{uid} {uid} {uid} {uid}"), "{name}");
                assert_eq!(thread.field("Gid"), format!("{uid} {uid} {uid} {uid}"), "{name}");
                assert!(!thread.field("Groups").split(' ').any(|group| group == "0"), "{name}");
            }
        }
    }

    /// The session goes on and others are taken.
    fn serves(&self, (client, server): &(TcpStream, TcpStream)) {
        lives(client, server);
        let (another, its_server) = self.pair();
        exchange(&another, &its_server, MIB, MIB);
    }
}

/// The threads of a process, once each has its own filter beside the main thread's: the same number after any number of
/// upgrades, since a filter is inherited and not piled up.
fn threads(pid: u32, filters: u32) -> Vec<Thread> {
    let around = filters_around_us();
    eventually("every thread has confined itself", LONG, || {
        let threads = Process(pid).threads();
        let settled = |thread: &Thread| {
            let wanted = if thread.name == "main" { filters.min(1) } else { filters };
            thread.field("Seccomp_filters") == (around + wanted).to_string()
        };
        if threads.len() > 2 && threads.iter().all(settled) { Ok(threads) } else { Err(format!("{threads:?}")) }
    })
}

/// A byte each way.
fn lives(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"?").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// Three upgrades, with sessions of every generation, everything handed over and nothing gained or lost.
fn a_chain(run_as: As) {
    let Some(mut service) = Service::forward(run_as) else { return };
    let mut sessions = vec![service.pair()];
    for turn in 0..3 {
        service.confined();
        let written = fs::read_to_string(&service.pid_file).unwrap();
        assert_eq!(written.trim(), service.upgraded.pid().to_string(), "the pid file of generation {turn}");
        service.upgraded.upgrade();
        service.serves(&sessions[0]);
        sessions.push(service.pair());
    }
    service.confined();
    sessions.iter().for_each(|(client, server)| lives(client, server));
    drop(sessions);
    let Service { upgraded, pid_file, .. } = service;
    if has_landlock() {
        upgraded.complete();
    }
    upgraded.finish();
    assert!(!pid_file.exists(), "the pid file goes with the last process");
}

#[test]
fn a_chain_confined() {
    a_chain(As::Us);
}

#[test]
fn a_chain_unconfined() {
    a_chain(As::Off);
}

#[test]
fn a_chain_as_another_user() {
    a_chain(As::Dropped);
}

#[test]
fn a_chain_as_another_user_unconfined() {
    a_chain(As::DroppedOff);
}

#[test]
fn a_chain_of_an_ordinary_user() {
    a_chain(As::Ordinary);
}

/// A name, what puts it there, and what the reason says.
type Case<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);

/// Whatever is installed in its place, the running process goes on, and says why there was no upgrade.
fn programs_that_fail(run_as: As) {
    let Some(mut service) = Service::forward(run_as) else { return };
    let session = service.pair();
    let path = service.installed.path();
    let path = path.to_str().unwrap();
    let elf = |file: &str| fs::read(file).unwrap().starts_with(b"\x7fELF");
    assert!(elf("/bin/false") && elf("/bin/sleep"), "programs, and no scripts");
    let at = &service.installed;
    let cases: [Case<'_>; 10] = [
        ("missing", &|| at.remove(), &[path, "No such file", "install the new program there"]),
        ("not executable", &|| at.install_copy("/bin/false", 0o644), &[path, "Permission denied", "must be allowed"]),
        (
            "fails",
            &|| at.install_copy("/bin/false", 0o755),
            &["did not become ready", "exit status: 1", "it said nothing"],
        ),
        ("succeeds", &|| at.install_copy("/bin/true", 0o755), &["did not become ready", "exit status: 0"]),
        ("complains", &|| at.install_copy("/bin/sleep", 0o755), &["exit status: 1", "its last words: ", "--help"]),
        ("empty", &|| at.install_part(0), &[path, "Exec format error", "for this machine"]),
        ("a header alone", &|| at.install_part(64), &[path, "cannot start"]),
        ("cut short", &|| at.install_part(1 << 20), &["no upgrade: "]),
        ("text", &|| at.install_script("no program\n", 0o755), &[path, "Exec format error", "for this machine"]),
        (
            "a directory",
            &|| {
                at.remove();
                fs::create_dir(path).unwrap();
            },
            &[path, "Permission denied"],
        ),
    ];
    for (name, install, expected) in cases {
        install();
        service.upgraded.fails(name, expected);
        service.serves(&session);
    }
    fs::remove_dir(path).unwrap();
    if service.uid.is_some() {
        at.install_copy(env!("CARGO_BIN_EXE_spliced"), 0o700);
        service.upgraded.fails("for root alone", &[path, "Permission denied", "user ", "must be allowed"]);
    }
    let confined = !matches!(run_as, As::Off | As::DroppedOff);
    if confined && has_landlock() {
        at.install_script("#!/bin/sh\nexit 0\n", 0o755);
        service.upgraded.fails("a script", &[path, "Permission denied", "the sandbox allows programs in", "no script"]);
    }
    service.serves(&session);
    // After all of that the real one still takes over.
    service.installed.install_real();
    service.upgraded.upgrade();
    service.serves(&session);
    drop(session);
    service.upgraded.finish();
}

#[test]
fn programs_that_fail_confined() {
    programs_that_fail(As::Us);
}

#[test]
fn programs_that_fail_unconfined() {
    programs_that_fail(As::Off);
}

#[test]
fn programs_that_fail_as_another_user() {
    programs_that_fail(As::Dropped);
}

#[test]
fn programs_that_fail_for_an_ordinary_user() {
    programs_that_fail(As::Ordinary);
}

fn configured(lines: &'static str) -> impl FnOnce(SocketAddr, SocketAddr) -> Launcher<'static> {
    move |listen, to| Launcher::config(&format!("{lines}\nforwards: [{{ listen: \"{listen}\", to: \"{to}\" }}]\n"))
}

/// The new process hangs while it reads its file; it is given up, and the one that runs has noticed nothing.
#[test]
fn one_that_hangs_is_killed() {
    let mut service = Service::new(As::Us, configured("")).unwrap();
    let session = service.pair();
    let file = service.upgraded.spliced.config();
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    mkfifo(&file, Mode::S_IRUSR).unwrap();
    service.upgraded.fails("hangs", &["was not ready within 10s", "it was killed"]);
    service.serves(&session);
    fs::remove_file(&file).unwrap();
    fs::write(&file, text).unwrap();
    service.upgraded.upgrade();
    service.serves(&session);
    drop(session);
    service.upgraded.finish();
}

/// A port below 1024 is handed over like any other: nobody binds it again, so nobody needs the right to.
fn a_low_port(options: &[(&str, &str)], kept: u64) {
    with_namespaces(|| {
        let namespace = Netns::new();
        let (low, metrics) = (SocketAddr::from(([127, 0, 0, 1], 80)), SocketAddr::from(([127, 0, 0, 1], 81)));
        let backend = namespace.listen(([127, 0, 0, 1], 0).into());
        let installed = Installed::new();
        let mut launcher = Launcher::forward(low, backend.local_addr().unwrap()).inside(&namespace);
        launcher = launcher.option("--workers", "2").option("--metrics", metrics.to_string());
        for (name, value) in options {
            launcher = launcher.option(name, value);
        }
        // Root of a user namespace has one user alone.
        if fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295")) {
            let uid = ordinary_user();
            launcher = launcher.place_of(uid).option("--user", format!("{uid}:{uid}"));
        }
        let mut upgraded = installed.start(launcher);
        for _ in 0..3 {
            upgraded.upgrade();
            for thread in threads(upgraded.pid(), 2) {
                let kept = if thread.name == "main" { kept } else { 0 };
                for set in ["CapEff", "CapPrm", "CapAmb"] {
                    assert_eq!(thread.capabilities(set), kept, "{set} of {}", thread.name);
                }
            }
            let client = namespace.connect(low);
            exchange(&client, &accept(&backend), MIB, MIB);
            let (mut page, mut stream) = (String::new(), namespace.connect(metrics));
            stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").unwrap();
            stream.read_to_string(&mut page).unwrap();
            assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        }
        upgraded.finish();
    });
}

#[test]
fn low_ports_with_the_right_to_bind() {
    a_low_port(&[], BIND);
}

#[test]
fn low_ports_without_any_right() {
    a_low_port(&[("--keep-capabilities", "none")], 0);
}

#[test]
fn low_ports_in_the_strictest_sandbox() {
    if has_landlock() {
        let options = [("--keep-capabilities", "none"), ("--sandbox", "strict")];
        a_low_port(&options, 0);
    }
}

/// Threads that begin later, by a reload or in the place of one that failed, have no more than the first ones.
#[test]
fn threads_that_come_later_are_confined_too() {
    for run_as in [As::Us, As::Dropped] {
        let Some(mut service) = Service::new(run_as, configured("")) else { return };
        // The command line has the number of workers; a name that has to be looked up takes a thread of its own.
        let text = fs::read_to_string(service.upgraded.spliced.config()).unwrap();
        let more = Reserved::loopback();
        if let Some(uid) = service.uid {
            more.give_to(uid);
        }
        let to = service.backend.local_addr().unwrap().port();
        let line = format!(", {{ listen: \"{}\", to: \"localhost:{to}\" }}]", more.address());
        fs::write(service.upgraded.spliced.config(), text.replace(']', &line)).unwrap();
        let pid = service.upgraded.pid();
        service.upgraded.signal(pid, Signal::SIGHUP);
        until("the resolver has begun", LONG, || Process(pid).threads().iter().any(|t| t.name == "resolver"));
        service.confined();
        service.upgraded.upgrade();
        service.confined();
        service.upgraded.only_the_last_is_left();
        let last = service.upgraded.pid();
        service.upgraded.signal(last, Signal::SIGTERM);
        assert_eq!(service.upgraded.exit_code(last, LONG), Some(0));
    }
}
