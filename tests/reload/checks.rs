//! A check that is on its way when a reload changes what it asks for ends as the new configuration says, and the others
//! go on.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use common::deadline::LONG;
use common::peer::{Reserved, accept, backend};
use common::spliced::Launcher;
use nix::sys::signal::Signal;

fn config(port: &Reserved, to: SocketAddr, check: &str) -> String {
    format!("forwards: [{{ name: it, listen: \"{}\", to: \"{to}\", check: {check} }}]\n", port.address())
}

/// The next check, which has said what it is to say.
fn check(target: &TcpListener) -> TcpStream {
    let mut stream = accept(target);
    let mut said = [0; 4];
    stream.read_exact(&mut said).expect("what the check says");
    assert_eq!(&said, b"PING");
    stream
}

#[test]
fn an_answer_that_nobody_waits_for_any_more_is_a_good_one() {
    let (port, target) = (Reserved::loopback(), backend());
    let to = target.local_addr().expect("bound");
    let asks = "{ send: PING, expect: +PONG, interval: 100ms, timeout: 10s }";
    let mut spliced = Launcher::config(&config(&port, to, asks)).start();
    let mut waiting = check(&target);
    // Something of an answer has been heard.
    waiting.write_all(b"+P").expect("a few bytes");
    spliced.reload_with(&config(&port, to, "{ interval: 100ms, timeout: 10s }"));
    waiting.write_all(b"O").expect("a few bytes");
    // Others follow, which only connect.
    (0..3).for_each(|_| drop(accept(&target)));
    let targets = "/forwards/0/targets/0";
    let stats = spliced.stats_until("checks go on", |stats| stats.number(&format!("{targets}/checks")) >= 3);
    assert_eq!(stats.number(&format!("{targets}/checks_failed")), 0, "{}", spliced.text());
    spliced.signal(Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert!(spliced.logged("panicked").is_empty());
}
