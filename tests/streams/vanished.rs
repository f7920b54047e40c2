//! A peer that is gone without a word: keepalive and TCP_USER_TIMEOUT free the session.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::ErrorKind;
use std::net::TcpStream;

use common::netns::{Chain, Netns, with_namespaces};
use common::path::{Path, Via};
use common::pattern::Pattern;
use common::peer::end_of;

/// Nothing goes in or out any more, not even a reset.
fn vanish(namespace: &Netns) {
    namespace.nft(&[
        "add table inet gone",
        "add chain inet gone in { type filter hook input priority 0; policy drop; }",
        "add chain inet gone out { type filter hook output priority 0; policy drop; }",
    ]);
}

/// A session with some bytes behind it, of which one side vanishes while nothing is under way.
fn silent(reason: &str, gone: impl FnOnce(&Chain) -> &Netns) {
    with_namespaces(|| {
        let path = Path::through(Via::AUTO, Chain::new(true), |launcher| launcher.option("--keepalive", "1s"));
        let (client, server) = used(&path);
        vanish(gone(path.chain()));
        path.ended(reason, 1);
        cut_off(reason, &client, &server);
        drop((client, server));
        path.finish();
    });
}

/// The side that is still there must not see a clean end.
fn cut_off(reason: &str, client: &TcpStream, server: &TcpStream) {
    let left = if reason == "client_vanished" { server } else { client };
    assert_eq!(end_of(left), Err(ErrorKind::ConnectionReset), "what the side sees that is left");
}

fn used(path: &Path) -> (TcpStream, TcpStream) {
    let (client, server) = path.pair();
    let pattern = Pattern::new(1);
    pattern.send(&client, 0, 100).expect("send");
    pattern.expect(&server, 0, 100);
    pattern.send(&server, 0, 100).expect("send");
    pattern.expect(&client, 0, 100);
    (client, server)
}

#[test]
fn keepalive_finds_a_client_that_is_gone() {
    silent("client_vanished", |chain| &chain.client);
}

#[test]
fn keepalive_finds_a_backend_that_is_gone() {
    silent("backend_vanished", |chain| &chain.server);
}

/// Bytes under way switch keepalive off; then TCP_USER_TIMEOUT is what ends the session.
fn unacknowledged(reason: &str, from_client: bool) {
    with_namespaces(|| {
        let options = [("--keepalive", "none"), ("--user-timeout", "1s")];
        let path = Path::through(Via::AUTO, Chain::new(true), |launcher| {
            options.iter().fold(launcher, |launcher, (name, value)| launcher.option(name, value))
        });
        let (client, server) = used(&path);
        let (sender, gone) =
            if from_client { (&client, &path.chain().server) } else { (&server, &path.chain().client) };
        vanish(gone);
        Pattern::new(1).send(sender, 0, 5000).expect("it still goes to the relay");
        path.ended(reason, 1);
        cut_off(reason, &client, &server);
        drop((client, server));
        path.finish();
    });
}

#[test]
fn bytes_nobody_acknowledges_end_the_session_with_the_client() {
    unacknowledged("client_vanished", false);
}

#[test]
fn bytes_nobody_acknowledges_end_the_session_with_the_backend() {
    unacknowledged("backend_vanished", true);
}
