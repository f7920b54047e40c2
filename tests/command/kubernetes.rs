//! The manifest in `packaging/kubernetes` is one, agrees with the program it runs, and its configuration runs as it
//! stands there, also after the cluster has changed it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::deadline::LONG;
use common::netns::{Netns, with_namespaces};
use common::peer::{Echo, echoes};
use common::spliced::Launcher;
use serde::Deserialize;
use serde_yaml::Value;

/// The objects of the manifest by their kind.
fn object(kind: &str) -> Value {
    let text = include_str!("../../packaging/kubernetes/daemonset.yaml");
    let objects: Vec<Value> =
        serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap()).collect();
    objects.into_iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pod() -> Value {
    object("DaemonSet")["spec"]["template"]["spec"].clone()
}

fn container() -> Value {
    pod()["containers"][0].clone()
}

/// The configuration in the ConfigMap.
fn config() -> String {
    object("ConfigMap")["data"]["spliced.yaml"].as_str().unwrap().to_owned()
}

/// A value of the plan that `spliced check` shows.
fn planned(key: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("spliced.yaml");
    fs::write(&file, config()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spliced")).args(["check", "-c"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}: "))).unwrap_or_else(|| panic!("{text}"));
    line.trim_matches('"').to_owned()
}

#[test]
fn probes_ask_what_the_configuration_serves() {
    let metrics: SocketAddr = planned("metrics").parse().unwrap();
    for (probe, path) in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &container()[probe]["httpGet"];
        assert_eq!(get["path"], path, "{probe}");
        assert_eq!(get["port"], u64::from(metrics.port()), "{probe}");
        // The kubelet is in the network that the pod has: the node's.
        assert_eq!(get["host"], metrics.ip().to_string(), "{probe}");
    }
    assert_eq!(pod()["hostNetwork"], true);
}

#[test]
fn a_pod_may_drain_before_it_is_killed() {
    let delay = planned("drain_delay");
    let delay = delay.strip_suffix('s').and_then(|seconds| seconds.parse::<u64>().ok()).unwrap();
    // The delay is what a preStop hook would be for; both would add up.
    assert!(delay > 0 && container().get("lifecycle").is_none());
    let grace = pod()["terminationGracePeriodSeconds"].as_u64().unwrap();
    let drain = planned("drain_timeout");
    let drain = drain.strip_suffix('m').and_then(|minutes| minutes.parse::<u64>().ok()).unwrap() * 60;
    assert!(delay + drain < grace, "{delay} s and {drain} s in {grace} s");
    // The kubelet must have seen it before nobody is accepted any more.
    let probe = &container()["readinessProbe"];
    let seen = probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap();
    assert!(seen < delay, "{seen} s until it is seen");
}

#[test]
fn the_pod_has_no_right_it_does_not_need() {
    let (pod, container) = (pod(), container());
    let user = &pod["securityContext"];
    assert_eq!(user["runAsNonRoot"], true);
    let image = include_str!("../../packaging/Containerfile");
    assert!(image.contains(&format!("\nUSER {0}:{0}\n", user["runAsUser"].as_u64().unwrap())), "another user");
    assert_eq!(user["seccompProfile"]["type"], "RuntimeDefault");
    let rights = &container["securityContext"];
    assert_eq!(rights["allowPrivilegeEscalation"], false);
    assert_eq!(rights["readOnlyRootFilesystem"], true);
    assert_eq!(rights["capabilities"]["drop"], Value::Sequence(vec!["ALL".into()]));
    assert!(rights.get("privileged").is_none() && rights["capabilities"].get("add").is_none());
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn volumes_are_where_the_configuration_looks() {
    let (pod, container) = (pod(), container());
    let mount = |name: &str| {
        let mounts = container["volumeMounts"].as_sequence().unwrap();
        let mount = mounts.iter().find(|mount| mount["name"] == name).unwrap();
        assert!(mount.get("subPath").is_none(), "a file alone never changes");
        mount["mountPath"].as_str().unwrap().to_owned()
    };
    let words: Vec<_> = container["args"].as_sequence().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words, ["run", "--config", &format!("{}/spliced.yaml", mount("config"))]);
    assert_eq!(Path::new(&planned("control")).parent(), Some(Path::new(&mount("run"))));
    let volumes: Vec<_> = pod["volumes"].as_sequence().unwrap().iter().map(|volume| &volume["name"]).collect();
    assert_eq!(volumes, ["config", "run"]);
    let selector = &object("DaemonSet")["spec"]["selector"]["matchLabels"];
    assert_eq!(selector, &object("DaemonSet")["spec"]["template"]["metadata"]["labels"]);
}

/// What the kubelet makes of a ConfigMap: a link to a directory of this version, which it replaces by another.
fn publish(directory: &Path, version: &str, text: &str) {
    let versioned = directory.join(version);
    fs::create_dir(&versioned).unwrap();
    fs::write(versioned.join("spliced.yaml"), text).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
}

fn answers(namespace: &Netns, address: SocketAddr, path: &str) -> bool {
    let mut stream: TcpStream = namespace.connect(address);
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 200 ")
}

#[test]
fn a_config_map_runs_and_is_reloaded_once_it_changes() {
    with_namespaces(|| {
        let namespace = Netns::new();
        let back: SocketAddr = "127.0.0.1:9001".parse().unwrap();
        let _echo = namespace.enter(|| Echo::start(namespace.listen(back)));
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("run/control.sock");
        fs::create_dir(directory.path().join("run")).unwrap();
        let volume = directory.path().join("etc");
        fs::create_dir(&volume).unwrap();
        let here = |port: &str| {
            config()
                .replace("/run/spliced/control.sock", control.to_str().unwrap())
                .replace("web.default.svc.cluster.local:80", "127.0.0.1:9001")
                .replace("0.0.0.0:9000", port)
        };
        publish(&volume, "..2026_1", &here("127.0.0.1:9000"));
        symlink("..data/spliced.yaml", volume.join("spliced.yaml")).unwrap();
        let spliced = Launcher::file(&volume.join("spliced.yaml")).inside(&namespace).start_at(&control);
        let metrics = "127.0.0.1:9464".parse().unwrap();
        assert!(answers(&namespace, metrics, "/healthz") && answers(&namespace, metrics, "/readyz"));
        let client = namespace.connect("127.0.0.1:9000".parse().unwrap());
        assert!(echoes(&client, 1, LONG));

        publish(&volume, "..2026_2", &here("127.0.0.1:9100"));
        fs::remove_dir_all(volume.join("..2026_1")).unwrap();
        let (code, said) = spliced.ask("reload", &[]);
        assert_eq!(code, Some(0), "{said}");
        let new = namespace.connect("127.0.0.1:9100".parse().unwrap());
        assert!(echoes(&new, 2, LONG) && echoes(&client, 3, LONG), "{said}");
        drop((new, client));
        spliced.finish();
    });
}
