//! Datagrams that go round in a circle are dropped and counted, however they came to.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::UdpSocket;

use common::deadline::{LONG, until};
use common::dns::{Says, Scripted};
use common::peer::{Reserved, connect};
use common::spliced::{Launcher, Spliced};
use common::udp::{self, Echo, ask, client};

/// With the name `me.example`, which is 127.0.0.1; a circle by addresses would be refused when the file is read.
fn run(forwards: &str) -> (Spliced, Scripted) {
    let server = Scripted::start(Says::Addresses(vec![[127, 0, 0, 1].into()], 3600));
    let text = format!("workers: 2\nresolvers: \"{}\"\nforwards:\n{forwards}", server.address());
    let spliced = Launcher::config(&text).start();
    until("the name is known", LONG, || {
        spliced.stats().0["names"][0]["addresses"].as_array().is_some_and(|all| !all.is_empty())
    });
    (spliced, server)
}

fn drops(spliced: &Spliced, cause: &str) -> u64 {
    spliced.stats().0["total"]["datagrams"]["drops"][cause].as_u64().unwrap_or(0)
}

/// A circle is found within eight hops; each has a flow.
fn ends_soon(spliced: &Spliced) {
    until("the circle is found", LONG, || drops(spliced, "loop") == 1);
    let stats = spliced.stats();
    assert!(stats.open() <= 8, "{} flows", stats.open());
    assert_eq!(stats.number("/total/datagrams/drops/loop"), 1);
}

#[test]
fn a_name_that_leads_back_to_the_forward_ends_after_one_flow() {
    let port = udp::port();
    let (spliced, _server) = run(&format!("  - {{ listen: \"udp:127.0.0.1:{port}\", to: \"me.example:{port}\" }}\n"));
    client(([127, 0, 0, 1], port).into()).send(b"round").expect("sent");
    ends_soon(&spliced);
    assert_eq!(spliced.stats().open(), 1);
}

#[test]
fn a_circle_of_two_forwards_ends() {
    let (a, b) = (udp::port(), udp::port());
    let forward = |from: u16, to: u16| format!("  - {{ listen: \"udp:127.0.0.1:{from}\", to: \"me.example:{to}\" }}\n");
    let (spliced, _server) = run(&[forward(a, b), forward(b, a)].concat());
    client(([127, 0, 0, 1], a).into()).send(b"round").expect("sent");
    ends_soon(&spliced);
}

#[test]
fn a_circle_of_datagrams_and_a_stream_ends() {
    let (stream, datagrams) = (Reserved::loopback(), udp::port());
    let port = stream.address().port();
    let (spliced, _server) = run(&format!(
        "  - {{ listen: \"127.0.0.1:{port}\", to: \"udp:me.example:{datagrams}\" }}\n  \
         - {{ listen: \"udp:127.0.0.1:{datagrams}\", to: \"tcp:me.example:{port}\" }}\n"
    ));
    client(([127, 0, 0, 1], datagrams).into()).send(b"round").expect("sent");
    let is_found = || drops(&spliced, "loop") + spliced.stats().ends("loop") == 1;
    until("the circle is found", LONG, is_found);
    // Another worker may take a connection before the one that makes it has written down that it is ours; the hops are
    // then counted anew. It is found all the same, long before it has used anything up.
    assert!(spliced.stats().open() <= 80, "{}", spliced.stats().0);
    // From the other end too.
    let mut begun = connect(stream.address());
    std::io::Write::write_all(&mut begun, &[0, 1, b'x']).expect("sent");
    until("the circle is found", LONG, || drops(&spliced, "loop") + spliced.stats().ends("loop") >= 2);
    assert!(spliced.stats().open() <= 160, "{}", spliced.stats().0);
}

#[test]
fn a_chain_that_ends_is_served() {
    let (echo, first, second) = (Echo::start(), udp::port(), udp::port());
    let (spliced, _server) = run(&format!(
        "  - {{ listen: \"udp:127.0.0.1:{first}\", to: \"me.example:{second}\" }}\n  \
         - {{ listen: \"udp:127.0.0.1:{second}\", to: \"{}\" }}\n",
        echo.address()
    ));
    for round in 0..50u8 {
        assert_eq!(ask(&client(([127, 0, 0, 1], first).into()), &[round]), [round]);
    }
    assert_eq!(drops(&spliced, "loop"), 0);
}

/// As a forged datagram would be: its answer would go to the target, which would answer that.
#[test]
fn a_target_is_no_client_of_its_own() {
    let target = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let (port, to) = (udp::port(), target.local_addr().expect("bound"));
    let (spliced, _server) = run(&format!(
        "  - {{ listen: \"udp:127.0.0.1:{port}\", to: [\"{to}\", \"127.0.0.1:9\", \"me.example:9\"] }}\n"
    ));
    target.send_to(b"ping", ("127.0.0.1", port)).expect("sent");
    ends_soon(&spliced);
    assert_eq!(spliced.stats().open(), 0);
}
