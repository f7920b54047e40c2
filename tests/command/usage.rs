//! What cannot start says why, with what can be done, by its exit code too, and leaves nothing half-started.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};

use common::cannot_run;
use common::peer::{Reserved, backend};
use common::spliced::{Launcher, Outcome, ordinary_user};
use nix::unistd::Uid;

/// An exit code, and every text in the message, which is short.
fn fails(outcome: &Outcome, code: i32, texts: &[&str]) {
    let text = &outcome.text;
    assert_eq!(outcome.code, Some(code), "exit code; it wrote: {text}");
    for part in texts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    for bad in ["panicked", "RUST_BACKTRACE", "ready:"] {
        assert!(!text.contains(bad), "{bad:?} in: {text}");
    }
}

fn somewhere() -> SocketAddr {
    Reserved::loopback().address()
}

#[test]
fn the_address_is_in_use() {
    let other = backend();
    let taken = other.local_addr().expect("bound");
    let outcome = Launcher::forward(taken, somewhere()).outcome();
    fails(&outcome, 1, &[&taken.to_string(), "in use"]);
}

/// SO_REUSEPORT would let two of them share the port, each getting some of the connections.
#[test]
fn another_spliced_has_the_address() {
    let (port, target) = (Reserved::loopback(), backend());
    let target = target.local_addr().expect("bound");
    let first = Launcher::forward(port.address(), target).start();
    let outcome = Launcher::forward(port.address(), target).outcome();
    fails(&outcome, 1, &[&port.address().to_string(), "in use"]);
    first.finish();
}

/// The first of two forwards could be bound, the second cannot: the first must not have served anybody.
#[test]
fn nothing_is_half_started() {
    let (free, taken, target) = (Reserved::loopback(), backend(), backend());
    let (free, taken) = (free.address(), taken.local_addr().expect("bound"));
    let to = target.local_addr().expect("bound");
    let config =
        format!("forwards:\n  - {{ listen: \"{free}\", to: \"{to}\" }}\n  - {{ listen: \"{taken}\", to: \"{to}\" }}\n");
    let launcher = Launcher::config(&config);
    let (outcome, ever) = std::thread::scope(|scope| {
        let run = scope.spawn(|| launcher.outcome());
        let mut ever = false;
        while !run.is_finished() {
            ever |= TcpStream::connect(free).is_ok();
        }
        (run.join().expect("no panic"), ever)
    });
    fails(&outcome, 1, &[&taken.to_string(), "in use"]);
    assert!(!ever, "it took a connection on {free} although it could not start");
    assert!(TcpListener::bind(free).is_err() || TcpStream::connect(free).is_err(), "{free} is left as it was");
}

#[test]
fn the_address_is_not_of_this_host() {
    // Kept for documentation, so no host has it.
    let missing: SocketAddr = "192.0.2.77:9000".parse().expect("an address");
    let outcome = Launcher::forward(missing, somewhere()).outcome();
    fails(&outcome, 1, &["192.0.2.77:9000", "no interface"]);
}

#[test]
fn a_privileged_port_as_an_ordinary_user() {
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first_free.trim() == "0" {
        return cannot_run("net.ipv4.ip_unprivileged_port_start is 0 here, no port is privileged");
    }
    let launcher = Launcher::forward("127.0.0.1:80".parse().expect("an address"), somewhere());
    let launcher = if Uid::effective().is_root() { launcher.user(ordinary_user()) } else { launcher };
    fails(&launcher.outcome(), 1, &["127.0.0.1:80", "ermission denied", "CAP_NET_BIND_SERVICE"]);
}

#[test]
fn a_control_socket_that_cannot_be_made() {
    let outcome =
        Launcher::forward(somewhere(), somewhere()).option("--control", "/proc/no-such-place/control.sock").outcome();
    fails(&outcome, 1, &["/proc/no-such-place/control.sock"]);
}

#[test]
fn wrong_usage() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["Usage"]),
        (&["frobnicate"], &["frobnicate"]),
        (&["forward", "127.0.0.1:9000"], &["TARGET"]),
        (&["forward", "127.0.0.1:0", "127.0.0.1:9001"], &["LISTEN", "port 0", "65535"]),
        (&["forward", "127.0.0.1:9000", "127.0.0.1:0"], &["TARGET", "port 0", "65535"]),
        (&["forward", "127.0.0.1:70000", "127.0.0.1:9001"], &["70000"]),
        (&["forward", "127.0.0.1", "127.0.0.1:9001"], &["127.0.0.1"]),
        (&["forward", "127.0.0.1:9000", "127.0.0.1:9001", "--engine", "warp"], &["warp", "auto", "splice", "copy"]),
        (&["forward", "127.0.0.1:9000", "127.0.0.1:9001", "--no-such-option"], &["--no-such-option"]),
        (&["forward", "127.0.0.1:9000", "127.0.0.1:9001", "--pipe-size", "lots"], &["lots"]),
        (&["forward", "127.0.0.1:9000", "127.0.0.1:9001", "--workers", "0"], &["0"]),
        (&["run"], &["--config"]),
        (&["run", "--config", "/no/such/file.yaml"], &["/no/such/file.yaml"]),
        (&["check", "--config", "/no/such/file.yaml"], &["/no/such/file.yaml"]),
        (&["convert", "/no/such/file.conf"], &["/no/such/file.conf"]),
    ];
    for (arguments, texts) in cases {
        let outcome = Launcher::with_arguments(arguments.iter().copied()).outcome();
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.text);
        fails(&outcome, 2, texts);
    }
}

#[test]
fn a_file_that_is_wrong_is_named_with_line_and_column() {
    let outcome =
        Launcher::config("workers: 2\nforwards:\n  - listen: 127.0.0.1:9000\n    too: 127.0.0.1:9001\n").outcome();
    fails(&outcome, 2, &["spliced.yaml:4:5:", "too", "to"]);
}
