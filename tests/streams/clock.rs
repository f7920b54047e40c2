//! Clocks that jump: the data path and its deadlines know only the monotonic one, wherever that begins.

#![cfg(target_os = "linux")]

use crate::common;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::cannot_run;
use common::deadline::{LONG, throughout, until};
use common::pattern::{Pattern, exchange};
use common::peer::{Reserved, accept, backend, connect, pending_error};
use common::spliced::{Launcher, Spliced};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A transfer that goes on over `jump`, a session that rests over it and is neither cut early nor kept late, and
/// sessions after it. The idle time is two seconds.
fn lives_through(launch: impl FnOnce(Launcher<'_>) -> Launcher<'_>, jump: impl Fn(&Spliced)) {
    let (port, backend) = (Reserved::loopback(), backend());
    let (front, back) = (port.address(), backend.local_addr().expect("bound"));
    let text = format!("timeouts: {{ idle: 2s }}\nforwards: [{{ name: test, listen: \"{front}\", to: \"{back}\" }}]\n");
    let spliced = launch(Launcher::config(&text)).start();
    let pair = || (connect(front), accept(&backend));
    let (busy, resting) = (pair(), pair());
    let pattern = Pattern::new(1);
    pattern.send(&resting.0, 0, 10).expect("send");
    pattern.expect(&resting.1, 0, 10);
    let rested = Instant::now();
    pattern.send(&busy.0, 0, MIB).expect("send");
    pattern.expect(&busy.1, 0, MIB);
    jump(&spliced);
    throughout("nobody is cut before its time", Duration::from_millis(1200), || {
        let ended = spliced.stats().0["total"]["ends"]["idle"].as_u64();
        pattern.send(&busy.0, 0, 100).map_err(|e| e.to_string())?;
        pattern.expect(&busy.1, 0, 100);
        if ended == Some(0) { Ok(()) } else { Err(format!("{ended:?} sessions ended as idle")) }
    });
    assert_eq!(pending_error(&resting.0), std::io::ErrorKind::ConnectionReset);
    let took = rested.elapsed();
    assert!((Duration::from_millis(1990)..Duration::from_secs(4)).contains(&took), "the idle time was {took:?}");
    spliced.ended("idle", 1);
    exchange(&busy.0, &busy.1, 20 * MIB + 1, 20 * MIB + 1);
    let late = pair();
    exchange(&late.0, &late.1, MIB, MIB);
    drop((busy, late));
    spliced.ended("done", 2);
    spliced.finish();
}

/// The library that lies about the time to a program, where Debian puts it and where others do.
fn libfaketime() -> Option<PathBuf> {
    let places = ["x86_64-linux-gnu", "aarch64-linux-gnu", "arm-linux-gnueabihf", "riscv64-linux-gnu"];
    let debian = places.iter().map(|place| format!("/usr/lib/{place}/faketime/libfaketimeMT.so.1"));
    let others = ["/usr/lib64", "/usr/lib"].iter().map(|place| format!("{place}/faketime/libfaketimeMT.so.1"));
    debian.chain(others).map(PathBuf::from).find(|path| path.exists())
}

/// The wall clock of the process jumps ten years ahead and then far back while bytes move.
#[test]
fn the_wall_clock_jumps() {
    let Some(library) = libfaketime() else {
        return cannot_run("libfaketime is needed to let a clock jump (apt-get install libfaketime)");
    };
    let directory = TempDir::with_prefix("spliced-clock-").expect("a temporary directory");
    let clock = directory.path().join("clock");
    // Another process may be reading it: it is replaced and never written to.
    let set = |offset: &str| {
        let new = directory.path().join("new");
        fs::write(&new, format!("{offset}\n")).and_then(|()| fs::rename(&new, &clock)).expect("our own directory");
    };
    set("+0");
    let assign = |name: &str, value: &std::ffi::OsStr| {
        let mut word = OsString::from(format!("{name}="));
        word.push(value);
        word
    };
    let words = [
        "env".into(),
        assign("LD_PRELOAD", library.as_os_str()),
        assign("FAKETIME_TIMESTAMP_FILE", clock.as_os_str()),
        assign("FAKETIME_NO_CACHE", "1".as_ref()),
        assign("FAKETIME_DONT_FAKE_MONOTONIC", "1".as_ref()),
    ];
    lives_through(
        // The library reads the clock's file from within the process, where it is nobody's business.
        |launcher| launcher.through(words).option("--sandbox", "off"),
        |spliced| {
            for (offset, year) in [("+3650d", "203"), ("-3650d", "201")] {
                set(offset);
                // The program's own log proves that its wall clock has jumped.
                until("a line of the log from that year", LONG, || {
                    spliced.signal(nix::sys::signal::Signal::SIGUSR1);
                    spliced.logged("reopen").iter().any(|line| line.starts_with(&format!("[{year}")))
                });
            }
        },
    );
}

/// A monotonic clock that has just begun, and one that has run for centuries.
#[test]
fn a_monotonic_clock_that_begins_elsewhere() {
    for shift in [-uptime().as_secs().cast_signed() + 1, 300 * 365 * 86_400 / 10] {
        let clock = format!("--monotonic={shift}");
        // A user namespace of its own where we are not root; the process stays the one that was started.
        let Some(words) =
            [vec!["unshare", "-T", &clock], vec!["unshare", "-UrT", &clock]].into_iter().find(|words| shifted(words))
        else {
            return cannot_run("no time namespace: unshare -T is refused, or the kernel moves only children into it");
        };
        lives_through(|launcher| launcher.through(words), |_| {});
    }
}

/// Whether a program started that way has another monotonic clock than we have.
fn shifted(words: &[&str]) -> bool {
    let text = Command::new(words[0]).args(&words[1..]).args(["readlink", "/proc/self/ns/time"]).output();
    let own = fs::read_link("/proc/self/ns/time");
    match (text, own) {
        (Ok(output), Ok(own)) => {
            output.status.success() && output.stdout.trim_ascii() != own.as_os_str().as_encoded_bytes()
        }
        _ => false,
    }
}

/// What the monotonic clock shows.
fn uptime() -> Duration {
    let now = nix::time::ClockId::CLOCK_MONOTONIC.now().expect("a clock");
    now.into()
}
