//! `spliced ab`: it verifies what it says it verifies, and leaves nothing behind.

#[cfg(target_os = "linux")]
mod processes;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// More than anything here takes on a loaded machine; a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whether this build can splice.
const HAS_SPLICE: bool = cfg!(all(target_os = "linux", not(spliced_portable)));

fn spliced() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
    command.env("TMPDIR", env!("CARGO_TARGET_TMPDIR"));
    command
}

fn ab(args: &[&str]) -> Output {
    spliced().arg("ab").args(args).output().expect("spliced starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Calls `check` until it returns something, for at most [`PATIENCE`].
fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A role of the measurement, ended when dropped.
struct Role {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    fn start(args: &[&str]) -> Self {
        let mut process = spliced()
            .arg("ab-role")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the role starts");
        let stdin = process.stdin.take().expect("piped");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, stdin, stdout }
    }

    fn backend() -> (Self, SocketAddr) {
        let mut role = Self::start(&["backend"]);
        let ready = role.line();
        let address = ready.strip_prefix("ready ").expect("it says where it listens").parse().expect("an address");
        (role, address)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the role answers");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stdin, "{command}").expect("the role listens");
        serde_json::from_str(&self.line()).expect("JSON")
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A proxy for one connection that hands the bytes of the client to `spoil`, each chunk with its offset, and passes on
/// what that returns; `None` ends the stream there, with a clean FIN.
fn proxy(backend: SocketAddr, spoil: impl Fn(u64, &mut Vec<u8>) -> Option<()> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || -> io::Result<()> {
        let mut client = listener.accept()?.0;
        let mut server = TcpStream::connect(backend)?;
        let (mut answers, mut to_client) = (server.try_clone()?, client.try_clone()?);
        let back = thread::spawn(move || -> io::Result<()> {
            io::copy(&mut answers, &mut to_client)?;
            to_client.shutdown(Shutdown::Write)
        });
        let mut offset = 0;
        let mut buffer = vec![0; 50_000];
        loop {
            let n = client.read(&mut buffer)?;
            let mut chunk = buffer[..n].to_vec();
            let go_on = spoil(offset, &mut chunk);
            server.write_all(&chunk)?;
            if n == 0 || go_on.is_none() {
                break;
            }
            offset += n as u64;
        }
        server.shutdown(Shutdown::Write)?;
        // Whatever still comes is taken, so that the client is not reset and sees only the early end.
        io::copy(&mut client, &mut io::sink())?;
        let _ = back.join();
        Ok(())
    });
    address
}

/// Bytes before the pattern begins: the greeting.
const GREETING: u64 = spliced::ab::hello::HELLO_LEN as u64;

/// Sends one stream through a proxy that spoils it: what the source says, and what the sink says.
fn spoiled(spoil: impl Fn(u64, &mut Vec<u8>) -> Option<()> + Send + 'static) -> (Value, Value) {
    spoiled_until(spoil, |n| n >= 4_000_000)
}

/// The same, stopped once `enough` says so of the bytes at the sink.
fn spoiled_until(
    spoil: impl Fn(u64, &mut Vec<u8>) -> Option<()> + Send + 'static,
    enough: impl Fn(u64) -> bool,
) -> (Value, Value) {
    let (mut backend, address) = Role::backend();
    let target = proxy(address, spoil).to_string();
    let mut source = Role::start(&["source", &target, "--streams", "1", "--message", "10000", "--stall", "20"]);
    assert_eq!(source.line(), "ready");
    wait_for("enough at the sink", || backend.ask("count")["n"].as_u64().filter(|n| enough(*n)));
    let sent = source.ask("stop");
    (sent, backend.ask("ends"))
}

#[test]
fn an_honest_proxy_passes() {
    let (sent, ends) = spoiled(|_, _| Some(()));
    assert_eq!(sent[0]["error"], Value::Null, "{sent}");
    assert_eq!(ends.as_array().map(Vec::len), Some(1), "{ends}");
    assert_eq!((&ends[0]["error"], &ends[0]["mismatch"]), (&Value::Null, &Value::Null), "{ends}");
    assert_eq!(sent[0]["bytes"], ends[0]["bytes"]);
    assert!(sent[0]["bytes"].as_u64().is_some_and(|n| n >= 4_000_000 && n % 10_000 == 0), "whole messages: {sent}");
}

#[test]
fn one_flipped_byte_is_found_with_its_offset() {
    const AT: u64 = 3_000_001;
    let (sent, ends) = spoiled(|offset, chunk| {
        if let Some(at) = (AT + GREETING).checked_sub(offset)
            && let Some(byte) = chunk.get_mut(at as usize)
        {
            *byte ^= 1;
        }
        Some(())
    });
    assert_eq!(ends[0]["mismatch"]["offset"], AT, "{ends}");
    let error = sent[0]["error"].as_str().expect("the source is told");
    assert!(error.contains(&format!("wrong byte at offset {AT}")), "{error}");
}

#[test]
fn a_flipped_byte_of_the_greeting_is_found() {
    let (mut backend, address) = Role::backend();
    let target = proxy(address, |offset, chunk| {
        if offset == 0 && !chunk.is_empty() {
            chunk[0] ^= 1;
        }
        Some(())
    });
    let mut source = Role::start(&["source", &target.to_string(), "--streams", "1"]);
    assert_eq!(source.line(), "ready");
    let ends = wait_for("the refused stream", || {
        Some(backend.ask("ends")).filter(|ends| ends.as_array().is_some_and(|ends| !ends.is_empty()))
    });
    assert!(ends[0]["error"].as_str().is_some_and(|error| error.contains("not with a greeting")), "{ends}");
    let sent = source.ask("stop");
    assert!(sent[0]["error"].is_string(), "{sent}");
}

#[test]
fn a_lost_and_a_doubled_chunk_are_found() {
    for double in [false, true] {
        let (sent, ends) = spoiled(move |offset, chunk| {
            if (2_000_000..2_050_000).contains(&offset) {
                if double {
                    chunk.extend_from_within(..);
                } else {
                    chunk.clear();
                }
            }
            Some(())
        });
        let at = ends[0]["mismatch"]["offset"].as_u64().expect("a mismatch");
        assert!((1_900_000..2_200_000).contains(&at), "double {double}: {ends}");
        assert!(sent[0]["error"].is_string(), "double {double}: {sent}");
    }
}

#[test]
fn a_stream_cut_short_by_a_clean_end_is_found() {
    // Cut within a chunk, and stopped only after that: the source has sent more than arrives.
    let cut = Arc::new(AtomicBool::new(false));
    let cuts = Arc::clone(&cut);
    let spoil = move |offset, chunk: &mut Vec<u8>| {
        if offset < 2_000_000 {
            return Some(());
        }
        chunk.truncate(chunk.len() / 2);
        cuts.store(true, Ordering::Release);
        None
    };
    let (sent, ends) = spoiled_until(spoil, |_| cut.load(Ordering::Acquire));
    assert_eq!((&ends[0]["error"], &ends[0]["mismatch"]), (&Value::Null, &Value::Null), "{ends}");
    let error = sent[0]["error"].as_str().expect("the receipt tells");
    let (sent, got) = (&sent[0]["bytes"], &ends[0]["bytes"]);
    assert!(sent.as_u64() > got.as_u64(), "{sent} {got}");
    assert!(error.contains(&format!("sent {sent} bytes, but the sink received {got}")), "{error}");
}

#[test]
fn an_echo_that_lies_is_found() {
    let (_backend, address) = Role::backend();
    let target = proxy(address, |offset, chunk| {
        if let Some(at) = (GREETING + 6400).checked_sub(offset)
            && let Some(byte) = chunk.get_mut(at as usize)
        {
            *byte ^= 0x80;
        }
        Some(())
    });
    let mut ping = Role::start(&["ping", &target.to_string(), "--connections", "1", "--size", "64"]);
    assert_eq!(ping.line(), "ready");
    wait_for("100 exchanges", || (ping.ask("count")["n"].as_u64() >= Some(100)).then_some(()));
    let report = ping.ask("stop");
    let error = report["errors"][0].as_str().expect("an error");
    assert!(error.contains("after 100 exchanges: wrong byte at offset 6400"), "{error}");
    assert_eq!(report["exchanges"], 100);
}

#[test]
fn the_direct_arm_alone_is_verified() {
    let output = ab(&["--arms", "direct", "--rounds", "2", "--seconds", "0.1", "--exchange", "1", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let direct = &report["arms"][0];
    assert_eq!(direct["bulk"]["rounds"].as_array().map(Vec::len), Some(2));
    assert!(direct["bulk"]["gbit_per_second"]["median"].as_f64() > Some(0.0), "{report}");
    assert!(direct["exchanges"]["p99_us"]["median"].as_f64() >= direct["exchanges"]["p50_us"]["median"].as_f64());
    assert!(direct["bulk"]["cpu_seconds_per_gb"].is_null(), "there is no forwarder to use any");
}

#[test]
fn every_arm_moves_its_bytes_its_own_way() {
    let output = ab(&["--rounds", "1", "--seconds", "0.3", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["verified"], true);
    let arms = report["arms"].as_array().expect("arms");
    let names: Vec<&str> = arms.iter().filter_map(|arm| arm["arm"].as_str()).collect();
    if HAS_SPLICE {
        assert_eq!(names, ["direct", "splice", "copy-8KiB", "copy-16KiB", "copy-64KiB", "auto"]);
    } else {
        assert_eq!(names, ["direct", "copy-8KiB", "copy-16KiB", "copy-64KiB", "auto"]);
        assert_eq!(report["skipped"][0]["arm"], "splice");
        assert!(report["skipped"][0]["reason"].as_str().is_some_and(|reason| reason.contains("no splice engine")));
    }
    for arm in arms {
        let name = arm["arm"].as_str().expect("a name");
        for part in ["bulk", "exchanges"] {
            if name == "direct" {
                assert!(arm[part]["bytes"].is_null());
                continue;
            }
            let bytes = |path: &str| arm[part]["bytes"][path].as_u64().expect("a count") as f64;
            let (splice, copy) = (bytes("splice"), bytes("copy"));
            assert!(splice + copy > 0.0, "{name} {part}: {arm}");
            let share = splice / (splice + copy);
            match name {
                "splice" => assert!(share >= 0.99, "{name} {part}: {share}"),
                "auto" => {}
                _ => assert_eq!(splice, 0.0, "{name} {part}"),
            }
        }
        assert!(arm["bulk"]["rounds"][0]["verified_bytes"].as_u64() > Some(0), "{arm}");
        assert!(arm["exchanges"]["rounds"][0]["verified_exchanges"].as_u64() > Some(0), "{arm}");
        if name != "direct" {
            assert!(arm["bulk"]["cpu_seconds_per_gb"]["median"].as_f64() > Some(0.0), "{arm}");
            assert!(arm["exchanges"]["cpu_us_per_exchange"]["median"].as_f64() > Some(0.0), "{arm}");
        }
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    for bad in [["--arms", "turbo"], ["--seconds", "0"], ["--rounds", "0"], ["--message", "1TB"]] {
        let output = ab(&bad);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {}", stderr(&output));
    }
}

#[test]
fn a_missing_directory_for_sockets_is_named() {
    let output = spliced().arg("ab").env("TMPDIR", "/no/such/directory").output().expect("spliced starts");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("/no/such/directory") && said.contains("TMPDIR"), "{said}");
}
