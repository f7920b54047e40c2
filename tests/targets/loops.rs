//! A forward that leads back to one of our own listeners is refused at load and detected at run time.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{Shutdown, SocketAddr};

use common::deadline::{LONG, until};
use common::netns::{Netns, with_namespaces};
use common::pattern::Pattern;
use common::peer::{Reserved, accept, backend, connect, end_of};
use common::spliced::Launcher;

/// A port nobody listens on; given back, so that a start which wrongly goes ahead does not fail for another reason.
fn port() -> u16 {
    Reserved::loopback().address().port()
}

#[test]
fn a_forward_to_itself_is_refused_at_load() {
    let port = port();
    for (listen, target) in [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "localhost"),
        ("[::]", "[::1]"),
        ("0.0.0.0", "0.0.0.0"),
    ] {
        let (listen, target) = (format!("{listen}:{port}"), format!("{target}:{port}"));
        let outcome = Launcher::with_arguments(["forward", &listen, &target]).outcome();
        assert_eq!(outcome.code, Some(2), "{listen} to {target}: {}", outcome.text);
        assert!(outcome.text.contains(&port.to_string()), "{listen} to {target}: {}", outcome.text);
        assert!(!outcome.text.contains("ready:"), "{listen} to {target}: {}", outcome.text);
    }
}

#[test]
fn a_circle_of_two_and_of_three_is_refused_at_load() {
    let (a, b, c) = (port(), port(), port());
    let forward = |from: u16, to: u16| format!("  - {{ listen: \"127.0.0.1:{from}\", to: \"127.0.0.1:{to}\" }}\n");
    for circle in [vec![forward(a, b), forward(b, a)], vec![forward(a, b), forward(b, c), forward(c, a)]] {
        let text = format!("forwards:\n{}", circle.concat());
        let outcome = Launcher::config(&text).outcome();
        assert_eq!(outcome.code, Some(2), "{text}: {}", outcome.text);
        assert!(outcome.text.contains("spliced.yaml:"), "the file and the place: {}", outcome.text);
    }
}

#[test]
fn a_circle_by_another_path_to_a_unix_socket_is_refused_at_load() {
    let directory = tempfile::TempDir::with_prefix("spliced-loop-").expect("a temporary directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::create_dir(at("run")).expect("our own directory");
    std::os::unix::fs::symlink(at("run"), at("var-run")).expect("our own directory");
    std::os::unix::fs::symlink(at("run/it.sock"), at("link.sock")).expect("our own directory");
    let text = |to: &str| format!("forwards: [{{ listen: \"unix:{}\", to: \"unix:{to}\" }}]\n", at("run/it.sock"));
    for to in ["var-run/it.sock", "run/../run/it.sock"] {
        let outcome = Launcher::config(&text(&at(to))).outcome();
        assert_eq!(outcome.code, Some(2), "{to}: {}", outcome.text);
        assert!(outcome.text.contains("found a loop"), "{to}: {}", outcome.text);
    }
    // A link to the file leads there once that is there.
    let spliced = Launcher::config(&text(&at("other.sock"))).start();
    spliced.replace_config(&text(&at("link.sock")));
    let (code, said) = spliced.reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("found a loop"), "{said}");
}

/// A chain that ends is no circle: neither at load nor while it runs, also many times over.
#[test]
fn a_chain_that_ends_is_served() {
    let (first, second, third, backend) = (Reserved::loopback(), Reserved::loopback(), Reserved::loopback(), backend());
    let end = backend.local_addr().expect("bound");
    let forward = |from: SocketAddr, to: SocketAddr| format!("  - {{ listen: \"{from}\", to: \"{to}\" }}\n");
    let text = format!(
        "forwards:\n{}{}{}",
        forward(first.address(), second.address()),
        forward(second.address(), third.address()),
        forward(third.address(), end),
    );
    let spliced = Launcher::config(&text).start();
    let pattern = Pattern::new(1);
    for _ in 0..20 {
        let client = connect(first.address());
        let server = accept(&backend);
        pattern.send(&client, 0, 100_000).expect("send");
        client.shutdown(Shutdown::Write).expect("half-close");
        pattern.expect_whole(&server, 0, 100_000);
        drop(server);
        assert_eq!(end_of(&client), Ok(()));
    }
    spliced.ended("done", 60);
    assert_eq!(spliced.stats().ends("loop"), 0);
    spliced.finish();
}

/// No configuration shows this one: the kernel leads the connection back. Unchecked, one client would use up every
/// descriptor within a moment.
#[test]
fn a_circle_through_the_kernel_is_detected_at_run_time() {
    with_namespaces(|| {
        let island = Netns::new();
        let front = SocketAddr::from(([127, 0, 0, 1], 9000));
        let elsewhere = SocketAddr::from(([10, 9, 9, 9], 9001));
        island.line("ip route add default dev lo src 127.0.0.1");
        island.nft(&[
            "add table ip circle",
            "add chain ip circle out { type nat hook output priority -100; }",
            "add rule ip circle out ip daddr 10.9.9.9 tcp dport 9001 redirect to :9000",
        ]);
        let spliced = Launcher::forward(front, elsewhere).inside(&island).start();
        for round in 1..=5 {
            if let Some(client) = island.enter(|| common::peer::connect_or_reset(front)) {
                let _ = end_of(&client);
            }
            let stats = spliced.stats_until("the circle is found", |stats| stats.ends("loop") >= round);
            assert!(stats.number("/total/sessions_accepted") <= 200 * round, "it went round many times: {}", stats.0);
            spliced.back_at_start();
        }
        until("a line says so", LONG, || !spliced.logged("loop").is_empty());
        spliced.finish();
    });
}
