//! The wish to end early: Ctrl-C, TERM and HUP are heard here and acted on between waits.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Longest time until a wait notices.
const NOTICE: Duration = Duration::from_millis(10);

fn flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// From now on those signals end the lab by way of [`requested`].
///
/// # Errors
/// When a signal handler cannot be set.
pub fn listen() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag()))?;
    }
    Ok(())
}

/// Whether the lab was asked to end.
#[must_use]
pub fn requested() -> bool {
    flag().load(Ordering::Relaxed)
}

/// Asks the lab to end, as a signal does.
pub fn request() {
    flag().store(true, Ordering::Relaxed);
}

/// An error once the lab was asked to end.
///
/// # Errors
/// Of the kind `Interrupted`.
pub fn check() -> io::Result<()> {
    if requested() { Err(io::Error::new(io::ErrorKind::Interrupted, "the lab was asked to stop")) } else { Ok(()) }
}

/// Calls `probe` until it gives a value, the time is up (`None`) or the lab was asked to end.
///
/// # Errors
/// Those of `probe`, and of [`check`].
pub fn wait<T>(limit: Duration, probe: impl FnMut() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    wait_until(limit, check, probe)
}

/// As [`wait`], but goes on when the lab was asked to end: for taking things back.
///
/// # Errors
/// Those of `probe`.
pub fn wait_through<T>(limit: Duration, probe: impl FnMut() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    wait_until(limit, || Ok(()), probe)
}

fn wait_until<T>(
    limit: Duration,
    check: impl Fn() -> io::Result<()>,
    mut probe: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    let begun = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(Some(value));
        }
        check()?;
        if begun.elapsed() >= limit {
            return Ok(None);
        }
        sleep(NOTICE.min(limit.saturating_sub(begun.elapsed())));
    }
}
