//! A name that has the address of no host in particular leads to this host: a circle by it is found as any other.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::IpAddr;

use common::deadline::{LONG, until};
use common::dns::{Says, Scripted};
use common::peer::{Reserved, connect_or_reset, end_of};
use common::spliced::{Launcher, Spliced};
use common::udp;

/// One forward to `me.example` with that address.
fn run(listen: &str, port: u16, ip: &str) -> (Spliced, Scripted) {
    let ip: IpAddr = ip.parse().expect("an address");
    let server = Scripted::start(Says::Addresses(vec![ip], 3600));
    let text = format!(
        "workers: 2\nresolvers: \"{}\"\nforwards: [{{ listen: \"{listen}:{port}\", to: \"me.example:{port}\" }}]\n",
        server.address()
    );
    let spliced = Launcher::config(&text).start();
    until("the name is known", LONG, || {
        spliced.stats().0["names"][0]["addresses"].as_array().is_some_and(|all| !all.is_empty())
    });
    (spliced, server)
}

#[test]
fn sessions_end_after_one_round() {
    for (reserved, listen, ip) in [
        (Reserved::loopback(), "127.0.0.1", "0.0.0.0"),
        (Reserved::on("[::1]:0".parse().expect("an address")), "[::1]", "::"),
    ] {
        let (spliced, _server) = run(listen, reserved.address().port(), ip);
        if let Some(client) = connect_or_reset(reserved.address()) {
            assert!(end_of(&client).is_err(), "it is reset");
        }
        spliced.stats_until("nothing is left", |stats| stats.open() == 0);
        let stats = spliced.stats();
        assert_eq!(stats.ends("loop"), 1, "{ip}: {}", stats.0);
        assert!(stats.number("/total/sessions_accepted") <= 8, "{ip}: {}", stats.0);
    }
}

#[test]
fn datagrams_end_after_one_flow() {
    let port = udp::port();
    let (spliced, _server) = run("udp:127.0.0.1", port, "0.0.0.0");
    udp::client(([127, 0, 0, 1], port).into()).send(b"round").expect("sent");
    until("the circle is found", LONG, || spliced.stats().number("/total/datagrams/drops/loop") == 1);
    assert_eq!(spliced.stats().open(), 1);
}
