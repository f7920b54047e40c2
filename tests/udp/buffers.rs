//! What waits for us in the kernel: how much may, and that what finds no room is counted.

#![cfg(all(target_os = "linux", not(spliced_portable)))]

use crate::common;

use std::net::SocketAddr;
use std::process::Command;

use common::deadline::{LONG, until};
use common::spliced::{Launcher, Spliced, ordinary_user};
use common::udp::{self, Echo, ask, client};
use nix::sys::signal::Signal;

fn config(listen: SocketAddr, to: SocketAddr, more: &str) -> String {
    format!("workers: 2\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: \"{to}\"{more}}}\n")
}

/// Receive and send buffers of every socket bound there, as the kernel has them: twice what was given.
fn buffers(listen: SocketAddr) -> Vec<(usize, usize)> {
    let output = Command::new("ss").args(["-Huanm"]).output().expect("iproute2 is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |line: &str, key: &str| {
        let at = line.find(key).unwrap_or_else(|| panic!("{key} in {line}")) + key.len();
        line[at..].split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let lines = text.replace("\n\t", " ");
    let own = lines.lines().filter(|line| line.split_whitespace().nth(3) == Some(&listen.to_string()));
    own.map(|line| (number(line, ",rb"), number(line, ",tb"))).collect()
}

fn limit(name: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).expect("the kernel has it");
    text.trim().parse().expect("a number")
}

const SAID: &str = "have a receive buffer of ";

#[test]
fn listeners_have_large_buffers_or_it_is_said_why_not() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = Launcher::config(&config(listen, echo.address(), "")).start();
    let most = 4 << 20;
    match spliced.logged(SAID).as_slice() {
        [] => assert_eq!(buffers(listen), [(2 * most, 2 * most); 2]),
        [line] => {
            assert!(line.contains("net.core.rmem_max=4194304") && line.contains("instead of 4096 KiB"), "{line}");
            assert!(buffers(listen).iter().all(|(receive, _)| *receive == 2 * limit("rmem_max")));
        }
        several => panic!("once: {several:?}"),
    }
    // A reload of the rest changes nothing, also where the rights that gave them are gone.
    let before = buffers(listen);
    spliced.reload_with(&config(listen, echo.address(), ", udp_timeout: 7s"));
    assert_eq!(buffers(listen), before);
    spliced.reload_with(&config(listen, echo.address(), ", receive_buffer: 16KiB, send_buffer: 32KiB"));
    assert_eq!(buffers(listen), [(32 << 10, 64 << 10); 2]);
    assert_eq!(ask(&client(listen), b"x"), b"x");
}

#[test]
fn without_the_right_it_is_said_that_the_kernel_gave_less() {
    let (echo, listen) = (Echo::start(), udp::address());
    let launcher = Launcher::config(&config(listen, echo.address(), ", receive_buffer: 512MiB"));
    let is_root = nix::unistd::geteuid().is_root();
    let launcher = if is_root { launcher.user(ordinary_user()) } else { launcher };
    let spliced = launcher.start();
    let said = spliced.logged(SAID);
    assert_eq!(said.len(), 1, "once for a forward: {}", spliced.text());
    let given = limit("rmem_max") / 1024;
    assert!(said[0].contains(&format!("of {given} KiB instead of 524288 KiB")), "{}", said[0]);
    assert!(said[0].contains("WARN"), "it was asked for: {}", said[0]);
    assert_eq!(ask(&client(listen), b"x"), b"x");
}

fn drops(spliced: &Spliced) -> u64 {
    spliced.stats().number("/total/datagrams/drops/socket")
}

#[test]
fn what_finds_the_queue_full_is_counted() {
    let (echo, listen) = (Echo::start(), udp::address());
    let spliced = Launcher::config(&config(listen, echo.address(), ", receive_buffer: 16KiB")).start();
    let client = client(listen);
    assert_eq!(ask(&client, b"before"), b"before");
    assert_eq!(drops(&spliced), 0);
    let status = format!("/proc/{}/stat", spliced.stats().number("/pid"));
    spliced.signal(Signal::SIGSTOP);
    until("it has stopped", LONG, || std::fs::read_to_string(&status).expect("it is there").contains(") T "));
    (0..300).for_each(|_| _ = client.send(&[7; 1000]).expect("sent"));
    spliced.signal(Signal::SIGCONT);
    spliced.stats_until("what had room is passed on", |stats| stats.number("/total/datagrams/client_to_backend") > 1);
    // The next one that has room brings the count along.
    let sent = std::cell::Cell::new(301);
    spliced.stats_until("each is passed on or counted", |stats| {
        let passed = stats.number("/total/datagrams/client_to_backend");
        let lost = stats.number("/total/datagrams/drops/socket");
        if passed + lost < sent.get() {
            client.send(b"one more").expect("sent");
            sent.set(sent.get() + 1);
        }
        // One of somebody else that comes by may be lost too.
        lost > 200 && (sent.get()..=sent.get() + 2).contains(&(passed + lost))
    });
    let (_, table) = spliced.ask("stats", &[]);
    assert!(table.contains("  drops            socket "), "{table}");
}
