//! What the tests of the laboratory share: the program, and a look at what it leaves behind.

#![allow(dead_code, reason = "every test file is a program of its own and uses its part of this module")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lab::plan::trace::Entry;

/// How long anything may take on a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.env_remove("SPLICED_LAB_INSIDE").env_remove("SPLICED_LAB_FAULT").env_remove("XDG_RUNTIME_DIR");
    command
}

/// The forwarder, from the same profile; built when it is not there.
pub(crate) fn spliced() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_BIN_EXE_lab")).with_file_name("spliced");
        if !path.is_file() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let target = path.parent().and_then(Path::parent).expect("a target directory");
            let built = Command::new(cargo)
                .args(["build", "--quiet", "-p", "spliced", "--manifest-path"])
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("Cargo.toml"))
                .arg("--target-dir")
                .arg(target)
                .status();
            assert!(built.is_ok_and(|status| status.success()), "cargo build -p spliced");
        }
        path
    })
}

/// Whether namespaces can be made here, and the tools are there; says why not. Under `CI=true` that is a failure.
pub(crate) fn can_run() -> bool {
    for tool in ["ip", "unshare", "setpriv"] {
        if lab::tools::on_path(tool).is_none() {
            return cannot_run(&format!("{tool} is not on PATH"));
        }
    }
    let tried = Command::new("unshare").args(["-Urn", "true"]).output().expect("unshare is there");
    let root = Command::new("unshare").args(["-n", "true"]).output().expect("unshare is there");
    if tried.status.success() || root.status.success() {
        return true;
    }
    cannot_run(&format!("no network namespace: {}", String::from_utf8_lossy(&tried.stderr).trim()))
}

fn cannot_run(why: &str) -> bool {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "nothing may be skipped under CI=true: {why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr(), "NOT RUN: {test}: {why}").expect("standard error takes a line");
    false
}

/// A plan file of exchanges through `forwarders`, as short as can be.
pub(crate) fn plan(directory: &Path, forwarders: &str) -> PathBuf {
    let path = directory.join("plan.yaml");
    let text = format!("rounds: 1\nforwarders: {forwarders}\nload: [{{kind: rr, connections: 2, seconds: 0.1}}]\n");
    fs::write(&path, text).expect("a file in a directory of our own");
    path
}

/// `lab run PLAN` with results in `out`.
pub(crate) fn run(plan: &Path, out: &Path) -> Command {
    let mut command = lab();
    command.arg("run").arg(plan).arg("--out").arg(out).arg("--spliced").arg(spliced());
    command
}

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What it wrote to standard error.
pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of a trace.
pub(crate) fn trace(out: &Path) -> Vec<Entry> {
    let text = fs::read_to_string(out.join(lab::plan::trace::FILE)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Processes of the lab whose results go to `out`; the environment tells.
pub(crate) fn processes(out: &Path) -> Vec<String> {
    let marker = [OsStr::new("SPLICED_LAB_OUT=").as_encoded_bytes(), out.as_os_str().as_encoded_bytes()].concat();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == marker) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// Waits until no process of that lab is left.
pub(crate) fn wait_until_gone(out: &Path) {
    let begun = Instant::now();
    loop {
        let left = processes(out);
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What of the network can be seen from here: named namespaces, devices, rules.
pub(crate) fn network() -> String {
    let run = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let ours = |list: String| {
        let ours = |line: &&str| line.starts_with("ns_");
        list.lines().filter(ours).collect::<Vec<_>>().join("\n")
    };
    let forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    let devices = run(&["ip", "-o", "link"]).lines().filter(|line| line.contains("to_client")).count();
    format!("{}\n{devices}\n{}\n{forward}", ours(run(&["ip", "netns", "list"])), run(&["nft", "list", "tables"]))
}
