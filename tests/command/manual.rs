//! Completions and the manual page cover the whole command line and are understood by those who read them.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::cannot_run;

fn spliced(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_spliced")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands as `spliced --help` lists them.
fn commands() -> Vec<String> {
    let help = spliced(&["--help"]);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What a command does may go on in further lines, which are further in.
    let names = listed.filter(|line| !line.starts_with("   ")).map(|line| line.split_whitespace().next().unwrap());
    let names: Vec<String> = names.filter(|name| *name != "help").map(str::to_owned).collect();
    assert!(names.len() > 8, "{help}");
    names
}

/// The long options of a command, `--help` itself left out.
fn options(command: &str) -> Vec<String> {
    let help = spliced(&[command, "--help"]);
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let long = lines.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    long.map(|word| word.trim_end_matches('.').to_owned()).filter(|word| word != "--help").collect()
}

/// Runs a program over a text; `None` where it is not installed.
fn over(program: &str, arguments: &[&str], text: &str) -> Option<(bool, String, String)> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let [out, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Some((output.status.success(), out, errors))
}

#[test]
fn the_page_explains_every_command_and_option() {
    let page = spliced(&["man"]).replace("\\-", "-");
    for command in commands() {
        assert!(page.contains(&format!(".SH \"SPLICED {}\"", command.to_uppercase())), "{command}");
        for option in options(&command) {
            assert!(page.contains(&option), "{option} of {command}");
        }
    }
    assert!(!page.to_lowercase().contains("ab-role"), "a command nobody types");
    for part in ["SIGNALS", "EXIT STATUS", "FILES", "SIGUSR1"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn the_page_is_set_without_a_warning() {
    let page = spliced(&["man"]);
    let mut checked = 0;
    if let Some((done, _, errors)) = over("groff", &["-man", "-Tutf8", "-ww", "-z"], &page) {
        assert!(done && errors.is_empty(), "groff: {errors}");
        checked += 1;
    }
    if let Some((done, out, errors)) = over("mandoc", &["-Tlint", "-Wwarning"], &page) {
        assert!(done, "mandoc: {out}{errors}");
        checked += 1;
    }
    if checked == 0 {
        cannot_run("neither groff nor mandoc is installed");
    }
}

/// Two builds of one source make one page.
#[test]
fn the_page_has_the_date_of_its_source() {
    let man = |epoch: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
        command.arg("man").env("SOURCE_DATE_EPOCH", epoch).output().unwrap()
    };
    let page = String::from_utf8(man("951782400").stdout).unwrap();
    let title = page.lines().find(|line| line.starts_with(".TH ")).unwrap();
    assert!(title.contains("2000-02-29"), "{title}");
    for no_time in ["", "yesterday", "99999999999999"] {
        let output = man(no_time);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{no_time:?}: {text}");
        assert!(text.contains("SOURCE_DATE_EPOCH") && output.stdout.is_empty(), "{no_time:?}: {text}");
    }
}

#[test]
fn every_shell_completes_every_command() {
    let commands = commands();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = spliced(&["completions", shell]);
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell}: {command}");
        }
        for option in ["copy-buffer", "half-closed-timeout", "control"] {
            assert!(script.contains(option), "{shell}: {option}");
        }
        assert!(!script.contains("ab-role"), "{shell}: a command nobody types");
    }
}

#[test]
fn bash_completes_what_was_begun() {
    let script = spliced(&["completions", "bash"]);
    let ask = "COMP_WORDS=(spliced pro); COMP_CWORD=1; _spliced spliced pro spliced; echo \"${COMPREPLY[*]}\"";
    match over("bash", &["--norc", "-s"], &format!("{script}\n{ask}\n")) {
        Some((done, out, errors)) => assert_eq!((done, out.trim(), errors.as_str()), (true, "probe", "")),
        None => cannot_run("bash is not installed"),
    }
}

#[test]
fn an_unknown_shell_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_spliced")).args(["completions", "ksh"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("ksh") && text.contains("bash"), "{text}");
}
