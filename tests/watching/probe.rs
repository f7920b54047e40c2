//! `spliced probe` tries the real thing, reads the settings of where it runs, and says what mends each.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::process::{Command, Output};

use common::netns::{Chain, Netns, offloads_off, with_namespaces};
#[cfg(not(spliced_portable))]
use common::spliced::can_inject;
use serde_json::Value;

fn probe(command: &mut Command) -> Output {
    command.env_remove("NO_COLOR").output().unwrap()
}

fn json(command: &mut Command) -> (Option<i32>, Value) {
    let output = probe(command);
    let text = String::from_utf8_lossy(&output.stdout);
    (output.status.code(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
    command.args(["probe", "--json"]);
    command
}

/// The findings of a check.
fn of<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    report["checks"].as_array().unwrap().iter().filter(|finding| finding["check"] == check).collect()
}

fn one<'a>(report: &'a Value, check: &str) -> &'a Value {
    let found = of(report, check);
    assert_eq!(found.len(), 1, "{check} in {report}");
    found[0]
}

/// Where a test may not make a setting, it says so by the status of the command.
fn sysctl(namespace: &Netns, name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    namespace.enter(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("{path}: {e}"));
}

#[test]
fn every_check_is_there_and_splice_was_tried() {
    let (code, report) = json(&mut program());
    let checks = [
        "kernel",
        "splice",
        "descriptors",
        "ports",
        "backlog",
        "syn backlog",
        "buffers",
        "time-wait",
        "conntrack",
        "fast open",
        "offloads",
        "huge pages",
        "cpu governor",
        "cpu steal",
    ];
    for check in checks {
        assert!(!of(&report, check).is_empty(), "{check} is missing in {report}");
    }
    let failed = report["checks"].as_array().unwrap().iter().any(|finding| finding["status"] == "fail");
    assert_eq!(report["ready"], !failed);
    assert_eq!(code, Some(i32::from(failed)));
    let splice = one(&report, "splice");
    if cfg!(spliced_portable) {
        assert_eq!(splice["status"], "warn");
    } else {
        assert_eq!(splice["status"], "ok", "{splice}");
        assert!(splice["found"].as_str().unwrap().starts_with("4 MiB over loopback"), "{splice}");
        assert_eq!(of(&report, "pipe budget").len(), 1);
    }
    for finding in report["checks"].as_array().unwrap() {
        assert_eq!(finding["mend"].is_null(), finding["status"] == "ok", "what is wrong says what mends it: {finding}");
    }
}

/// The same for people: no colour where there is no terminal, and none in a pipe with NO_COLOR either.
#[test]
fn text_is_plain_outside_a_terminal() {
    let output = probe(Command::new(env!("CARGO_BIN_EXE_spliced")).arg("probe"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(text.lines().any(|line| line.contains("  kernel ") && line.contains("Linux")), "{text}");
    assert!(text.lines().last().unwrap().contains("ready"), "{text}");
}

/// A kernel or filter without splice is a failure that names itself.
#[cfg(not(spliced_portable))]
#[test]
fn a_refused_splice_fails() {
    if !can_inject() {
        return;
    }
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=splice"]);
    strace.args(["-e", "inject=splice:error=EPERM", env!("CARGO_BIN_EXE_spliced"), "probe", "--json"]);
    let (code, report) = json(&mut strace);
    assert_eq!((code, &report["ready"]), (Some(1), &Value::Bool(false)));
    let splice = one(&report, "splice");
    assert_eq!(splice["status"], "fail");
    assert!(splice["mend"].as_str().unwrap().contains("seccomp"), "{splice}");
}

#[test]
fn few_descriptors_are_said() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 48 && exec \"$0\" probe --json", env!("CARGO_BIN_EXE_spliced")]);
    let (code, report) = json(&mut shell);
    assert_eq!(code, Some(1));
    let finding = one(&report, "descriptors");
    assert_eq!(finding["status"], "fail");
    assert!(finding["found"].as_str().unwrap().starts_with("48, raised to 48"), "{finding}");
    assert!(finding["mend"].as_str().unwrap().contains("LimitNOFILE"), "{finding}");
}

/// Settings of a network namespace are the ones of the forwarder that runs in it.
#[test]
fn settings_are_read_where_it_runs() {
    with_namespaces(|| {
        let namespace = Netns::new();
        let report = || namespace.enter(|| json(&mut program())).1;
        let status = |check: &str| one(&report(), check)["status"].as_str().unwrap().to_owned();
        let bad = [
            ("ports", "net.ipv4.ip_local_port_range", "40000 40099"),
            ("backlog", "net.core.somaxconn", "128"),
            ("syn backlog", "net.ipv4.tcp_syncookies", "0"),
            ("buffers", "net.ipv4.tcp_rmem", "4096 131072 212992"),
            ("time-wait", "net.ipv4.tcp_tw_reuse", "0"),
        ];
        let good = [
            ("ports", "net.ipv4.ip_local_port_range", "1024 65535"),
            ("backlog", "net.core.somaxconn", "4096"),
            ("syn backlog", "net.ipv4.tcp_syncookies", "1"),
            ("buffers", "net.ipv4.tcp_rmem", "4096 131072 6291456"),
            ("time-wait", "net.ipv4.tcp_tw_reuse", "1"),
        ];
        sysctl(&namespace, "net.ipv4.tcp_wmem", "4096 16384 4194304");
        sysctl(&namespace, "net.ipv4.tcp_max_syn_backlog", "4096");
        for (bad, good) in bad.into_iter().zip(good) {
            sysctl(&namespace, bad.1, bad.2);
            assert_eq!(status(bad.0), "warn", "{} = {}", bad.1, bad.2);
            sysctl(&namespace, good.1, good.2);
            assert_eq!(status(good.0), "ok", "{} = {}", good.1, good.2);
        }
        assert_eq!(one(&report(), "offloads")["found"], "no device but loopback is up");
    });
}

#[test]
fn offloads_are_those_of_the_devices_in_use() {
    with_namespaces(|| {
        let chain = Chain::new(true);
        let report = || chain.forwarder.enter(|| json(&mut program())).1;
        let before = report();
        let found = of(&before, "offloads");
        let names: Vec<_> = found.iter().map(|finding| finding["found"].as_str().unwrap()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names[0].starts_with("to_client: on ") && names[1].starts_with("to_server: on "), "{names:?}");
        offloads_off(&chain.forwarder, "to_client");
        let after = report();
        let found = of(&after, "offloads");
        assert_eq!((&found[0]["status"], &found[1]), (&Value::from("warn"), &of(&before, "offloads")[1]));
        assert_eq!(found[0]["mend"], "ethtool -K to_client tso on gso on gro on");
    });
}
