use super::super::snapshot::tests::{plan, snapshot, stats, trial};
use super::*;

#[test]
fn the_table_shows_what_a_snapshot_holds() {
    let json = serde_json::to_value(snapshot(&plan("we\x1bb"), &stats())).unwrap();
    let text = table(&Stats::deserialize(json).unwrap());
    for part in [
        "11 in use, 0 pooled, 128 allowed, 1.00 MiB each",
        "forward \"we\\u{1b}b\"  127.0.0.1:9000 → 10.0.0.2:9001  engine auto",
        "11 open, 55 accepted",
        "1.07 KiB: 1.07 KiB spliced, 0 B copied",
        "77 B: 0 B spliced, 77 B copied",
        "done 44",
        "CPU 3, batch job\n",
        "\"panicked\"",
        "4, 3 reloads, 1 failed\n",
        "2 workers panicked",
        "3 of other threads",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("idle") && !text.contains("fallbacks") && !text.contains('\x1b'), "{text}");
}

#[test]
fn arms_are_a_table_with_a_verdict() {
    let (plan, stats) = trial();
    let json = serde_json::to_value(snapshot(&plan, &stats)).unwrap();
    let text = table(&Stats::deserialize(json).unwrap());
    let row = |name: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("arm "), "arm share sessions bytes spliced calls/GB CPU s/GB (95 %) first byte session");
    assert_eq!(row("splice "), "splice 50 2 1.91 MiB 100 % 10000 0.500 3.00 µs ±0 % –");
    assert_eq!(row("copy-64KiB "), "copy-64KiB 25 2 3.81 MiB 0 % 10000 1.000 6.00 µs ±0 % –");
    assert_eq!(row("verdict"), "verdict not enough data yet");
}

#[test]
fn human_units() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_235, "10.0 KiB"),
        (1_048_575, "1.00 MiB"),
        (25_125_558_682, "23.4 GiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(human(bytes), text, "{bytes}");
    }
}

#[test]
fn nobody_there_is_explained() {
    let error = stats_command(Path::new("/nonexistent/control.sock"), true).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/control.sock") && error.contains("is spliced running"), "{error}");
}
