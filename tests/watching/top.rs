//! `spliced top` in a real terminal: it draws, obeys keys, outlives the instance it watches and leaves the terminal as
//! it was.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use common::deadline::{LONG, eventually};
use common::peer::{Echo, Reserved, backend, connect, echoes};
use common::spliced::Launcher;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A terminal with `spliced top` in it.
struct Terminal {
    child: Child,
    keys: File,
    screen: Arc<Mutex<vt100::Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn start(control: &Path, (columns, rows): (u16, u16), variables: &[(&str, &str)]) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let handle = || File::from(pty.slave.try_clone().unwrap());
        // The terminal must be the child's own: without one it would ask that of whoever runs this test for its size.
        let mut command = Command::new("setsid");
        command.args(["--ctty", env!("CARGO_BIN_EXE_spliced"), "top", "--control"]).arg(control);
        command.env_remove("NO_COLOR").env("TERM", "xterm-256color").envs(variables.iter().copied());
        let child = command.stdin(handle()).stdout(handle()).stderr(handle()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let mut master = File::from(pty.master);
        let keys = master.try_clone().unwrap();
        let reader = thread::spawn({
            let screen = Arc::clone(&screen);
            move || {
                let mut bytes = [0; 4096];
                // EIO once the last holder of the other side is gone.
                while let Ok(n @ 1..) = master.read(&mut bytes) {
                    screen.lock().unwrap().process(&bytes[..n]);
                }
            }
        });
        Self { child, keys, screen, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn shows(&self, what: &str) -> String {
        eventually(what, LONG, || {
            let text = self.text();
            if text.contains(what) { Ok(text) } else { Err(format!("the screen is\n{text}")) }
        })
    }

    fn hides(&self, what: &str) {
        eventually(what, LONG, || {
            let text = self.text();
            if text.contains(what) { Err(format!("the screen is\n{text}")) } else { Ok(()) }
        });
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn coloured(&self) -> bool {
        let screen = self.screen.lock().unwrap();
        let (rows, columns) = screen.screen().size();
        let mut places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        places.any(|(row, column)| {
            screen.screen().cell(row, column).is_some_and(|cell| cell.fgcolor() != vt100::Color::Default)
        })
    }

    /// Waits for the end; the terminal must be the user's again.
    fn end(mut self) -> ExitStatus {
        let status = eventually("top ends", LONG, || self.child.try_wait().unwrap().ok_or_else(|| self.text()));
        self.reader.take().unwrap().join().unwrap();
        let screen = self.screen.lock().unwrap();
        assert!(!screen.screen().alternate_screen(), "the first screen is back");
        assert!(!screen.screen().hide_cursor(), "the cursor is back");
        drop(screen);
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that go round for as long as it lives.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    fn start(stream: TcpStream) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(echoes(&stream, 7, LONG));
                    thread::park_timeout(std::time::Duration::from_millis(2));
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

#[test]
fn it_is_live_and_outlives_a_restart() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control.sock");
    let config = format!("forwards: [{{ name: web, listen: \"{}\", to: \"{}\" }}]\n", port.address(), echo.address());
    let start = || Launcher::config(&config).start_at(&control);
    let mut terminal = Terminal::start(&control, (80, 24), &[]);
    terminal.shows("no answer, trying again: control socket");

    let mut first = start();
    terminal.shows(&format!("process {}", first.process().0));
    let traffic = Traffic::start(connect(port.address()));
    let text = terminal.shows("sessions 1 ");
    assert!(text.lines().any(|line| line.starts_with("web ")), "{text}");
    eventually("a rate", LONG, || {
        let text = terminal.text();
        let row = text.lines().find(|line| line.starts_with("web ")).unwrap_or("").to_owned();
        let cells: Vec<_> = row.split_whitespace().collect();
        // Ping-pong of single bytes goes by copy.
        if cells.get(1).is_some_and(|up| *up != "0") && cells.get(3) == Some(&"0%") { Ok(()) } else { Err(text) }
    });
    assert!(terminal.coloured());

    terminal.press("h");
    terminal.shows("┌ help ");
    terminal.press("h");
    terminal.hides("┌ help ");
    terminal.press("\x1b[C");
    terminal.shows("FORWARD▼");
    terminal.press("p");
    terminal.shows("paused: p goes on");
    terminal.press("p");
    terminal.hides("paused: p goes on");

    drop(traffic);
    first.signal(Signal::SIGTERM);
    first.wait(LONG);
    terminal.shows("no answer, trying again: control socket");
    let second = start();
    let text = terminal.shows("another instance answers now");
    assert!(text.contains(&format!("process {}", second.process().0)), "{text}");

    terminal.press("q");
    assert_eq!(terminal.end().code(), Some(0));
    second.finish();
}

#[test]
fn a_large_terminal_without_colours() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).start();
    let mut terminal = Terminal::start(spliced.control(), (120, 40), &[("NO_COLOR", "1")]);
    terminal.shows(&format!("{} → {}", port.address(), echo.address()));
    terminal.shows("FIRST BYTE");
    assert!(!terminal.coloured(), "NO_COLOR");
    terminal.press("\x03");
    assert_eq!(terminal.end().code(), Some(0));
    spliced.finish();
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let terminal = Terminal::start(Path::new("/nonexistent/control.sock"), (80, 24), &[]);
    terminal.shows("no answer");
    // setsid(1) has become the program.
    kill(Pid::from_raw(i32::try_from(terminal.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(terminal.end().code(), Some(0));
}

#[test]
fn without_a_terminal_it_is_text() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).start();
    let top = |control: &Path| {
        Command::new(env!("CARGO_BIN_EXE_spliced")).args(["top", "--control"]).arg(control).output().unwrap()
    };
    let output = top(spliced.control());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("spliced ") && text.contains("up bit/s") && text.contains("workers busy"), "{text}");
    assert!(text.contains(&port.address().to_string()) && !text.contains('\x1b'), "{text}");
    let output = top(Path::new("/nonexistent/control.sock"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nonexistent/control.sock") && text.contains("is spliced running"), "{text}");
    spliced.finish();
}

/// A target that a reload takes out has sessions left: it is in sight until the last one ends, and told from those that
/// take new ones.
#[test]
fn targets_that_are_gone_are_shown_with_their_sessions() {
    let (port, first, second) = (Reserved::loopback(), Echo::start(backend()), Echo::start(backend()));
    let directory = tempfile::tempdir().unwrap();
    let (file, control) = (directory.path().join("spliced.yaml"), directory.path().join("control.sock"));
    let write = |to: &str| {
        let (listen, control) = (port.address(), control.display());
        let forward = format!("{{ name: web, listen: \"{listen}\", to: \"{to}\" }}");
        std::fs::write(&file, format!("control: {control}\nworkers: 2\nforwards: [{forward}]\n")).unwrap();
    };
    write(&first.address().to_string());
    let spliced = Launcher::file(&file).start_at(&control);
    let client = connect(port.address());
    assert!(echoes(&client, 1, LONG));
    let name = format!("localhost:{}", second.address().port());
    write(&name);
    let (code, said) = spliced.ask("reload", &[]);
    assert_eq!(code, Some(0), "{said}");
    let new = connect(port.address());
    assert!(echoes(&new, 2, LONG) && echoes(&client, 3, LONG));

    let once = || {
        let output = Command::new(env!("CARGO_BIN_EXE_spliced"))
            .args(["top", "--once", "--control"])
            .arg(&control)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let text = once();
    let gone = format!("target {} of web is GONE, 1 open", first.address());
    let named = format!("target {name} ({}) of web is UP, 1 open", second.address());
    assert!(text.contains(&gone) && text.contains(&named), "{gone}; {named} in\n{text}");
    let (_, stats) = spliced.ask("stats", &[]);
    assert!(stats.lines().any(|line| line.contains(&first.address().to_string()) && line.contains("GONE")), "{stats}");
    let mut terminal = Terminal::start(&control, (80, 24), &[]);
    terminal.shows(" peak ");
    terminal.press("t");
    let text = terminal.shows(" targets of web ");
    let line = |address: &str| text.lines().find(|line| line.starts_with(&format!(" {address}"))).map(str::to_owned);
    let shown = line(&format!("{name} ({})", second.address())).unwrap_or_else(|| panic!("{text}"));
    assert!(shown.split_whitespace().rev().take(2).eq(["1", "UP"]), "{text}");
    let shown = line(&first.address().to_string()).unwrap_or_else(|| panic!("{text}"));
    assert!(shown.split_whitespace().rev().take(2).eq(["1", "GONE"]), "{text}");

    // Back again while it has that session, it is there once and takes new ones; the other one is gone.
    write(&first.address().to_string());
    let (code, said) = spliced.ask("reload", &[]);
    assert_eq!(code, Some(0), "{said}");
    let third = connect(port.address());
    assert!(echoes(&third, 4, LONG));
    let text = once();
    let gone = format!("target {name} ({}) of web is GONE, 1 open", second.address());
    let back = format!("target {} of web is UP, 2 open", first.address());
    assert!(text.contains(&gone) && text.contains(&back), "{gone}; {back} in\n{text}");
    assert_eq!(text.matches(&format!("target {} of", first.address())).count(), 1, "{text}");
    drop((client, third, new));
    eventually("it leaves with its last session", LONG, || {
        let text = once();
        if text.contains("GONE") { Err(text) } else { Ok(()) }
    });
    terminal.press("q");
    assert_eq!(terminal.end().code(), Some(0));
    spliced.finish();
}

/// Closing a window, or a connection that breaks, takes the terminal away and sends a signal.
#[test]
fn it_ends_with_its_terminal() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).start();
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    // No program that is started here may keep it open.
    fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    let handle = || File::from(pty.slave.try_clone().unwrap());
    let mut command = Command::new("setsid");
    command.args(["--ctty", env!("CARGO_BIN_EXE_spliced"), "top", "--control"]).arg(spliced.control());
    let mut child = command.env("TERM", "xterm").stdin(handle()).stdout(handle()).stderr(handle()).spawn().unwrap();
    drop((command, pty.slave));
    let mut master = File::from(pty.master);
    // It draws, so it is about to read keys.
    assert!(master.read(&mut [0; 4096]).unwrap() > 0);
    drop(master);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("top ends", LONG, || child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()))
    }));
    let _ = child.kill();
    let _ = child.wait();
    assert!(ended.is_ok());
    spliced.finish();
}
