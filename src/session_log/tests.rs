use std::fs;
use std::path::Path;
use std::time::SystemTime;

use super::*;
use crate::plan::{Host, LogPlan, Ports, example};
use crate::stats::{Bytes, EndReason};

/// A record of a forward with this name makes the log thread panic.
pub(super) const FATAL: &str = "fatal";

/// A plan with one forward, 0.0.0.0:9000-9010 to ports 8000-8010 of `host`.
pub(super) fn plan(name: &str, host: Host) -> Plan {
    let listen = ([0, 0, 0, 0], Ports { first: 9000, last: 9010 });
    example::plan(example::forward(name, listen, (host, Ports { first: 8000, last: 8010 })))
}

fn record(reason: EndReason, client_port: u16) -> SessionRecord {
    SessionRecord {
        at: SystemTime::now(),
        forward: Arc::new(plan("web", Host::Ip([10, 0, 0, 2].into())).forwards.remove(0)),
        arm: None,
        client: std::net::SocketAddr::from(([127, 0, 0, 1], client_port)).into(),
        transport: crate::plan::Transport::Tcp,
        proxy: None,
        listener: std::net::SocketAddr::from(([127, 0, 0, 1], 9000)).into(),
        target: None,
        bytes: Bytes::default(),
        duration: Duration::from_millis(5),
        reason,
        errno: None,
    }
}

fn start(file: &Path, format: LogFormat) -> SessionLog {
    let mut plan = plan("web", Host::Ip([10, 0, 0, 2].into()));
    plan.log = LogPlan { format, file: Some(file.to_owned()) };
    SessionLog::start(&plan).unwrap()
}

#[test]
fn finish_writes_what_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "before\n").unwrap();
    let mut log = start(&path, LogFormat::Json);
    let sender = log.sender().unwrap();
    for batch in 0..50 {
        sender.send((0..10).map(|i| record(EndReason::Refused, batch * 10 + i)).collect()).unwrap();
    }
    drop(sender);
    log.finish();
    let text = fs::read_to_string(&path).unwrap();
    let ports: Vec<_> = text.lines().skip(1).map(|line| line.contains("\"reason\":\"refused\"")).collect();
    assert_eq!(ports, [true; 500]);
    assert!(text.starts_with("before\n"), "the file is appended to");
    assert_eq!(log.lost(), 0);
}

#[test]
fn after_a_panic_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut log = start(&path, LogFormat::Json);
    let sender = log.sender().unwrap();
    let fatal = SessionRecord {
        forward: Arc::new(plan(FATAL, Host::Ip([10, 0, 0, 2].into())).forwards.remove(0)),
        ..record(EndReason::Done, 2)
    };
    sender.send(vec![record(EndReason::Done, 1), fatal]).unwrap();
    // Not of the same write.
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.lost() == 0 {
        assert!(Instant::now() < deadline, "what was about to be written is counted as lost");
        thread::park_timeout(Duration::from_millis(5));
    }
    sender.send(vec![record(EndReason::Done, 3)]).unwrap();
    drop(sender);
    log.finish();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() == 1 && text.contains("127.0.0.1:3"), "{text}");
    assert_eq!(log.lost(), 2, "the one that failed and the one before it");
}

#[test]
fn repeated_errors_end_in_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut log = start(&path, LogFormat::Text);
    let sender = log.sender().unwrap();
    sender.send((0..300).map(|i| record(EndReason::Refused, i)).collect()).unwrap();
    drop(sender);
    log.finish();
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 11, "{text}");
    assert!(text.ends_with(" forward=web reason=refused … 290 more in the last second\n"), "{text}");
}

#[test]
fn the_summary_comes_without_further_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = start(&path, LogFormat::Text);
    log.sender().unwrap().send((0..11).map(|i| record(EndReason::Refused, i)).collect()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(&path).unwrap().contains("… 1 more") {
        assert!(Instant::now() < deadline, "no summary");
        thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn reopen_goes_on_under_the_old_name() {
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
    let mut log = start(&path, LogFormat::Json);
    let sender = log.sender().unwrap();
    let lines = |path: &Path| fs::read_to_string(path).unwrap().lines().count();
    sender.send(vec![record(EndReason::Done, 1)]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while lines(&path) < 1 {
        assert!(Instant::now() < deadline, "no line");
        thread::park_timeout(Duration::from_millis(5));
    }
    fs::rename(&path, &rotated).unwrap();
    log.reopen();
    assert!(path.exists(), "the new file is there at once");
    sender.send(vec![record(EndReason::Done, 2), record(EndReason::Done, 3)]).unwrap();
    drop(sender);
    log.finish();
    assert_eq!((lines(&rotated), lines(&path)), (1, 2));
}

#[test]
fn lines_a_full_disk_takes_are_counted() {
    if !Path::new("/dev/full").exists() {
        return; // Only Linux has one.
    }
    let mut log = start(Path::new("/dev/full"), LogFormat::Json);
    let sender = log.sender().unwrap();
    sender.send(vec![record(EndReason::Done, 1), record(EndReason::Done, 2)]).unwrap();
    drop(sender);
    log.finish();
    assert_eq!(log.lost(), 2);
}

#[test]
fn nothing_is_sent_when_nobody_would_see_it() {
    // No logger is installed in this test, so level info is filtered out, as with -q.
    let log = SessionLog::start(&plan("web", Host::Ip([10, 0, 0, 2].into()))).unwrap();
    assert!(log.sender().is_none());
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let mut plan = plan("web", Host::Ip([10, 0, 0, 2].into()));
    plan.log.file = Some("/nonexistent/log".into());
    let error = SessionLog::start(&plan).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/log"), "{error}");
}
