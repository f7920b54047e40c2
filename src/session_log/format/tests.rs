use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::plan::{Arm, Engine};
use crate::session_log::tests::plan;
use crate::stats::PathBytes;

fn forward(name: &str, host: Host) -> Arc<Forward> {
    Arc::new(plan(name, host).forwards.remove(0))
}

fn record(reason: EndReason) -> SessionRecord {
    SessionRecord {
        at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        forward: forward("web", ip()),
        arm: None,
        client: "[::ffff:192.0.2.7]:5555".parse().unwrap(),
        transport: crate::plan::Transport::Tcp,
        proxy: None,
        listener: "127.0.0.1:9003".parse().unwrap(),
        target: Some("10.0.0.2:8003".parse().unwrap()),
        bytes: Bytes {
            client_to_backend: PathBytes { splice: 100, copy: 23 },
            backend_to_client: PathBytes { splice: 400, copy: 56 },
        },
        duration: Duration::from_micros(1_234_499),
        reason,
        errno: None,
    }
}

fn formatter(format: LogFormat) -> Formatter {
    // Fixed, so that the test does not depend on where it runs: 5:30 east of Greenwich, without summer time.
    let zone = TimeZone::fixed(jiff::tz::Offset::from_seconds(19_800).unwrap());
    Formatter { format, with_time: true, zone }
}

fn line(format: LogFormat, name: &str, host: Host, record: &SessionRecord) -> String {
    let mut out = String::new();
    formatter(format).line(&SessionRecord { forward: forward(name, host), ..record.clone() }, &mut out);
    assert!(out.ends_with('\n') && out.matches('\n').count() == 1, "{out:?}");
    out.pop();
    out
}

fn ip() -> Host {
    Host::Ip([10, 0, 0, 2].into())
}

#[test]
fn text() {
    let mut record = record(EndReason::ResetByBackend);
    record.errno = Some(104);
    assert_eq!(
        line(LogFormat::Text, "web", ip(), &record),
        "2023-11-14T22:13:20.123Z forward=web client=[::ffff:192.0.2.7]:5555 listener=127.0.0.1:9003 \
         target=10.0.0.2:8003 up=123 down=456 up_splice=100 down_splice=400 duration=1.234s reason=reset_by_backend \
         error=ECONNRESET"
    );
    record.target = None;
    record.errno = Some(99_999);
    let line = line(LogFormat::Text, "web", ip(), &record);
    assert!(line.contains(" target=- ") && line.ends_with(" error=99999"), "{line}");
}

#[test]
fn text_summary_and_time() {
    let mut out = String::new();
    let mut formatter = formatter(LogFormat::Text);
    formatter.with_time = false;
    formatter.summary("web", EndReason::Refused, 123, &mut out);
    formatter.line(&record(EndReason::Done), &mut out);
    assert!(out.starts_with("forward=web reason=refused … 123 more in the last second\nforward=web client="), "{out}");
}

#[test]
fn json() {
    let line = line(LogFormat::Json, "web", ip(), &record(EndReason::Done));
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        value,
        serde_json::json!({
            "at": "2023-11-14T22:13:20.123Z",
            "forward": "web",
            "client": "[::ffff:192.0.2.7]:5555",
            "listener": "127.0.0.1:9003",
            "target": "10.0.0.2:8003",
            "bytes": {
                "client_to_backend": { "splice": 100, "copy": 23 },
                "backend_to_client": { "splice": 400, "copy": 56 },
            },
            "duration_seconds": 1.234_499,
            "reason": "done",
            "error": null,
        })
    );
}

#[test]
fn the_arm_is_told_and_rinetds_formats_stay_rinetds() {
    let arm = |name: &str| Arm { name: name.to_owned(), engine: Engine::Copy, copy_buffer: 1024, share: 1 };
    let line = |format, arm_of_record| {
        let mut forward = plan("web", ip()).forwards.remove(0);
        forward.arms = vec![arm("splice"), arm("copy-1KiB")];
        let record = SessionRecord { arm: arm_of_record, forward: Arc::new(forward), ..record(EndReason::Done) };
        let mut out = String::new();
        formatter(format).line(&record, &mut out);
        out
    };
    assert!(line(LogFormat::Text, Some(1)).contains(" forward=web arm=copy-1KiB client="));
    let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, Some(0))).unwrap();
    assert_eq!(json["arm"], "splice");
    // A client that was refused belongs to no arm.
    assert!(!line(LogFormat::Text, None).contains("arm="));
    for format in [LogFormat::Rinetd, LogFormat::Common] {
        assert_eq!(line(format, Some(1)), line(format, None));
    }
}

#[test]
fn rinetd_tab() {
    assert_eq!(
        line(LogFormat::Rinetd, "web", ip(), &record(EndReason::Done)),
        "15/Nov/2023:03:43:20 \t192.0.2.7\t0.0.0.0\t9003\t10.0.0.2\t8003\t123\t456\tdone-remote-closed"
    );
}

#[test]
fn rinetd_common() {
    assert_eq!(
        line(LogFormat::Common, "web", ip(), &record(EndReason::ConnectTimeout)),
        "192.0.2.7 - - [15/Nov/2023:03:43:20  +0530] \
         \"GET /rinetd-services/0.0.0.0/9003/10.0.0.2/8003/local-connect-failed HTTP/1.0\" 200 456 - - - 123"
    );
}

#[test]
fn rinetd_names_the_target_as_configured() {
    let mut record = record(EndReason::Denied);
    record.target = None;
    let text = line(LogFormat::Rinetd, "web", Host::Name("db.example".into()), &record);
    assert!(text.ends_with("\tdb.example\t8003\t123\t456\tdenied"), "{text}");
    record.target = Some("10.9.9.9:8003".parse().unwrap());
    let text = line(LogFormat::Rinetd, "web", Host::Name("db.example".into()), &record);
    assert!(text.contains("\tdb.example\t8003\t"), "{text}");
    let text = line(LogFormat::Rinetd, "web", ip(), &record);
    assert!(text.contains("\t10.9.9.9\t8003\t"), "an address nobody wrote is shown as it is: {text}");
}

#[test]
fn no_format_lets_control_characters_through() {
    let evil = "a\"b\\ \n\t\x1b[31m\u{7f}\u{85}\u{9b}\u{202e}\u{2028}é\u{1f600}";
    for format in [LogFormat::Text, LogFormat::Json, LogFormat::Rinetd, LogFormat::Common] {
        let line = line(format, evil, Host::Name(evil.into()), &record(EndReason::Done));
        let tabs = if format == LogFormat::Rinetd { 8 } else { 0 };
        assert_eq!(line.matches('\t').count(), tabs, "{line:?}");
        let bad = |c: &char| (c.is_control() && *c != '\t') || matches!(c, '\u{202e}' | '\u{2028}');
        assert_eq!(line.chars().find(bad), None, "{line:?}");
        match format {
            LogFormat::Json => {
                let value: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(value["forward"], evil, "escaped, not changed");
            }
            LogFormat::Common => assert_eq!(line.matches('"').count(), 2, "{line:?}"),
            _ => {}
        }
    }
}

#[test]
fn every_reason_has_one_of_rinetds_words() {
    let known = [
        "done-local-closed",
        "done-remote-closed",
        "local-bind-failed",
        "local-socket-failed",
        "local-connect-failed",
        "not-allowed",
        "denied",
    ];
    for reason in EndReason::ALL {
        assert!(known.contains(&rinetd_result(*reason)), "{reason:?}");
    }
}
