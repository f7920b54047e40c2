//! Bad plans, missing programs, taken ports, peers that die, labs side by side: a clear line, and the others go on.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use common::{can_run, errors, lab, output, plan, processes, run, spliced, wait_until_gone};
use lab::results::Results;

fn results(out: &std::path::Path) -> Results {
    let text = fs::read(out.join("results.json")).expect("results.json");
    serde_json::from_slice(&text).expect("the shape of results")
}

#[test]
fn wrong_usage_is_one_line_and_exit_2() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.yaml");
    fs::write(&bad, "forwarders: [splice]\nload:\n  - {kind: bulk, streems: 3}\n").unwrap();
    let bad = bad.to_str().unwrap();
    let place = format!("{bad}:3:18: found unknown key \"streems\" (did you mean \"streams\"?); allowed: ");
    for (arguments, expected) in [
        (vec!["run", bad], place.as_str()),
        (vec!["run", bad, "--check"], place.as_str()),
        (vec!["run", "/no/such.yaml"], "/no/such.yaml:1:1: found a file that cannot be read"),
        (vec!["ab", "--arms", "slice"], "lab: found \"slice\"; allowed: copy-8K"),
        (vec!["ab", "--loss", "200%"], "lab: --loss: found \"200%\"; allowed: a share"),
        (vec!["ab", "--peer", "x=y"], "lab: --peer"),
        (vec!["ab", "--arms", "direct", "--spliced", "/no/spliced"], "lab: --spliced /no/spliced: "),
        (vec!["ab", "--arms", "direct", "--spliced", "/bin/true", "--out", "/proc/x"], "lab: "),
        (vec!["ab", "--arms", "direct", "--spliced", "/bin/true", "--json", "/run/x"], "lab: found /run/x; allowed: "),
        (vec!["ab", "--arms", "direct", "--json", "/no/such/x.json"], "lab: --json /no/such/x.json: "),
        (vec!["ab", "--peer", "results.json=x {listen} {target}"], "lab: --peer: \"results.json\" is the name of"),
        (vec!["fly"], "lab: unrecognized subcommand"),
    ] {
        let ended = output(lab().args(&arguments).current_dir(directory.path()));
        let said = errors(&ended);
        assert!(said.starts_with(expected) && said.lines().count() == 1, "{arguments:?}: {said}");
        let code = if arguments.contains(&"/proc/x") { 1 } else { 2 };
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {said}");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["bad.yaml"], "nothing was half-started");
}

#[test]
fn check_shows_the_steps() {
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(directory.path(), "[splice, direct]");
    let ended = output(lab().arg("run").arg(&plan).arg("--check"));
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{}", errors(&ended));
    for step in ["make namespace ns_client: ip netns add ns_client", "start splice: spliced run", "load rr: rr: by lab"]
    {
        assert!(text.contains(step), "{text}");
    }
}

#[test]
fn steps_that_nobody_reads_are_no_crash() {
    let directory = tempfile::tempdir().unwrap();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let plan = plan(directory.path(), "[splice]");
    let mut child = lab().arg("run").arg(&plan).arg("--check").stdout(full).stderr(Stdio::null()).spawn().unwrap();
    assert_ne!(child.wait().unwrap().code(), Some(101), "it panicked");
}

#[test]
fn two_labs_do_not_write_to_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let lock = fs::File::open(directory.path()).unwrap();
    let _lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let ended = output(&mut run(&plan(directory.path(), "[splice]"), directory.path()));
    assert_eq!(ended.status.code(), Some(1));
    assert!(errors(&ended).contains("another lab writes to"), "{}", errors(&ended));
}

#[test]
fn one_that_leaves_its_group_does_not_keep_the_port() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = spliced().display().to_string();
    let daemon =
        format!("sh -c 'setsid {program} forward 10.0.1.1:9000 10.0.0.2:9001 & sleep 0.5' {{listen}} {{target}}");
    let out = directory.path().join("out");
    let forwarders = format!("[{{name: daemon, command: {daemon:?}}}, copy-8K]");
    let ended = output(&mut run(&plan(directory.path(), &forwarders), &out));
    assert!(ended.status.success(), "{}", errors(&ended));
    let results = results(&out);
    let next = results.rounds.iter().find(|round| round.arm == "copy-8K").unwrap();
    assert_eq!(next.error, None);
}

#[test]
fn forwarders_that_do_not_start_are_listed_and_the_others_measured() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // One process is started for each forward; this one always takes the first one's port.
    let taken =
        format!("sh -c 'exec {} forward 10.0.1.1:9000 10.0.0.2:9001' {{listen}} {{target}}", spliced().display());
    let forwarders = format!(
        "[{{name: taken, command: {taken:?}}}, {{name: dies, command: \"sh -c 'echo no luck; exit 3' {{listen}} {{target}}\"}}, \
         {{name: nowhere, command: \"/no/such/program {{listen}} {{target}}\"}}, copy-8K]"
    );
    let out = directory.path().join("out");
    let ended = output(&mut run(&plan(directory.path(), &forwarders), &out));
    let said = errors(&ended);
    assert!(ended.status.success(), "{said}");
    let results = results(&out);
    for (name, words) in [("taken", "in use"), ("dies", "no luck"), ("nowhere", "/no/such/program")] {
        let missing = results.missing.iter().find(|missing| missing.name == name);
        let missing = missing.unwrap_or_else(|| panic!("{name} is not listed: {said}"));
        assert!(missing.how.contains(words), "{missing:?}");
    }
    let dies = results.rounds.iter().find(|round| round.arm == "dies").unwrap();
    assert!(dies.error.as_ref().unwrap().contains("(start dies) failed"), "{dies:?}");
    let good = results.rounds.iter().find(|round| round.arm == "copy-8K").unwrap();
    assert_eq!(good.error, None);
    assert!(good.samples["exchanges_per_second"] > 1.0 && good.samples["copied_bytes"] > 1.0, "{:?}", good.samples);
    for file in ["report.md", "report.html", "trace.jsonl", "copy-8K/spliced.yaml", "plan.yaml"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert_eq!(processes(&out), Vec::<String>::new());
}

#[test]
fn a_server_that_does_not_start_is_not_the_forwarders_fault() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let bin = directory.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["sh", "ip", "cat"] {
        symlink(lab::tools::on_path(program).unwrap(), bin.join(program)).unwrap();
    }
    let plan = directory.path().join("plan.yaml");
    let loads = "[{kind: bulk, seconds: 1}, {kind: rr, connections: 2, seconds: 0.1}]";
    fs::write(&plan, format!("rounds: 2\nforwarders: [auto]\nload: {loads}\n")).unwrap();
    let out = directory.path().join("out");
    let ended = output(run(&plan, &out).env("PATH", &bin));
    assert!(ended.status.success(), "{}", errors(&ended));
    let results = results(&out);
    assert!(!results.missing.iter().any(|missing| missing.name == "auto"), "{:?}", results.missing);
    let of = |load: &str| Vec::from_iter(results.rounds.iter().filter(|round| round.load == load));
    let [bulk] = of("bulk")[..] else { panic!("tried again in every round") };
    assert!(bulk.error.as_ref().unwrap().contains("(start the server of bulk) failed"), "{bulk:?}");
    assert_eq!(of("rr").iter().filter(|round| round.error.is_none()).count(), 2, "{:?}", of("rr"));
}

/// An ordinary user's PATH leaves out the directories of nft, sysctl and ethtool.
#[test]
fn programs_of_administrators_are_found_without_a_path_to_them() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let plan = plan(directory.path(), "[auto, dnat]");
    let ended = output(run(&plan, &out).env("PATH", "/usr/local/bin:/usr/bin:/bin"));
    assert!(ended.status.success(), "{}", errors(&ended));
    let missing = results(&out).missing;
    assert!(missing.is_empty() || lab::tools::on_path("nft").is_none(), "{missing:?}");
}

#[test]
fn two_labs_at_once_do_not_meet() {
    if !can_run() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let plan = plan(directory.path(), "[splice, copy-64K, direct]");
    let outs = ["a", "b"].map(|name| directory.path().join(name));
    let labs = outs
        .each_ref()
        .map(|out| run(&plan, out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the lab starts"));
    for (child, out) in labs.into_iter().zip(&outs) {
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", errors(&ended));
        let results = results(out);
        assert_eq!(results.rounds.len(), 3);
        assert!(results.rounds.iter().all(|round| round.error.is_none()), "{:?}", results.rounds);
        wait_until_gone(out);
    }
}

#[test]
fn an_ordinary_user_measures_too() {
    if !can_run() {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        // Then every other test here has shown it.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The programs and the directory are where that user may not be able to reach them.
    for program in [spliced(), std::path::Path::new(env!("CARGO_BIN_EXE_lab"))] {
        fs::copy(program, directory.path().join(program.file_name().unwrap())).unwrap();
    }
    let plan = plan(directory.path(), "[splice]");
    let nobody = nix::unistd::Uid::from_raw(65534);
    nix::unistd::chown(directory.path(), Some(nobody), None).unwrap();
    let out = directory.path().join("out");
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(directory.path().join("lab"));
    command.arg("run").arg(&plan).arg("--out").arg(&out).arg("--spliced").arg(directory.path().join("spliced"));
    let ended = output(command.current_dir(directory.path()).env_remove("XDG_RUNTIME_DIR"));
    let said = errors(&ended);
    if said.contains("gives no namespaces") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{said}");
        eprintln!("NOT RUN: {said}");
        return;
    }
    assert!(ended.status.success(), "{said}");
    assert!(results(&out).rounds[0].samples["spliced_bytes"] > 1.0);
}
