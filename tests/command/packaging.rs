//! What is packaged is there, starts, and agrees with itself. `.ci/package` builds the package for real.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::spliced::Launcher;
use toml::Value;

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn metadata() -> Value {
    let manifest: Value = toml::from_str(&text("Cargo.toml")).unwrap();
    manifest["package"]["metadata"]["deb"].clone()
}

/// Where each file of the package comes from, by its place on the system.
fn assets() -> BTreeMap<String, String> {
    let assets = metadata()["assets"].as_array().unwrap().clone();
    let all = assets.iter().map(|asset| {
        let words: Vec<&str> = asset.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let [source, place, mode] = words[..] else { panic!("{words:?}") };
        assert!(matches!(mode, "644" | "755"), "{words:?}");
        let name = source.rsplit('/').next().unwrap();
        let place = if place.ends_with('/') { format!("{place}{name}") } else { place.to_owned() };
        (format!("/{place}"), source.to_owned())
    });
    all.collect()
}

#[test]
fn every_file_of_the_package_is_there() {
    let script = text("packaging/build-deb");
    for (place, source) in assets() {
        if let Some(made) = source.strip_prefix("target/packaging/") {
            assert!(script.contains(&format!("\"$out/{made}\"")), "{place}: packaging/build-deb makes no {made}");
        } else if source != "target/release/spliced" && source != "examples/*" {
            assert!(root().join(&source).is_file(), "{place}: no {source}");
        }
    }
    let changelog = metadata()["changelog"].as_str().unwrap().to_owned();
    assert!(script.contains(&changelog.replace("target/packaging", "$out")), "{changelog}");
    for page in
        ["/usr/share/man/man1/spliced.1", "/usr/share/bash-completion/completions/spliced", "/etc/spliced/spliced.yaml"]
    {
        assert!(assets().contains_key(page), "{page}");
    }
}

#[test]
fn the_unit_runs_what_is_installed() {
    let unit = text("packaging/spliced.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("ExecStart=");
    let words: Vec<&str> = line.split(' ').collect();
    let [program, "run", "--config", config] = words[..] else { panic!("{line}") };
    let assets = assets();
    assert_eq!(assets.get(program).map(String::as_str), Some("target/release/spliced"));
    assert_eq!(assets.get(config).map(String::as_str), Some("packaging/spliced.yaml"));
    assert_eq!(metadata()["conf-files"].as_array().unwrap(), &[Value::from(config)], "an upgrade keeps it");
    let user = unit.lines().find_map(|line| line.strip_prefix("User=")).expect("User=");
    let users = text("packaging/sysusers.d/spliced.conf");
    assert!(users.lines().any(|line| line.split_whitespace().take(2).eq(["u", user])), "{user} is not made");
    let systemd = &metadata()["systemd-units"];
    for option in ["enable", "start", "restart-after-upgrade", "stop-on-upgrade"] {
        assert_eq!(systemd[option].as_bool(), Some(false), "{option}: installing starts and stops nothing");
    }
}

/// The installed configuration is one, and so is every example.
#[test]
fn every_configuration_passes_check() {
    let examples = fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = examples.chain([root().join("packaging/spliced.yaml")]).collect();
    assert!(files.len() > 4, "{files:?}");
    for file in files {
        let output = Command::new(env!("CARGO_BIN_EXE_spliced")).args(["check", "-c"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn scripts_are_shell() {
    for script in ["packaging/build-deb", ".ci/run", ".ci/package", ".ci/try-package"] {
        let path = root().join(script);
        let output = Command::new("bash").arg("-n").arg(&path).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let output = Command::new("test").arg("-x").arg(&path).status().unwrap();
        assert!(output.success(), "{script} cannot be run");
    }
}

#[test]
fn the_container_runs_what_it_copies_as_nobody() {
    let file = text("packaging/Containerfile");
    let last = file.rsplit("\nFROM ").next().unwrap();
    let instruction =
        |name: &str| last.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim).collect::<Vec<_>>();
    let copied: BTreeMap<&str, &str> = instruction("COPY ")
        .into_iter()
        .map(|copy| {
            let mut words = copy.split_whitespace().filter(|word| !word.starts_with("--"));
            let source = words.next().unwrap();
            (words.next().unwrap(), source)
        })
        .collect();
    let list = |text: &str| -> Vec<String> { serde_json::from_str(text).unwrap() };
    let entry = list(instruction("ENTRYPOINT ")[0]);
    assert_eq!(copied.get(entry[0].as_str()), Some(&"/src/target/release/spliced"));
    let command = list(instruction("CMD ")[0]);
    let config = copied[command[2].as_str()];
    assert_eq!(command[..2], ["run", "--config"]);
    assert!(root().join(config).is_file(), "{config}");
    let user = instruction("USER ")[0];
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)), "{user}");
    // What is copied in to be built must not be as large as what was built before.
    let ignored = text("packaging/Containerfile.containerignore");
    assert!(ignored.lines().any(|line| line == "target"), "{ignored}");
}

/// The file a new service is given is one that runs, with other ports for this test.
#[test]
fn the_installed_configuration_starts() {
    let reserved = [common::peer::Reserved::loopback(), common::peer::Reserved::loopback()];
    let ports = reserved.each_ref().map(common::peer::Reserved::address);
    let config = text("packaging/spliced.yaml")
        .replace("127.0.0.1:9000 ", &format!("{} ", ports[0]))
        .replace("127.0.0.1:9001 ", &format!("{} ", ports[1]));
    // The test has a control socket of its own, and other tests may run at the same time.
    let kept = config.lines().filter(|line| !line.starts_with("control:") && !line.starts_with("metrics:"));
    let spliced = Launcher::config(&kept.collect::<Vec<_>>().join("\n")).start();
    let text = spliced.text();
    assert!(text.contains(&format!("listening on {}, forward \"example\"", ports[0])), "{text}");
    spliced.finish();
}
