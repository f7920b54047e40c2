//! What this host lacks is no failure of its targets: none is ejected for it, and none counts as failed.

#![cfg(target_os = "linux")]

use crate::common;

use common::peer::{Echo, Reserved, connect_or_reset, end_of};
use common::spliced::Launcher;

/// An address for documentation (RFC 5737), which no host has.
const NOBODYS: &str = "203.0.113.9";

#[test]
fn a_source_this_host_has_not_ejects_no_target() {
    let (port, one, two) =
        (Reserved::loopback(), Echo::start(common::peer::backend()), Echo::start(common::peer::backend()));
    let text = |source: &str| {
        format!(
            "workers: 1\nforwards: [{{ name: it, listen: \"{}\", to: [\"{}\", \"{}\"], source: {source}, health: {{ fails: 1 }} }}]\n",
            port.address(),
            one.address(),
            two.address()
        )
    };
    let spliced = Launcher::config(&text(NOBODYS)).start();
    for _ in 0..4 {
        if let Some(client) = connect_or_reset(port.address()) {
            assert!(end_of(&client).is_err(), "there is no way to a target");
        }
    }
    spliced.ended("connect_failed", 4);
    let stats = spliced.stats();
    for at in 0..2 {
        let target = &stats.0["forwards"][0]["targets"][at];
        assert_eq!((target["state"].as_str(), target["failures"].as_u64()), (Some("UP"), Some(0)), "{target}");
    }
    assert!(spliced.logged("is ejected").is_empty(), "{}", spliced.text());
    assert_eq!(spliced.says(&format!("cannot connect from source {NOBODYS}")).len(), 1, "{}", spliced.text());
    // With one this host has, both serve at once.
    spliced.reload_with(&text("127.0.0.1"));
    for byte in 0..4u8 {
        let client = common::peer::connect(port.address());
        assert!(common::peer::echoes(&client, byte, common::deadline::LONG));
    }
    let stats = spliced.stats();
    for at in 0..2 {
        assert_eq!(stats.0["forwards"][0]["targets"][at]["failures"], 0, "{}", stats.0);
    }
}
