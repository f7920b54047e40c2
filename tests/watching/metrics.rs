//! The metrics page holds to its format, counts what it promises, and the dashboard asks only for what is there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use common::deadline::{LONG, eventually};
use common::peer::{Reserved, accept, backend, connect, connect_or_reset, metrics_address, own_backend};
use common::spliced::{Launcher, Spliced};
use common::udp;
use serde_json::Value;

/// Everything that must be counted, and how.
const PROMISED: [(&str, &str); 29] = [
    ("spliced_build_info", "gauge"),
    ("spliced_uptime_seconds", "gauge"),
    ("spliced_draining", "gauge"),
    ("spliced_splice_available", "gauge"),
    ("process_cpu_seconds_total", "counter"),
    ("spliced_pipes", "gauge"),
    ("spliced_pipes_budget", "gauge"),
    ("spliced_pipe_size_bytes", "gauge"),
    ("spliced_log_dropped_total", "counter"),
    ("spliced_worker_up", "gauge"),
    ("spliced_worker_busy_seconds_total", "counter"),
    ("spliced_worker_turns_total", "counter"),
    ("spliced_worker_batch", "gauge"),
    ("spliced_worker_sessions_open", "gauge"),
    ("spliced_handed_over_total", "counter"),
    ("spliced_accept_paused", "gauge"),
    ("spliced_accept_pauses_total", "counter"),
    ("spliced_sessions_open", "gauge"),
    ("spliced_sessions_accepted_total", "counter"),
    ("spliced_session_ends_total", "counter"),
    ("spliced_bytes_total", "counter"),
    ("spliced_fallbacks_total", "counter"),
    ("spliced_stalls_total", "counter"),
    ("spliced_stalled", "gauge"),
    ("spliced_connect_seconds", "histogram"),
    ("spliced_first_byte_seconds", "histogram"),
    ("spliced_session_seconds", "histogram"),
    ("spliced_rate_waits_total", "counter"),
    ("spliced_proxy_headers_total", "counter"),
];

type Labels = BTreeMap<String, String>;

/// A metric family with its samples: suffix, labels, value.
#[derive(Debug)]
struct Family {
    kind: String,
    samples: Vec<(String, Labels, f64)>,
}

/// Reads a page of the text format 0.0.4, stricter than the format: every family has help and type, in one piece.
fn parse(page: &str) -> BTreeMap<String, Family> {
    assert!(page.ends_with('\n'), "the last line has an end too");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let (mut current, mut helped) = (String::new(), None);
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(help.ends_with('.') && !help.contains('\\'), "{line}");
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped.take().as_deref(), Some(name), "help goes before: {line}");
            let family = Family { kind: kind.to_owned(), samples: Vec::new() };
            assert!(families.insert(name.to_owned(), family).is_none(), "twice: {line}");
            name.clone_into(&mut current);
        } else {
            let (name, labels, value) = sample(line);
            let family = families.get_mut(&current).unwrap_or_else(|| panic!("of no family: {line}"));
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("of another family: {line}"));
            let allowed: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line}");
            family.samples.push((suffix.to_owned(), labels, value));
        }
    }
    families
}

/// Name, labels and value of `name{label="value",…} 1.5`.
fn sample(line: &str) -> (String, Labels, f64) {
    let word =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let name: String = line.chars().take_while(|c| !matches!(c, '{' | ' ')).collect();
    assert!(word(&name), "{line}");
    let mut rest = &line[name.len()..];
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(word(label), "{line}");
            let (mut value, mut escaped, mut end) = (String::new(), false, None);
            for (at, c) in after.char_indices() {
                match (escaped, c) {
                    (false, '"') => {
                        end = Some(at);
                        break;
                    }
                    (false, '\\') => escaped = true,
                    (true, c) => {
                        assert!(matches!(c, '\\' | '"' | 'n'), "{line}");
                        value.push(if c == 'n' { '\n' } else { c });
                        escaped = false;
                    }
                    (false, c) => value.push(c),
                }
            }
            assert!(labels.insert(label.to_owned(), value).is_none(), "twice in {line}");
            rest = &after[end.unwrap_or_else(|| panic!("{line}")) + 1..];
            match rest.split_at(1) {
                (",", more) => rest = more,
                ("}", more) => {
                    rest = more;
                    break;
                }
                _ => panic!("{line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    (name, labels, value.parse().unwrap_or_else(|e| panic!("{e}: {line}")))
}

/// What holds of every family of a kind.
fn check(name: &str, family: &Family) {
    let unique: BTreeSet<_> = family.samples.iter().map(|(suffix, labels, _)| (suffix, labels)).collect();
    assert_eq!(unique.len(), family.samples.len(), "{name} has a sample twice");
    assert!(!family.samples.is_empty(), "{name} has no sample");
    assert!(family.samples.iter().all(|(.., value)| value.is_finite() && *value >= 0.0), "{name}: {family:?}");
    match family.kind.as_str() {
        "counter" => assert!(name.ends_with("_total"), "{name}"),
        "gauge" => assert!(!name.ends_with("_total"), "{name}"),
        "histogram" => check_histogram(name, family),
        kind => panic!("{name}: {kind}"),
    }
}

fn check_histogram(name: &str, family: &Family) {
    assert!(name.ends_with("_seconds"), "{name}");
    let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for (suffix, labels, value) in &family.samples {
        if suffix == "_bucket" {
            let mut labels = labels.clone();
            let bound = labels.remove("le").unwrap();
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            buckets.entry(labels).or_default().push((bound, *value));
        }
    }
    for (labels, buckets) in buckets {
        assert!(buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1), "{name}: {buckets:?}");
        let (bound, all) = *buckets.last().unwrap();
        assert!(bound.is_infinite(), "{name}");
        let of = |wanted: &str| {
            let same = |(suffix, other, _): &&(String, Labels, f64)| suffix == wanted && *other == labels;
            family.samples.iter().find(same).unwrap_or_else(|| panic!("{name}{wanted}")).2
        };
        assert_eq!(of("_count"), all, "{name}");
        assert!(of("_sum") >= 0.0);
    }
}

/// A running instance that has forwarded something in both ways a session can go, and its metrics page.
fn scraped(engine: &str) -> (Spliced, String) {
    let (port, target) = (Reserved::loopback(), own_backend());
    let address = metrics_address();
    let launcher = Launcher::forward(port.address(), target.local_addr().unwrap()).option("--engine", engine);
    let spliced = launcher.option("--metrics", address.to_string()).start();
    for _ in 0..3 {
        let (mut client, mut server) = (connect(port.address()), accept(&target));
        client.write_all(b"to the backend").unwrap();
        server.read_exact(&mut [0; 14]).unwrap();
        server.write_all(&[7; 100_000]).unwrap();
        client.read_exact(&mut vec![0; 100_000]).unwrap();
    }
    drop(target);
    drop(connect_or_reset(port.address()));
    spliced.ended("done", 3);
    spliced.ended("refused", 1);
    (spliced, get(address))
}

/// The page of an instance with a name among its targets and with datagrams, which have families of their own.
fn scraped_of_all_kinds() -> (Spliced, String) {
    let (port, target, echo, listen) = (Reserved::loopback(), backend(), udp::Echo::start(), udp::address());
    let metrics = metrics_address();
    let spliced = Launcher::config(&format!(
        "metrics: {metrics}\nforwards:\n  - {{name: web, listen: \"{}\", to: \"localhost:{}\", check: connect}}\n\
         \x20 - {{name: dns, listen: \"udp:{listen}\", to: \"{}\"}}\n",
        port.address(),
        target.local_addr().unwrap().port(),
        echo.address(),
    ))
    .start();
    assert_eq!(udp::ask(&udp::client(listen), b"question"), b"question");
    let page = eventually("the name has been looked up", LONG, || {
        let page = get(metrics);
        if page.contains("spliced_name_answer_age_seconds{") && page.contains("spliced_datagrams_total{") {
            Ok(page)
        } else {
            Err(page)
        }
    });
    (spliced, page)
}

fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    page.to_owned()
}

/// What `promtool check metrics` says of a page; `None` where it is not installed.
fn promtool(page: &str) -> Option<(bool, String)> {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn the_page_holds_to_its_format_and_counts_what_is_promised() {
    for engine in ["auto", "ab:auto=1,copy-64KiB=1"] {
        let (spliced, page) = scraped(engine);
        let families = parse(&page);
        for (name, family) in &families {
            check(name, family);
        }
        for (name, kind) in PROMISED {
            let family = families.get(name).unwrap_or_else(|| panic!("{name} is missing in\n{page}"));
            assert_eq!(family.kind, kind, "{name}");
        }
        let total = |name: &str, suffix: &str, label: (&str, &str)| {
            let of = families[name].samples.iter().filter(|(own, labels, _)| {
                own == suffix && (label.0.is_empty() || labels.get(label.0).map(String::as_str) == Some(label.1))
            });
            of.map(|(.., value)| value).sum::<f64>()
        };
        assert_eq!(total("spliced_sessions_accepted_total", "", ("", "")), 4.0);
        assert_eq!(total("spliced_session_ends_total", "", ("reason", "refused")), 1.0);
        assert_eq!(total("spliced_bytes_total", "", ("direction", "backend_to_client")), 300_000.0);
        assert_eq!(total("spliced_bytes_total", "", ("direction", "client_to_backend")), 42.0);
        for (histogram, count) in
            [("spliced_connect_seconds", 3.0), ("spliced_first_byte_seconds", 3.0), ("spliced_session_seconds", 4.0)]
        {
            assert_eq!(total(histogram, "_count", ("", "")), count, "{histogram}");
        }
        assert_eq!(total("spliced_worker_up", "", ("", "")), families["spliced_worker_up"].samples.len() as f64);
        if let Some((passed, text)) = promtool(&page) {
            assert!(passed && text.trim().is_empty(), "promtool: {text}");
        }
        spliced.finish();
    }
}

/// Every expression of the dashboard, with the metrics and labels it uses.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    let dashboard: Value = serde_json::from_str(include_str!("../../packaging/grafana-dashboard.json")).unwrap();
    let (spliced, page) = scraped("auto");
    spliced.finish();
    let (spliced, more) = scraped_of_all_kinds();
    let mut families = parse(&page);
    families.extend(parse(&more));
    let samples: BTreeMap<String, BTreeSet<String>> = families
        .iter()
        .flat_map(|(name, family)| {
            family.samples.iter().map(move |(suffix, labels, _)| (format!("{name}{suffix}"), labels))
        })
        .fold(BTreeMap::new(), |mut all, (name, labels)| {
            all.entry(name).or_insert_with(BTreeSet::new).extend(labels.keys().cloned());
            all
        });
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 20, "{expressions:#?}");
    for expression in &expressions {
        let used: Vec<_> =
            words(expression).filter(|word| word.starts_with("spliced_") || word.starts_with("process_")).collect();
        assert!(!used.is_empty(), "{expression}");
        for metric in &used {
            // Prometheus itself adds the instance.
            let labels = samples.get(*metric).unwrap_or_else(|| panic!("{metric} of {expression} is not counted"));
            let has = |label: &str| label == "instance" || labels.contains(label);
            let selector = expression.split_once(&format!("{metric}{{")).and_then(|(_, rest)| rest.split_once('}'));
            for matcher in selector.map_or("", |(selector, _)| selector).split(',').filter(|m| !m.is_empty()) {
                let label = words(matcher).next().unwrap();
                assert!(has(label), "{metric} has no label {label}: {expression}");
            }
            let grouped = expression.split(" by (").skip(1).flat_map(|rest| words(rest.split(')').next().unwrap()));
            for label in grouped {
                assert!(has(label), "{metric} has no label {label}: {expression}");
            }
        }
    }
    // What is counted by everybody's forwards is worth a look.
    let all = expressions.join("\n");
    for name in [
        "spliced_bytes_total",
        "spliced_connect_seconds_bucket",
        "spliced_worker_busy_seconds_total",
        "spliced_stalls_total",
        "spliced_target_state",
        "spliced_target_up",
        "spliced_target_sessions_open",
        "spliced_target_ejections_total",
        "spliced_target_check_failures_total",
        "spliced_target_connects_total",
        "spliced_connect_retries_total",
        "spliced_name_lookups_total",
        "spliced_name_lookup_failures_total",
        "spliced_name_answer_age_seconds",
        "proxy_.*",
        "denied|not_allowed",
        "spliced_datagrams_total",
        "spliced_datagram_drops_total",
    ] {
        assert!(all.contains(name), "{name} is on no panel");
    }
    // A flow of datagrams would be waited for.
    drop(spliced);
}
