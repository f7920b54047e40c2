//! A real redis server and its own client through unix sockets, on either side and on both, by every engine.

#![cfg(target_os = "linux")]

use crate::common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::cannot_run;
use common::deadline::{LONG, until};
use common::peer::Reserved;
use common::spliced::{Launcher, Spliced};
use tempfile::TempDir;

/// A value larger than any pipe.
const LARGE: usize = 3 << 20;

struct Redis {
    child: Child,
    directory: TempDir,
    port: Reserved,
}

impl Redis {
    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn redis() -> Option<Redis> {
    if !["redis-server", "redis-cli"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok()) {
        cannot_run("redis-server and redis-cli are needed");
        return None;
    }
    let (directory, port) = (TempDir::with_prefix("spliced-redis-").expect("a directory"), Reserved::loopback());
    let mut command = Command::new("redis-server");
    command.args(["--save", "", "--appendonly", "no", "--protected-mode", "no", "--bind", "127.0.0.2", "--port"]);
    // On another address with a port nobody else of this test has.
    command.arg(port.address().port().to_string()).arg("--unixsocket").arg(directory.path().join("redis.sock"));
    command.arg("--dir").arg(directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let redis = Redis { child: command.spawn().expect("redis-server"), directory, port };
    until("redis answers", LONG, || {
        let pong = run(&["-s", &redis.socket().to_string_lossy(), "ping"], b"");
        String::from_utf8_lossy(&pong.stdout).contains("PONG")
    });
    Some(redis)
}

/// redis-cli, which speaks by hiredis, the server's own client library.
fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new("redis-cli");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("redis-cli");
    child.stdin.take().expect("a pipe").write_all(input).expect("redis-cli reads");
    child.wait_with_output().expect("redis-cli ends")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Small commands, a value larger than a pipe, a thousand commands at once, a subscriber.
fn work(way: &[&str], prefix: &str) {
    let cli = |words: &[&str], input: &[u8]| text(&run(&[way, words].concat(), input));
    assert_eq!(cli(&["ping"], b""), "PONG");
    assert_eq!(cli(&["set", &format!("{prefix}:a"), "1"], b""), "OK");
    assert_eq!(cli(&["incr", &format!("{prefix}:a")], b""), "2");

    let value: Vec<u8> = (0..LARGE).map(|i| b'a' + (i * i / 7 % 26) as u8).collect();
    let key = format!("{prefix}:large");
    assert_eq!(cli(&["-x", "set", &key], &value), "OK");
    assert_eq!(cli(&["strlen", &key], b""), LARGE.to_string());
    assert!(cli(&["get", &key], b"").as_bytes() == value, "the value comes back as it went");

    // Mass insertion ends with redis-cli's own check that every command was answered.
    let many: String = (0..1000).map(|i| format!("SET {prefix}:{i} {i}\r\n")).collect();
    let answer = cli(&["--pipe"], many.as_bytes());
    assert!(answer.contains("errors: 0, replies: 1000"), "{answer}");
    assert_eq!(cli(&["get", &format!("{prefix}:999")], b""), "999");
}

fn forward(listen: &str, to: &str, engine: &str) -> Spliced {
    Launcher::with_arguments(["forward", listen, to, "--engine", engine]).start()
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn every_way(engine: &str) {
    let Some(redis) = redis() else { return };
    let (front, port) = (redis.directory.path().join("front.sock"), Reserved::loopback());
    let (address, socket) = (port.address(), front.to_string_lossy().into_owned());
    let tcp_server = format!("127.0.0.2:{}", redis.port.address().port());
    let number = address.port().to_string();
    let by_port = ["-h", "127.0.0.1", "-p", &number];
    let by_socket = ["-s", &*socket];
    let ways: [(&str, String, String, &[&str]); 3] = [
        ("unix-tcp", unix(&front), tcp_server, &by_socket),
        ("tcp-unix", address.to_string(), unix(&redis.socket()), &by_port),
        ("unix-unix", unix(&front), unix(&redis.socket()), &by_socket),
    ];
    for (name, listen, to, way) in ways {
        let spliced = forward(&listen, &to, engine);
        work(way, name);
        let stats = spliced.stats_until("all sessions have ended", |stats| stats.open() == 0);
        let (up, down) = (stats.up(), stats.down());
        assert!(up.all() > LARGE as u64 && down.all() > LARGE as u64, "{name}: {up:?} {down:?}");
        match engine {
            "copy" => assert_eq!((up.splice, down.splice), (0, 0), "{name}"),
            "splice" if cfg!(not(spliced_portable)) => assert_eq!((up.copy, down.copy), (0, 0), "{name}"),
            _ => {}
        }
        spliced.finish();
    }
}

/// The forward of that name in the example, with places of this test.
#[test]
fn the_example_works() {
    let Some(redis) = redis() else { return };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/addresses.yaml");
    let text = std::fs::read_to_string(example).expect("the example");
    let from = text.find("  - name: redis").expect("its first forward");
    let forward = text[from..].split("\n\n").next().expect("up to an empty line");
    let place = redis.directory.path().join("front");
    std::fs::create_dir(&place).expect("a directory");
    let forward = forward.replace("/run/spliced", &place.to_string_lossy());
    let forward = forward.replace("10.0.0.2:6379", &format!("127.0.0.2:{}", redis.port.address().port()));
    // The group of the example belongs to redis, and only root gives files away.
    let (me, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let forward = forward.replace("root:redis", &format!("\"{me}:{group}\""));
    let spliced = Launcher::config(&format!("forwards:\n{forward}\n")).start();
    work(&["-s", &place.join("redis.sock").to_string_lossy()], "example");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(place.join("redis.sock")).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o660);
    spliced.finish();
}

#[test]
fn redis_works_by_splice() {
    every_way("splice");
}

#[test]
fn redis_works_by_copy() {
    every_way("copy");
}

#[test]
fn redis_works_by_auto() {
    every_way("auto");
}
