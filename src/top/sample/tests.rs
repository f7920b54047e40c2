use serde_json::json;

use super::*;

/// An answer of process `pid`, `second` seconds after its start, with two forwards that move `rate` bytes a second.
pub(in crate::top) fn sample(start: Instant, pid: u32, second: u64, rate: u64) -> Sample {
    let counters = |share: u64| {
        let mut buckets = vec![0; 32];
        buckets[8] = 90 * second;
        buckets[12] = 10 * second;
        json!({
            "sessions_accepted": 100 * second, "sessions_open": 7 * share,
            "bytes": {
                "client_to_backend": { "splice": rate * second, "copy": rate * second },
                "backend_to_client": { "splice": 2 * rate * second, "copy": 0 },
            },
            "fallbacks": { "urgent": 0, "budget_exhausted": 3 },
            "ends": { "done": 95 * second, "refused": 5 * second, "idle": 0 },
            "stalled": share - 1,
            "connect_time": { "buckets": buckets, "sum_us": 1 },
            "first_byte_time": { "buckets": [], "sum_us": 0 },
        })
    };
    let clock = second;
    let forward = |name: &str, share| {
        let mut forward = counters(share);
        forward["name"] = name.into();
        forward["listen"] = json!(["127.0.0.1:9000"]);
        forward["to"] = json!(["10.0.0.2:9001", "10.0.0.3:9001"]);
        forward["engine"] = "auto".into();
        let target = |address: &str, state: &str| json!({ "target": address, "address": address, "state": state, "sessions_open": 3, "new_field": 1 });
        let second = if share > 1 { "DOWN" } else { "UP" };
        forward["targets"] = json!([target("10.0.0.2:9001", "UP"), target("10.0.0.3:9001", second)]);
        if share > 1 {
            forward["datagrams"] = json!({
                "client_to_backend": 1200 * clock, "backend_to_client": 30 * clock, "drops": { "limit": 4, "rate": 0 },
            });
            let mut gone = target("db.example:9001", "UP");
            (gone["address"], gone["gone"]) = ("10.0.0.9:9001".into(), true.into());
            forward["targets"].as_array_mut().unwrap().push(gone);
        }
        forward
    };
    let worker = |id: u64| {
        json!({
            "id": id, "cpu": id, "state": if id == 2 { "panicked" } else { "running" }, "sessions_open": 5,
            "busy_seconds": second as f64 * 0.25 * id as f64, "accept_paused": id == 1, "new_field": [],
        })
    };
    let stats = json!({
        "version": "0.1.0", "pid": pid, "uptime_seconds": second as f64 + 3700.0, "draining": false,
        "cpu": { "user_seconds": 0.1 * second as f64, "system_seconds": 0.4 * second as f64 },
        "engine_available": { "splice": true }, "workers": [worker(0), worker(1), worker(2)],
        "pipes": { "in_use": 3, "pooled": 2, "budget": 128, "size_bytes": 1 << 20 },
        "total": counters(2), "forwards": [forward("web", 1), forward("data\u{1b}base", 2)],
    });
    Sample { at: start + Duration::from_secs(second), stats: serde_json::from_value(stats).unwrap() }
}

fn history(seconds: u64) -> History {
    let (mut history, start) = (History::default(), Instant::now());
    assert!((0..seconds).all(|second| !history.push(sample(start, 1, second, 1000))));
    history
}

#[test]
fn rates_are_differences() {
    let history = history(20);
    let rows = history.forwards();
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["web", "data\\u{1b}base"]);
    let row = &rows[0];
    assert_eq!((row.up, row.down, row.spliced, row.new, row.errors), (2000.0, 2000.0, Some(0.75), 100.0, 5.0));
    assert_eq!((row.open, row.stalled, rows[1].stalled), (7, 0, 1));
    assert_eq!(row.ends, [("done".to_owned(), 95 * 19), ("refused".to_owned(), 5 * 19)]);
    assert_eq!(row.fallbacks, [("budget_exhausted".to_owned(), 3)]);
    // 2^7.5 and 2^11.5 µs.
    assert_eq!(row.connect.map(|(p50, p99)| ((p50 * 1e6) as u64, (p99 * 1e6) as u64)), Some((181, 2896)));
    assert_eq!(row.first_byte, None);
    assert_eq!(history.busy(), [Some(0.0), Some(0.25), Some(0.5)]);
    assert!(history.cpus().is_some_and(|cpus| (cpus - 0.5).abs() < 1e-9));
    assert_eq!(history.throughput(), [4000; 19]);
}

#[test]
fn a_minute_is_kept() {
    assert_eq!(history(500).throughput().len(), 60);
}

#[test]
fn a_first_answer_has_no_rates() {
    let history = history(1);
    let total = history.total().unwrap();
    assert_eq!((total.up, total.spliced, total.connect, total.open), (0.0, None, None, 14));
    assert_eq!((history.cpus(), history.busy()), (None, vec![None; 3]));
    assert!(History::default().total().is_none() && History::default().forwards().is_empty());
}

#[test]
fn another_process_begins_anew() {
    let mut history = history(20);
    let start = Instant::now();
    assert!(history.push(sample(start, 2, 21, 1000)));
    assert!(history.throughput().is_empty());
    assert!(!history.push(sample(start, 2, 22, 1000)));
    assert!(history.push(sample(start, 2, 0, 1000)), "the same number, but younger");
}

#[test]
fn what_is_no_failure_is_a_reason() {
    let reasons: Vec<&str> = crate::stats::EndReason::ALL.iter().map(|reason| reason.name()).collect();
    assert!(NO_FAILURE.iter().all(|name| reasons.contains(name)), "{reasons:?}");
}
