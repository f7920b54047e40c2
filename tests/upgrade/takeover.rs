//! Binary upgrade: no connection is refused, reset or left empty, no session is cut, and a new program that fails
//! changes nothing.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually, throughout, until};
use common::path::Via;
use common::pattern::{Pattern, exchange};
use common::peer::{Echo, Reserved, accept, backend, connect, echoes};
use common::spliced::Launcher;
use common::upgraded::{Installed, Storm, Upgraded, one_connection};
use nix::sys::signal::Signal;

/// An installed program that runs, a backend and the way to it.
struct Service {
    installed: Installed,
    upgraded: Upgraded,
    port: Reserved,
    backend: TcpListener,
}

impl Service {
    fn new(via: Via, options: &[(&str, &str)]) -> Self {
        let (installed, port, backend) = (Installed::new(), Reserved::loopback(), backend());
        let Via::Engine(engine) = via else { panic!("through the program") };
        let mut launcher = Launcher::forward(port.address(), backend.local_addr().unwrap()).option("--engine", engine);
        for (name, value) in options {
            launcher = launcher.option(name, value);
        }
        let upgraded = installed.start(launcher);
        Self { installed, upgraded, port, backend }
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = connect(self.port.address());
        (client, accept(&self.backend))
    }

    fn finish(self) {
        self.upgraded.finish();
    }
}

/// A byte each way.
fn lives(mut client: &TcpStream, mut server: &TcpStream) {
    client.write_all(b"?").unwrap();
    server.read_exact(&mut [0]).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut [0]).unwrap();
}

/// Streams that are under way stay with the process that has them, whole to the last byte, through a chain of three.
fn streams_live_on(via: Via) {
    let mut service = Service::new(via, &[]);
    let (quiet_client, quiet_server) = service.pair();
    let (client, server) = service.pair();
    let pattern = Pattern::new(3);
    let len = 64 << 20;
    let mut pids = vec![service.upgraded.pid()];
    thread::scope(|scope| {
        scope.spawn(|| {
            pattern.send(&client, 0, len).expect("send");
            client.shutdown(Shutdown::Write).expect("half-close");
        });
        // The reader sets the pace, so that the stream is under way at each upgrade.
        for step in 1..=3 {
            pattern.expect(&server, (step - 1) * len / 4, step * len / 4);
            pids.push(service.upgraded.upgrade());
            // Sessions of every generation at once.
            let (client, server) = service.pair();
            scope.spawn(move || exchange(&client, &server, 3 << 20, 1 << 20));
        }
        pattern.expect_whole(&server, 3 * len / 4, len);
        lives(&quiet_client, &quiet_server);
    });
    let first = pids[0];
    assert!(service.upgraded.spliced.runs(), "process {first} stays for its last session");
    pattern.send(&server, 0, 100_000).expect("the other half is open");
    pattern.expect(&client, 0, 100_000);
    drop((client, server));
    lives(&quiet_client, &quiet_server);
    drop((quiet_client, quiet_server));
    service.finish();
}

#[test]
fn streams_live_on_auto() {
    streams_live_on(Via::AUTO);
}

#[test]
fn streams_live_on_copy() {
    streams_live_on(Via::COPY);
}

#[test]
fn a_signal_upgrades_too_and_everything_is_handed_over() {
    let metrics = Reserved::loopback();
    let directory = tempfile::tempdir().unwrap();
    let pid_file = directory.path().join("pid");
    let pid_in_file = || fs::read_to_string(&pid_file).unwrap().trim().parse::<u32>().ok();
    // Its port is free for whoever binds it without SO_REUSEPORT once nobody holds it.
    let address = metrics.address();
    drop(metrics);
    let options = [("--metrics", &*address.to_string()), ("--pid-file", pid_file.to_str().unwrap())];
    let mut service = Service::new(Via::AUTO, &options);
    let (client, server) = service.pair();
    for _ in 0..3 {
        let before = service.upgraded.pid();
        assert_eq!(pid_in_file(), Some(before));
        service.upgraded.signal(before, Signal::SIGUSR2);
        let now = service.upgraded.replaced();
        until("the pid file names the new process", LONG, || pid_in_file() == Some(now));
        let mut answer = String::new();
        let mut stream = connect(address);
        stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").unwrap();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    lives(&client, &server);
    drop((client, server));
    service.upgraded.only_the_last_is_left();
    // A second instance is kept out as before, though the one that locked the file is long gone.
    let second = Launcher::forward(Reserved::loopback().address(), service.backend.local_addr().unwrap());
    let outcome = second.option("--pid-file", &pid_file).outcome();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.text.contains(&format!("process {}", service.upgraded.pid())), "{}", outcome.text);
    service.finish();
    assert!(!pid_file.exists(), "the pid file goes with the last process");
}

/// Nothing has changed: the same process serves, its session lives, and nobody else is left.
fn unharmed(service: &Service, client: &TcpStream, server: &TcpStream) {
    let pid = service.upgraded.pid();
    assert_eq!(service.upgraded.stats().number("/pid"), u64::from(pid), "the same process answers");
    lives(client, server);
    let (another, its_server) = service.pair();
    lives(&another, &its_server);
    assert_eq!(service.upgraded.children(pid), Vec::<String>::new(), "no child, no zombie");
}

/// A sandbox lets a shell run in the program's place where the kernel is without Landlock only.
const ANY_PROGRAM: &[(&str, &str)] = &[("--sandbox", "off")];

/// A name, what is installed, and what the reason says.
type Case<'a> = (&'a str, &'a dyn Fn(&Installed), &'a [&'a str]);

#[test]
fn a_new_program_that_fails_changes_nothing() {
    let mut service = Service::new(Via::AUTO, ANY_PROGRAM);
    let (client, server) = service.pair();
    let path = service.installed.path();
    let path = path.to_str().unwrap();
    let cases: [Case<'_>; 6] = [
        ("missing", &|at| at.remove(), &[path, "No such file"]),
        ("not executable", &|at| at.install_script("#!/bin/sh\nexit 0\n", 0o644), &[path, "Permission denied"]),
        (
            "fails",
            &|at| at.install_script("#!/bin/sh\necho 'no \u{1b}[31mlibrary' >&2\nexit 1\n", 0o755),
            &["exit status: 1", "no [31mlibrary"],
        ),
        ("ends", &|at| at.install_script("#!/bin/sh\nexit 0\n", 0o755), &["exit status: 0", "it said nothing"]),
        ("is killed", &|at| at.install_script("#!/bin/sh\nkill -9 $$\n", 0o755), &["signal: 9"]),
        // It closes the channel and stays.
        ("turns away", &|at| at.install_script("#!/bin/sh\nexec sleep 1000 <&-\n", 0o755), &["it was killed"]),
    ];
    for (name, install, expected) in cases {
        install(&service.installed);
        service.upgraded.fails(name, expected);
        unharmed(&service, &client, &server);
    }
    // After all of that the real one still takes over.
    service.installed.install_real();
    service.upgraded.upgrade();
    drop((client, server));
    service.finish();
}

#[test]
fn one_that_never_becomes_ready_is_killed_and_no_second_one_is_started_meanwhile() {
    let mut service = Service::new(Via::AUTO, ANY_PROGRAM);
    let (client, server) = service.pair();
    service.installed.install_script("#!/bin/sh\necho waiting >&2\nexec sleep 1000\n", 0o755);
    let pid = service.upgraded.pid();
    let start = Instant::now();
    service.upgraded.signal(pid, Signal::SIGUSR2);
    until("it is started", LONG, || service.upgraded.children(pid).len() == 1);
    service.upgraded.signal(pid, Signal::SIGUSR2);
    until("the second signal is refused", LONG, || !service.upgraded.spliced.logged("is under way").is_empty());
    let refused = service.upgraded.ask();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("is under way"), "{text}");
    assert_eq!(service.upgraded.children(pid).len(), 1, "one at a time");
    lives(&client, &server);
    eventually("it is given up", Duration::from_secs(15), || {
        let logged = service.upgraded.spliced.logged("not ready within 10s");
        let line = logged.first().ok_or("no line yet")?;
        assert!(line.contains("it was killed") && line.contains("waiting"), "{line}");
        Ok(())
    });
    assert!(start.elapsed() >= Duration::from_secs(10), "it had {:?}", start.elapsed());
    unharmed(&service, &client, &server);
    service.installed.install_real();
    service.upgraded.upgrade();
    drop((client, server));
    service.finish();
}

/// A configuration that has become wrong is the new process's reason, and the old one's log has it.
#[test]
fn a_bad_configuration_is_told() {
    let (installed, port, backend) = (Installed::new(), Reserved::loopback(), backend());
    let text = |engine: &str| {
        let (front, back) = (port.address(), backend.local_addr().unwrap());
        format!("forwards: [{{ listen: \"{front}\", to: \"{back}\", engine: {engine} }}]")
    };
    let mut upgraded = installed.start(Launcher::config(&text("auto")));
    upgraded.spliced.replace_config(&text("warp"));
    let output = upgraded.ask();
    let reason = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{reason}");
    for part in ["exit status: 2", "spliced.yaml:1:", "warp"] {
        assert!(reason.contains(part), "{part:?} is missing in {reason}");
    }
    assert_eq!(upgraded.stats().number("/pid"), u64::from(upgraded.pid()));
    upgraded.spliced.replace_config(&text("copy"));
    upgraded.upgrade();
    assert_eq!(upgraded.stats().0.pointer("/forwards/0/engine").unwrap(), "copy", "the new file counts");
    upgraded.finish();
}

/// More and fewer workers, an address more and one less: clients of the address that stays notice nothing.
fn workers_and_addresses_may_change(sandbox: &str) {
    let (installed, stays, comes, goes) =
        (Installed::new(), Reserved::loopback(), Reserved::loopback(), Reserved::loopback());
    let echo = Echo::start(backend());
    let back = echo.address();
    let text = |workers: usize, fronts: [SocketAddr; 2]| {
        let forwards = fronts.map(|front| format!("{{ listen: \"{front}\", to: \"{back}\" }}")).join(", ");
        format!("sandbox: {sandbox}\nworkers: {workers}\nlog_file: /dev/null\nforwards: [{forwards}]")
    };
    let mut upgraded = installed.start(Launcher::config(&text(2, [stays.address(), goes.address()])));
    let long = connect(goes.address());
    assert!(echoes(&long, 1, LONG));
    let storm = Storm::default();
    thread::scope(|scope| {
        let _ends = storm.ends_with_this();
        let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| storm.client(stays.address(), u64::MAX))).collect();
        // Until nobody listens there any more. Whoever was let in before is served.
        let last_ones: Vec<_> = (0..2).map(|_| scope.spawn(|| storm.client(goes.address(), u64::MAX))).collect();
        for workers in [4, 1, 3, 2] {
            upgraded.spliced.replace_config(&text(workers, [comes.address(), stays.address()]));
            upgraded.upgrade();
            let served = storm.served.load(Ordering::Relaxed);
            until("the storm goes on", LONG, || storm.served.load(Ordering::Relaxed) > served + 100);
            assert_eq!(upgraded.stats().0["workers"].as_array().unwrap().len(), workers);
            assert_eq!(one_connection(comes.address(), 7), Ok(()));
            until("the address that is gone refuses", LONG, || one_connection(goes.address(), 7).is_err());
        }
        for client in last_ones {
            let why = client.join().unwrap().expect_err("the address is gone");
            assert!(why.contains("connect: Connection refused"), "{why}");
        }
        storm.enough.store(true, Ordering::Relaxed);
        for client in clients {
            assert_eq!(client.join().unwrap(), Ok(()), "after {} connections", storm.served.load(Ordering::Relaxed));
        }
    });
    assert!(echoes(&long, 2, LONG), "a session of the address that is gone goes on");
    drop(long);
    upgraded.only_the_last_is_left();
    let last = upgraded.pid();
    upgraded.signal(last, Signal::SIGTERM);
    assert_eq!(upgraded.exit_code(last, LONG), Some(0));
}

#[test]
fn workers_and_addresses_may_change_confined() {
    workers_and_addresses_may_change("auto");
}

#[test]
fn workers_and_addresses_may_change_unconfined() {
    workers_and_addresses_may_change("off");
}

/// The old process keeps its sessions for as long as it is allowed to, and goes by its own drain time when told to stop.
#[test]
fn the_old_process_ends_when_it_is_told_to() {
    let options = [("--upgrade-drain-timeout", "none"), ("--drain-timeout", "1s")];
    let mut service = Service::new(Via::AUTO, &options);
    let old = service.upgraded.pid();
    let (client, server) = service.pair();
    service.upgraded.upgrade();
    throughout("it stays for its session", Duration::from_millis(1500), || {
        lives(&client, &server);
        if service.upgraded.spliced.runs() { Ok(()) } else { Err("it has ended".to_owned()) }
    });
    service.upgraded.signal(old, Signal::SIGTERM);
    assert_eq!(service.upgraded.exit_code(old, Duration::from_secs(5)), Some(0));
    drop((client, server));
    service.finish();
}

#[test]
fn the_old_process_ends_when_its_time_is_over() {
    let mut service = Service::new(Via::AUTO, &[("--upgrade-drain-timeout", "1s"), ("--drain-timeout", "none")]);
    let old = service.upgraded.pid();
    let (client, _server) = service.pair();
    let start = Instant::now();
    service.upgraded.upgrade();
    assert_eq!(service.upgraded.exit_code(old, Duration::from_secs(5)), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(900), "it had {:?}", start.elapsed());
    assert!(!echoes(&client, 1, LONG), "its session was cut");
    service.finish();
}

/// The old process is killed while the new one starts: what waits in the queues waits for the new one.
#[test]
fn the_new_process_goes_on_when_the_old_one_dies() {
    let mut service = Service::new(Via::AUTO, ANY_PROGRAM);
    let real = env!("CARGO_BIN_EXE_spliced");
    let gate = service.installed.path().with_extension("gate");
    let script = format!("#!/bin/sh\nuntil [ -e '{}' ]; do sleep 0.05; done\nexec '{real}' \"$@\"\n", gate.display());
    service.installed.install_script(&script, 0o755);
    let old = service.upgraded.pid();
    service.upgraded.signal(old, Signal::SIGUSR2);
    until("it is started", LONG, || service.upgraded.children(old).len() == 1);
    // The thread that answers is the one that hands over: once it answers, everything is on its way.
    service.upgraded.stats();
    service.upgraded.signal(old, Signal::SIGKILL);
    assert_eq!(service.upgraded.exit_code(old, LONG), None);
    let waiting: Vec<TcpStream> = (0..20).map(|_| connect(service.port.address())).collect();
    fs::write(&gate, "").unwrap();
    let echo = Echo::start(service.backend.try_clone().unwrap());
    for client in waiting {
        assert!(echoes(&client, 9, LONG), "one that waited is served");
    }
    drop(echo);
    service.upgraded.replaced();
    until("it says so", LONG, || !service.upgraded.spliced.logged("is gone; going on in its place").is_empty());
    service.finish();
}
