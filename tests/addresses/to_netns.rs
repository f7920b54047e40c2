//! Targets in another network namespace: clients in one, spliced in a second, targets in a third, and no route between.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{IpAddr, SocketAddr, TcpListener};

use common::cannot_run;
use common::deadline::{LONG, until};
use common::netns::{Netns, link, with_namespaces};
use common::path::Via;
use common::pattern::exchange;
use common::peer::{Echo, accept, echoes, end_of};
use common::process::Process;
use common::spliced::{Launcher, Spliced, ordinary_user};
use common::upgraded::Upgraded;
use nix::unistd::Uid;

const MIB: u64 = 1 << 20;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Where spliced runs, listens and connects, with the target's listener.
struct Three {
    own: Netns,
    front: Netns,
    back: Netns,
    target: TcpListener,
}

impl Three {
    fn new() -> Self {
        let (own, front, back) = (Netns::new(), Netns::new(), Netns::new());
        let target = back.listen(address("127.0.0.1:9001"));
        Self { own, front, back, target }
    }

    fn forward(&self, more: &str) -> String {
        let (front, back) = (self.front.path(), self.back.path());
        let name =
            format!("{{name: a, listen: \"127.0.0.1:9000\", netns: \"{front}\", to_netns: \"{back}\", engine: splice");
        format!("forwards:\n- {name}, to: \"127.0.0.1:9001\"{more}}}\n")
    }

    /// Bytes both ways, by splice alone.
    fn works(&self, port: u16) {
        let client = self.front.connect(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port));
        exchange(&client, &accept(&self.target), MIB, MIB);
    }
}

fn all_spliced(spliced: &Spliced, sessions: u64) {
    let stats = spliced.stats_until("the sessions have ended", |stats| stats.ends("done") == sessions);
    for (way, name) in [(stats.up(), "up"), (stats.down(), "down")] {
        assert_eq!(way.all(), sessions * MIB, "{name}: {}", stats.0);
        let by_splice = if Via::SPLICE.splices() { sessions * MIB } else { 0 };
        assert_eq!(way.splice, by_splice, "{name}: all of it by splice, where there is one: {}", stats.0);
    }
}

/// No thread has kept a right, those in the other namespaces no more than the main one.
fn no_rights(process: Process) {
    let threads = process.threads();
    assert!(threads.iter().filter(|thread| thread.name == "netns").count() == 2, "{threads:?}");
    for thread in threads {
        let state = ["CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp"].map(|name| thread.field(name).to_owned());
        assert_eq!(state[..2], ["0000000000000000"; 2], "{}", thread.name);
        assert_eq!(state[3..], ["1", "2"], "{}", thread.name);
    }
}

#[test]
fn listens_in_one_namespace_and_connects_in_another() {
    with_namespaces(|| {
        let three = Three::new();
        let spliced = Launcher::config(&three.forward("")).option("--sandbox", "strict").inside(&three.own).start();
        no_rights(spliced.process());
        // More at once than are kept ready.
        let clients: Vec<_> = (0..50).map(|_| three.front.connect(address("127.0.0.1:9000"))).collect();
        let echo = three.back.enter(|| Echo::start(three.target.try_clone().expect("a descriptor")));
        assert!(clients.iter().all(|client| echoes(client, 1, LONG)));
        drop(clients);
        spliced.ended("done", 50);
        drop(echo);
        spliced.finish();
    });
}

#[test]
fn all_of_it_is_spliced_also_as_another_user() {
    with_namespaces(|| {
        let three = Three::new();
        let mut launcher = Launcher::config(&three.forward(""));
        if Uid::effective().is_root() && std::env::var_os("SPLICED_TEST_INSIDE").is_none() {
            let uid = ordinary_user();
            launcher = launcher.place_of(uid).option("--user", format!("{uid}:{uid}"));
        } else {
            cannot_run("only root may become another user; it stays who it is");
        }
        let spliced = launcher.inside(&three.own).start();
        no_rights(spliced.process());
        three.works(9000);
        three.works(9000);
        all_spliced(&spliced, 2);
        spliced.finish();
    });
}

/// Also what a reload adds, and also to the IPv6 target of a race; checks go the same way.
#[test]
fn a_reload_uses_the_namespaces_of_the_start_and_no_others() {
    with_namespaces(|| {
        let three = Three::new();
        let mut spliced = Launcher::config(&three.forward("")).inside(&three.own).start();
        let more = three.forward("").replace("forwards:\n", "").replace("name: a", "name: b").replace(":9000", ":9005");
        spliced.replace_config(&(three.forward("") + &more));
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(0), "{said}");
        three.works(9000);
        three.works(9005);
        all_spliced(&spliced, 2);
        spliced.note_rest();
        let other = Netns::new();
        let elsewhere =
            more.replace("name: b", "name: c").replace(":9005", ":9006").replace(&three.back.path(), &other.path());
        spliced.replace_config(&(three.forward("") + &more + &elsewhere));
        let (code, said) = spliced.reload();
        assert_eq!(code, Some(2), "{said}");
        for part in ["forward \"c\" cannot connect by to_netns", &other.path(), "restart it"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        three.works(9005);
        spliced.finish();
    });
}

#[test]
fn source_and_device_are_those_of_the_namespace_and_checks_see_it() {
    with_namespaces(|| {
        let three = Three::new();
        let far = Netns::new();
        let ip = |last| IpAddr::from([10, 9, 0, last]);
        link((&three.back, "out", ip(1), 24), (&far, "eth0", ip(2), 24));
        three.back.line("ip address add 10.9.0.7/24 dev out");
        let target = far.listen(address("10.9.0.2:9001"));
        let echo = far.enter(|| Echo::start(target));
        let more = ", source: 10.9.0.7, bind_device: out, mark: 7, check: {interval: 100ms}";
        let config = three.forward(more).replace("127.0.0.1:9001", "10.9.0.2:9001");
        let spliced = Launcher::config(&config).inside(&three.own).start();
        assert!(spliced.logged("there is no device").is_empty(), "{}", spliced.text());
        let client = three.front.connect(address("127.0.0.1:9000"));
        assert!(echoes(&client, 1, LONG));
        drop(client);
        spliced.ended("done", 1);
        drop(echo);
        until("the check says it is down", LONG, || !spliced.logged("is down").is_empty());
        spliced.finish();
    });
}

#[test]
fn a_namespace_that_is_not_there_fails_the_start_and_one_deleted_later_lives_on() {
    with_namespaces(|| {
        let three = Three::new();
        let config = three.forward("").replace(&three.back.path(), "no-such-namespace");
        let outcome = Launcher::config(&config).inside(&three.own).outcome();
        assert_eq!(outcome.code, Some(1), "{}", outcome.text);
        for part in ["forward \"a\"", "/run/netns/no-such-namespace", "`ip netns list` names them"] {
            assert!(outcome.text.contains(part), "{part}: {}", outcome.text);
        }
        let spliced = Launcher::config(&three.forward("")).inside(&three.own).start();
        three.works(9000);
        // No name and no process keeps it any more.
        let Three { own, front, back, target } = three;
        drop((back, target));
        let client = front.connect(address("127.0.0.1:9000"));
        assert!(end_of(&client).is_err(), "the target is gone");
        spliced.ended("refused", 1);
        spliced.finish();
        drop(own);
    });
}

/// With rights an upgrade goes on in the same namespaces; without them it is refused, and the old process serves.
#[test]
fn an_upgrade_goes_on_or_says_why_not() {
    with_namespaces(|| {
        for keeps_rights in [true, false] {
            let three = Three::new();
            let launcher = Launcher::config(&three.forward("")).inside(&three.own);
            let launcher = launcher.option("--sandbox", if keeps_rights { "off" } else { "auto" });
            let mut upgraded = Upgraded::start(launcher);
            three.works(9000);
            if keeps_rights {
                upgraded.upgrade();
            } else {
                upgraded.fails("without rights", &["to_netns", "restart it"]);
            }
            three.works(9000);
            upgraded.finish();
        }
    });
}
