//! A worker that panics takes its own sessions with it, visibly, and nothing else; one that does so again and again ends
//! the process.
//!
//! The panics are real ones: a system call tells of more bytes than fit the buffer it was given, which no kernel does.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use common::deadline::{LONG, eventually, until};
use common::peer::{Echo, Reserved, accept, backend, connect, echoes, own_loopback};
use common::spliced::{Launcher, can_inject};
use common::strace::{Injection, can_attach};

/// Each worker's `n`th `recv` says that it got more than it had room for.
fn lying_recv(n: usize) -> String {
    format!("recvfrom:retval=1000000000:when={n}")
}

/// Whether a byte comes back; a reset is told from silence.
fn try_echo(mut stream: &TcpStream) -> Result<(), ErrorKind> {
    stream.write_all(b"x").map_err(|e| e.kind())?;
    match stream.read(&mut [0]) {
        Ok(1) => Ok(()),
        Ok(_) => panic!("a cut stream looks complete"),
        Err(e) => Err(e.kind()),
    }
}

#[test]
fn its_sessions_are_reset_and_another_takes_its_listeners() {
    if !can_attach() {
        return;
    }
    let (port, back) = (Reserved::loopback(), backend());
    let mut spliced = Launcher::forward(port.address(), back.local_addr().unwrap())
        .option("--workers", "1")
        .option("--engine", "copy")
        .start();
    // This worker alone: the main thread receives too, what it is asked through the control socket.
    let worker = spliced.process().thread_named("worker-0");
    let _injection = Injection::attach(worker, &[lying_recv(20)]).unwrap_or_else(|why| panic!("strace: {why}"));
    let sessions: Vec<_> = (0..3).map(|_| (connect(port.address()), accept(&back))).collect();
    let (mut client, mut server) = (&sessions[0].0, &sessions[0].1);
    let arrives = |_: &usize| client.write_all(b"x").is_ok() && server.read_exact(&mut [0]).is_ok();
    let arrived = (0..100).take_while(arrives).count();
    assert!((1..100).contains(&arrived), "{arrived} bytes arrived: some, until the worker was lied to");
    // Whoever connects meanwhile waits in the listener's queue.
    for (client, server) in &sessions[1..] {
        for mut end in [client, server] {
            assert_eq!(
                end.read(&mut [0]).unwrap_err().kind(),
                ErrorKind::ConnectionReset,
                "a cut stream must not look complete"
            );
        }
    }
    let client = connect(port.address());
    let server = accept(&back);
    (&client).write_all(b"x").unwrap();
    (&server).read_exact(&mut [0]).unwrap();
    let line =
        eventually("it is logged", LONG, || spliced.logged("worker 0 panicked: ").pop().ok_or_else(|| spliced.text()));
    assert!(line.contains("ERROR") && line.contains("out of range"), "with what it said: {line}");
    assert!(line.contains("its sessions were reset, and another worker has taken its place"), "{line}");
    let stats = spliced.stats();
    assert_eq!((stats.number("/worker_panics"), stats.ends("worker_panic"), stats.open()), (1, 3, 1));
    assert_eq!(stats.0.pointer("/workers/0/state").unwrap(), "running");
    assert!(spliced.runs());
}

/// Those of the other workers do not notice.
#[test]
fn sessions_of_other_workers_go_on() {
    if !can_inject() {
        return;
    }
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address())
        .option("--workers", "4")
        .option("--engine", "copy")
        .option("--gather", "off")
        .inject(&[&lying_recv(21)])
        .start();
    // Spread over the workers by their load.
    let clients: Vec<_> = (0..16).map(|_| connect(port.address())).collect();
    clients.iter().for_each(|client| try_echo(client).expect("before any panic"));
    let first = clients.iter().position(|client| (0..20).any(|_| try_echo(client).is_err())).expect("a worker panics");
    assert_eq!(first, 0, "the first session alone had its worker read so often");
    let dead = clients.iter().filter(|client| try_echo(client).is_err()).count();
    assert!((1..=8).contains(&dead), "{dead} of 16 sessions on four workers are gone");
    spliced.stats_until("all of them are counted, and one panic", |stats| {
        (stats.number("/worker_panics"), stats.ends("worker_panic")) == (1, dead as u64)
    });
}

/// Ports of a large range have one listener each: its worker's end is not theirs.
#[test]
fn ports_that_are_dealt_to_workers_survive_theirs() {
    if !can_inject() {
        return;
    }
    let (echo, ip, first) = (Echo::start(backend()), own_loopback(), 10_000);
    let config = format!(
        "workers: 2\nengine: copy\ngather: off\nforwards:\n  - {{ name: range, listen: \"{ip}:{first}-{}\", to: \"{}\" }}\n",
        first + 19,
        echo.address()
    );
    let spliced = Launcher::config(&config).inject(&[&lying_recv(60)]).start();
    let ports = || (first..first + 20).map(|port| SocketAddr::from((ip, port)));
    let mut served = 0;
    // Each round every port is tried until it has answered; panics cut some of them.
    while spliced.stats().number("/worker_panics") < 2 {
        for port in ports() {
            until("the port is served", LONG, || try_echo(&connect(port)).is_ok());
            served += 1;
        }
    }
    ports().for_each(|port| until("the port is served", LONG, || try_echo(&connect(port)).is_ok()));
    assert!(served >= 20);
}

#[test]
fn after_five_in_a_minute_the_process_gives_up() {
    if !can_inject() {
        return;
    }
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let mut spliced = Launcher::forward(port.address(), echo.address())
        .option("--workers", "1")
        .option("--engine", "copy")
        .inject(&[&lying_recv(3)])
        .start();
    let mut resets = 0;
    eventually("the process ends", LONG, || {
        if !spliced.runs() {
            return Ok(());
        }
        if let Ok(client) = TcpStream::connect(port.address()) {
            client.set_read_timeout(Some(LONG)).unwrap();
            resets += u32::from((0..3).any(|_| try_echo(&client).is_err()));
        }
        Err(format!("{resets} sessions were reset"))
    });
    let text = {
        assert_eq!(spliced.wait(LONG).code(), Some(1));
        spliced.text()
    };
    assert_eq!(spliced.logged("worker 0 panicked: ").len(), 5, "{text}");
    assert!(text.contains("threads panicked again and again"), "{text}");
}

#[test]
fn a_poller_that_fails_is_a_panic_too() {
    if !can_inject() {
        return;
    }
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address())
        .option("--workers", "2")
        .inject(&["epoll_wait:error=EBADF:when=12"])
        .start_without_control();
    let served = || echoes(&connect(port.address()), 1, LONG);
    until("a poller has failed", LONG, || {
        let _ = served();
        !spliced.logged("its poller failed: ").is_empty()
    });
    until("another worker serves", LONG, served);
}
