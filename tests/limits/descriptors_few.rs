//! Too few descriptors for a single session are a failure at the start, with the number that would do; with that number
//! clients are served.

#![cfg(target_os = "linux")]

use crate::common;

use std::net::SocketAddr;

use common::deadline::LONG;
use common::peer::{Echo, Reserved, backend, connect, echoes, metrics_address};
use common::spliced::Launcher;

/// What a start under a limit came to: `Err` has what it said.
fn start(limit: u64, workers: &str, more: &[(&str, &str)], port: SocketAddr, to: SocketAddr) -> Result<(), String> {
    let launcher = Launcher::forward(port, to).option("--workers", workers);
    let launcher = more.iter().fold(launcher, |launcher, (name, value)| launcher.option(name, value));
    let control = launcher.directory().join("control.sock");
    let mut spliced = launcher.descriptors(limit).try_start_at(&control)?;
    for round in 0..3 {
        let client = connect(port);
        assert!(echoes(&client, round, LONG), "limit {limit}: it said ready and serves nobody: {}", spliced.text());
    }
    spliced.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(spliced.wait(LONG).code(), Some(0), "{}", spliced.text());
    Ok(())
}

/// The number the start asks for.
fn needed(said: &str) -> Option<u64> {
    let (_, rest) = said.split_once("but at least ")?;
    rest.split(' ').next()?.parse().ok()
}

#[test]
fn it_serves_or_says_how_many_it_needs() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    let metrics = metrics_address().to_string();
    let more: [&[(&str, &str)]; 3] = [&[], &[("--metrics", &metrics)], &[("--check", "connect")]];
    for (workers, more) in [("1", more[0]), ("2", more[0]), ("2", more[1]), ("4", more[0]), ("2", more[2])] {
        let run = |limit| start(limit, workers, more, port.address(), echo.address());
        // Where not even what is opened first fits, the number may be a little short: "at least".
        let mut least = 16;
        while let Err(said) = run(least) {
            for part in
                [&format!("{least} descriptors are allowed (ulimit -n, LimitNOFILE=)"), "raise the limit", "--workers"]
            {
                assert!(said.contains(part), "{said}");
            }
            assert!(!said.contains("ready: "), "{said}");
            least = needed(&said).filter(|more| *more > least).unwrap_or_else(|| panic!("no larger number in {said}"));
        }
        assert!((17..64).contains(&least), "{least}");
        let said = run(least - 1).expect_err("one less than what is needed");
        assert_eq!(needed(&said), Some(least), "{said}");
        for limit in [least + 1, least + 7] {
            run(limit).unwrap_or_else(|said| panic!("limit {limit}: {said}"));
        }
    }
}

/// Whatever the limit, there is no process that is ready and takes nobody.
#[test]
fn no_limit_is_ready_in_vain() {
    let (port, echo) = (Reserved::loopback(), Echo::start(backend()));
    for limit in 4..28 {
        if let Err(said) = start(limit, "2", &[], port.address(), echo.address()) {
            assert!(!said.contains("ready: "), "limit {limit}: {said}");
            let said = said.to_lowercase();
            assert!(said.contains("ulimit -n") || said.contains("too many open files") || limit < 8, "{limit}: {said}");
        }
    }
}
