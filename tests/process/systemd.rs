//! systemd's protocols, spoken with a socket of our own as the manager: readiness, status, watchdog, upgrade, and
//! sockets that were opened before the start.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::cannot_run;
use common::deadline::{LONG, eventually};
use common::peer::{Echo, Reserved, accept, backend, connect, echoes};
use common::spliced::{Launcher, can_inject};
use common::unix::Address;
use common::upgraded::{Installed, one_connection};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// A service manager's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        Self { socket, directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("notify")
    }

    /// The next message within a time.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1)))).unwrap();
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(n) => Some(String::from_utf8(buffer[..n].to_vec()).unwrap()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(e) => panic!("the notification socket: {e}"),
        }
    }

    /// Waits for a line, and returns the message it is in.
    fn hear(&self, line: &str) -> String {
        let end = Instant::now() + LONG;
        let mut heard = Vec::new();
        while let Some(message) = self.next(end.saturating_duration_since(Instant::now())) {
            if message.lines().any(|said| said.starts_with(line)) {
                return message;
            }
            heard.push(message);
        }
        panic!("{line} was not said, only {heard:?}");
    }

    /// How many messages with a line come in a window of time.
    fn count(&self, line: &str, window: Duration) -> usize {
        let end = Instant::now() + window;
        let mut count = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next(left) {
                Some(message) => count += usize::from(message.lines().any(|said| said == line)),
                None => return count,
            }
            if left.is_zero() {
                return count;
            }
        }
    }
}

fn forward(port: &Reserved, backend: &TcpListener) -> Launcher<'static> {
    Launcher::forward(port.address(), backend.local_addr().unwrap())
}

#[test]
fn ready_status_and_stopping_are_said() {
    let (manager, port, backend) = (Manager::new(), Reserved::loopback(), backend());
    let mut spliced = forward(&port, &backend).variable("NOTIFY_SOCKET", manager.path()).start();
    assert_eq!(manager.next(LONG).as_deref(), Some("READY=1\n"), "first of all");
    assert_eq!(manager.next(LONG).as_deref(), Some("STATUS=0 sessions, 0 bit/s\n"));
    let client = connect(port.address());
    let server = accept(&backend);
    spliced.stats_until("the session is open", |stats| stats.open() == 1);
    assert_eq!(manager.hear("STATUS=1 session, "), "STATUS=1 session, 0 bit/s\n");
    spliced.signal(Signal::SIGTERM);
    manager.hear("STOPPING=1");
    drop((client, server));
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert_eq!(manager.count("WATCHDOG=1", Duration::from_millis(1)), 0, "nobody asked for a watchdog");
}

/// The process that takes over is the service's main process from then on, and the one before is silent.
#[test]
fn an_upgrade_names_the_new_main_process() {
    let (manager, port, backend) = (Manager::new(), Reserved::loopback(), backend());
    let installed = Installed::new();
    let launcher =
        forward(&port, &backend).variable("NOTIFY_SOCKET", manager.path()).variable("WATCHDOG_USEC", "1000000");
    let mut upgraded = installed.start(launcher);
    manager.hear("READY=1");
    for _ in 0..2 {
        let pid = upgraded.upgrade();
        assert!(manager.hear("MAINPID=").contains(&format!("MAINPID={pid}\n")));
        upgraded.only_the_last_is_left();
        manager.hear("WATCHDOG=1");
    }
    let last = upgraded.pid();
    upgraded.signal(last, Signal::SIGTERM);
    manager.hear("STOPPING=1");
    assert_eq!(upgraded.exit_code(last, LONG), Some(0));
    assert_eq!(manager.count("STOPPING=1", Duration::from_millis(1)), 0, "the others were not the service any more");
}

#[test]
fn the_watchdog_is_fed_while_workers_are_idle() {
    let (manager, port, backend) = (Manager::new(), Reserved::loopback(), backend());
    let spliced =
        forward(&port, &backend).variable("NOTIFY_SOCKET", manager.path()).variable("WATCHDOG_USEC", "400000").start();
    manager.hear("READY=1");
    // Every 200 ms; a busy machine may be late, but never by as much as the manager's whole time.
    let mut last = Instant::now();
    for _ in 0..8 {
        manager.hear("WATCHDOG=1");
        assert!(last.elapsed() < Duration::from_millis(400) * 4, "{:?} without a sign", last.elapsed());
        last = Instant::now();
    }
    spliced.finish();
}

/// A worker whose system call does not return is hung, and nobody says that all is well until it goes on.
#[test]
fn a_worker_that_hangs_stops_the_watchdog() {
    if !can_inject() {
        return;
    }
    let (manager, port, backend) = (Manager::new(), Reserved::loopback(), backend());
    // The control thread makes no such call; whichever worker takes the session does.
    let spliced = forward(&port, &backend)
        .option("--engine", "copy")
        .variable("NOTIFY_SOCKET", manager.path())
        .variable("WATCHDOG_USEC", "400000")
        .inject(&["recvfrom:delay_enter=3s:when=1"])
        .start();
    manager.hear("WATCHDOG=1");
    let client = connect(port.address());
    let server = accept(&backend);
    let sent = Instant::now();
    (&client).write_all(b"?").unwrap();
    eventually("the log says which worker", LONG, || {
        let lines = spliced.logged("have not turned");
        lines.into_iter().next().ok_or_else(|| "nothing yet".to_owned())
    });
    // What was said before the hang was noticed does not count.
    while manager.next(Duration::from_millis(1)).is_some() {}
    let window = Duration::from_millis(2500).saturating_sub(sent.elapsed());
    assert!(window > Duration::from_millis(500), "it was noticed after {:?}", sent.elapsed());
    assert_eq!(manager.count("WATCHDOG=1", window), 0, "all is well, it says");
    manager.hear("WATCHDOG=1");
    (&server).read_exact(&mut [0]).unwrap();
    drop((client, server));
    spliced.finish();
}

/// A shell that passes its standard input on as the manager passes a socket.
const ACTIVATE: &str = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$0\" \"$@\"";

fn activated(launcher: Launcher<'static>, socket: &TcpListener) -> Launcher<'static> {
    launcher.standard_input(OwnedFd::from(socket.try_clone().unwrap())).through(["sh", "-c", ACTIVATE])
}

/// The manager's socket takes connections before, between and after two runs.
#[test]
fn an_activated_socket_refuses_nobody_while_the_service_restarts() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = socket.local_addr().unwrap();
    let back = backend();
    let back_address = back.local_addr().unwrap();
    let echo = Echo::start(back);
    for run in 0..2 {
        let early: Vec<TcpStream> = (0..5).map(|_| connect(front)).collect();
        let mut spliced = activated(Launcher::forward(front, back_address), &socket).start_without_control();
        assert_eq!(spliced.says("1 listener comes from the service manager").len(), 1);
        for client in early {
            assert!(echoes(&client, run, LONG), "one that waited before run {run}");
        }
        for _ in 0..20 {
            assert_eq!(one_connection(front, run), Ok(()));
        }
        assert_eq!(
            listening(front),
            1,
            "beside the manager's socket there is no other whose queue ends with the service"
        );
        spliced.signal(Signal::SIGTERM);
        assert_eq!(spliced.wait(LONG).code(), Some(0));
    }
    drop(echo);
}

/// Sockets that listen on an IPv4 address, of all processes.
fn listening(at: SocketAddr) -> usize {
    let SocketAddr::V4(at) = at else { panic!("an IPv4 address") };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(at.ip().octets()), at.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let listens = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&&*local) && fields.get(3) == Some(&"0A")
    };
    table.lines().filter(listens).count()
}

/// Urgent bytes in line, no delay: what a socket of ours has, the manager's gets too.
#[test]
fn an_activated_socket_gets_our_options() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (front, back) = (socket.local_addr().unwrap(), backend());
    let spliced = activated(Launcher::forward(front, back.local_addr().unwrap()), &socket).start();
    let options = socket2::SockRef::from(&socket);
    assert!(options.tcp_nodelay().unwrap() && options.out_of_band_inline().unwrap() && options.keepalive().unwrap());
    spliced.finish();
}

#[test]
fn an_activated_socket_survives_an_upgrade() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (front, back) = (socket.local_addr().unwrap(), backend());
    let back_address = back.local_addr().unwrap();
    let echo = Echo::start(back);
    let installed = Installed::new();
    let mut upgraded = installed.start(activated(Launcher::forward(front, back_address), &socket));
    for run in 0..3 {
        upgraded.upgrade();
        assert_eq!(one_connection(front, run), Ok(()));
        assert_eq!(listening(front), 1, "the manager's socket and no other");
    }
    upgraded.finish();
    drop(echo);
    // Whoever connects now waits in the manager's socket.
    let _waiting = connect(front);
    accept(&socket);
}

#[test]
fn a_socket_that_fits_nothing_is_an_error_that_names_it() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, back) = (Reserved::loopback(), backend());
    let outcome = activated(forward(&port, &back), &socket).outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    for part in [&*socket.local_addr().unwrap().to_string(), "\"web\"", &*port.address().to_string(), "ListenStream"] {
        assert!(outcome.text.contains(part), "{part} is missing in {}", outcome.text);
    }
    assert!(!outcome.text.contains("listening on"), "nothing half-started: {}", outcome.text);
}

#[test]
fn a_socket_of_another_kind_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (port, back) = (Reserved::loopback(), backend());
    let unix = UnixDatagram::bind(directory.path().join("socket")).unwrap();
    let connected = connect(back.local_addr().unwrap());
    for (stranger, why) in [(OwnedFd::from(unix), "cannot be used"), (connected.into(), "does not listen")] {
        let launcher = forward(&port, &back).standard_input(stranger).through(["sh", "-c", ACTIVATE]);
        let outcome = launcher.outcome();
        assert_eq!(outcome.code, Some(1), "{}", outcome.text);
        assert!(outcome.text.contains("socket activation: number 1 (\"web\")"), "{}", outcome.text);
        assert!(outcome.text.contains(why), "{}", outcome.text);
    }
}

/// The manager keeps the file: a restart shall find it.
#[test]
fn a_unix_socket_is_used_and_its_file_is_left_to_the_manager() {
    let directory = tempfile::tempdir().unwrap();
    let (front, back) = (Address::file(&directory.path().join("socket")), backend());
    let unix = OwnedFd::from(front.listen(16));
    let launcher = Launcher::with_arguments(["forward", &front.text, &back.local_addr().unwrap().to_string()]);
    let spliced = launcher.standard_input(unix).through(["sh", "-c", ACTIVATE]).start();
    let client = front.connect();
    common::unix::echoes(&client, &accept(&back).into());
    drop(client);
    spliced.finish();
    assert!(directory.path().join("socket").exists());
}

/// A child that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// systemd's own tool starts the program with the first connection.
#[test]
fn systemds_own_activation_works() {
    if !Command::new("systemd-socket-activate").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return cannot_run("systemd-socket-activate is not installed");
    }
    // The tool binds without SO_REUSEPORT, so the port cannot be kept for it.
    let front: SocketAddr = { Reserved::loopback().address() };
    let back = backend();
    let back_address = back.local_addr().unwrap();
    let echo = Echo::start(back);
    let mut command = Command::new("systemd-socket-activate");
    command.arg("-l").arg(front.to_string()).arg(env!("CARGO_BIN_EXE_spliced"));
    command.args(["forward", &front.to_string(), &back_address.to_string()]);
    let mut tool = Killed(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("it is served", LONG, || one_connection(front, 5));
    thread::scope(|scope| {
        for byte in 0..4 {
            scope.spawn(move || assert_eq!(one_connection(front, byte), Ok(())));
        }
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(tool.0.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let code = eventually("it ends", LONG, || tool.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
    assert_eq!(code.code(), Some(0));
    drop(echo);
}
