//! A thread beside the workers that panics goes on with its work, visibly and however often it does, and sessions go on.
//! The control thread, whose work nobody else can do, ends the process.
//!
//! The panics are real ones: a system call tells of more bytes than fit the buffer it was given, which no kernel does.

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};

use common::deadline::{LONG, eventually, until};
use common::dns::{Says, Scripted};
use common::peer::{Echo, Reserved, accept, backend, connect, echoes};
use common::spliced::{Launcher, Spliced};
use common::strace::{Injection, can_attach};

/// So many calls from the `n`th on tell of more than there was room for.
fn lies(call: &str, when: &str) -> String {
    format!("{call}:retval=1000000000:when={when}")
}

fn inject(spliced: &Spliced, thread: &str, fault: &str) -> Injection {
    let thread = spliced.process().thread_named(thread);
    Injection::attach(thread, &[fault]).unwrap_or_else(|why| panic!("strace: {why}"))
}

/// It is counted and logged, once and as what it was.
fn is_told(spliced: &Spliced, thread: &str) {
    let line = eventually("it is logged", LONG, || {
        spliced.logged(&format!("thread {thread:?} panicked: ")).pop().ok_or_else(|| spliced.text())
    });
    assert!(line.contains("ERROR") && line.contains("it goes on with what it had"), "{line}");
    let stats = spliced.stats_until("it is counted", |stats| stats.number("/helper_panics") == 1);
    assert_eq!((stats.number("/worker_panics"), stats.ends("worker_panic")), (0, 0));
}

/// The state of a target, in stats.
fn state(spliced: &Spliced, target: usize) -> String {
    spliced.stats().0["forwards"][0]["targets"][target]["state"].as_str().expect("a state").to_owned()
}

fn checked(port: &Reserved, targets: [SocketAddr; 2]) -> String {
    let [first, second] = targets;
    format!(
        "workers: 1\nforwards:\n  - name: test\n    listen: \"{}\"\n    to: [\"{first}\", \"{second}\"]\n    \
         check: {{ send: ping, expect: ping, interval: 100ms, timeout: 2s, rise: 1, fall: 1 }}\n",
        port.address()
    )
}

#[test]
fn targets_go_on_being_checked() {
    if !can_attach() {
        return;
    }
    let (port, echo, other) = (Reserved::loopback(), Echo::start(backend()), Reserved::loopback());
    let spliced = Launcher::config(&checked(&port, [echo.address(), other.address()])).start();
    until("nobody is there yet", LONG, || state(&spliced, 1) == "DOWN" && state(&spliced, 0) == "UP");
    let session = connect(port.address());
    let injection = inject(&spliced, "checks", &lies("recvfrom", "1"));
    is_told(&spliced, "checks");
    injection.detach();
    assert_eq!((state(&spliced, 0).as_str(), state(&spliced, 1).as_str()), ("UP", "DOWN"), "what was known is kept");
    let listener = std::net::TcpListener::bind(other.address()).expect("our own port");
    let _late = Echo::start(listener);
    until("it is seen", LONG, || state(&spliced, 1) == "UP");
    assert!(echoes(&session, 1, LONG), "a session has not noticed");
    // Another list reaches it as well.
    spliced.reload_with(&checked(&port, [echo.address(), Reserved::loopback().address()]));
    until("nobody is there", LONG, || state(&spliced, 1) == "DOWN");
}

#[test]
fn a_poller_of_checks_that_fails_is_a_panic_too() {
    if !can_attach() {
        return;
    }
    let (port, echo, other) = (Reserved::loopback(), Echo::start(backend()), Reserved::loopback());
    let spliced = Launcher::config(&checked(&port, [echo.address(), other.address()])).start();
    let injection = inject(&spliced, "checks", "epoll_wait:error=EBADF:when=1");
    is_told(&spliced, "checks");
    injection.detach();
    assert_eq!(spliced.logged("its poller failed: ").len(), 1);
    let listener = std::net::TcpListener::bind(other.address()).expect("our own port");
    let _late = Echo::start(listener);
    until("it is seen", LONG, || state(&spliced, 1) == "UP");
}

fn addresses(spliced: &Spliced) -> Vec<String> {
    let all = spliced.stats().0["names"][0]["addresses"].as_array().expect("a list").clone();
    all.iter().map(|address| address.as_str().expect("text").to_owned()).collect()
}

fn named(port: &Reserved, server: SocketAddr) -> String {
    format!(
        "workers: 1\nresolvers: \"{server}\"\nresolve_interval: 100ms\nforwards:\n  - {{ name: test, listen: \"{}\", \
         to: \"web.example:9\" }}\n",
        port.address()
    )
}

#[test]
fn names_go_on_being_looked_up() {
    if !can_attach() {
        return;
    }
    let address = |ip: &str| -> Vec<IpAddr> { vec![ip.parse().expect("an address")] };
    let (port, server) = (Reserved::loopback(), Scripted::start(Says::Addresses(address("127.0.0.1"), 1)));
    let spliced = Launcher::config(&named(&port, server.address())).start();
    until("it is known", LONG, || addresses(&spliced) == ["127.0.0.1"]);
    let injection = inject(&spliced, "resolver", &lies("recvfrom", "1"));
    is_told(&spliced, "resolver");
    injection.detach();
    spliced.stats_until("it is a failed look-up", |stats| stats.number("/names/0/failures") == 1);
    assert_eq!(spliced.logged("its last addresses stay in use").len(), 1, "{}", spliced.text());
    server.set(Says::Addresses(address("127.0.0.2"), 1));
    until("it is looked up again", LONG, || addresses(&spliced) == ["127.0.0.2"]);
}

/// A line that cannot be written costs that line: the lock of the logger, which every thread needs, stays usable.
#[test]
fn a_panic_in_the_logger_costs_a_line() {
    if !can_attach() {
        return;
    }
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let spliced = Launcher::forward(port.address(), echo.address()).option("--workers", "1").start();
    let session = || assert!(echoes(&connect(port.address()), 1, LONG));
    let injection = inject(&spliced, "session-log", &lies("write", "1"));
    session();
    until("the line is lost", LONG, || injection.met() == 1);
    injection.detach();
    session();
    until("the next one is logged", LONG, || !spliced.logged("reason=done").is_empty());
    assert_eq!(spliced.logged("1 lines were dropped here").len(), 1, "{}", spliced.text());
    let stats = spliced.stats();
    assert_eq!((stats.number("/helper_panics"), stats.number("/worker_panics")), (0, 0));
}

#[test]
fn however_often_it_panics_sessions_go_on() {
    if !can_attach() {
        return;
    }
    let (port, echo, other) = (Reserved::loopback(), Echo::start(backend()), Reserved::loopback());
    let spliced = Launcher::config(&checked(&port, [echo.address(), other.address()])).start();
    until("nobody is there yet", LONG, || state(&spliced, 1) == "DOWN" && state(&spliced, 0) == "UP");
    let session = connect(port.address());
    let injection = inject(&spliced, "checks", &lies("recvfrom", "1+"));
    // More than of workers, which end the process at the fifth.
    spliced.stats_until("it panics again and again", |stats| stats.number("/helper_panics") == 6);
    assert!(echoes(&session, 1, LONG) && echoes(&connect(port.address()), 1, LONG), "{}", spliced.text());
    injection.detach();
    let listener = std::net::TcpListener::bind(other.address()).expect("our own port");
    let _late = Echo::start(listener);
    until("it is seen once it can be", LONG, || state(&spliced, 1) == "UP");
    assert_eq!(spliced.stats().number("/worker_panics"), 0);
}

/// Nobody else can do what the control thread does. Its end is an orderly one: no cut stream looks complete.
#[test]
fn the_control_thread_ends_the_process_and_sessions_are_reset() {
    if !can_attach() {
        return;
    }
    let (port, back) = (Reserved::loopback(), backend());
    let mut spliced = Launcher::forward(port.address(), back.local_addr().unwrap()).option("--workers", "1").start();
    let (mut client, mut server) = (connect(port.address()), accept(&back));
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // It takes its time to hear that it is to end, longer than the session log is waited for.
    let _slow = inject(&spliced, "worker-0", "epoll_wait:delay_exit=2500000");
    let process = spliced.process().0;
    let _injection = Injection::attach(process, &[lies("recvfrom", "1")]).unwrap_or_else(|why| panic!("strace: {why}"));
    let mut asking = std::os::unix::net::UnixStream::connect(spliced.control()).expect("it listens");
    asking.write_all(b"stats\n").expect("it is there");
    for end in [&mut client, &mut server] {
        assert_eq!(end.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "a cut stream looks complete");
    }
    assert_eq!(spliced.wait(LONG).code(), Some(1));
    let text = spliced.text();
    assert!(text.contains("spliced: the control thread panicked: ") && text.contains("Please report this"), "{text}");
}
