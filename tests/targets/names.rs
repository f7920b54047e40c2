//! Names of targets: they follow what name servers say, keep to it where these fail, and no session is cut by that.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::cannot_run;
use common::deadline::{LONG, eventually, throughout, until};
use common::dns::{Dnsmasq, Says, Scripted};
use common::peer::{FullBackend, Reserved, connect, echoes};
use common::spliced::{Launcher, Spliced, ordinary_user};
use nix::unistd::geteuid;
use simple_dns::RCODE;

/// Backends on the same port of several addresses; each says its last byte first and then echoes. They end with the test.
fn backends(addresses: &[&str]) -> u16 {
    'port: loop {
        let mut listeners: Vec<TcpListener> = Vec::new();
        for address in addresses {
            let port = listeners.first().map_or(0, |first| first.local_addr().expect("bound").port());
            match TcpListener::bind((address.parse::<IpAddr>().expect("an address"), port)) {
                Ok(listener) => listeners.push(listener),
                // Somebody has that port on this address.
                Err(_) => continue 'port,
            }
        }
        let port = listeners[0].local_addr().expect("bound").port();
        listeners.into_iter().for_each(|listener| drop(thread::spawn(move || serve(&listener))));
        return port;
    }
}

fn serve(listener: &TcpListener) {
    let number = match listener.local_addr().expect("bound").ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15] | 0x80,
    };
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        thread::spawn(move || {
            let mut buffer = [0; 64];
            let _ = stream.write_all(&[number]);
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
        });
    }
}

/// A session, and which backend it has come to.
fn session(to: SocketAddr) -> (TcpStream, u8) {
    let mut stream = connect(to);
    let mut number = [0];
    stream.read_exact(&mut number).expect("the backend's number");
    (stream, number[0])
}

fn config(port: &Reserved, target: &str, options: &str) -> String {
    format!("workers: 2\n{options}\nforwards: [{{ name: test, listen: \"{}\", to: {target} }}]\n", port.address())
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// The addresses the first name has, in stats.
fn addresses(spliced: &Spliced) -> Vec<String> {
    let stats = spliced.stats();
    let all = stats.0["names"][0]["addresses"].as_array().expect("a list").clone();
    all.iter().map(|address| address.as_str().expect("text").to_owned()).collect()
}

fn addresses_are(spliced: &Spliced, wanted: &[&str]) {
    eventually("the name has other addresses", LONG, || {
        let found = addresses(spliced);
        if found == wanted { Ok(()) } else { Err(format!("{found:?}\n{}", spliced.text())) }
    });
}

fn failures(spliced: &Spliced) -> u64 {
    spliced.stats().number("/names/0/failures")
}

#[test]
fn an_answer_is_asked_for_again_when_it_runs_out_and_no_session_is_cut() {
    let Some(server) = Dnsmasq::start(loopback(), "127.0.0.2 web.example\n127.0.0.3 web.example\n", &[]) else {
        return;
    };
    let (port, backend) = (Reserved::loopback(), backends(&["127.0.0.2", "127.0.0.3", "127.0.0.4"]));
    let options = format!("resolvers: {}", server.address());
    let mut spliced = Launcher::config(&config(&port, &format!("\"web.example:{backend}\""), &options)).start();
    addresses_are(&spliced, &["127.0.0.2", "127.0.0.3"]);
    let held: Vec<_> = (0..4).map(|_| session(port.address())).collect();
    let mut numbers: Vec<u8> = held.iter().map(|held| held.1).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, [2, 3], "every address is a target");
    let id = |stats: &common::stats::Stats, at: usize| stats.0["forwards"][0]["targets"][at]["connects"].clone();
    let before = id(&spliced.stats(), 1);

    server.set("127.0.0.3 web.example\n127.0.0.4 web.example\n");
    addresses_are(&spliced, &["127.0.0.3", "127.0.0.4"]);
    until("nobody comes to the old address", LONG, || (0..8).all(|_| session(port.address()).1 != 2));
    let stats = spliced.stats();
    let targets = stats.0["forwards"][0]["targets"].as_array().expect("a list").clone();
    let gone: Vec<_> = targets.iter().filter(|target| target["gone"] == true).collect();
    assert_eq!(gone.len(), 1, "{targets:?}");
    assert!(gone[0]["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.2:")), "{gone:?}");
    let kept =
        targets.iter().find(|t| t["address"].as_str().is_some_and(|a| a.starts_with("127.0.0.3:"))).expect("there");
    assert!(kept["connects"].as_u64() >= before.as_u64(), "what was counted of it is kept");
    for (stream, _) in &held {
        assert!(echoes(stream, 7, LONG), "the sessions of before go on");
    }
    drop(held);
    spliced.stats_until("the address has gone with its last session", |stats| {
        let targets = stats.0["forwards"][0]["targets"].as_array().expect("a list");
        targets.len() == 2 && targets.iter().all(|target| target.get("gone").is_none())
    });
    assert!(!spliced.says("web.example is 127.0.0.3, 127.0.0.4").is_empty(), "{}", spliced.text());
    assert_eq!(failures(&spliced), 0);
    end(&mut spliced);
}

/// Ends it while look-ups go on.
fn end(spliced: &mut Spliced) {
    spliced.stats_until("every session has ended", |stats| stats.open() == 0);
    spliced.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
    assert!(spliced.logged("panicked").is_empty());
}

#[test]
fn a_server_that_is_gone_or_has_lost_the_name_changes_nothing() {
    let Some(mut server) = Dnsmasq::start(loopback(), "127.0.0.2 web.example\n", &[]) else { return };
    let (port, backend) = (Reserved::loopback(), backends(&["127.0.0.2"]));
    let options = format!("resolvers: {}\nresolve_interval: 300ms", server.address());
    let mut spliced = Launcher::config(&config(&port, &format!("\"web.example:{backend}\""), &options)).start();
    assert_eq!(session(port.address()).1, 2);
    // NXDOMAIN.
    server.set("127.0.0.9 other.example\n");
    until("it is seen", LONG, || failures(&spliced) >= 2);
    assert_eq!((session(port.address()).1, addresses(&spliced)), (2, vec!["127.0.0.2".to_owned()]));
    let stats = spliced.stats();
    assert_eq!(stats.0["names"][0]["error"], "the name servers know of none");
    server.stop();
    let before = failures(&spliced);
    until("nobody answers", LONG, || failures(&spliced) >= before + 2);
    assert_eq!(session(port.address()).1, 2);
    assert_eq!(spliced.says("cannot resolve web.example").len(), 1, "once for all: {}", spliced.text());
    assert_eq!(spliced.says("its last addresses stay in use").len(), 1);
    server.run();
    server.set("127.0.0.2 web.example\n");
    until("it is well again", LONG, || spliced.stats().0["names"][0]["error"].is_null());
    // The line is written before the counters say so, and read by a thread of its own.
    until("it is said", LONG, || spliced.logged("web.example is resolved again").len() == 1);
    let (code, text) = spliced.ask("stats", &[]);
    assert!(code == Some(0) && text.contains("names\n") && text.contains("web.example"), "{text}");
    end(&mut spliced);
}

#[test]
fn records_of_a_service_say_where_how_much_and_in_what_order() {
    let hosts = "127.0.0.2 a.example\n127.0.0.3 b.example\n127.0.0.4 c.example\n";
    let ports: Vec<u16> = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].iter().map(|ip| backends(&[ip])).collect();
    let record =
        |host: &str, port: u16, rest: &str| format!("--srv-host=_web._tcp.example,{host}.example,{port},{rest}");
    let records = [record("a", ports[0], "10,30"), record("b", ports[1], "10,10"), record("c", ports[2], "20,5")];
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let Some(server) = Dnsmasq::start(loopback(), hosts, &records) else { return };
    let port = Reserved::loopback();
    let options = format!("resolvers: {}", server.address());
    for target in ["srv:_web._tcp.example", "{ srv: _web._tcp.example }"] {
        let mut spliced = Launcher::config(&config(&port, target, &options)).start();
        let mut numbers = [0u32; 5];
        (0..40).for_each(|_| numbers[usize::from(session(port.address()).1)] += 1);
        // Two workers, each with its own turn.
        assert!(numbers[2].abs_diff(30) <= 2 && numbers[3].abs_diff(10) <= 2 && numbers[4] == 0, "{numbers:?}");
        let stats = spliced.stats();
        let of = |at: usize, what: &str| stats.0["forwards"][0]["targets"][at][what].clone();
        assert_eq!((of(0, "weight"), of(0, "backup")), (30.into(), false.into()));
        assert_eq!((of(2, "address"), of(2, "backup")), (format!("127.0.0.4:{}", ports[2]).into(), true.into()));
        end(&mut spliced);
    }
}

#[test]
fn an_answer_too_long_for_a_packet_comes_over_tcp() {
    let hosts: String = (1..=200).map(|n| format!("127.0.7.{n} many.example\n")).collect();
    let Some(server) = Dnsmasq::start(loopback(), &hosts, &[]) else { return };
    let port = Reserved::loopback();
    let options = format!("resolvers: {}", server.address());
    let mut spliced = Launcher::config(&config(&port, "\"many.example:9\"", &options)).start();
    until("all are known", LONG, || addresses(&spliced).len() == 200);
    end(&mut spliced);
}

#[test]
fn answers_of_every_bad_kind_are_no_answers() {
    let good = Says::Addresses(vec![[127, 0, 0, 2].into()], 0);
    let server = Scripted::start(good.clone());
    let (port, backend) = (Reserved::loopback(), backends(&["127.0.0.2", "127.0.0.66"]));
    let options = format!("resolvers: {}\nresolve_interval: 100ms\nresolve: dns", server.address());
    let target = format!("\"web.example:{backend}\"");
    let mut launcher = Launcher::config(&config(&port, &target, &options));
    if geteuid().is_root() {
        // The shortest time to wait for an answer, so that silence is over soon.
        let conf = launcher.directory().join("resolv.conf");
        fs::write(&conf, "options timeout:1 attempts:1\n").expect("our own file");
        launcher = launcher.through(mounted(&conf.display().to_string()));
    }
    let mut spliced = launcher.start();
    assert_eq!(session(port.address()).1, 2);
    let evil: IpAddr = [127, 0, 0, 66].into();
    for says in [
        Says::Code(RCODE::ServerFailure),
        Says::Code(RCODE::Refused),
        Says::Code(RCODE::NameError),
        Says::Bytes(b"garbage".to_vec()),
        Says::Bytes(vec![0xff; 1400]),
        Says::Bytes(Vec::new()),
        Says::Forged(evil),
        Says::Silence,
    ] {
        server.set(says.clone());
        until("it is counted", LONG, || spliced.stats().0["names"][0]["error"].is_string());
        assert_eq!((session(port.address()).1, addresses(&spliced)), (2, vec!["127.0.0.2".to_owned()]), "{says:?}");
        server.set(good.clone());
        until("it is well again", LONG, || spliced.stats().0["names"][0]["error"].is_null());
    }
    assert!(spliced.logged("SERVFAIL").len() == 1 && spliced.logged("REFUSED").len() == 1, "{}", spliced.text());
    assert!(!spliced.says("cannot be used").is_empty(), "{}", spliced.text());
    end(&mut spliced);
}

#[test]
fn a_reload_asks_other_servers_and_cuts_no_session() {
    let old = Scripted::start(Says::Addresses(vec![[127, 0, 0, 2].into()], 3600));
    let new = Scripted::start(Says::Addresses(vec![[127, 0, 0, 3].into()], 3600));
    let (port, backend) = (Reserved::loopback(), backends(&["127.0.0.2", "127.0.0.3"]));
    let with = |server: &Scripted| {
        config(&port, &format!("\"web.example:{backend}\""), &format!("resolvers: \"{}\"", server.address()))
    };
    let mut spliced = Launcher::config(&with(&old)).start();
    let (held, number) = session(port.address());
    assert_eq!(number, 2);
    let said = spliced.reload_with(&with(&new));
    assert!(said.contains("~ resolvers "), "{said}");
    addresses_are(&spliced, &["127.0.0.3"]);
    until("sessions follow", LONG, || session(port.address()).1 == 3);
    assert!(echoes(&held, 9, LONG));
    drop(held);
    end(&mut spliced);
}

/// Starts a program in a mount namespace where that file is /etc/resolv.conf.
fn mounted(file: &str) -> Vec<String> {
    let script = format!("mount --bind '{file}' /etc/resolv.conf && exec \"$0\" \"$@\"");
    ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).to_vec()
}

#[test]
fn resolv_conf_is_followed_in_the_sandbox_also_after_a_change_of_the_user() {
    if !geteuid().is_root() {
        return cannot_run("only root mounts a file over /etc/resolv.conf and listens on port 53");
    }
    // Servers of resolv.conf have port 53: each test run has its own addresses.
    let own = u8::try_from(std::process::id() % 199 + 20).expect("below 256");
    let at = |last: u8| SocketAddr::from(([127, own, 53, last], 53));
    let Some(mut first) = Dnsmasq::start(at(1), "127.0.0.2 web.sub.example\n", &[]) else { return };
    let Some(_second) = Dnsmasq::start(at(2), "127.0.0.3 web.sub.example\n", &[]) else { return };
    let (port, backend) = (Reserved::loopback(), backends(&["127.0.0.2", "127.0.0.3"]));
    let uid = ordinary_user();
    let text = format!("user: \"{uid}:{uid}\"\nresolve_interval: 200ms");
    let launcher = Launcher::config(&config(&port, &format!("\"web:{backend}\""), &text)).place_of(uid);
    let conf = launcher.directory().join("resolv.conf");
    let write = |last: u8| {
        let text = format!(
            "# test\nsearch nowhere.example sub.example\nnameserver {}\noptions timeout:1 attempts:1\n",
            at(last).ip()
        );
        fs::write(&conf, text).expect("our own file");
    };
    write(1);
    let mut spliced = launcher.through(mounted(&conf.display().to_string())).start();
    assert_eq!(session(port.address()).1, 2, "the name is found through the search list");
    assert!(!spliced.says("sandbox:").is_empty(), "{}", spliced.text());
    first.stop();
    until("the server is gone", LONG, || failures(&spliced) >= 1);
    write(2);
    addresses_are(&spliced, &["127.0.0.3"]);
    until("sessions follow", LONG, || session(port.address()).1 == 3);
    end(&mut spliced);
}

#[test]
fn a_family_that_does_not_answer_costs_its_delay_and_is_no_failure() {
    let full = FullBackend::new();
    let dead = full.try_clone().local_addr().expect("bound");
    let live = match TcpListener::bind(("::1", dead.port())) {
        Ok(listener) => listener,
        Err(e) => return cannot_run(&format!("an IPv6 loopback with that port is needed: {e}")),
    };
    thread::spawn(move || serve(&live));
    let server =
        Scripted::start(Says::Addresses(vec!["127.0.0.1".parse().expect("v4"), "::1".parse().expect("v6")], 60));
    let port = Reserved::loopback();
    let options =
        format!("resolvers: {}\nconnect_timeout: 20s\nconnect_attempt_delay: 100ms\nworkers: 1", server.address());
    let text = config(&port, &format!("\"dual.example:{}\"", dead.port()), &options).replacen("workers: 2\n", "", 1);
    let mut spliced = Launcher::config(&text).start();
    addresses_are(&spliced, &["127.0.0.1", "::1"]);
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(session(port.address()).1, 0x81);
    }
    // At most one of them waits, and then its family goes behind the other: far less than the share of a connect timeout.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let stats = spliced.stats();
    for at in 0..2 {
        assert_eq!(stats.number(&format!("/forwards/0/targets/{at}/failures")), 0, "{}", stats.0);
        assert_eq!(stats.0["forwards"][0]["targets"][at]["state"], "UP");
    }
    assert_eq!(stats.number("/forwards/0/targets/0/connects"), 1, "the dead family was tried once");
    spliced.stats_until("nothing is left of it", |stats| stats.number("/forwards/0/targets/0/sessions_open") == 0);
    drop(full);
    end(&mut spliced);
}

#[test]
fn a_family_that_refuses_is_passed_at_once_and_counted() {
    let live = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port_number = live.local_addr().expect("bound").port();
    thread::spawn(move || serve(&live));
    let server =
        Scripted::start(Says::Addresses(vec!["127.0.0.1".parse().expect("v4"), "::1".parse().expect("v6")], 60));
    let port = Reserved::loopback();
    let options = format!("resolvers: {}\nhealth: none\nconnect_timeout: 20s", server.address());
    let mut spliced = Launcher::config(&config(&port, &format!("\"dual.example:{port_number}\""), &options)).start();
    addresses_are(&spliced, &["127.0.0.1", "::1"]);
    throughout("every session comes through at once", Duration::from_secs(1), || {
        let begun = Instant::now();
        let (_, number) = session(port.address());
        if number == 1 && begun.elapsed() < Duration::from_secs(5) { Ok(()) } else { Err(format!("{number}")) }
    });
    assert!(spliced.stats().number("/forwards/0/targets/1/failures") > 0);
    end(&mut spliced);
}
