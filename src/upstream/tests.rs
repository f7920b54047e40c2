//! Choices over scripted targets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::*;
use crate::config::{Lookup, Overrides, parse};

fn forward(to: &str, options: &str) -> Forward {
    let text = format!("{options}\nforwards: [{{ listen: '127.0.0.1:80-82', to: {to} }}]\n");
    parse("test", &text, &Overrides::default(), &Lookup::fixed()).unwrap().forwards.remove(0)
}

fn upstreams(to: &str, options: &str) -> Upstreams {
    let forward = forward(to, options);
    let shared = Arc::new(Targets::new("test", Instant::now()));
    shared.update(&forward);
    Upstreams::new(&forward, &shared)
}

fn ask(tried: &[u32]) -> Ask<'_> {
    let client = SocketAddr::from(([192, 0, 2, 1], 5)).into();
    Ask { client, port_offset: 2, tried, rival_of: None, now_ms: 0 }
}

/// The last byte of the address that is chosen, and what holds it.
fn choose(upstreams: &mut Upstreams, ask: &Ask<'_>) -> Result<(u8, Lease), String> {
    match upstreams.choose(ask) {
        Pick::To { lease, address: Address::Ip(SocketAddr::V4(address)), .. } => Ok((address.ip().octets()[3], lease)),
        other => Err(format!("{other:?}")),
    }
}

/// How often each is chosen while nothing stays open.
fn shares(upstreams: &mut Upstreams, now_ms: u64, times: usize) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..times {
        *shares.entry(choose(upstreams, &Ask { now_ms, ..ask(&[]) }).unwrap().0).or_default() += 1;
    }
    shares
}

const THREE: &str = "[{address: '10.0.0.0:9', weight: 5}, '10.0.0.1:9', '10.0.0.2:9']";

#[test]
fn picks_follow_the_weights_and_do_not_clump() {
    let mut upstreams = upstreams(THREE, "");
    let picks: Vec<u8> = (0..7).map(|_| choose(&mut upstreams, &ask(&[])).unwrap().0).collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn every_address_is_tried_once_whatever_the_balance() {
    for balance in ["round_robin", "least_connections", "source_hash", "random_two"] {
        let mut upstreams = upstreams(
            "['10.0.0.0:9000-9002', {to: '10.0.0.1:9', backup: true}, '10.0.0.2:9']",
            &format!("balance: {balance}"),
        );
        let (mut tried, mut order) = (Vec::new(), Vec::new());
        for left in (0..3).rev() {
            let Pick::To { lease, address, left: said, .. } = upstreams.choose(&ask(&tried)) else {
                panic!("{tried:?}")
            };
            assert_eq!(said, left);
            tried.push(lease.endpoint().id());
            order.push(address.to_string());
        }
        assert_eq!(order[2], "10.0.0.1:9", "the backup comes last: {order:?}");
        assert!(order.contains(&"10.0.0.0:9002".to_owned()), "the port follows the listener's: {order:?}");
        assert!(matches!(upstreams.choose(&ask(&tried)), Pick::Nothing));
    }
}

#[test]
fn full_targets_are_passed_over_and_all_full_is_said() {
    let mut upstreams = upstreams(
        "[{to: '10.0.0.0:9', max_connections: 1}, {to: '10.0.0.1:9', max_connections: 2}, {to: '10.0.0.2:9', max_connections: 1, backup: true}]",
        "",
    );
    let held: Vec<_> = (0..4).map(|_| choose(&mut upstreams, &ask(&[])).unwrap()).collect();
    assert_eq!(held.iter().map(|held| held.0).collect::<Vec<_>>(), [0, 1, 1, 2]);
    assert!(matches!(upstreams.choose(&ask(&[])), Pick::Full));
    drop(held);
    assert!(choose(&mut upstreams, &ask(&[])).unwrap().0 < 2, "the backup rests again");
}

#[test]
fn a_target_that_fails_is_ejected_but_never_the_last() {
    let mut upstreams = upstreams("['10.0.0.0:9', '10.0.0.1:9']", "health: fails=2,eject=1s");
    let at = |now_ms| Ask { now_ms, ..ask(&[]) };
    let fail = |upstreams: &mut Upstreams, which: u8, now_ms: u64| loop {
        let (chosen, lease) = choose(upstreams, &at(now_ms)).unwrap();
        if chosen == which {
            return upstreams.failed(&lease, now_ms);
        }
    };
    assert_eq!(fail(&mut upstreams, 0, 0), None);
    assert_eq!(fail(&mut upstreams, 0, 0), Some(Ejected(Duration::from_secs(1))));
    assert_eq!(shares(&mut upstreams, 10, 6), BTreeMap::from([(1, 6)]));
    for _ in 0..5 {
        assert_eq!(fail(&mut upstreams, 1, 10), None, "the last one stays");
    }
    assert_eq!(shares(&mut upstreams, 1000, 6).len(), 2, "its time is over");
}

#[test]
fn with_none_that_works_all_are_tried_and_drained_ones_never() {
    let mut upstreams = upstreams("['10.0.0.0:9', '10.0.0.1:9', '10.0.0.2:9']", "");
    let shared = Arc::clone(upstreams.shared());
    shared.command("10.0.0.1:9", Command::Admin(Admin::Drain)).unwrap();
    upstreams.members.iter().for_each(|member| member.endpoint.set_down(true, 0));
    assert_eq!(shares(&mut upstreams, 0, 6), BTreeMap::from([(0, 3), (2, 3)]));
    shared.command("10.0.0.0:9", Command::Admin(Admin::Disabled)).unwrap();
    shared.command("10.0.0.2:9", Command::Admin(Admin::Disabled)).unwrap();
    assert!(matches!(upstreams.choose(&ask(&[])), Pick::Nothing));
    assert!(shared.command("10.0.0.7:9", Command::Weight(None)).unwrap_err().contains("10.0.0.0:9, 10.0.0.1:9"));
}

#[test]
fn a_slow_start_grows_with_time() {
    let mut upstreams = upstreams("['10.0.0.0:9', {to: '10.0.0.1:9', slow_start: 10s}]", "");
    assert_eq!(shares(&mut upstreams, 0, 100), BTreeMap::from([(0, 50), (1, 50)]), "all begin alike");
    upstreams.members[1].endpoint.is_back(100_000);
    for (now_ms, expected) in [(101_000, 100), (105_000, 1000), (110_000, 1500), (900_000, 1500)] {
        // A share of s against 1 is s of 1 + s.
        let got = shares(&mut upstreams, now_ms, 3000)[&1];
        let share = ((now_ms - 100_000) as f64 / 10_000.0).min(1.0);
        let exact = 3000.0 * share / (1.0 + share);
        assert!((got as f64 - exact).abs() <= 3.0, "{got} at {now_ms}, {exact} expected, about {expected}");
    }
}

#[test]
fn a_command_changes_the_weight_and_a_reload_keeps_it() {
    let mut upstreams = upstreams(THREE, "");
    let shared = Arc::clone(upstreams.shared());
    shared.command("10.0.0.0:9", Command::Weight(Some(1))).unwrap();
    assert_eq!(shares(&mut upstreams, 0, 9), BTreeMap::from([(0, 3), (1, 3), (2, 3)]));
    let changed = forward("['10.0.0.3:9', {address: '10.0.0.0:9', weight: 200}]", "");
    shared.update(&changed);
    let mut upstreams = Upstreams::new(&changed, &shared);
    assert_eq!(shares(&mut upstreams, 0, 8), BTreeMap::from([(0, 4), (3, 4)]));
    shared.command("10.0.0.0:9", Command::Weight(None)).unwrap();
    assert_eq!(shares(&mut upstreams, 0, 201)[&0], 200);
}

#[test]
fn every_address_of_a_name_is_a_target() {
    let mut upstreams = upstreams("[db:80, 'db:81']", "");
    let ips = |list: &[&str]| list.iter().map(|ip| names::Place::of(ip.parse().unwrap())).collect::<Vec<_>>();
    upstreams.resolved(&Host::Name("other".into()), &ips(&["10.0.0.9"]));
    assert!(matches!(upstreams.choose(&ask(&[])), Pick::Unresolved));
    upstreams.resolved(&Host::Name("db".into()), &ips(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(shares(&mut upstreams, 0, 8), BTreeMap::from([(1, 4), (2, 4)]));
    let views = upstreams.shared().views();
    assert_eq!(views.iter().map(|view| view.endpoints.len()).collect::<Vec<_>>(), [2, 2]);
    let (_, lease) = choose(&mut upstreams, &ask(&[])).unwrap();
    upstreams.resolved(&Host::Name("db".into()), &ips(&["10.0.0.2", "10.0.0.3"]));
    assert_eq!(shares(&mut upstreams, 0, 8), BTreeMap::from([(2, 4), (3, 4)]));
    let labels = |upstreams: &Upstreams| -> Vec<String> {
        let views = upstreams.shared().views();
        views[0].endpoints.iter().map(|endpoint| endpoint.label().to_owned()).collect()
    };
    assert_eq!(labels(&upstreams), ["db:80 (10.0.0.1)", "db:80 (10.0.0.2)", "db:80 (10.0.0.3)"]);
    drop(lease);
    assert_eq!(labels(&upstreams), ["db:80 (10.0.0.2)", "db:80 (10.0.0.3)"]);
}

#[test]
fn records_of_a_service_say_ports_weights_and_priorities() {
    let mut upstreams = upstreams("['srv:_web._tcp.example', {to: '10.0.0.9:9', backup: true}]", "");
    let service = Host::Service("_web._tcp.example".into());
    let place = |last: u8, port, level, weight| names::Place {
        ip: [10, 0, 0, last].into(),
        entry: Some(Entry { level, port, weight }),
    };
    let all = [place(1, 8080, 0, 3), place(1, 8081, 0, 1), place(2, 80, 1, 1), place(3, 80, 2, 1)];
    upstreams.resolved(&service, &all);
    let mut ports = BTreeMap::new();
    let (mut tried, mut order) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let Pick::To { address, .. } = upstreams.choose(&ask(&[])) else { panic!() };
        *ports.entry(address.socket().expect("an address").port()).or_insert(0) += 1;
    }
    assert_eq!(ports, BTreeMap::from([(8080, 30), (8081, 10)]));
    while let Pick::To { lease, address, .. } = upstreams.choose(&ask(&tried)) {
        tried.push(lease.endpoint().id());
        order.push(address.to_string());
    }
    order[..2].sort_unstable();
    // A backup of the configuration is as good as a record of the best priority.
    assert_eq!(order, ["10.0.0.1:8080", "10.0.0.1:8081", "10.0.0.9:9", "10.0.0.2:80", "10.0.0.3:80"]);
    let shown = |upstreams: &Upstreams| -> Vec<(String, Option<u16>, bool)> {
        let views = upstreams.shared().views();
        let of = |e: &Arc<Endpoint>| (e.address(), e.own_weight(), e.is_backup());
        views[0].endpoints.iter().map(of).collect()
    };
    assert_eq!(shown(&upstreams)[0], ("10.0.0.1:8080".to_owned(), Some(3), false));
    assert_eq!(shown(&upstreams)[2], ("10.0.0.2:80".to_owned(), Some(1), true));
    // The better ones go, and the others move up; what is known of an address stays.
    let before: Vec<u32> = upstreams.shared().views()[0].endpoints.iter().map(|e| e.id()).collect();
    upstreams.resolved(&service, &[place(2, 80, 0, 7), place(3, 80, 1, 1)]);
    let after: Vec<u32> = upstreams.shared().views()[0].endpoints.iter().map(|e| e.id()).collect();
    assert_eq!(after, before[2..]);
    assert_eq!(shares(&mut upstreams, 0, 5), BTreeMap::from([(2, 5)]));
}

#[test]
fn rivals_are_of_the_other_family_of_the_same_name() {
    let mut upstreams = upstreams("['db:80', '10.0.0.9:9']", "");
    let (four, six) = (names::Place::of([10, 0, 0, 1].into()), names::Place::of("fd00::1".parse().unwrap()));
    let db = Host::Name("db".into());
    upstreams.resolved(&db, &[four]);
    let Pick::To { rival: None, .. } = upstreams.choose(&ask(&[])) else { panic!("one family has no rivals") };
    upstreams.resolved(&db, &[four, six]);
    let rival_of = Some(Rival { target: 0, is_ipv4: true });
    let Pick::To { lease, address, rival, .. } = upstreams.choose(&Ask { rival_of, ..ask(&[]) }) else { panic!() };
    assert_eq!((address.ip(), rival), (Some(six.ip), Some(Rival { target: 0, is_ipv4: false })));
    let tried = [lease.endpoint().id()];
    assert!(matches!(upstreams.choose(&Ask { rival_of, ..ask(&tried) }), Pick::Nothing));
    // One that lost goes behind the others for a while.
    lease.endpoint().lost(0);
    assert_eq!(shares(&mut upstreams, 1, 8), BTreeMap::from([(1, 4), (9, 4)]));
    assert!(matches!(upstreams.choose(&Ask { rival_of, ..ask(&[]) }), Pick::To { .. }));
    lease.endpoint().command(Admin::Disabled, None, 0);
    assert!(matches!(upstreams.choose(&Ask { rival_of, ..ask(&[]) }), Pick::Nothing));
}

#[test]
fn workers_that_wait_are_told_once() {
    let upstreams = upstreams(THREE, "");
    let shared = upstreams.shared();
    [3, 64, 1023].into_iter().for_each(|worker| shared.wait(worker));
    assert_eq!(shared.waiting().collect::<Vec<_>>(), [3, 64, 1023]);
    assert_eq!(shared.waiting().count(), 0);
}
