//! Datagrams where an operator looks: the metrics, `spliced stats` and `spliced top` have the numbers of known traffic.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use common::peer::{connect, metrics_address};
use common::spliced::{Launcher, Spliced};
use common::udp::{self, Echo, ask, client};

/// What a command prints about an instance.
fn said(spliced: &Spliced, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
    let output = command.args(arguments).arg("--control").arg(spliced.control()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn page(metrics: SocketAddr) -> String {
    let mut stream = connect(metrics);
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn flows_datagrams_and_drops_are_told_as_they_were() {
    let (echo, listen) = (Echo::start(), udp::address());
    let metrics = metrics_address();
    let spliced = Launcher::config(&format!(
        "workers: 2\nmetrics: {metrics}\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: \"{}\", max_connections: 2, \
         udp_timeout: 1h}}\n",
        echo.address()
    ))
    .start();
    // Two flows with three questions each; a third client has no room, and four of its datagrams are dropped.
    let clients: Vec<UdpSocket> = (0..2).map(|_| client(listen)).collect();
    for round in 0..3_u8 {
        assert!(clients.iter().all(|client| ask(client, &[round; 100]) == [round; 100]));
    }
    let third = client(listen);
    (0..4).for_each(|_| _ = third.send(b"no room").unwrap());
    spliced.stats_until("all is counted", |stats| {
        let number = |what: &str| stats.number(&format!("/total/datagrams/{what}"));
        (number("backend_to_client"), number("drops/limit")) == (6, 4)
    });

    let page = page(metrics);
    for line in [
        "spliced_sessions_open{forward=\"dns\"} 2",
        "spliced_sessions_accepted_total{forward=\"dns\"} 2",
        "spliced_datagrams_total{forward=\"dns\",direction=\"client_to_backend\"} 6",
        "spliced_datagrams_total{forward=\"dns\",direction=\"backend_to_client\"} 6",
        "spliced_datagram_drops_total{forward=\"dns\",cause=\"limit\"} 4",
        "spliced_bytes_total{forward=\"dns\",direction=\"client_to_backend\",path=\"copy\"} 600",
        "spliced_bytes_total{forward=\"dns\",direction=\"backend_to_client\",path=\"copy\"} 600",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
    }
    let others =
        page.lines().filter(|line| line.starts_with("spliced_datagram_drops_total") && !line.contains("limit"));
    assert!(others.map(|line| line.rsplit(' ').next().unwrap()).all(|count| count == "0"), "{page}");

    let stats = said(&spliced, &["stats"]);
    let has =
        |label: &str, text: &str| stats.lines().any(|line| line.trim_start().starts_with(label) && line.contains(text));
    assert!(has("datagrams", "6 up, 6 down") && has("drops", "limit 4") && has("sessions", "2 open"), "{stats}");
    let top = said(&spliced, &["top", "--once"]);
    assert!(top.contains("udp dns: 2 flows, datagrams 0/s up, 0/s down, 4 dropped"), "{top}");
}
