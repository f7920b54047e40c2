//! Targets that die, stop, vanish and come back while clients ask: who is lost, and how soon the state tells.

#![cfg(target_os = "linux")]

use crate::common;

use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually, throughout, until};
use common::peer::{FullBackend, Reserved, connect, end_of, metrics_address};
use common::spliced::{Launcher, Spliced};
use common::target::{Lost, Number, Target, ask, hold, request, under_load};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Clients at a time; each has at most one request in flight.
const CLIENTS: usize = 8;
const CHECKS: &str = "check: { send: ping, expect: ping, interval: 200ms, timeout: 150ms, rise: 2, fall: 2 }";

fn config(port: &Reserved, targets: &[SocketAddr], options: &str) -> String {
    let list: Vec<_> = targets.iter().map(|target| format!("\"{target}\"")).collect();
    let to = list.join(", ");
    format!("workers: 2\n{options}\nforwards: [{{ name: test, listen: \"{}\", to: [{to}] }}]\n", port.address())
}

fn start(port: &Reserved, targets: &[Target], options: &str) -> Spliced {
    let addresses: Vec<_> = targets.iter().map(Target::address).collect();
    Launcher::config(&config(port, &addresses, options)).start()
}

fn up(count: Number) -> Vec<Target> {
    (0..count).map(Target::up).collect()
}

fn state(spliced: &Spliced, target: usize) -> String {
    let stats = spliced.stats();
    stats.0["forwards"][0]["targets"][target]["state"].as_str().expect("a state").to_owned()
}

/// Waits for a state, and how long it took.
fn state_is(spliced: &Spliced, target: usize, wanted: &str) -> Duration {
    let begun = Instant::now();
    eventually(&format!("target {target} is {wanted}"), LONG, || {
        let is = state(spliced, target);
        if is == wanted { Ok(()) } else { Err(format!("it is {is}")) }
    });
    begun.elapsed()
}

fn counter(spliced: &Spliced, target: usize, name: &str) -> u64 {
    spliced.stats().number(&format!("/forwards/0/targets/{target}/{name}"))
}

/// The end of a test in which checks go on: their sockets come and go.
fn finish(mut spliced: Spliced) {
    spliced.stats_until("every session has ended", |stats| stats.open() == 0);
    spliced.signal(Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert!(spliced.logged("panicked").is_empty());
}

#[test]
fn a_killed_target_costs_what_it_had_in_flight_and_comes_back() {
    let (port, mut targets) = (Reserved::loopback(), up(3));
    let spliced = start(&port, &targets, "health: { fails: 3, eject: 700ms, eject_max: 2s }");
    under_load(port.address(), CLIENTS, LONG, |seen| {
        (0..3).for_each(|number| seen.answers(number, 20));
        assert_eq!(seen.lost(), 0);
        targets[1].kill();
        state_is(&spliced, 1, "EJECTED");
        seen.answers(0, 50);
        let lost = seen.lost();
        assert!(lost <= CLIENTS, "{lost} lost, {CLIENTS} were in flight at most");
        targets[1].start();
        // It is tried once its time is over, which may have grown to the most it can be.
        let took = state_is(&spliced, 1, "UP");
        assert!(took <= Duration::from_secs(4), "{took:?}");
        seen.answers(1, 30);
        assert_eq!(seen.lost(), lost, "and none more, neither by trying it nor by its coming back");
    });
    let stats = spliced.stats();
    assert!(stats.number("/forwards/0/targets/1/ejections") >= 1);
    assert!(stats.number("/total/retries") >= 3, "each failed attempt was made good");
    assert_eq!(stats.ends("refused"), 0);
    assert!(!spliced.says("is ejected for 700ms").is_empty(), "{}", spliced.text());
    assert!(!spliced.says("answers again").is_empty(), "{}", spliced.text());
    spliced.finish();
}

#[test]
fn a_stopped_target_is_found_by_its_silence() {
    let (port, targets) = (Reserved::loopback(), up(2));
    let spliced = start(&port, &targets, &format!("{CHECKS}\non_down: end"));
    under_load(port.address(), CLIENTS, LONG, |seen| {
        (0..2).for_each(|number| seen.answers(number, 20));
        targets[0].signal(Signal::SIGSTOP);
        let took = state_is(&spliced, 0, "DOWN");
        // Two failed checks of 150 ms, up to 220 ms apart, the first up to 220 ms away; and a busy machine.
        assert!(took <= Duration::from_secs(3), "{took:?}");
        // Who had been dealt to it by then is reset rather than left to wait; nobody is dealt to it any more.
        spliced.stats_until("its sessions end", |stats| stats.number("/forwards/0/targets/0/sessions_open") == 0);
        let down = Instant::now();
        seen.answers(1, 50);
        assert!(seen.since(down).iter().all(|seen| *seen == Ok(1)), "{:?}", seen.since(down));
        let lost = seen.lost();
        // Each client waits on it at most once before it is found.
        assert!((1..=CLIENTS).contains(&lost), "{lost} lost");
        targets[0].signal(Signal::SIGCONT);
        let took = state_is(&spliced, 0, "UP");
        assert!(took <= Duration::from_secs(3), "{took:?}");
        seen.answers(0, 20);
        assert_eq!(seen.lost(), lost);
    });
    assert!(spliced.stats().ends("target_down") >= 1);
    assert!(!spliced.says("is down: 2 failed checks in a row: not the expected answer within 150ms; its").is_empty());
    assert!(!spliced.says("is up: 2 good checks in a row").is_empty());
    finish(spliced);
}

#[test]
fn a_blackholed_target_costs_time_and_no_request() {
    let (port, live, full) = (Reserved::loopback(), Target::up(1), FullBackend::new());
    let hole = full.try_clone().local_addr().expect("bound");
    let options = "timeouts: { connect: 20s, connect_attempt: 200ms }\nhealth: { fails: 2, eject: 1s, eject_max: 1m }";
    let spliced = Launcher::config(&config(&port, &[hole, live.address()], options)).start();
    under_load(port.address(), CLIENTS, LONG, |seen| {
        state_is(&spliced, 0, "EJECTED");
        let ejected = Instant::now();
        seen.answers(1, 100);
        assert!(ejected.elapsed() < LONG);
        assert_eq!(seen.lost(), 0);
    });
    assert!(spliced.stats().number("/total/retries") >= 2);
    drop(full);
    spliced.finish();
}

#[test]
fn an_attempt_that_takes_all_the_time_there_is_counts_too() {
    let (port, live, full) = (Reserved::loopback(), Target::up(1), FullBackend::new());
    let hole = full.try_clone().local_addr().expect("bound");
    let options = "retries: 0\ntimeouts: { connect: 200ms }\nhealth: { fails: 2, eject: 1m, eject_max: 1m }";
    let spliced = Launcher::config(&config(&port, &[hole, live.address()], options)).start();
    eventually("it is ejected", LONG, || {
        let _ = ask(port.address());
        if state(&spliced, 0) == "EJECTED" { Ok(()) } else { Err("not yet".to_owned()) }
    });
    assert_eq!(counter(&spliced, 0, "failures"), 2);
    assert!((0..10).all(|_| ask(port.address()) == Ok(1)));
    drop(full);
    spliced.finish();
}

#[test]
fn each_address_of_a_name_is_checked() {
    let (port, target) = (Reserved::loopback(), Target::up(0));
    let number = target.address().port();
    let text = format!(
        "check: {{ interval: 100ms, rise: 1, fall: 1 }}\n\
         forwards: [{{ name: test, listen: \"{}\", to: \"localhost:{number}\" }}]\n",
        port.address()
    );
    let spliced = Launcher::config(&text).start();
    eventually("its IPv4 address is checked", LONG, || {
        let stats = spliced.stats();
        let targets = stats.0["forwards"][0]["targets"].as_array().expect("a list").clone();
        let address = format!("127.0.0.1:{number}");
        let own = targets.iter().find(|target| target["address"] == address.as_str());
        match own {
            Some(own) if own["state"] == "UP" && own["checks"].as_u64() >= Some(2) && own["checks_failed"] == 0 => {
                Ok(())
            }
            _ => Err(format!("{targets:?}")),
        }
    });
    assert_eq!(ask(port.address()), Ok(0));
    finish(spliced);
}

#[test]
fn a_flapping_target_loses_nothing_but_what_it_holds_and_is_left_out_longer_each_time() {
    let (port, mut targets) = (Reserved::loopback(), up(2));
    let spliced = start(&port, &targets, "health: { fails: 1, eject: 200ms, eject_max: 1s }");
    under_load(port.address(), CLIENTS, LONG, |seen| {
        let mut allowed = 0;
        for _ in 0..3 {
            seen.answers(0, 10);
            targets[0].kill();
            allowed += CLIENTS;
            seen.answers(1, 30);
            assert!(seen.lost() <= allowed, "{} lost", seen.lost());
            targets[0].start();
        }
        targets[0].kill();
        allowed += CLIENTS;
        until("it is left out longer each time", LONG, || {
            ["200ms", "400ms", "800ms", "1s"]
                .iter()
                .all(|time| !spliced.logged(&format!("ejected for {time}:")).is_empty())
        });
        assert!(seen.lost() <= allowed, "{} lost", seen.lost());
    });
    spliced.finish();
}

#[test]
fn the_last_target_is_never_ejected() {
    let (port, mut target) = (Reserved::loopback(), Target::down(0));
    let other = Reserved::loopback();
    let options = "health: { fails: 1, eject: 1h, eject_max: 1h }";
    let text = config(&port, &[target.address(), other.address()], options);
    let spliced = Launcher::config(&text).start();
    for _ in 0..5 {
        let _ = ask(port.address());
    }
    let ejected = (0..2).filter(|at| state(&spliced, *at) == "EJECTED").count();
    assert_eq!(ejected, 1, "one of the two stays");
    target.start();
    until("it is used, ejected or not, because nothing else works", LONG, || ask(port.address()) == Ok(0));
    spliced.finish();
}

#[test]
fn checks_find_a_target_before_any_client_does() {
    let (port, mut targets) = (Reserved::loopback(), up(2));
    let spliced = start(&port, &targets, "check: { interval: 200ms, rise: 3, fall: 2 }");
    until("they are checked", LONG, || (0..2).all(|at| counter(&spliced, at, "checks") >= 2));
    targets[1].kill();
    state_is(&spliced, 1, "DOWN");
    assert_eq!(counter(&spliced, 1, "connects"), 0, "no client has been there");
    let failed = counter(&spliced, 1, "checks_failed");
    assert!(failed >= 2);
    for _ in 0..10 {
        assert_eq!(ask(port.address()), Ok(0));
    }
    assert_eq!(counter(&spliced, 1, "connects"), 0);
    let up = Instant::now();
    targets[1].start();
    state_is(&spliced, 1, "UP");
    assert!(up.elapsed() >= Duration::from_millis(200), "three good checks take two intervals: {:?}", up.elapsed());
    assert!(spliced.stats().number("/forwards/0/targets/1/checks_failed") >= failed);
    finish(spliced);
}

#[test]
fn sessions_of_a_target_that_is_down_are_kept_unless_asked_otherwise() {
    let (port, targets) = (Reserved::loopback(), up(2));
    // Another port decides: the target itself goes on to answer.
    let check = Target::up(9);
    let mut check = check;
    let options = format!("check: {{ interval: 100ms, fall: 1, rise: 1, port: {} }}", check.address().port());
    let spliced = start(&port, &targets, &options);
    let held: Vec<_> = (0..4).map(|_| hold(port.address())).collect();
    check.kill();
    (0..2).for_each(|at| _ = state_is(&spliced, at, "DOWN"));
    assert!(held.iter().all(|(stream, number)| request(stream, LONG) == Ok(*number)));
    assert!(ask(port.address()).is_ok(), "where none is up all are tried");
    // The same with a reload that says otherwise; it ends them the next time.
    check.start();
    (0..2).for_each(|at| _ = state_is(&spliced, at, "UP"));
    let addresses: Vec<_> = targets.iter().map(Target::address).collect();
    spliced.reload_with(&config(&port, &addresses, &format!("{options}\non_down: end")));
    assert!(held.iter().all(|(stream, number)| request(stream, LONG) == Ok(*number)));
    check.kill();
    (0..2).for_each(|at| _ = state_is(&spliced, at, "DOWN"));
    for (stream, _) in &held {
        assert!(end_of(stream).is_err(), "it is reset");
    }
    spliced.ended("target_down", 4);
    drop(held);
    finish(spliced);
}

#[test]
fn an_answer_that_is_not_the_expected_one_is_a_failed_check() {
    let port = Reserved::loopback();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let answer = std::sync::Arc::new(std::sync::Mutex::new("-LOADING"));
    let said = std::sync::Arc::clone(&answer);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 6];
            if stream.read_exact(&mut request).is_ok() && request == *b"PING\r\n" {
                let _ = stream.write_all(said.lock().expect("no panic").as_bytes());
            }
        }
    });
    let options = r#"check: { send: "PING\r\n", expect: "+PONG", interval: 100ms, rise: 1, fall: 1 }"#;
    let spliced = Launcher::config(&config(&port, &[address], options)).start();
    state_is(&spliced, 0, "DOWN");
    assert!(!spliced.says("the answer was \"-LOADING\", without \"+PONG\"").is_empty(), "{}", spliced.text());
    *answer.lock().expect("no panic") = "+PONG";
    state_is(&spliced, 0, "UP");
    finish(spliced);
}

#[test]
fn states_are_in_the_metrics() {
    let (port, mut targets) = (Reserved::loopback(), up(2));
    let metrics = metrics_address();
    let spliced =
        start(&port, &targets, &format!("metrics: {metrics}\ncheck: {{ interval: 100ms, rise: 1, fall: 1 }}"));
    let scrape = || {
        let mut stream = connect(metrics);
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").expect("a request");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("an answer");
        page
    };
    let address = targets[1].address();
    let labels = format!("{{forward=\"test\",target=\"{address}\",address=\"{address}\"}}");
    until("it is up", LONG, || scrape().contains(&format!("spliced_target_up{labels} 1\n")));
    targets[1].kill();
    until("it is down", LONG, || scrape().contains(&format!("spliced_target_up{labels} 0\n")));
    let page = scrape();
    let state = labels.replace('}', ",state=\"DOWN\"}");
    assert!(page.contains(&format!("spliced_target_state{state} 1\n")), "{page}");
    for family in ["sessions_open", "connects_total", "connect_failures_total", "ejections_total", "checks_total"] {
        assert!(page.contains(&format!("spliced_target_{family}{labels} ")), "{family}: {page}");
    }
    let (code, table) = spliced.ask("stats", &[]);
    assert!(code == Some(0) && table.contains("DOWN") && table.contains(&address.to_string()), "{table}");
    finish(spliced);
}

#[test]
fn checks_end_with_the_configuration_that_asked_for_them() {
    let (port, targets) = (Reserved::loopback(), [Target::down(0), Target::up(1)]);
    let addresses: Vec<_> = targets.iter().map(Target::address).collect();
    let spliced = start(&port, &targets, "check: { interval: 100ms }");
    state_is(&spliced, 0, "DOWN");
    spliced.reload_with(&config(&port, &addresses, "check: none"));
    state_is(&spliced, 0, "UP");
    let checks = counter(&spliced, 1, "checks");
    throughout("nobody is checked", Duration::from_millis(500), || {
        let now = counter(&spliced, 1, "checks");
        if now <= checks + 1 { Ok(()) } else { Err(format!("{now} checks, {checks} before")) }
    });
    assert_eq!(ask(port.address()), Ok(1), "the other one is tried where it refuses");
    spliced.reload_with(&config(&port, &addresses, "check: { interval: 100ms }"));
    state_is(&spliced, 0, "DOWN");
    finish(spliced);
}

#[test]
fn the_strict_sandbox_lets_checks_through() {
    let (port, targets, check) = (Reserved::loopback(), up(1), Target::up(9));
    let options = format!(
        "sandbox: strict\ncheck: {{ send: ping, expect: ping, interval: 100ms, port: {} }}",
        check.address().port()
    );
    let launcher = Launcher::config(&config(&port, &[targets[0].address()], &options));
    let spliced = launcher.start();
    until("it is checked", LONG, || counter(&spliced, 0, "checks") >= 3);
    assert_eq!((state(&spliced, 0).as_str(), counter(&spliced, 0, "checks_failed")), ("UP", 0));
    assert_eq!(ask(port.address()), Ok(0));
    finish(spliced);
}

/// A stopped target without checks: its kernel still takes connections, so only the client's own patience ends them.
#[test]
fn nobody_is_reset_without_checks() {
    let (port, targets) = (Reserved::loopback(), up(1));
    let spliced = start(&port, &targets, "");
    let (held, _) = hold(port.address());
    targets[0].signal(Signal::SIGSTOP);
    let late: &TcpStream = &held;
    assert_eq!(request(late, Duration::from_millis(300)), Err(Lost::Late));
    targets[0].signal(Signal::SIGCONT);
    let mut rest = [0; 5];
    late.set_read_timeout(Some(LONG)).expect("a deadline");
    { late }.read_exact(&mut rest).expect("the answer comes late");
    drop(held);
    spliced.finish();
}
