//! From start to end: nothing half-started, a drain that waits no longer than it may, files that come and go with the
//! process, and a session log that never holds it up.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::deadline::{LONG, eventually, until};
use common::peer::{Reserved, accept, backend, connect};
use common::spliced::{Launcher, Spliced};
use common::stats::Stats;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A forward to a backend with one session open through it.
struct Open {
    spliced: Spliced,
    control: PathBuf,
    port: Reserved,
    backend: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Open {
    fn new(options: &[(&str, &str)]) -> Self {
        let (port, backend) = (Reserved::loopback(), backend());
        let mut launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
        for (name, value) in options {
            launcher = launcher.option(name, value);
        }
        let spliced = launcher.start();
        let control = control_of(&spliced);
        let client = connect(port.address());
        let server = accept(&backend);
        spliced.stats_until("the session is open", |stats| stats.open() == 1);
        Self { spliced, control, port, backend, client, server }
    }

    /// A byte each way, to see that the session lives.
    fn ping(&mut self) {
        self.client.write_all(b"?").unwrap();
        self.server.read_exact(&mut [0]).unwrap();
        self.server.write_all(b"!").unwrap();
        self.client.read_exact(&mut [0]).unwrap();
    }
}

/// The control socket's path, from the command line of the process.
fn control_of(spliced: &Spliced) -> PathBuf {
    let words = fs::read(format!("/proc/{}/cmdline", spliced.process().0)).unwrap();
    let mut words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.find(|word| word == "--control").expect("it has a control socket");
    words.next().unwrap().into()
}

fn forward() -> (Reserved, TcpListener) {
    (Reserved::loopback(), backend())
}

fn logged(spliced: &Spliced, text: &str) -> String {
    eventually(text, LONG, || spliced.logged(text).into_iter().next().ok_or_else(|| spliced.text()))
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn the_listeners_are_named_before_the_line_that_says_ready() {
    let (port, backend) = forward();
    let back = backend.local_addr().unwrap();
    let spliced = Launcher::forward(port.address(), back).start();
    let text = spliced.text();
    let listening = text.find(&format!("listening on {}, forward ", port.address())).expect(&text);
    let ready = text.find("ready: ").expect(&text);
    assert!(listening < ready, "{text}");
    assert!(text.contains(&format!(", to {back}, engine auto")), "{text}");
    spliced.finish();
}

#[test]
fn a_drain_waits_for_open_sessions() {
    let mut open = Open::new(&[("--drain-timeout", "60s")]);
    open.spliced.signal(Signal::SIGTERM);
    let line = logged(&open.spliced, "draining: 1 session open, up to 60s");
    assert!(!line.is_empty());
    until("the listener is closed", LONG, || {
        TcpStream::connect(open.port.address()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    open.ping();
    // A line each second says that it goes on. Those that came before the listener was closed may be counted too.
    eventually("progress", LONG, || {
        let said = open.spliced.logged("draining: ");
        if said.len() >= 3 { Ok(()) } else { Err(format!("{said:?}")) }
    });
    assert_eq!(Stats::ask(&open.control).unwrap().0["draining"], true);
    assert!(open.spliced.runs());
    open.ping();

    let ours = format!("client={} ", open.client.local_addr().unwrap());
    drop((open.client, open.server, open.backend));
    let status = open.spliced.wait(LONG);
    assert_eq!(status.code(), Some(0));
    assert!(!open.control.exists(), "the control socket is removed");
    let ends = open.spliced.logged(&ours);
    assert!(ends.len() == 1 && ends[0].ends_with("reason=done"), "{ends:?}");
}

#[test]
fn what_the_drain_time_cuts_is_logged_before_the_end() {
    let mut open = Open::new(&[("--drain-timeout", "500ms")]);
    open.spliced.signal(Signal::SIGINT);
    assert_eq!(open.spliced.wait(LONG).code(), Some(0));
    let text = open.spliced.text();
    assert!(text.contains("drain time is over: ending 1 session now"), "{text}");
    assert_eq!(open.spliced.says("reason=drain").len(), 1, "{text}");
    assert!(!open.control.exists());
}

#[test]
fn other_signals_leave_it_running() {
    let mut open = Open::new(&[]);
    for (signal, text) in [(Signal::SIGHUP, "SIGHUP: "), (Signal::SIGUSR1, "reopen")] {
        open.spliced.signal(signal);
        logged(&open.spliced, text);
        open.ping();
    }
    drop((open.client, open.server));
    open.spliced.ended("done", 1);
    open.spliced.finish();
}

#[test]
fn a_second_instance_on_the_same_control_socket_leaves_the_first_unharmed() {
    let mut open = Open::new(&[]);
    let (other, _) = forward();
    let outcome = Launcher::forward(other.address(), open.backend.local_addr().unwrap())
        .option("--control", &open.control)
        .outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    let control = open.control.display().to_string();
    assert!(outcome.text.contains(&control) && outcome.text.contains("running instance"), "{}", outcome.text);
    assert!(!outcome.text.contains("listening on"), "{}", outcome.text);
    open.ping();
    assert_eq!(open.spliced.stats().number("/pid"), u64::from(open.spliced.process().0));
    drop((open.client, open.server));
    open.spliced.ended("done", 1);
    open.spliced.finish();
}

#[test]
fn a_control_socket_left_behind_is_replaced() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control.sock");
    drop(UnixListener::bind(&control).unwrap());
    let (port, backend) = forward();
    let config = format!(
        "control: {}\nforwards: [{{ name: a, listen: \"{}\", to: \"{}\" }}]\n",
        control.display(),
        port.address(),
        backend.local_addr().unwrap()
    );
    let file = directory.path().join("spliced.yaml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
    let child = command.args(["run", "--config"]).arg(&file).stderr(Stdio::null()).spawn().unwrap();
    let mut child = Ended(child);
    eventually("the control socket answers", LONG, || Stats::ask(&control).map_err(|e| e.to_string()));
    child.term();
    assert_eq!(child.code(), Some(0));
    assert!(!control.exists());
}

#[test]
fn the_pid_file_lives_as_long_as_the_process() {
    let directory = TempDir::new().unwrap();
    let pid_file = directory.path().join("spliced.pid");
    fs::write(&pid_file, "1234567890123\n").unwrap();
    let (port, backend) = forward();
    let back = backend.local_addr().unwrap();
    let mut spliced = Launcher::forward(port.address(), back).option("--pid-file", &pid_file).start();
    let held = format!("{}\n", spliced.process().0);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), held);

    let (other, _) = forward();
    let outcome = Launcher::forward(other.address(), back).option("--pid-file", &pid_file).outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    assert!(outcome.text.contains(&format!("process {}", spliced.process().0)), "{}", outcome.text);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), held, "the first one's file is as it was");

    spliced.signal(Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert!(!pid_file.exists());
}

/// Starts with an address that is taken and looks at what is left.
fn refused_start(options: &[(&str, String)], listen: SocketAddr, expected: &str) {
    let directory = TempDir::new().unwrap();
    let (control, pid_file) = (directory.path().join("control.sock"), directory.path().join("pid"));
    let mut launcher = Launcher::forward(listen, backend().local_addr().unwrap());
    launcher = launcher.option("--control", &control).option("--pid-file", &pid_file);
    for (name, value) in options {
        launcher = launcher.option(name, value);
    }
    let outcome = launcher.outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    assert!(outcome.text.contains(expected), "{expected} is not named: {}", outcome.text);
    assert!(!outcome.text.contains("panicked") && !outcome.text.contains("ready:"), "{}", outcome.text);
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn an_address_in_use_is_named_and_nothing_is_left_behind() {
    let taken = backend();
    let address = taken.local_addr().unwrap();
    refused_start(&[], address, &address.to_string());
    let port = Reserved::loopback();
    refused_start(&[("--metrics", address.to_string())], port.address(), &format!("metrics address {address}"));
    refused_start(&[("--log-file", "/nonexistent/log".to_owned())], port.address(), "/nonexistent/log");
    drop(taken);
}

#[test]
fn usr1_reopens_the_session_log() {
    let directory = TempDir::new().unwrap();
    let (log, rotated) = (directory.path().join("log"), directory.path().join("log.1"));
    let (port, backend) = forward();
    let back = backend.local_addr().unwrap();
    let spliced =
        Launcher::forward(port.address(), back).option("--log-file", &log).option("--log-format", "rinetd").start();
    let session = || drop((connect(port.address()), accept(&backend)));
    session();
    until("the first line", LONG, || lines(&log).len() == 1);
    fs::rename(&log, &rotated).unwrap();
    spliced.signal(Signal::SIGUSR1);
    until("the new file", LONG, || log.exists());
    session();
    until("the second line", LONG, || lines(&log).len() == 1);
    assert_eq!(lines(&rotated).len(), 1);
    for line in lines(&log) {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields.len(), 9, "{line}");
        assert_eq!(&fields[1..4], ["127.0.0.1", "127.0.0.1", &port.address().port().to_string()], "{line}");
        assert_eq!(fields[8], "done-remote-closed", "{line}");
    }
    spliced.finish();
}

#[test]
fn a_full_log_disk_costs_lines_and_nothing_else() {
    let mut open = Open::new(&[("--log-file", "/dev/full"), ("--log-format", "json")]);
    for _ in 0..20 {
        drop((connect(open.port.address()), accept(&open.backend)));
    }
    open.spliced.stats_until("lost lines are counted", |stats| stats.number("/log_lost") == 20);
    assert_eq!(open.spliced.says("/dev/full").len(), 1, "said once: {}", open.spliced.text());
    open.ping();
    drop((open.client, open.server));
    open.spliced.ended("done", 21);
    open.spliced.finish();
}

/// A child that is ended by its number, whatever the test does.
struct Ended(Child);

impl Ended {
    fn term(&self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let status = eventually("the process ends", LONG, || {
            self.0.try_wait().expect("our own child").ok_or_else(|| "it runs".to_owned())
        });
        status.code()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn standard_error_that_nobody_reads_holds_up_nothing() {
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control.sock");
    for format in ["json", "text"] {
        let (port, backend) = forward();
        let back = backend.local_addr().unwrap().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
        command.args(["forward", &port.address().to_string(), &back, "--log-format", format, "--control"]);
        // The pipe is kept open and never read: it fills up.
        let child = command.arg(&control).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut child = Ended(child);
        eventually("the control socket answers", LONG, || Stats::ask(&control).map_err(|e| e.to_string()));
        for _ in 0..500 {
            drop((connect(port.address()), accept(&backend)));
        }
        let ended = || Stats::ask(&control).map(|stats| stats.ends("done")).unwrap_or(0);
        until("500 sessions have ended", LONG, || ended() == 500);
        child.term();
        assert_eq!(child.code(), Some(0), "{format}");
    }
}
