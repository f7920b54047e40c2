//! What a log line may hold: no control character of anybody's, and not thousands of the same.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;

use common::deadline::{LONG, eventually};
use common::peer::{Reserved, accept, backend, connect, connect_or_reset};
use common::spliced::Launcher;

/// Escape sequences, line breaks of every kind, a null byte and one that turns the text around.
const HOSTILE: &str = r"a\e[31mb\nX=1\r\0\t\u202e\u0085\u2028c";

fn is_safe(c: char) -> bool {
    c == '\n' || !(c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}'))
}

fn safe(what: &str, text: &str) {
    assert!(text.chars().all(is_safe), "{what}: {text:?}");
    assert!(!text.contains("\nX=1"), "{what}: a word has made a line of its own: {text:?}");
}

/// Wherever a file may hold words, control characters in them are refused, and the refusal does not repeat them.
#[test]
fn control_characters_of_a_file_reach_no_line() {
    let forward = "forwards: [{ name: a, listen: \"127.0.0.1:9000\", to: \"127.0.0.1:9001\" }]\n";
    for config in [
        forward.replace("name: a", &format!("name: \"{HOSTILE}\"")),
        forward.replace("127.0.0.1:9000", &format!("{HOSTILE}:9000")),
        forward.replace("127.0.0.1:9001", &format!("{HOSTILE}:9001")),
        forward.replace("name: a", &format!("\"{HOSTILE}\": a")),
        format!("engine: \"{HOSTILE}\"\n{forward}"),
        format!("\"{HOSTILE}\": 1\n{forward}"),
        format!("metrics: \"{HOSTILE}\"\n{forward}"),
        format!("control: \"/nonexistent/{HOSTILE}\"\n{forward}"),
        format!("log_file: \"/nonexistent/{HOSTILE}\"\n{forward}"),
        format!("pid_file: \"/nonexistent/{HOSTILE}\"\n{forward}"),
        format!("allow: [\"{HOSTILE}\"]\n{forward}"),
    ] {
        let outcome = Launcher::config(&config).outcome();
        assert!(matches!(outcome.code, Some(1 | 2)), "{config}: {:?} {}", outcome.code, outcome.text);
        safe(&config, &outcome.text);
    }
}

/// What is left, quotes and blanks, neither ends a field nor begins one.
#[test]
fn a_name_stays_in_its_field() {
    for format in ["text", "json"] {
        let (port, target) = (Reserved::loopback(), backend());
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let config = format!(
            "log_format: {format}\nlog_file: {}\nforwards: [{{ name: 'a \" reason=x\\', listen: \"{}\", to: \"{}\" }}]\n",
            log.display(),
            port.address(),
            target.local_addr().unwrap()
        );
        let spliced = Launcher::config(&config).start();
        drop((connect(port.address()), accept(&target)));
        let line = eventually("the session's line", LONG, || match fs::read_to_string(&log).unwrap() {
            text if text.ends_with('\n') => Ok(text),
            text => Err(text),
        });
        if format == "json" {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&line["forward"], &line["reason"]), (&r#"a " reason=x\"#.into(), &"done".into()));
        } else {
            assert!(line.contains(r#"forward="a \" reason=x\\" "#) && line.ends_with(" reason=done\n"), "{line}");
        }
        spliced.finish();
    }
}

/// A backend that is down costs a few lines a second, and what is left out is counted to the last one.
#[test]
fn repeated_failures_are_summed_up() {
    const CLIENTS: usize = 400;
    // The port of the backend is held, so that nobody else can listen there.
    let (port, target) = (Reserved::loopback(), Reserved::loopback());
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let launcher = Launcher::forward(port.address(), target.address()).option("--log-file", &log);
    let spliced = launcher.start();
    for _ in 0..CLIENTS {
        drop(connect_or_reset(port.address()));
    }
    let told = |text: &str| {
        let single = text.lines().filter(|line| line.contains(" client=") && line.contains("reason=refused")).count();
        let more = text.lines().filter_map(|line| line.split_once(" … ")?.1.split(' ').next()?.parse::<usize>().ok());
        (single, more.sum::<usize>())
    };
    let text = eventually("every session is told of", LONG, || {
        let text = fs::read_to_string(&log).unwrap();
        let (single, more) = told(&text);
        if single + more == CLIENTS { Ok(text) } else { Err(format!("{single} lines and {more} more in {text}")) }
    });
    let (single, more) = told(&text);
    assert!(more > single, "{single} lines, {more} summed up");
    assert!(text.lines().count() < CLIENTS / 2, "{text}");
    spliced.ended("refused", CLIENTS as u64);
    spliced.finish();
}
