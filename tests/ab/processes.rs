//! What only Linux lets us see from outside: the processes of a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{stderr, wait_for};

/// A running process: its parent and its command line. Zombies do not count: they wait for an init.
fn running() -> BTreeMap<u32, (u32, String)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        let args = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let args = String::from_utf8_lossy(&args).replace('\0', " ");
        if let (Some(parent), true) = (parent, state != Some("Z")) {
            all.insert(pid, (parent, args));
        }
    }
    all
}

/// Everything below `root`, with command lines.
fn descendants(root: u32) -> BTreeMap<u32, String> {
    let all = running();
    let mut found = BTreeMap::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for (pid, (_, args)) in all.iter().filter(|(_, (of, _))| *of == parent) {
            found.insert(*pid, args.clone());
            parents.push(*pid);
        }
    }
    found
}

fn assert_gone(family: &BTreeMap<u32, String>) {
    wait_for(&format!("the end of {family:?}"), || {
        let now = running();
        family.iter().all(|(pid, args)| now.get(pid).is_none_or(|(_, now)| now != args)).then_some(())
    });
}

/// A run with its own TMPDIR that has reached its first window, and everything it started.
fn started(name: &str, args: &[&str]) -> (Child, PathBuf, BTreeMap<u32, String>) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ab-{name}"));
    fs::create_dir_all(&directory).expect("a directory");
    // Who is started in the background by a script ignores SIGINT, and so does what he starts.
    let process = Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_spliced"), "ab"])
        .args(args)
        .env("TMPDIR", &directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spliced starts");
    let family = wait_for("a forwarder, its watcher, a sink and a source", || {
        let family = descendants(process.id());
        let has = |what: &str| family.values().any(|args| args.contains(what));
        (has(" forward ") && !has(" guard ") && has(" watch ") && has(" backend") && has(" source ")).then_some(family)
    });
    (process, directory, family)
}

fn pid(of: u32) -> Pid {
    Pid::from_raw(i32::try_from(of).expect("a pid"))
}

#[test]
fn nothing_is_left_after_a_run() {
    let (process, directory, family) = started("done", &["--arms", "auto", "--rounds", "1", "--seconds", "0.5"]);
    let output = process.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_gone(&family);
    assert_eq!(fs::read_dir(&directory).expect("is there").count(), 0, "sockets are left in {directory:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("auto") && text.contains("every byte as sent"), "{text}");
    assert!(output.stderr.is_empty(), "no progress without a terminal: {}", stderr(&output));
}

#[test]
fn nothing_is_left_after_a_killed_run() {
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let (mut process, directory, family) =
            started(signal.as_str(), &["--arms", "auto,copy", "--rounds", "1", "--seconds", "60"]);
        kill(pid(process.id()), signal).expect("is running");
        process.wait().expect("it ends");
        assert_gone(&family);
        wait_for("the sockets to go", || fs::read_dir(&directory).ok()?.next().is_none().then_some(()));
    }
}

#[test]
fn a_forwarder_that_dies_is_named() {
    let (process, _, family) = started("dies", &["--arms", "copy-8KiB", "--rounds", "1", "--seconds", "2"]);
    let forwarder = family.iter().find(|(_, args)| args.contains(" forward ")).expect("was there");
    kill(pid(*forwarder.0), Signal::SIGKILL).expect("is running");
    let output = process.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("arm copy-8KiB, round 1, bulk: the forwarder ended (signal: 9"), "{said}");
    assert_gone(&family);
}
