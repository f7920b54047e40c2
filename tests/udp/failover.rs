//! Targets of datagrams that die, fall silent and come back: flows without an answer go on to another one, others begin
//! anew there, and new ones go there at once.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::deadline::{LONG, eventually, until};
use common::dns::Dnsmasq;
use common::spliced::{Launcher, Spliced};
use common::udp::{self, ask, client};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, TYPE};

/// Answers each datagram with its name; to PING it says PONG.
struct Target {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    fn start(address: SocketAddr, name: &'static str) -> Self {
        let socket = eventually("the port is free", LONG, || UdpSocket::bind(address).map_err(|e| e.to_string()));
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a deadline");
        let (silent, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (is_silent, stopped) = (Arc::clone(&silent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((bytes, from)) = socket.recv_from(&mut datagram) else { continue };
                if !is_silent.load(Ordering::Relaxed) {
                    let answer = if &datagram[..bytes] == b"PING" { "PONG" } else { name };
                    let _ = socket.send_to(answer.as_bytes(), from);
                }
            }
        });
        Self { address, silent, stop, thread: Some(thread) }
    }

    /// It is there and says nothing.
    fn be_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().expect("stopped once").join();
    }
}

fn run(listen: SocketAddr, to: &[SocketAddr], more: &str) -> Spliced {
    let to: Vec<String> = to.iter().map(|target| format!("\"{target}\"")).collect();
    let to = to.join(", ");
    let text = format!("workers: 2\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: [{to}]{more}}}\n");
    Launcher::config(&text).start()
}

fn counter(spliced: &Spliced, target: usize, what: &str) -> u64 {
    spliced.stats().number(&format!("/forwards/0/targets/{target}/{what}"))
}

fn state_is(spliced: &Spliced, target: usize, wanted: &str) {
    eventually(&format!("target {target} is {wanted}"), LONG, || {
        let stats = spliced.stats();
        let is = stats.0["forwards"][0]["targets"][target]["state"].as_str().expect("a state").to_owned();
        if is == wanted { Ok(()) } else { Err(format!("it is {is}")) }
    });
}

/// Asks until there is an answer: what was on its way to a target that has died is lost, and clients of datagrams know.
fn ask_again(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.set_read_timeout(Some(Duration::from_millis(300))).expect("a deadline");
    let answer = eventually("an answer", LONG, || {
        client.send(question).map_err(|e| e.to_string())?;
        let mut answer = [0; 2048];
        client.recv(&mut answer).map(|bytes| answer[..bytes].to_vec()).map_err(|e| e.to_string())
    });
    client.set_read_timeout(Some(LONG)).expect("a deadline");
    answer
}

const HEALTH: &str = ", health: {fails: 3, eject: 500ms, eject_max: 1s}";
const CHECK: &str = ", check: {send: PING, expect: PONG, interval: 200ms, timeout: 1s, rise: 1, fall: 2}";

#[test]
fn what_a_target_refuses_is_asked_at_the_next_one() {
    let (nobody, listen) = (udp::address(), udp::address());
    let there = Target::start(udp::address(), "there");
    let spliced = run(listen, &[nobody, there.address], ", health: {fails: 3, eject: 1m, eject_max: 1m}");
    // None of them asks twice, and no question is lost. All stay open: a port that is free again may come to the next.
    let clients: Vec<UdpSocket> = (0..40).map(|_| client(listen)).collect();
    for (number, client) in clients.iter().enumerate() {
        assert_eq!(ask(client, format!("question {number}").as_bytes()), b"there");
    }
    state_is(&spliced, 0, "EJECTED");
    let stats = spliced.stats();
    assert_eq!((stats.open(), stats.number("/total/sessions_accepted")), (40, 40), "the same flows");
    assert_eq!(stats.number("/total/datagrams/client_to_backend"), 40, "each is counted once");
    assert_eq!((stats.ends("refused"), stats.number("/total/datagrams/drops/unreachable")), (0, 0));
    let (retries, failures) = (stats.number("/total/retries"), counter(&spliced, 0, "failures"));
    assert!(retries == failures && (3..=8).contains(&failures), "{retries} and {failures}");
    assert_eq!(counter(&spliced, 0, "sessions_open"), 0, "its hold of the first is given back");
}

#[test]
fn several_datagrams_before_the_first_answer_go_along() {
    let (nobody, listen) = (udp::address(), udp::address());
    let there = Target::start(udp::address(), "there");
    let to = [nobody, there.address];
    let spliced = run(listen, &to, ", health: none, balance: round_robin");
    for _ in 0..10 {
        let client = client(listen);
        (0..5).for_each(|_| _ = client.send(b"one of several").expect("sent"));
        (0..5).for_each(|_| assert_eq!(udp::receive(&client), b"there"));
    }
    assert!(spliced.stats().number("/total/retries") >= 5);
    // Not more often than is allowed.
    spliced.reload_with(&format!(
        "workers: 2\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: [\"{nobody}\", \"{}\"], retries: 0, health: none}}\n",
        there.address
    ));
    let before = spliced.stats().number("/total/retries");
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| _ = client.send(b"once").expect("sent"));
    let stats = spliced.stats_until("half of them are refused", |stats| stats.ends("refused") >= 4);
    assert_eq!(stats.number("/total/retries"), before);
}

#[test]
fn flows_of_a_target_that_dies_begin_anew_and_it_comes_back() {
    let (listen, first_at) = (udp::address(), udp::address());
    let (first, second) = (Target::start(first_at, "first"), Target::start(udp::address(), "second"));
    let spliced = run(listen, &[first.address, second.address], HEALTH);
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(listen)).collect();
    let all = |clients: &[UdpSocket]| clients.iter().map(|client| ask_again(client, b"who")).collect::<Vec<_>>();
    let answers = all(&clients);
    assert!(answers.iter().any(|who| who == b"first") && answers.iter().any(|who| who == b"second"));
    drop(first);
    // The first datagram of a flow meets with the refusal, by which the flow ends; the next one goes elsewhere.
    assert!(all(&clients).iter().all(|who| who == b"second"));
    let stats = spliced.stats();
    assert!(stats.ends("refused") >= 1 && counter(&spliced, 0, "ejections") >= 1, "{}", spliced.text());
    assert!(!spliced.says("is ejected").is_empty());
    let _first = Target::start(first_at, "first");
    eventually("the first has flows again", LONG, || {
        let who = ask_again(&client(listen), b"who");
        if who == b"first" { Ok(()) } else { Err("it is the second".to_owned()) }
    });
    state_is(&spliced, 0, "UP");
    assert!(!spliced.says("answers again").is_empty(), "{}", spliced.text());
}

#[test]
fn a_check_finds_a_silent_target_and_ends_its_flows() {
    let listen = udp::address();
    let (first, second) = (Target::start(udp::address(), "first"), Target::start(udp::address(), "second"));
    let spliced = run(listen, &[first.address, second.address], &format!("{CHECK}, on_down: end"));
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| _ = ask(client, b"who"));
    let had = counter(&spliced, 0, "sessions_open");
    assert!((3..=7).contains(&had), "each worker takes them in turn: {had}");
    first.be_silent(true);
    state_is(&spliced, 0, "DOWN");
    spliced.stats_until("its flows end", |stats| stats.ends("target_down") == had);
    for client in &clients {
        assert_eq!(ask(client, b"who"), b"second", "at once, without a question lost");
    }
    first.be_silent(false);
    state_is(&spliced, 0, "UP");
    until("it has flows again", LONG, || ask(&client(listen), b"who") == b"first");
    assert!(counter(&spliced, 0, "checks_failed") >= 1);
    assert!(spliced.logged(&format!("target {} is down", second.address)).is_empty(), "{}", spliced.text());
    // A command does what a check does.
    let (code, said) = spliced.ask("target", &["dns", &first.address.to_string(), "disable"]);
    assert_eq!(code, Some(0), "{said}");
    spliced.stats_until("its flows end", |stats| stats.ends("target_down") > had);
    assert_eq!(counter(&spliced, 0, "sessions_open"), 0);
}

#[test]
fn flows_of_a_target_that_is_down_stay_where_they_are_kept() {
    let listen = udp::address();
    let (first, second) = (Target::start(udp::address(), "first"), Target::start(udp::address(), "second"));
    let spliced = run(listen, &[first.address, second.address], CHECK);
    let clients: Vec<UdpSocket> = (0..6).map(|_| client(listen)).collect();
    let before: Vec<Vec<u8>> = clients.iter().map(|client| ask(client, b"who")).collect();
    first.be_silent(true);
    state_is(&spliced, 0, "DOWN");
    (0..6).for_each(|_| assert_eq!(ask(&client(listen), b"who"), b"second", "new ones"));
    first.be_silent(false);
    let after: Vec<Vec<u8>> = clients.iter().map(|client| ask(client, b"who")).collect();
    assert_eq!(before, after);
    assert_eq!(spliced.stats().ends("target_down"), 0);
}

#[test]
fn silence_counts_where_an_answer_is_expected() {
    let listen = udp::address();
    let (first, second) = (Target::start(udp::address(), "first"), Target::start(udp::address(), "second"));
    first.be_silent(true);
    let more = ", udp_responses: 1, udp_timeout: 300ms, health: {fails: 2, eject: 1m, eject_max: 1m}";
    let spliced = run(listen, &[first.address, second.address], more);
    let clients: Vec<UdpSocket> = (0..4).map(|_| client(listen)).collect();
    clients.iter().for_each(|client| _ = client.send(b"who").expect("sent"));
    state_is(&spliced, 0, "EJECTED");
    (0..6).for_each(|_| assert_eq!(ask(&client(listen), b"who"), b"second"));
    assert!(spliced.stats().ends("idle") >= 2);
}

#[test]
fn a_stream_of_datagrams_that_is_refused_begins_at_the_next_target() {
    let listen = udp::address();
    let (nobody, there) =
        (common::peer::Reserved::loopback(), std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let to = format!("\"tcp:{}\", \"tcp:{}\"", nobody.address(), there.local_addr().expect("bound"));
    let text =
        format!("workers: 1\nforwards:\n  - {{name: dns, listen: \"udp:{listen}\", to: [{to}], health: none}}\n");
    let spliced = Launcher::config(&text).start();
    for _ in 0..4 {
        let client = client(listen);
        client.send(b"hello").expect("sent");
        let (mut stream, _) = there.accept().expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("a deadline");
        let mut framed = [0; 7];
        std::io::Read::read_exact(&mut stream, &mut framed).expect("a datagram");
        assert_eq!(&framed, b"\0\x05hello");
    }
    let stats = spliced.stats();
    assert_eq!((stats.ends("refused"), stats.number("/total/retries")), (0, 2));
}

fn question(number: u16) -> Vec<u8> {
    let mut packet = Packet::new_query(number);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new("host.example").expect("a name");
    packet.questions.push(Question::new(name, QTYPE::TYPE(TYPE::A), simple_dns::QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().expect("a question")
}

#[test]
fn name_servers_are_killed_under_questions_and_come_back() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let start = || Dnsmasq::start(any, "10.1.2.3 host.example\n", &[]);
    let (Some(mut first), Some(second)) = (start(), start()) else { return };
    let listen = udp::address();
    // What is asked and expected has bytes no text has: a whole question, and the address as the answer has it.
    let check = r#", udp_responses: 1, on_down: end, check: {send: "\0\x07\x01\0\0\x01\0\0\0\0\0\0\x04host\x07example\0\0\x01\0\x01", expect: "\0\x04\n\x01\x02\x03", interval: 200ms, timeout: 1s, rise: 1, fall: 2}"#;
    let spliced = run(listen, &[first.address(), second.address()], check);
    let asking = |numbers: std::ops::Range<u16>| {
        let mut asked = 0;
        for number in numbers {
            let client = client(listen);
            let answer = ask_again(&client, &question(number));
            let packet = Packet::parse(&answer).expect("an answer");
            assert_eq!((packet.id(), packet.answers.len()), (number, 1));
            asked += 1;
        }
        asked
    };
    asking(0..50);
    assert!(counter(&spliced, 0, "connects") >= 20 && counter(&spliced, 1, "connects") >= 20);
    first.stop();
    asking(100..150);
    state_is(&spliced, 0, "DOWN");
    let before = counter(&spliced, 0, "connects");
    asking(200..250);
    assert_eq!(counter(&spliced, 0, "connects"), before, "none goes there");
    first.run();
    state_is(&spliced, 0, "UP");
    asking(300..350);
    assert!(counter(&spliced, 0, "connects") >= before + 20);
    assert_eq!(spliced.stats().number("/total/datagrams/drops/unreachable"), 0, "the kill cost no question");
}
