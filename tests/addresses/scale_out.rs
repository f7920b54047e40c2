//! Several hosts behind one address: a router spreads connections over them with a resilient next-hop group, one of them is
//! killed and one is drained under load, and no session of another host notices. `docs/SCALE-OUT.md` has its figures;
//! `cargo test --test addresses scale_out -- --nocapture` prints them.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::cannot_run;
use common::deadline::{LONG, eventually, until};
use common::netns::{Netns, link, with_namespaces};
use common::pattern::Pattern;
use common::peer::with_deadlines;
use common::spliced::{Launcher, Spliced};
use nix::sys::signal::Signal;

/// The address of the service, which every host has.
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 50, 0, 1)), 9000);
/// Where the hosts forward to.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 60, 0, 1)), 9001);
/// Buckets of the group.
const BUCKETS: usize = 128;
/// How long a bucket must be quiet before it may move.
const IDLE: Duration = Duration::from_secs(2);
/// Bytes of one exchange.
const STEP: u64 = 4096;

/// The configuration of every host: that of the document.
fn config() -> String {
    let document = include_str!("../../docs/SCALE-OUT.md");
    let block = document.split("```yaml\n# host.yaml\n").nth(1).expect("the configuration of a host");
    block.split("```").next().expect("the end of it").to_owned()
}

/// A router between clients and hosts, and a server behind them.
struct Cluster {
    client: Netns,
    router: Netns,
    /// From host 1 on.
    hosts: Vec<Netns>,
    server: Netns,
}

fn ip(bytes: [u8; 4]) -> IpAddr {
    IpAddr::from(bytes)
}

impl Cluster {
    /// 10.1.0.2 — router — three hosts, each on links of its own to router and server.
    fn new() -> Self {
        let (client, router, server) = (Netns::new(), Netns::new(), Netns::new());
        link((&client, "eth0", ip([10, 1, 0, 2]), 24), (&router, "clients", ip([10, 1, 0, 1]), 24));
        client.line("ip route add default via 10.1.0.1");
        server.line(&format!("ip address add {}/32 dev lo", SERVER.ip()));
        let write = |file: &str, value: &str| {
            router.enter(|| fs::write(format!("/proc/sys/net/ipv4/{file}"), value)).expect("a namespace of our own");
        };
        write("ip_forward", "1");
        // Addresses and ports decide, not addresses alone.
        write("fib_multipath_hash_policy", "1");
        let hosts = (1..=3)
            .map(|n: u8| {
                let namespace = Netns::new();
                link(
                    (&namespace, "router", ip([10, 2, n, 2]), 24),
                    (&router, &format!("host{n}"), ip([10, 2, n, 1]), 24),
                );
                link(
                    (&namespace, "server", ip([10, 3, n, 1]), 24),
                    (&server, &format!("host{n}"), ip([10, 3, n, 2]), 24),
                );
                namespace.line(&format!("ip address add {}/32 dev lo", SERVICE.ip()));
                namespace.line(&format!("ip route add 10.1.0.0/24 via 10.2.{n}.1"));
                namespace.line(&format!("ip route add {} via 10.3.{n}.2", SERVER.ip()));
                router.line(&format!("ip nexthop add id {n} via 10.2.{n}.2 dev host{n}"));
                namespace
            })
            .collect();
        Self { client, router, hosts, server }
    }

    /// Makes the group and the route to the service; `false` where the kernel has no resilient groups.
    fn group(&self) -> bool {
        let line = format!(
            "nexthop add id 10 group 1/2/3 type resilient buckets {BUCKETS} idle_timer {} unbalanced_timer 0",
            IDLE.as_secs()
        );
        let output = self.router.enter(|| Command::new("ip").args(line.split(' ')).output()).expect("ip runs");
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            cannot_run(&format!("resilient next-hop groups need Linux 5.13 and iproute2 5.13: {why}"));
            return false;
        }
        self.router.line(&format!("ip route add {} nhid 10", SERVICE.ip()));
        true
    }

    /// Buckets of each host, by its number.
    fn buckets(&self) -> [usize; 4] {
        let show = || Command::new("ip").args(["nexthop", "bucket", "show", "id", "10"]).output();
        let output = self.router.enter(show).expect("ip runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let mut count = [0; 4];
        for line in text.lines() {
            let number = line.split("nhid ").nth(1).and_then(|rest| rest.split(' ').next());
            let number: usize = number.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"));
            count[number] += 1;
        }
        assert_eq!(count.iter().sum::<usize>(), BUCKETS, "{text}");
        count
    }

    /// What a health check of the router sees of a host: `/readyz` answers 200.
    fn is_ready(&self, host: u8) -> bool {
        let ask = || -> io::Result<bool> {
            let limit = Duration::from_millis(500);
            let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([10, 2, host, 2], 9464)), limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: host\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200 "))
        };
        self.router.enter(ask).unwrap_or(false)
    }

    fn start(&self, host: u8) -> Spliced {
        Launcher::config(&config()).inside(&self.hosts[usize::from(host) - 1]).start()
    }

    /// A connection to the service, and the number of the host that serves it.
    fn connect(&self) -> io::Result<(TcpStream, u8)> {
        let stream = with_deadlines(self.client.enter(|| TcpStream::connect_timeout(&SERVICE, LONG))?);
        let mut host = [0];
        (&stream).read_exact(&mut host)?;
        Ok((stream, host[0]))
    }

    /// That many short connections: how many each host has served, and how many were refused at 0.
    fn probe(&self, count: usize) -> [usize; 4] {
        let mut served = [0; 4];
        for _ in 0..count {
            match self.connect() {
                Ok((_, host)) => served[usize::from(host)] += 1,
                Err(e) => {
                    assert!(matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{e}");
                    served[0] += 1;
                }
            }
        }
        served
    }
}

/// Tells each connection by which host it came, and sends everything back.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).expect("a listener of our own");
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, from)) = listener.accept() else {
            thread::park_timeout(Duration::from_millis(2));
            continue;
        };
        let IpAddr::V4(from) = from.ip() else { panic!("{from}") };
        thread::spawn(move || {
            let mut stream = stream;
            stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)).expect("a stream of our own");
            let mut buffer = [0; 16384];
            let mut len = 1;
            buffer[0] = from.octets()[2];
            while len > 0 && stream.write_all(&buffer[..len]).is_ok() {
                len = stream.read(&mut buffer).unwrap_or(0);
            }
        });
    }
}

/// A client that exchanges bytes until it is told to finish, and compares every one.
struct Session {
    host: u8,
    moved: Arc<AtomicU64>,
    finish: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Session {
    fn start(stream: TcpStream, host: u8, number: u64) -> Self {
        let (moved, finish) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, told) = (Arc::clone(&moved), Arc::clone(&finish));
        let thread = thread::spawn(move || exchange(&stream, &Pattern::new(number), &count, &told));
        Self { host, moved, finish, thread }
    }

    /// Its bytes, all of them right, to a clean end.
    fn finish(self) -> u64 {
        self.finish.store(true, Ordering::Relaxed);
        let result = self.thread.join().expect("every byte is right");
        result.unwrap_or_else(|e| panic!("a session of host {} was broken: {e}", self.host));
        self.moved.load(Ordering::Relaxed)
    }
}

fn exchange(mut stream: &TcpStream, pattern: &Pattern, moved: &AtomicU64, finish: &AtomicBool) -> io::Result<()> {
    let mut buffer = [0; STEP as usize];
    let mut place = 0;
    while !finish.load(Ordering::Relaxed) {
        stream.write_all(pattern.at(place, STEP))?;
        stream.read_exact(&mut buffer)?;
        assert!(buffer == *pattern.at(place, STEP), "other bytes came back at {place}");
        place += STEP;
        moved.store(place, Ordering::Relaxed);
        thread::park_timeout(Duration::from_millis(25));
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut buffer)? {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes after the last"))),
    }
}

/// Waits until each has moved more than it had.
fn go_on(sessions: &[Session]) {
    let moved = |session: &Session| session.moved.load(Ordering::Relaxed);
    let before: Vec<u64> = sessions.iter().map(moved).collect();
    until("all sessions go on", LONG, || sessions.iter().zip(&before).all(|(now, before)| moved(now) > before + STEP));
}

/// Takes those of a host out.
fn of_host(sessions: &mut Vec<Session>, host: u8) -> Vec<Session> {
    let (these, others) = sessions.drain(..).partition(|session| session.host == host);
    *sessions = others;
    these
}

fn say(text: &str) {
    writeln!(io::stderr(), "scale-out: {text}").expect("standard error takes a line");
}

#[test]
fn a_host_killed_and_a_host_drained_break_no_session_of_another() {
    with_namespaces(|| {
        let cluster = Cluster::new();
        if !cluster.group() {
            return;
        }
        let listener = cluster.server.listen(SERVER);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| serve(&listener, &stop));
            // Also when a step fails: the scope waits for the server.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(&cluster)));
            stop.store(true, Ordering::Relaxed);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    });
}

fn play(cluster: &Cluster) {
    let [first, second, third] = [1, 2, 3].map(|host| cluster.start(host));
    let connect = |number: u64| {
        let (stream, host) = cluster.connect().expect("every host serves");
        Session::start(stream, host, number)
    };
    let mut sessions: Vec<Session> = (0..96).map(connect).collect();
    let share = [1, 2, 3].map(|host| sessions.iter().filter(|session| session.host == host).count());
    say(&format!("buckets {:?}, sessions {share:?}", &cluster.buckets()[1..]));
    assert!(share.iter().all(|&count| count > 0), "{share:?}");
    go_on(&sessions);

    killed(cluster, third, &mut sessions);
    drained(cluster, second, &mut sessions);
    let third = comes_back(cluster, &sessions);

    let (count, bytes) = (sessions.len(), sessions.into_iter().map(Session::finish).sum::<u64>());
    say(&format!("{count} sessions of host 1 went through all of it, {bytes} bytes each way, every one verified"));
    assert_eq!(count, share[0], "all that host 1 had");
    first.finish();
    third.finish();
}

/// The third host's process dies; a check of `/readyz` takes its next hop out.
fn killed(cluster: &Cluster, third: Spliced, sessions: &mut Vec<Session>) {
    let start = Instant::now();
    // SIGKILL, and waits for the end.
    drop(third);
    let refused = cluster.probe(60)[0];
    say(&format!("host 3 killed: before the check acts {refused} of 60 new connections are refused"));
    assert!(refused > 0, "some of 60 go to a third of the buckets");
    until("the check fails", LONG, || !cluster.is_ready(3));
    cluster.router.line("ip nexthop del id 3");
    let buckets = cluster.buckets();
    assert_eq!(buckets[3], 0, "{buckets:?}");
    let served = cluster.probe(60);
    say(&format!("its next hop taken out: buckets {:?}, of 60 new connections {:?}", &buckets[1..], &served[1..]));
    assert!(served[0] == 0 && served[3] == 0 && served[1] > 0 && served[2] > 0, "{served:?}");
    let lost = of_host(sessions, 3);
    let count = lost.len();
    for session in lost {
        assert!(session.thread.join().expect("what came before was right").is_err(), "its host is gone");
    }
    say(&format!("{count} sessions of host 3 had ended within {:?}", start.elapsed()));
    go_on(sessions);
}

/// The second host's weight goes to the least: quiet buckets leave at once, those with sessions once these have ended.
/// SIGTERM comes while some are left, and cuts none of them.
fn drained(cluster: &Cluster, mut second: Spliced, sessions: &mut Vec<Session>) {
    let before = cluster.buckets()[2];
    // Says nothing for the whole time: keepalive keeps its bucket busy.
    let quiet = eventually("a session of host 2", LONG, || match cluster.connect() {
        Ok((stream, 2)) => Ok(stream),
        other => Err(format!("{other:?}")),
    });
    let start = Instant::now();
    cluster.router.line("ip nexthop replace id 10 group 1,255/2,1 type resilient");
    let busy = of_host(sessions, 2);
    let most = busy.len() + 1;
    let kept = eventually("quiet buckets leave", LONG, || match cluster.buckets()[2] {
        kept if kept <= most => Ok(kept),
        kept => Err(format!("{kept} buckets for {most} sessions")),
    });
    say(&format!("host 2 drains: of {before} buckets {kept} stay for {most} sessions after {:?}", start.elapsed()));
    go_on(&busy);
    let served = cluster.probe(60);
    say(&format!("of 60 new connections {:?}, refused {}", &served[1..], served[0]));
    assert_eq!(served[0], 0, "it accepts while it has buckets");

    second.signal(Signal::SIGTERM);
    until("it drains", LONG, || !cluster.is_ready(2));
    // It says so before it does so: one more may still be taken.
    let served = eventually("it accepts no more", LONG, || match cluster.probe(60) {
        served if served[2] == 0 => Ok(served),
        served => Err(format!("{served:?}")),
    });
    say(&format!("after SIGTERM of 60 new connections {:?}, refused {}", &served[1..], served[0]));
    go_on(&busy);
    let bytes: u64 = busy.into_iter().map(Session::finish).sum();
    until("only the quiet session's bucket is left", LONG, || cluster.buckets()[2] <= 1);
    // For several times as long as a bucket may be quiet.
    for _ in 0..8 {
        thread::sleep(IDLE / 4);
        assert_eq!(cluster.buckets()[2], 1, "keepalive keeps the bucket of a session that says nothing");
    }
    Pattern::new(1000).send(&quiet, 0, STEP).expect("the quiet session lives");
    Pattern::new(1000).expect(&quiet, 0, STEP);
    drop(quiet);
    assert_eq!(second.wait(LONG).code(), Some(0), "it ends with its last session");
    assert!(second.logged("reason=drain").is_empty(), "none was cut");
    until("its last bucket leaves", LONG, || cluster.buckets()[2] == 0);
    cluster.router.line("ip nexthop del id 2");
    say(&format!("host 2 had finished its {most} sessions ({bytes} bytes) and exited 0 after {:?}", start.elapsed()));
    let served = cluster.probe(30);
    assert_eq!(served, [0, 30, 0, 0], "host 1 has all");
    go_on(sessions);
}

/// The third host starts again: it is given quiet buckets, and no session loses its own.
fn comes_back(cluster: &Cluster, sessions: &[Session]) -> Spliced {
    let third = cluster.start(3);
    until("it is ready", LONG, || cluster.is_ready(3));
    cluster.router.line("ip nexthop add id 3 via 10.2.3.2 dev host3");
    cluster.router.line("ip nexthop replace id 10 group 1/3 type resilient");
    let half = BUCKETS / 2;
    let least = half.min(BUCKETS - sessions.len());
    let got = eventually("quiet buckets come", LONG, || match cluster.buckets()[3] {
        got if got >= least => Ok(got),
        got => Err(format!("{got} of {least}")),
    });
    let served = cluster.probe(60);
    say(&format!("host 3 is back with {got} buckets; of 60 new connections {:?}", &served[1..]));
    assert!(served[0] == 0 && served[1] > 0 && served[3] > 0, "{served:?}");
    go_on(sessions);
    third
}
