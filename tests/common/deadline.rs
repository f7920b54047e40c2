//! Waiting for a condition under a deadline; never for a time.

use std::thread;
use std::time::{Duration, Instant};

/// More than any step of a test takes on a busy machine; reaching it is a failure.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `attempt` gives a value and returns it.
///
/// # Panics
/// With the last error when `within` is over.
pub(crate) fn eventually<T>(what: &str, within: Duration, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + within;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= end => panic!("{what}: not within {within:?}: {why}"),
            Err(_) => thread::park_timeout(LOOK),
        }
    }
}

/// Waits until `condition` is true.
pub(crate) fn until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    eventually(what, within, || condition().then_some(()).ok_or_else(|| "still not so".to_owned()));
}

/// Looks at a condition over a whole window of time and fails as soon as it does not hold.
pub(crate) fn throughout(what: &str, window: Duration, mut holds: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + window;
    while Instant::now() < end {
        if let Err(why) = holds() {
            panic!("{what}: did not hold for {window:?}: {why}");
        }
        thread::park_timeout(LOOK);
    }
}
