//! The example of the section on limits in the README runs as it stands there.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::SocketAddr;
use std::process::Command;

use common::deadline::LONG;
use common::netns::{Netns, with_namespaces};
use common::peer::{Echo, echoes};
use common::spliced::Launcher;

/// The YAML of the section.
fn example() -> String {
    let readme = include_str!("../../README.md");
    let section = readme.split("\n## Limits\n").nth(1).expect("the section");
    let yaml = section.split("```yaml\n").nth(1).expect("its example");
    yaml.split("```").next().expect("the end of it").to_owned()
}

#[test]
fn the_example_runs() {
    with_namespaces(|| {
        let namespace = Netns::new();
        for address in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            namespace.line(&format!("ip address add {address}/32 dev lo"));
        }
        let back: SocketAddr = "10.0.0.2:9001".parse().expect("an address");
        let _echo = namespace.enter(|| Echo::start(namespace.listen(back)));
        let spliced = Launcher::config(&example()).inside(&namespace).start();
        let front: SocketAddr = "127.0.0.1:9000".parse().expect("an address");
        let clients: Vec<_> = (0..20).map(|_| namespace.connect(front)).collect();
        assert!(clients.iter().all(|client| echoes(client, 1, LONG)));
        assert_eq!(spliced.stats().number("/sources"), 2, "one source, known to the process and to the forward");
        drop(clients);
        spliced.finish();
    });
}

#[test]
fn check_shows_every_value_of_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("limits.yaml");
    std::fs::write(&file, example()).expect("the temporary directory takes a file");
    let output = Command::new(env!("CARGO_BIN_EXE_spliced")).args(["check", "--config"]).arg(&file).output();
    let output = output.expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown = String::from_utf8(output.stdout).expect("text");
    for line in [
        "max_connections: 20000",
        "max_connections_per_source: 500",
        "    max_connections: 10000",
        "when_full: refuse",
        "connection_rate: 2000/s",
        "connection_rate_per_source: 20/s burst 100",
        "rate: 100MiB/s",
        "rate_per_source: 10MiB/s",
        "source: [\"10.0.0.1\", \"10.0.0.3\"]",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is missing in\n{shown}");
    }
}
