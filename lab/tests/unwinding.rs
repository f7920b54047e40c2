//! Whatever goes wrong, and wherever: nothing is left, and the next try starts from clean ground.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, can_run, errors, lab, network, output, plan, processes, run, trace, wait_until_gone};
use lab::plan::runner::WAITING;
use lab::plan::trace::{Phase, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Steps of these have something to take back.
const TAKEN_BACK: [&str; 6] =
    ["make namespace", "link ns_", "start the server", "start auto", "connect rr", "start the meters"];

/// Each step that was taken and can be taken back has been, last first.
fn all_taken_back(out: &Path) -> Result<(), String> {
    let mut taken = Vec::new();
    for entry in trace(out) {
        let undone = TAKEN_BACK.iter().any(|name| entry.name.starts_with(name));
        match (entry.phase, entry.status) {
            (Phase::Do, Status::Ok) if undone => taken.push(entry.step),
            // The window that was read has nothing to take back.
            (Phase::Do, Status::Ok) if entry.name.starts_with("read the meters") => {
                taken.pop();
            }
            (Phase::Do, _) => {}
            (Phase::Undo, Status::Ok) if taken.pop() == Some(entry.step) => {}
            (Phase::Undo, _) => return Err(format!("{entry:?} while {taken:?} was still there")),
        }
    }
    if taken.is_empty() { Ok(()) } else { Err(format!("steps {taken:?} were not taken back")) }
}

/// A plan that was run once, in `directory/whole`, and how many steps that took.
fn whole(directory: &Path) -> (PathBuf, usize) {
    let plan = plan(directory, "[auto]");
    let out = directory.join("whole");
    let good = output(&mut run(&plan, &out));
    assert!(good.status.success(), "{}", errors(&good));
    let steps = trace(&out).iter().filter(|entry| entry.phase == Phase::Do).count();
    (plan, steps)
}

#[test]
fn an_experiment_is_taken_back_from_every_step() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let before = network();
    let (plan, steps) = whole(directory.path());
    all_taken_back(&directory.path().join("whole")).unwrap();
    assert!(steps > 20, "{steps} steps");
    for step in 1..=steps {
        let faults: &[&str] = match step % 4 {
            0 => &["error", "exit"],
            2 => &["error", "stop"],
            _ => &["error"],
        };
        for fault in faults {
            let out = directory.path().join(format!("{step}-{fault}"));
            let ended = output(run(&plan, &out).env("SPLICED_LAB_FAULT", format!("{step}:{fault}")));
            let said = errors(&ended);
            let told = format!("{step}:{fault}: {:?}: {said}", ended.status);
            wait_until_gone(&out);
            if *fault == "exit" {
                assert_eq!(ended.status.code(), Some(70), "{told}");
                continue;
            }
            all_taken_back(&out).unwrap_or_else(|error| panic!("{told}{error}"));
            let bad = trace(&out).into_iter().find(|entry| entry.status != Status::Ok).expect("a step that failed");
            assert_eq!(bad.step, u64::try_from(step).unwrap(), "{told}");
            if *fault == "stop" {
                assert_eq!(bad.status, Status::Stopped, "{told}");
                assert!(ended.status.code() == Some(1) && said.contains("stopped as asked"), "{told}");
            } else if !ended.status.success() {
                assert!(said.contains(&format!("step {step} ({}) failed", bad.name)), "{told}");
            }
        }
    }
    assert_eq!(network(), before, "the host is as it was");
}

#[test]
fn a_signal_at_any_step_leaves_nothing() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let before = network();
    let (plan, steps) = whole(directory.path());
    for step in 1..=steps {
        let asked = if step % 2 == 0 { Signal::SIGTERM } else { Signal::SIGINT };
        for signal in [Signal::SIGKILL, asked] {
            let out = directory.path().join(format!("{step}-{signal}"));
            let mut command = run(&plan, &out);
            command.env("SPLICED_LAB_FAULT", format!("{step}:wait")).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
            let waits = said.into_iter().any(|line| line == WAITING);
            assert!(waits, "step {step} was not reached");
            kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
            let status = child.wait().unwrap();
            wait_until_gone(&out);
            if signal != Signal::SIGKILL {
                assert_eq!(status.code(), Some(1), "{signal} at step {step}: {status:?}");
                all_taken_back(&out).unwrap_or_else(|error| panic!("{signal} at step {step}: {error}"));
            }
            assert_eq!(network(), before, "{signal} at step {step}");
        }
    }
    assert!(output(&mut run(&plan, &directory.path().join("again"))).status.success(), "the next one starts clean");
}

/// Starts a long experiment and waits until its load runs.
fn under_load(directory: &Path) -> (std::process::Child, std::path::PathBuf) {
    let plan = directory.join("long.yaml");
    fs::write(&plan, "rounds: 9\nforwarders: [auto]\nload: [{kind: rr, connections: 2, seconds: 30}]\n").unwrap();
    let out = directory.join("long");
    let child = run(&plan, &out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while !trace(&out).iter().any(|entry| entry.name.starts_with("start the meters")) {
        assert!(begun.elapsed() < PATIENCE, "no load after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(processes(&out).len() >= 4, "guard, lab, forwarder and both ends of the load: {:?}", processes(&out));
    (child, out)
}

fn signal(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_lab_that_is_killed_under_load_leaves_nothing() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let before = network();
    let (mut child, out) = under_load(directory.path());
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    wait_until_gone(&out);
    assert_eq!(network(), before);
}

#[test]
fn a_lab_that_is_told_to_stop_takes_all_back_at_once() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (child, out) = under_load(directory.path());
    let begun = Instant::now();
    signal(&child, Signal::SIGTERM);
    let ended = child.wait_with_output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "not at the end of the load");
    assert_eq!(ended.status.code(), Some(1));
    assert!(errors(&ended).contains("stopped as asked"), "{}", errors(&ended));
    all_taken_back(&out).unwrap();
    wait_until_gone(&out);
}

/// Runs a script as root of namespaces of its own, where `lab up` finds nobody else.
fn alone(script: &str, directory: &Path) -> String {
    let user: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["-Ur"] };
    let script = format!("set -e; mount -t tmpfs tmpfs /run; mkdir /run/netns; {script}");
    let mut command = Command::new("unshare");
    command.args(user).args(["-m", "-n", "sh", "-c", &script]).env("LAB", lab().get_program());
    let output = output(command.env("XDG_RUNTIME_DIR", directory).env_remove("SPLICED_LAB_INSIDE"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{:?}\n{text}\n{}", output.status, errors(&output));
    text
}

#[test]
fn up_is_taken_back_from_every_step() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = "
        n=1
        while ! SPLICED_LAB_FAULT=$n:error \"$LAB\" up --mtu 9000 >/dev/null 2>/run/said; do
            grep -q \"^lab: step $n (\" /run/said || { cat /run/said; exit 3; }
            test -z \"$(ip netns list)\" || { echo \"left after $n\"; ip netns list; exit 4; }
            test \"$(ip -o link | wc -l)\" = 1 || { ip link; exit 5; }
            \"$LAB\" status | grep -q 'no lab is up'
            n=$((n + 1))
        done
        echo $n; ip netns list | sort; \"$LAB\" down; ip netns list";
    let said = alone(script, directory.path());
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() > 20, "{said}");
    let names: Vec<&str> = lines[1..].iter().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(names, ["ns_client", "ns_forwarder", "ns_server", "the"], "{said}");
}

#[test]
fn up_says_what_is_up_and_down_takes_down_what_was_killed_half_way() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = "
        SPLICED_LAB_FAULT=9:exit \"$LAB\" up && exit 3
        \"$LAB\" up && exit 4
        \"$LAB\" status; \"$LAB\" down; ip netns list
        \"$LAB\" up; \"$LAB\" down; \"$LAB\" status
        \"$LAB\" down && exit 5
        ip netns add ns_server; \"$LAB\" up && exit 6
        ip netns list";
    let said = alone(&format!("{script} || exit 7"), directory.path());
    let starts: Vec<&str> = said.lines().filter(|line| !line.starts_with(' ')).collect();
    let expected =
        ["the lab is up since", "the lab is down", "the lab is up", "the lab is down", "no lab is up", "ns_server"];
    assert_eq!(starts.len(), expected.len(), "{said}");
    for (line, expected) in starts.iter().zip(expected) {
        assert!(line.starts_with(expected), "{said}");
    }
}
