//! The report files, made from results generated here: structure, not looks.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lab::report::{self, HTML_FILE, MARKDOWN_FILE, RESULTS_FILE};
use lab::results::{Host, Kind, Latency, Missing, Point, Results, Round, Series};
use serde_json::json;

const ARMS: [(&str, Kind, f64); 14] = [
    ("copy-8K", Kind::Engine, 1.62),
    ("copy-16K", Kind::Engine, 1.13),
    ("copy-64K", Kind::Engine, 0.875),
    ("splice", Kind::Engine, 0.5625),
    ("auto", Kind::Engine, 0.578),
    ("haproxy", Kind::Peer, 0.6875),
    ("nginx", Kind::Peer, 0.797),
    ("realm", Kind::Peer, 0.641),
    ("oi", Kind::Peer, 3.375),
    ("socat", Kind::Peer, 1.9),
    ("rinetd", Kind::Peer, 2.2),
    ("redir", Kind::Peer, 2.6),
    ("direct", Kind::Limit, 0.0),
    ("dnat", Kind::Limit, 0.0),
];

/// A directory of the test's own, kept after it so that the page can be looked at.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).unwrap();
    }
    path
}

fn text(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap()
}

/// Numbers that differ from round to round but are the same in every run of the test.
fn wobble(seed: usize) -> f64 {
    1.0 + ((seed * 7919 % 101) as f64 / 100.0 - 0.5) * 0.12
}

fn bulk(number: u32, at: usize) -> Round {
    let (arm, kind, cpu) = ARMS[at];
    let cpu = cpu * wobble(at * 13 + number as usize);
    let rate = 6.2 / (0.25 + cpu) * wobble(at + number as usize * 3);
    let bytes = rate * 1e9 / 8.0 * 3.0;
    let mut samples = BTreeMap::from([
        ("gbit_per_second".to_owned(), rate),
        ("bytes".to_owned(), bytes),
        ("machine_cpu_seconds_per_gb".to_owned(), cpu + 0.9),
        ("retransmits".to_owned(), f64::from(number)),
        ("generator_busy_share".to_owned(), if arm == "direct" { 0.99 } else { 0.7 }),
    ]);
    let mut syscalls = BTreeMap::new();
    if kind != Kind::Limit {
        samples.insert("forwarder_cpu_seconds_per_gb".into(), cpu);
        samples.insert("context_switches_per_gb".into(), 4000.0 * cpu);
        samples.insert("rss_bytes".into(), 5e6 * (1.0 + cpu));
        let calls = (30_000.0 * cpu * bytes / 1e9) as u64;
        let moves: &[&str] = if arm == "splice" || arm == "auto" { &["splice"] } else { &["recvfrom", "sendto"] };
        syscalls.extend(moves.iter().map(|call| ((*call).to_owned(), calls)));
        syscalls.insert("epoll_wait".into(), calls / 7);
    }
    if kind == Kind::Engine {
        let spliced = if arm == "splice" {
            1.0
        } else if arm == "auto" {
            0.9993
        } else {
            0.0
        };
        samples.insert("spliced_bytes".into(), bytes * spliced);
        samples.insert("copied_bytes".into(), bytes * (1.0 - spliced));
    }
    let settings = BTreeMap::from([("streams".to_owned(), json!(8)), ("seconds".to_owned(), json!(3))]);
    let (arm, load) = (arm.into(), "bulk".into());
    Round { round: number, arm, kind, load, settings, samples, syscalls, ..Round::default() }
}

fn exchanges(number: u32, at: usize) -> Round {
    let (arm, kind, cpu) = ARMS[at];
    let each = (24.0 + 9.0 * cpu) * wobble(at * 5 + number as usize);
    let mut samples = BTreeMap::from([("exchanges_per_second".to_owned(), 1.4e6 / (each + 12.0))]);
    if kind != Kind::Limit {
        samples.insert("cpu_us_per_exchange".into(), each);
    }
    let middle = each * 6.0;
    // Falls off by a power, as real tails do.
    let buckets: Vec<(f64, u64)> = (0..200)
        .map(|n| {
            (
                middle * 0.4 * 1.03_f64.powi(n),
                (4e5 * (-((f64::from(n) - 30.0) / 14.0).powi(2)).exp() + 3e4 * 0.93_f64.powi(n)) as u64,
            )
        })
        .collect();
    let count = buckets.iter().map(|(_, n)| n).sum();
    let latency = Latency {
        p50_us: middle,
        p90_us: middle * 1.6,
        p99_us: middle * 3.0,
        p999_us: middle * 8.0,
        max_us: middle * 90.0,
        count,
        buckets,
    };
    let settings = BTreeMap::from([("connections".to_owned(), json!(16)), ("message".to_owned(), json!("64 B"))]);
    let (arm, load) = (arm.into(), "rr".into());
    Round { round: number, arm, kind, load, settings, samples, latency: Some(latency), ..Round::default() }
}

fn series() -> Vec<Series> {
    let of = |(arm, each, base): &(&str, f64, f64)| {
        let point = |sessions: f64| {
            let values = [
                ("rss_bytes", base + each * sessions),
                ("kernel_bytes", 3000.0 * sessions),
                ("descriptors", 14.0 + sessions * if *arm == "realm" { 6.0 } else { 2.0 }),
                ("cpu_us_per_exchange", 28.0 + each / 1000.0 + sessions / 4000.0),
            ];
            Point { x: sessions, values: values.map(|(name, value)| (name.to_owned(), value)).into() }
        };
        let points = [0.0, 500.0, 1000.0, 2000.0, 4000.0, 6000.0, 8000.0].map(point).into();
        Series { arm: (*arm).to_owned(), load: "idle".into(), x: "sessions".into(), points }
    };
    let arms =
        [("auto", 270.0, 5.5e6), ("copy-64K", 252.0, 5.5e6), ("haproxy", 3876.0, 2.2e7), ("realm", 2455.0, 8.0e6)];
    arms.iter().chain(&[("nginx", 9808.0, 1.2e7)]).map(of).collect()
}

/// What a full run of `lab ab` and its sisters would write.
fn full() -> Results {
    let mut rounds: Vec<Round> = (1..=5).flat_map(|n| (0..ARMS.len()).map(move |at| bulk(n, at))).collect();
    rounds.extend((1..=3).flat_map(|n| (0..ARMS.len()).map(move |at| exchanges(n, at))));
    let failed = rounds.iter_mut().filter(|round| round.arm == "redir" && round.round > 3);
    failed.for_each(|round| round.error = Some("redir ended with status 1: bind: Address already in use".into()));
    for round in rounds.iter_mut().filter(|round| round.arm == "direct" && round.load == "bulk") {
        round.notes.push("iperf3's client used 99 % of a core".into());
    }
    let strings = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    Results {
        goals: Vec::new(),
        version: Results::VERSION,
        experiment: "ab".into(),
        title: "Every engine and every peer found, side by side".into(),
        started: "2026-01-02T03:04:05Z".into(),
        host: Host {
            kernel: "6.1.0-test".into(),
            cpu: "A processor".into(),
            cpus: 2,
            memory_bytes: 8 << 30,
            os: "Debian 12".into(),
        },
        settings: [
            ("rounds".to_owned(), json!(5)),
            ("mtu".to_owned(), json!(1500)),
            ("offloads".to_owned(), json!("on")),
        ]
        .into(),
        tools: strings(&[("haproxy", "3.0.1"), ("iperf3", "3.12"), ("spliced", "0.1.0")]),
        missing: vec![Missing { name: "netperf".into(), how: "not on PATH: apt-get install netperf".into() }],
        rounds,
        series: series(),
    }
}

/// Every element that is opened is closed in order; attributes are quoted; nothing is loaded from anywhere.
fn assert_well_formed(html: &str) {
    const VOID: [&str; 4] = ["meta", "!doctype", "br", "hr"];
    let style = (html.find("<style>").unwrap(), html.find("</style>").unwrap());
    let html = format!("{}{}", &html[..style.0], &html[style.1 + "</style>".len()..]);
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html.as_str();
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        assert!(!tag.contains('<'), "a bare < in {tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        assert!(!["script", "iframe", "img", "link", "object", "foreignObject"].contains(&name), "{tag}");
        let outside: String = tag.split('"').step_by(2).collect();
        assert!(!outside.contains(" on") && !tag.contains("javascript:"), "{tag}");
        let place = |word: &str| tag.contains(&format!("=\"{word}")) || tag.contains(&format!(",{word}"));
        assert!(!["NaN", "inf", "-inf"].into_iter().any(place), "a place that is none: {tag}");
        match (tag.starts_with('/'), tag.ends_with('/') || VOID.contains(&name)) {
            (true, _) => assert_eq!(open.pop(), Some(name), "closed out of order"),
            (false, true) => {}
            (false, false) => open.push(name),
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "left open: {open:?}");
    for word in ["http://", "https://", "@import", "url(http"] {
        assert!(!html.contains(word), "{word} in the page");
    }
}

#[test]
fn a_full_report_shows_every_arm_in_every_file() {
    let dir = directory("full");
    let results = full();
    report::write(&dir, &results).unwrap();
    let (html, markdown) = (text(&dir, HTML_FILE), text(&dir, MARKDOWN_FILE));
    assert_well_formed(&html);
    for (arm, _, _) in ARMS {
        assert!(html.contains(&format!("<th scope=\"row\">{arm}</th>")), "{arm} in a table of the page");
        assert!(
            html.contains(&format!(">{arm}</text>")) || html.contains(&format!(">{arm} †</text>")),
            "{arm} in a chart"
        );
        assert!(markdown.contains(&format!("| {arm} ")), "{arm} in the Markdown");
    }
    for wanted in [
        "Throughput",
        "Forwarder CPU",
        "Latency",
        "Bytes by path",
        "System calls per GB",
        "Growth",
        "netperf",
        "6.1.0-test",
        "3.12",
    ] {
        assert!(html.contains(wanted) && markdown.contains(wanted), "{wanted}");
    }
    assert!(markdown.contains("Address already in use") && markdown.contains("3 of 5"), "failures are listed");
    assert!(markdown.contains("only 3 rounds"), "rounds below five are said");
    assert!(markdown.contains("the load generator was busy 99.0 % of its time with direct"));
}

#[test]
fn every_chart_has_words_and_a_table_after_it() {
    let dir = directory("words");
    report::write(&dir, &full()).unwrap();
    let html = text(&dir, HTML_FILE);
    let charts = html.matches("<figure>").count();
    assert!(charts >= 8, "{charts}");
    assert_eq!(html.matches("role=\"img\" aria-labelledby=").count(), charts);
    assert_eq!(html.matches("<desc id=").count(), charts);
    let ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let unique: std::collections::BTreeSet<&&str> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len(), "every id once");
    for group in html.split("<div class=\"charts\">").skip(1) {
        let after = group.split("</figure>\n</div>").nth(1).unwrap();
        let table = after.find("<table>").expect("a table after the charts");
        assert!(after.find("<h3>").is_none_or(|next| table < next), "before the next heading");
    }
    for scheme in ["prefers-color-scheme: dark", "name=\"viewport\"", "color-scheme: light dark"] {
        assert!(html.contains(scheme), "{scheme}");
    }
}

#[test]
fn results_read_back_as_they_were_written() {
    let dir = directory("round-trip");
    let results = full();
    report::write(&dir, &results).unwrap();
    assert!(report::read(&dir).unwrap() == results, "to the last bit of every number");

    let (html, markdown) = (text(&dir, HTML_FILE), text(&dir, MARKDOWN_FILE));
    for file in [HTML_FILE, MARKDOWN_FILE] {
        std::fs::remove_file(dir.join(file)).unwrap();
    }
    let json = text(&dir, RESULTS_FILE);
    report::rewrite(&dir).unwrap();
    assert!((text(&dir, HTML_FILE), text(&dir, MARKDOWN_FILE)) == (html, markdown), "written anew, the same");
    assert!(text(&dir, RESULTS_FILE) == json, "what was measured is never touched");
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn what_is_not_a_number_is_left_out_and_said() {
    let dir = directory("odd");
    let mut results = full();
    results.rounds[0].samples.insert("gbit_per_second".into(), f64::NAN);
    results.rounds[1].samples.insert("forwarder_cpu_seconds_per_gb".into(), f64::INFINITY);
    results.rounds[2].samples.insert("strange".into(), f64::NEG_INFINITY);
    results.rounds[3].samples.insert("gbit_per_second".into(), f64::MAX);
    results.rounds[4].samples.insert("forwarder_cpu_seconds_per_gb".into(), -1.0);
    let at = results.rounds.iter().position(|round| round.latency.is_some()).unwrap();
    results.rounds[at].latency.as_mut().unwrap().p99_us = f64::NAN;
    results.rounds[at + 1].latency.as_mut().unwrap().buckets.push((f64::NAN, 3));
    results.rounds[at + 2].latency.as_mut().unwrap().buckets.push((1e9, u64::MAX));
    results.series[0].points[0].x = f64::NAN;
    results.series[1].points[1].values.insert("rss_bytes".into(), f64::NAN);
    results.series[2].points.clear();
    report::write(&dir, &results).unwrap();
    assert_well_formed(&text(&dir, HTML_FILE));
    let back = report::read(&dir).unwrap();
    assert!(!back.rounds[0].samples.contains_key("gbit_per_second"));
    assert_eq!(back.rounds[0].notes, ["sample gbit_per_second was NaN and is left out"]);
    assert!(back.rounds[at].latency.is_none() && !back.rounds[at].notes.is_empty());
    assert!(text(&dir, MARKDOWN_FILE).contains("was inf and is left out"));
}

#[test]
fn nothing_measured_is_still_a_report() {
    for (name, results) in [
        ("empty", Results { version: Results::VERSION, ..Results::default() }),
        (
            "no-samples",
            Results {
                version: Results::VERSION,
                rounds: vec![Round { arm: "auto".into(), ..Round::default() }],
                ..Results::default()
            },
        ),
    ] {
        let dir = directory(name);
        report::write(&dir, &results).unwrap();
        assert_well_formed(&text(&dir, HTML_FILE));
        assert_eq!(report::rewrite(&dir).unwrap(), results);
    }
    assert!(text(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-samples"), MARKDOWN_FILE).contains("| auto"));
}

#[test]
fn one_round_and_failed_arms_are_shown_as_such() {
    let dir = directory("one-round");
    let mut results = full();
    results.rounds.retain(|round| round.round == 1);
    let failed = results.rounds.iter_mut().filter(|round| round.arm == "nginx");
    failed.for_each(|round| round.error = Some("no permission".into()));
    report::write(&dir, &results).unwrap();
    let markdown = text(&dir, MARKDOWN_FILE);
    assert!(markdown.contains("only one round") && markdown.contains("nginx failed in 1 of 1 rounds"));
    let rows: Vec<&str> = markdown.lines().filter(|line| line.starts_with("| nginx ")).collect();
    assert!(rows.iter().any(|row| row.contains("0 of 1")), "{rows:?}");
}

#[test]
fn names_cannot_break_out_of_the_page() {
    let dir = directory("names");
    let evil = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>|`*_\n# x\u{202e}\0";
    let mut results = full();
    for (at, round) in results.rounds.iter_mut().enumerate().filter(|(_, round)| round.arm == "oi") {
        round.arm = evil.into();
        round.notes.push(evil.into());
        round.settings.insert(evil.into(), json!(evil));
        round.samples.insert(evil.into(), 1.0);
        round.syscalls.insert(evil.into(), 1_000_000_000 + at as u64);
    }
    results.rounds[0].arm = "x".repeat(100_000);
    results.rounds[1].load = evil.into();
    results.rounds[2].error = Some(evil.repeat(1000));
    results.series[0].arm = evil.into();
    results.series[1].x = evil.into();
    results.title = evil.into();
    results.started = evil.into();
    results.host.cpu = evil.into();
    results.tools.insert(evil.into(), evil.into());
    results.missing.push(Missing { name: evil.into(), how: evil.into() });
    results.settings.insert(evil.into(), json!({ evil: [evil] }));
    report::write(&dir, &results).unwrap();
    let (html, markdown) = (text(&dir, HTML_FILE), text(&dir, MARKDOWN_FILE));
    assert_well_formed(&html);
    assert!(!html.contains("<script") && !html.contains("<img") && !html.contains('\0') && !html.contains('\u{202e}'));
    assert!(html.contains("&lt;script&gt;"), "it is shown, not hidden");
    assert!(!markdown.contains('<') && !markdown.contains('\0'));
    assert!(!markdown.contains("\n# x"), "no heading of its own");
    assert!(html.len() < 600_000, "a huge name is cut: {}", html.len());
    assert!(report::read(&dir).unwrap() == results, "results.json keeps every name whole");
}

#[test]
fn a_directory_without_results_is_said_plainly() {
    let dir = directory("bad");
    std::fs::create_dir_all(&dir).unwrap();
    let error = |json: &[u8]| {
        std::fs::write(dir.join(RESULTS_FILE), json).unwrap();
        report::rewrite(&dir).unwrap_err().to_string()
    };
    let missing = report::rewrite(&dir).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    assert!(missing.to_string().contains("results.json") && missing.to_string().contains("--out"), "{missing}");
    assert!(error(b"").contains("no results of the lab"));
    assert!(error(b"\xff\xfe\x00").contains("results.json"));
    assert!(error(b"{\"version\": 99}").contains("has version 99"));
    assert!(
        error(b"{\"version\": 1,\n \"rounds\": 7}").contains("line 2"),
        "{}",
        error(b"{\"version\": 1,\n \"rounds\": 7}")
    );
    assert!(error(&vec![b'['; 100_000]).contains("no results of the lab"), "deep nesting");
    assert!(!dir.join(HTML_FILE).exists(), "nothing is written");
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_leaves_nothing() {
    let dir = directory("blocked");
    std::fs::create_dir_all(dir.join(HTML_FILE).join("in-the-way")).unwrap();
    let error = report::write(&dir, &full()).unwrap_err().to_string();
    assert!(error.contains("report.html"), "{error}");
    assert!(!dir.join("report.new").exists());
}
