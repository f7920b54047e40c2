//! The control socket and the metrics endpoint from the outside: right answers, and no harm from clients that are
//! slow, hostile or too many.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::deadline::{LONG, eventually};
use common::peer::{Reserved, accept, backend, connect, metrics_address};
use common::spliced::{Launcher, Spliced};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Well above the 5 s a client may take, well below what a client that is never cut off would.
const CUT_WITHIN: Duration = Duration::from_secs(20);

/// The control socket's path, from the command line of the process.
fn control_of(spliced: &Spliced) -> PathBuf {
    let words = std::fs::read(format!("/proc/{}/cmdline", spliced.process().0)).unwrap();
    let mut words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.find(|word| word == "--control").expect("it has a control socket");
    words.next().unwrap().into()
}

/// Asks the control socket for anything.
fn ask(control: &Path, request: &[u8]) -> Value {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("}\n"), "{answer:?}");
    serde_json::from_str(&answer).unwrap()
}

fn stats_command(arguments: &[&str], control: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spliced"))
        .arg("stats")
        .args(arguments)
        .arg("--control")
        .arg(control)
        .output()
        .unwrap()
}

/// One session that brings `up` bytes to the backend and `down` back.
fn session(front: SocketAddr, backend: &std::net::TcpListener, up: usize, down: usize) {
    let mut client = connect(front);
    client.write_all(&vec![1; up]).unwrap();
    let mut server = accept(backend);
    server.read_exact(&mut vec![0; up]).unwrap();
    server.write_all(&vec![2; down]).unwrap();
    client.read_exact(&mut vec![0; down]).unwrap();
    drop((client, server));
}

/// Sends a request and returns the head and the body of the answer.
fn http(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    (head.to_owned(), body.to_owned())
}

fn get(address: SocketAddr, path: &str) -> (String, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n"))
}

/// The value of one sample.
fn sample(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing in\n{page}")).parse().unwrap()
}

#[test]
fn stats_shows_what_was_forwarded() {
    let (port, backend) = (Reserved::loopback(), backend());
    let back = backend.local_addr().unwrap();
    let spliced = Launcher::forward(port.address(), back).start();
    let control = control_of(&spliced);
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    session(port.address(), &backend, 3000, 500);
    spliced.ended("done", 1);

    let output = stats_command(&["--json"], &control);
    assert!(output.status.success(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["pid"], spliced.process().0);
    assert_eq!(json["total"]["sessions_accepted"], 1);
    let bytes = |direction: &str| {
        let by_path = &json["forwards"][0]["bytes"][direction];
        by_path["splice"].as_u64().unwrap() + by_path["copy"].as_u64().unwrap()
    };
    assert_eq!((bytes("client_to_backend"), bytes("backend_to_client")), (3000, 500));
    assert_eq!(json["forwards"][0]["listen"][0], port.address().to_string());
    assert_eq!(json["forwards"][0]["to"][0], back.to_string());

    let output = stats_command(&[], &control);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0 open, 1 accepted") && text.contains("2.93 KiB") && text.contains("done 1"), "{text}");

    let error = ask(&control, b"reboot\n");
    assert!(error["error"].as_str().unwrap().contains("reboot"), "{error}");
    spliced.finish();
}

#[test]
fn stats_without_an_instance_fails_and_names_the_socket() {
    let output = stats_command(&[], Path::new("/nonexistent/control.sock"));
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("/nonexistent/control.sock"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn metrics_show_what_was_forwarded() {
    let (port, backend, metrics) = (Reserved::loopback(), backend(), metrics_address());
    let launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
    let spliced = launcher.option("--metrics", metrics.to_string()).start();
    for _ in 0..3 {
        session(port.address(), &backend, 100, 10);
    }
    spliced.ended("done", 3);

    let (head, page) = get(metrics, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", page.len())), "{head}");
    let name = spliced.stats().0["forwards"][0]["name"].as_str().unwrap().to_owned();
    let of = |metric: &str, labels: &str| sample(&page, &format!("{metric}{{forward=\"{name}\"{labels}}}"));
    assert_eq!(of("spliced_sessions_accepted_total", ""), 3.0);
    assert_eq!(of("spliced_sessions_open", ""), 0.0);
    assert_eq!(of("spliced_session_ends_total", ",reason=\"done\""), 3.0);
    assert_eq!(of("spliced_session_seconds_count", ""), 3.0);
    assert_eq!(of("spliced_connect_seconds_bucket", ",le=\"+Inf\""), 3.0);
    let up = |path: &str| of("spliced_bytes_total", &format!(",direction=\"client_to_backend\",path=\"{path}\""));
    assert_eq!(up("splice") + up("copy"), 300.0);

    assert!(get(metrics, "/healthz").0.starts_with("HTTP/1.1 200"));
    assert!(get(metrics, "/readyz").0.starts_with("HTTP/1.1 200"));
    assert!(get(metrics, "/secret").0.starts_with("HTTP/1.1 404"));
    let (head, body) = http(metrics, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{head}");
    assert!(http(metrics, "DELETE /metrics HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 405"));
    assert!(http(metrics, "\x16\x03\x01\x02\r\n\r\n").0.starts_with("HTTP/1.1 400"));
    spliced.finish();
}

#[test]
fn readiness_ends_with_the_drain_and_health_does_not() {
    let (port, backend, metrics) = (Reserved::loopback(), backend(), metrics_address());
    let launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
    let mut spliced = launcher.option("--metrics", metrics.to_string()).start();
    let client = connect(port.address());
    let server = accept(&backend);
    spliced.stats_until("the session is open", |stats| stats.open() == 1);
    spliced.signal(Signal::SIGTERM);
    eventually("it is not ready any more", LONG, || {
        let (head, body) = get(metrics, "/readyz");
        if head.starts_with("HTTP/1.1 503") { Ok(()) } else { Err(format!("{head} {body}")) }
    });
    assert!(get(metrics, "/healthz").0.starts_with("HTTP/1.1 200"));
    assert_eq!(sample(&get(metrics, "/metrics").1, "spliced_draining"), 1.0);
    drop((client, server));
    assert_eq!(spliced.wait(LONG).code(), Some(0));
}

/// Reads to the end that the other side makes, by a close or a reset.
fn cut_off(what: &str, mut stream: impl Read, start: Instant) {
    let mut bytes = Vec::new();
    let result = stream.read_to_end(&mut bytes);
    assert!(start.elapsed() < CUT_WITHIN, "{what}: {result:?} only after {:?}", start.elapsed());
    assert!(bytes.is_empty(), "{what}: an answer to no request: {bytes:?}");
}

#[test]
fn slow_clients_are_cut_off_and_hold_up_nobody() {
    let (port, backend, metrics) = (Reserved::loopback(), backend(), metrics_address());
    let launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
    let spliced = launcher.option("--metrics", metrics.to_string()).start();
    let control = control_of(&spliced);
    let start = Instant::now();
    let mut slow_control = UnixStream::connect(&control).unwrap();
    slow_control.set_read_timeout(Some(LONG)).unwrap();
    slow_control.write_all(b"sta").unwrap();
    let silent_control = UnixStream::connect(&control).unwrap();
    silent_control.set_read_timeout(Some(LONG)).unwrap();
    let mut slow_metrics = connect(metrics);
    slow_metrics.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").unwrap();
    let silent_metrics = connect(metrics);

    // Meanwhile everybody else is served.
    session(port.address(), &backend, 100, 100);
    assert!(get(metrics, "/healthz").0.starts_with("HTTP/1.1 200"));
    assert_eq!(ask(&control, b"stats\n")["draining"], false);
    assert!(start.elapsed() < Duration::from_secs(4), "others waited for the slow ones: {:?}", start.elapsed());

    cut_off("half a command", &mut slow_control, start);
    cut_off("no command", &silent_control, start);
    cut_off("half a request", &mut slow_metrics, start);
    cut_off("no request", &silent_metrics, start);
    drop((slow_control, silent_control, slow_metrics, silent_metrics));
    spliced.ended("done", 1);
    spliced.finish();
}

#[test]
fn endless_requests_and_too_many_clients_are_refused() {
    let (port, backend, metrics) = (Reserved::loopback(), backend(), metrics_address());
    let launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
    let spliced = launcher.option("--metrics", metrics.to_string()).start();
    let control = control_of(&spliced);

    let error = ask(&control, &[b'x'; 8192]);
    assert!(error["error"].as_str().unwrap().contains("8192"), "{error}");
    let (head, _) = http(metrics, &format!("GET /{} HTTP/1.1\r\n", "x".repeat(8192 - 16)));
    assert!(head.starts_with("HTTP/1.1 431"), "{head}");

    let held: Vec<TcpStream> = (0..100).map(|_| connect(metrics)).collect();
    // Each beyond 64 takes the place of the oldest.
    let refused = eventually("some of 100 clients are closed", LONG, || {
        let closed = |stream: &&TcpStream| {
            stream.set_nonblocking(true).unwrap();
            matches!(stream.peek(&mut [0]), Ok(0)) || stream.take_error().unwrap().is_some()
        };
        let refused = held.iter().filter(closed).count();
        if refused >= 36 { Ok(refused) } else { Err(format!("{refused} are closed")) }
    });
    assert!(refused >= 36);
    drop(held);
    eventually("the endpoint serves again", LONG, || {
        let mut stream = connect(metrics);
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Ok(_) if answer.starts_with("HTTP/1.1 200") => Ok(()),
            result => Err(format!("{result:?}, {answer:?}")),
        }
    });
    spliced.finish();
}

/// Who sends one byte and then nothing keeps nobody out, however many they are.
#[test]
fn two_hundred_slow_clients_keep_nobody_out() {
    let (port, backend, metrics) = (Reserved::loopback(), backend(), metrics_address());
    let launcher = Launcher::forward(port.address(), backend.local_addr().unwrap());
    let spliced = launcher.option("--metrics", metrics.to_string()).start();
    let control = control_of(&spliced);
    let start = Instant::now();
    let slow = |_| {
        let mut stream = connect(metrics);
        stream.write_all(b"G").unwrap();
        stream
    };
    let mut held: Vec<TcpStream> = (0..200).map(slow).collect();
    let askers: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&control).unwrap()).collect();
    // Those that had to make room are closed by now.
    askers.iter().for_each(|mut stream| _ = stream.write_all(b"s"));
    for path in ["/healthz", "/readyz", "/metrics"] {
        let asked = Instant::now();
        let (head, _) = get(metrics, path);
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{path}: {:?}", asked.elapsed());
        held.push(slow(0));
    }
    assert_eq!(ask(&control, b"stats\n")["draining"], false);
    // Otherwise their time was over, and this has shown nothing.
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?} in all", start.elapsed());
    drop((held, askers));
    spliced.finish();
}

/// Each asks for a page longer than what the kernel keeps for it, and reads none of it.
#[test]
fn clients_that_do_not_read_their_page_keep_nobody_out() {
    let (port, metrics) = (Reserved::loopback(), metrics_address());
    let forward = |i: usize| {
        let [high, low] = u16::try_from(i).unwrap().to_be_bytes();
        format!(
            "  - {{ name: \"forward {i}\", listen: \"127.1.{high}.{low}:{}\", to: \"127.0.0.1:9\" }}\n",
            port.address().port()
        )
    };
    let forwards: String = (1..=80).map(forward).collect();
    let mut spliced = Launcher::config(&format!("workers: 1\nmetrics: {metrics}\nforwards:\n{forwards}")).start();
    let page = get(metrics, "/metrics").1;
    let begun = Instant::now();
    let stuck: Vec<TcpStream> = (0..70)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            // As little as there can be, and small segments, by which the other side's room goes: less than the page.
            socket.set_recv_buffer_size(1).unwrap();
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpMaxSeg, &536).unwrap();
            socket.connect(&metrics.into()).unwrap();
            let mut client: TcpStream = socket.into();
            client.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            client
        })
        .collect();
    for _ in 0..5 {
        let (status, served) = get(metrics, "/metrics");
        assert!(status.starts_with("HTTP/1.1 200") && served.ends_with('\n'), "{status}");
        assert!(served.len() > page.len() / 2, "{} of {} bytes", served.len(), page.len());
    }
    // Otherwise their time was over, and this has shown nothing.
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?} in all", begun.elapsed());
    drop(stuck);
    spliced.signal(Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0));
}

/// An instance that has no place for one more client, or ends at that moment, closes without an answer. Whether the
/// question still finds somebody is chance, so there are many.
#[test]
fn a_closed_connection_is_a_failure_that_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&control).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for command in ["reload", "stats", "upgrade"] {
        for _ in 0..30 {
            let mut asked = Command::new(env!("CARGO_BIN_EXE_spliced"));
            let output = asked.arg(command).arg("--control").arg(&control).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command}: {said}");
            assert!(said.contains("closed without an answer"), "{command}: {said}");
        }
    }
}
