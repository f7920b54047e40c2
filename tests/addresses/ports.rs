//! Thousands of ports of one forward: one listener each, dealt to the workers, in little time and memory.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::deadline::{LONG, until};
use common::peer::{Echo, backend, connect, echoes, own_loopback};
use common::spliced::{Launcher, Spliced};

/// As many as asked for, where descriptors allow it.
const PORTS: u64 = 9_000;

fn memory(spliced: &Spliced) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", spliced.process().0)).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel counts it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") << 10
}

fn metrics(at: SocketAddr) -> String {
    use std::io::{Read, Write};
    let mut stream = connect(at);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

#[test]
fn nine_thousand_ports_start_fast_and_idle_for_nothing() {
    let (hard, own) =
        (nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit").1, 500);
    let ports = u16::try_from(PORTS.min(hard.saturating_sub(own))).expect("at most 9000");
    let (ip, echo) = (own_loopback().into(), Echo::start(backend()));
    let metrics_at = SocketAddr::new(ip, 9_999);
    // Three ranges below the ports the system gives to clients.
    let third = ports / 3;
    let firsts = [10_000, 13_000, 16_000];
    let ranges: Vec<String> = firsts.iter().map(|first| format!("\"{ip}:{first}-{}\"", first + third - 1)).collect();
    let config = format!(
        "workers: 2\nmetrics: {metrics_at}\nforwards: [{{name: range, listen: [{}], to: \"{}\"}}]\n",
        ranges.join(", "),
        echo.address()
    );
    let began = Instant::now();
    let spliced = Launcher::config(&config).start();
    let (took, cpu) = (began.elapsed(), spliced.process().cpu());
    // Time on the processor, because this machine may be busy with something else.
    assert!(cpu < Duration::from_secs(2), "{cpu:?} of CPU time in {took:?}");
    assert_eq!(spliced.logged("listening on ").len(), 3, "a line for each range");

    let memory = memory(&spliced);
    assert!(memory < 40 << 20, "{memory} bytes");
    let before = spliced.process().cpu();
    until("a second has passed", LONG, || began.elapsed() > took + Duration::from_secs(1));
    let idle = spliced.process().cpu() - before;
    assert!(idle < Duration::from_millis(10), "{idle:?} of CPU time in a second of idleness");
    let text = metrics(metrics_at);
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.len() < 64 << 10, "{} bytes of metrics", text.len());

    // The first and the last of every range, and some between.
    let mut wanted: Vec<u16> = firsts.iter().flat_map(|first| [*first, first + third - 1]).collect();
    wanted.extend((1..20u16).map(|i| firsts[usize::from(i) % 3] + (i * 977) % third));
    for port in &wanted {
        let client = connect(SocketAddr::new(ip, *port));
        assert!(echoes(&client, 7, LONG), "port {port}");
    }
    for port in &wanted {
        let line = format!("listener={ip}:{port} ");
        until("the session's line", LONG, || !spliced.logged(&line).is_empty());
    }
    let stats = spliced.stats();
    let listens = stats.0["forwards"].as_array().map_or(0, Vec::len);
    assert_eq!(listens, 1, "counters of the forward, not of its ports");
    spliced.finish();
}

#[test]
fn too_few_descriptors_are_said() {
    let ip = own_loopback();
    let launcher = Launcher::config(&format!("forwards: [{{listen: \"{ip}:20000-20999\", to: \"127.0.0.1:9\"}}]\n"));
    let outcome = launcher.descriptors(300).outcome();
    assert_eq!(outcome.code, Some(1), "{}", outcome.text);
    for part in ["cannot listen on ", "out of descriptors; raise the limit (ulimit -n, LimitNOFILE=)"] {
        assert!(outcome.text.contains(part), "{part} is missing in {}", outcome.text);
    }
}

/// A range that comes and goes with a reload.
#[test]
fn a_reload_brings_a_range_and_takes_it_away() {
    let (ip, echo) = (own_loopback().into(), Echo::start(backend()));
    let forward =
        |name: &str, ports: &str| format!("- {{name: {name}, listen: \"{ip}:{ports}\", to: \"{}\"}}\n", echo.address());
    let one = format!("forwards:\n{}", forward("one", "21000"));
    let both = format!("{one}{}", forward("many", "22000-23999"));
    let spliced = Launcher::config(&one).start();
    spliced.reload_with(&both);
    let (first, last) = (connect(SocketAddr::new(ip, 22_000)), connect(SocketAddr::new(ip, 23_999)));
    assert!(echoes(&first, 1, LONG) && echoes(&last, 2, LONG));
    spliced.reload_with(&one);
    assert!(std::net::TcpStream::connect(SocketAddr::new(ip, 22_500)).is_err(), "refused at once");
    assert!(echoes(&first, 1, LONG) && echoes(&last, 2, LONG), "sessions go on");
    drop((first, last));
    // With the two thousand sockets of the range closed.
    spliced.finish();
}
