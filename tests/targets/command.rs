//! `spliced target`: a target is drained, disabled, enabled and weighed while clients ask.

#![cfg(target_os = "linux")]

use crate::common;

use std::time::Instant;

use common::deadline::{LONG, eventually};
use common::peer::{Reserved, connect_or_reset, end_of};
use common::spliced::{Launcher, Spliced};
use common::target::{Number, Target, ask, hold, request, shares, under_load};

fn config(port: &Reserved, targets: &[Target], options: &str) -> String {
    let list: Vec<_> = targets.iter().map(|target| format!("\"{}\"", target.address())).collect();
    let to = list.join(", ");
    format!("workers: 1\n{options}\nforwards: [{{ name: \"my web\", listen: \"{}\", to: [{to}] }}]\n", port.address())
}

fn start(port: &Reserved, targets: &[Target], options: &str) -> Spliced {
    Launcher::config(&config(port, targets, options)).start()
}

fn up(count: Number) -> Vec<Target> {
    (0..count).map(Target::up).collect()
}

/// A command about a target, which must succeed; the table it prints.
fn command(spliced: &Spliced, target: &Target, action: &[&str]) -> String {
    let address = target.address().to_string();
    let (code, said) = spliced.ask("target", &[&["my web", &address], action].concat());
    assert_eq!(code, Some(0), "{action:?}: {said}");
    said
}

fn ask_many(port: &Reserved, times: usize) -> [usize; 2] {
    shares::<2>((0..times).map(|_| ask(port.address()).expect("an answer")))
}

#[test]
fn a_drained_target_keeps_its_sessions_and_gets_no_new_ones() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let spliced = start(&port, &targets, "");
    let held: Vec<_> = (0..4).map(|_| hold(port.address())).collect();
    under_load(port.address(), 4, LONG, |seen| {
        (0..2).for_each(|number| seen.answers(number, 10));
        let table = command(&spliced, &targets[0], &["drain"]);
        assert!(table.contains("DRAIN") && table.contains("UP"), "{table}");
        let drained = Instant::now();
        seen.answers(1, 40);
        assert!(seen.since(drained).iter().all(|seen| *seen == Ok(1)), "{:?}", seen.since(drained));
        assert!(held.iter().all(|(stream, number)| request(stream, LONG) == Ok(*number)), "who was there stays");
        command(&spliced, &targets[0], &["enable"]);
        seen.answers(0, 10);
        assert_eq!(seen.lost(), 0);
    });
    assert_eq!(spliced.says("drained by command").len(), 1);
    assert_eq!(spliced.says("enabled by command").len(), 1);
    drop(held);
    spliced.finish();
}

#[test]
fn a_disabled_target_ends_its_sessions_where_that_is_asked_for() {
    let (port, targets) = (Reserved::loopback(), up(2));
    for (option, end) in [("on_down: keep", false), ("on_down: end", true)] {
        let spliced = start(&port, &targets, option);
        let held: Vec<_> = (0..6).map(|_| hold(port.address())).collect();
        let table = command(&spliced, &targets[1], &["disable"]);
        assert!(table.contains("DISABLED"), "{table}");
        for (stream, number) in &held {
            match (number, end) {
                (1, true) => assert!(end_of(stream).is_err(), "it is reset"),
                _ => assert_eq!(request(stream, LONG), Ok(*number)),
            }
        }
        assert_eq!(ask_many(&port, 6), [6, 0]);
        spliced.ended("target_down", if end { 3 } else { 0 });
        drop(held);
        spliced.finish();
    }
}

#[test]
fn a_weight_holds_until_it_is_changed_again_also_over_a_reload() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let spliced = start(&port, &targets, "");
    let table = command(&spliced, &targets[0], &["weight", "4"]);
    assert!(table.contains(&targets[0].address().to_string()), "{table}");
    assert_eq!(ask_many(&port, 10), [8, 2]);
    command(&spliced, &targets[1], &["drain"]);
    let connects = |at: usize| spliced.stats().number(&format!("/forwards/0/targets/{at}/connects"));
    let before = [connects(0), connects(1)];
    spliced.reload_with(&config(&port, &targets, "keepalive: 30s"));
    assert_eq!(ask_many(&port, 5), [5, 0], "a drained target stays drained");
    assert_eq!([connects(0), connects(1)], [before[0] + 5, before[1]], "and counts go on");
    command(&spliced, &targets[1], &["enable"]);
    assert_eq!(ask_many(&port, 10), [8, 2], "and a weight stays");
    command(&spliced, &targets[0], &["weight", "default"]);
    assert_eq!(ask_many(&port, 10), [5, 5]);
    spliced.finish();
}

#[test]
fn with_every_target_out_of_service_clients_are_told_at_once() {
    let (port, targets) = (Reserved::loopback(), up(1));
    let spliced = start(&port, &targets, "");
    command(&spliced, &targets[0], &["drain"]);
    let begun = Instant::now();
    let client = connect_or_reset(port.address());
    assert!(client.as_ref().is_none_or(|client| end_of(client).is_err()), "it is reset");
    assert!(begun.elapsed().as_secs() < 3, "{:?}", begun.elapsed());
    spliced.ended("no_target", 1);
    command(&spliced, &targets[0], &["enable"]);
    assert_eq!(ask(port.address()), Ok(0));
    drop(client);
    spliced.finish();
}

#[test]
fn a_client_that_waits_for_room_gets_it_from_a_target_that_is_enabled() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let list: Vec<_> =
        targets.iter().map(|target| format!("{{ to: \"{}\", max_connections: 1 }}", target.address())).collect();
    let to = list.join(", ");
    let text = format!("forwards: [{{ name: \"my web\", listen: \"{}\", to: [{to}] }}]\n", port.address());
    let spliced = Launcher::config(&text).start();
    command(&spliced, &targets[1], &["drain"]);
    let held = hold(port.address());
    let waiting = common::peer::connect(port.address());
    spliced.stats_until("it waits", |stats| stats.open() == 2);
    command(&spliced, &targets[1], &["enable"]);
    assert_eq!(request(&waiting, LONG), Ok(1));
    drop((held, waiting));
    spliced.finish();
}

#[test]
fn what_is_wrong_is_told() {
    let (port, targets) = (Reserved::loopback(), up(1));
    let spliced = start(&port, &targets, "");
    let address = targets[0].address().to_string();
    for (arguments, code, part) in [
        (["web", &address, "drain"].as_slice(), 1, "there is no forward \"web\"; the forwards: \"my web\""),
        (&["my web", "10.0.0.1:1", "drain"], 1, &format!("has no target \"10.0.0.1:1\"; its targets: {address}")),
        (&["my web", &address, "weight", "0"], 2, "1 to 256"),
        (&["my web", &address, "weight", "257"], 2, "1 to 256"),
        (&["my web", &address, "stop"], 2, "stop"),
        (&["my web", &address], 2, "spliced target"),
    ] {
        let (got, said) = spliced.ask("target", arguments);
        assert_eq!(got, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    eventually("nothing has changed", LONG, || {
        if ask(port.address()) == Ok(0) { Ok(()) } else { Err("no answer".to_owned()) }
    });
    spliced.finish();
}
