//! Telling a service manager how we are: ready, reloading, replaced, stopping, alive, and a line for people.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;

use log::{debug, warn};
use sd_notify::NotifyState;

/// Between two status lines.
const STATUS: Duration = Duration::from_secs(5);
/// The longest wait for a manager that does not read.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a status line is made from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// Sessions open.
    pub sessions: u64,
    /// Bytes forwarded since the start, both directions.
    pub bytes: u64,
    /// No new sessions are taken.
    pub draining: bool,
}

/// How often each running worker has turned, by its number.
pub type WorkerTurns = Vec<(usize, u64)>;

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    send: fn(&[NotifyState<'_>]) -> std::io::Result<()>,
    /// `NOTIFY_SOCKET` is set, and no other process speaks for the service.
    speaks: bool,
    failing: bool,
    watchdog: Option<Watchdog>,
    status: Option<StatusLine>,
}

/// Pings the manager while every worker turns.
#[derive(Debug)]
struct Watchdog {
    every: Duration,
    next: Instant,
    seen: WorkerTurns,
    /// Workers that hang, as last logged.
    hang: Vec<usize>,
}

#[derive(Debug)]
struct StatusLine {
    next: Instant,
    at: Instant,
    bytes: u64,
    text: String,
}

impl Notifier {
    /// Finds out from the environment whom to tell.
    #[must_use]
    pub fn from_env() -> Self {
        let speaks = std::env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty());
        // The interval of an absurdly short watchdog is not worth a loop that never sleeps.
        let every = sd_notify::watchdog_enabled().map(|time| (time / 2).max(Duration::from_millis(1)));
        Self::new(notify, speaks, every.filter(|_| speaks), Instant::now())
    }

    fn new(
        send: fn(&[NotifyState<'_>]) -> std::io::Result<()>,
        speaks: bool,
        watchdog: Option<Duration>,
        now: Instant,
    ) -> Self {
        let watchdog = watchdog.map(|every| Watchdog { every, next: now, seen: Vec::new(), hang: Vec::new() });
        let status = speaks.then(|| StatusLine { next: now, at: now, bytes: 0, text: String::new() });
        Self { send, speaks, failing: false, watchdog, status }
    }

    /// Sessions are taken; also after a reload, whatever became of it.
    pub fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The configuration is being read again, until [`Self::ready`].
    pub fn reloading(&mut self) {
        if !self.speaks {
            return;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => warn!("the clock cannot be read: {error}; the service manager is not told of the reload"),
        }
    }

    /// No more sessions are taken; open ones finish.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Another process is the service from now on and speaks for it; this one falls silent.
    pub fn replaced_by(&mut self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid), NotifyState::Ready]);
        self.speaks = false;
        (self.watchdog, self.status) = (None, None);
    }

    /// Says what is due. `facts` and `turns` are asked only then; the caller makes idle workers turn when this returns true, so that
    /// one that is idle can be told from one that hangs.
    pub fn tick(&mut self, now: Instant, facts: impl FnOnce() -> Facts, turns: impl FnOnce() -> WorkerTurns) -> bool {
        let beats = self.watchdog.as_mut().and_then(|watchdog| watchdog.beat(now, turns));
        if beats == Some(true) {
            self.tell(&[NotifyState::Watchdog]);
        }
        if let Some(text) = self.status.as_mut().and_then(|status| status.line(now, facts)) {
            self.tell(&[NotifyState::Status(&text)]);
        }
        beats.is_some()
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let status = self.status.as_ref().map(|status| status.next);
        watchdog.into_iter().chain(status).min()
    }

    fn tell(&mut self, words: &[NotifyState<'_>]) {
        if !self.speaks {
            return;
        }
        match (self.send)(words) {
            Ok(()) => self.failing = false,
            Err(error) if self.failing => debug!("the service manager cannot be told: {error}"),
            Err(error) => {
                self.failing = true;
                warn!("the service manager cannot be told ({words:?} to NOTIFY_SOCKET): {error}");
            }
        }
    }
}

/// As `sd_notify::notify`, but a manager that does not read, and whose queue is full, holds up nobody for longer than
/// [`PATIENCE`]: the control thread has others to answer.
fn notify(words: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    send_to(&path, words)
}

fn send_to(path: &OsStr, words: &[NotifyState<'_>]) -> io::Result<()> {
    // `@` is the abstract namespace (sd_notify(3)); others than unix sockets are of no use here.
    let address = match path.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let text: String = words.iter().map(|word| format!("{word}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect_addr(&address)?;
    socket.send(text.as_bytes()).map(|_| ())
}

impl Watchdog {
    /// Once an interval: whether every worker that ran at the last look, and still runs, has turned since.
    fn beat(&mut self, now: Instant, turns: impl FnOnce() -> WorkerTurns) -> Option<bool> {
        if now < self.next {
            return None;
        }
        self.next = now + self.every;
        let turns = turns();
        let before = std::mem::take(&mut self.seen);
        let stands = |entry: &&(usize, u64)| before.contains(entry);
        let hang: Vec<usize> = turns.iter().filter(stands).map(|(id, _)| *id).collect();
        self.seen = turns;
        if hang != self.hang {
            match hang.as_slice() {
                [] => warn!("every worker turns again; the watchdog is told"),
                some => warn!("workers {some:?} have not turned for {:?}; the watchdog is not told", self.every),
            }
            self.hang.clone_from(&hang);
        }
        Some(hang.is_empty())
    }
}

impl StatusLine {
    fn line(&mut self, now: Instant, facts: impl FnOnce() -> Facts) -> Option<String> {
        if now < self.next {
            return None;
        }
        let facts = facts();
        let seconds = now.duration_since(self.at).as_secs_f64();
        let bits = facts.bytes.saturating_sub(self.bytes) as f64 * 8.0;
        let rate = if seconds > 0.0 && self.at < now { bits / seconds } else { 0.0 };
        (self.next, self.at, self.bytes) = (now + STATUS, now, facts.bytes);
        let plural = if facts.sessions == 1 { "" } else { "s" };
        let state = if facts.draining { "draining: " } else { "" };
        let text = format!("{state}{} session{plural}, {}", facts.sessions, bit_rate(rate));
        (text != self.text).then(|| {
            self.text.clone_from(&text);
            text
        })
    }
}

/// `0 bit/s`, `12.3 Mbit/s`.
fn bit_rate(bits: f64) -> String {
    let units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let (mut value, mut unit) = (bits, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local!(static SAID: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) });

    fn record(words: &[NotifyState<'_>]) -> std::io::Result<()> {
        let text: Vec<String> = words.iter().map(ToString::to_string).collect();
        SAID.with_borrow_mut(|said| said.push(text.join(" ")));
        Ok(())
    }

    fn said() -> Vec<String> {
        SAID.take()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_manager_that_does_not_read_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).find_map(|_| send_to(path.as_os_str(), &[NotifyState::Watchdog]).err());
        assert_eq!(full.expect("a queue has an end").kind(), io::ErrorKind::WouldBlock);
        let mut buffer = [0; 64];
        let n = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"WATCHDOG=1\n");
    }

    #[test]
    fn the_watchdog_is_told_only_while_every_worker_turns() {
        let start = Instant::now();
        let mut notifier = Notifier::new(record, true, Some(SECOND), start);
        notifier.status = None;
        let mut beat = |at: u32, turns: &[(usize, u64)]| {
            let asked = notifier.tick(start + at * SECOND, Facts::default, || turns.to_vec());
            (asked, said().len())
        };
        assert_eq!(beat(0, &[(0, 0), (1, 0)]), (true, 1), "nothing to compare with yet");
        assert_eq!(beat(1, &[(0, 1), (1, 1)]), (true, 1));
        assert_eq!(beat(2, &[(0, 2), (1, 1)]), (true, 0), "worker 1 hangs");
        assert_eq!(beat(3, &[(0, 3), (1, 1)]), (true, 0));
        assert_eq!(beat(4, &[(0, 4), (1, 2)]), (true, 1), "it goes on");
        assert_eq!(beat(5, &[(0, 5)]), (true, 1), "one that has ended does not hang");
        assert_eq!(beat(6, &[(0, 6), (7, 0)]), (true, 1), "nor does a new one");
        let early = notifier.tick(start + 6 * SECOND + SECOND / 2, Facts::default, || panic!("not asked"));
        assert!(!early && said().is_empty());
        assert_eq!(notifier.next_tick(), Some(start + 7 * SECOND));
    }

    #[test]
    fn a_status_line_tells_sessions_and_rate_and_is_not_repeated() {
        let start = Instant::now();
        let mut notifier = Notifier::new(record, true, None, start);
        let mut at = |seconds: u32, sessions, bytes, draining| {
            notifier.tick(start + seconds * SECOND, || Facts { sessions, bytes, draining }, Vec::new);
            said()
        };
        assert_eq!(at(0, 0, 0, false), ["STATUS=0 sessions, 0 bit/s"]);
        assert!(at(4, 9, 9, false).is_empty(), "not every moment");
        assert_eq!(at(5, 1, 625_000_000, false), ["STATUS=1 session, 1.0 Gbit/s"]);
        assert_eq!(at(10, 1, 625_000_000, true), ["STATUS=draining: 1 session, 0 bit/s"]);
        assert!(at(15, 1, 625_000_000, true).is_empty(), "nothing new");
    }

    #[test]
    fn one_that_was_replaced_falls_silent() {
        let mut notifier = Notifier::new(record, true, Some(SECOND), Instant::now());
        notifier.reloading();
        notifier.ready();
        notifier.replaced_by(42);
        notifier.stopping();
        notifier.tick(Instant::now() + 60 * SECOND, Facts::default, || panic!("not asked"));
        let said = said();
        assert!(said[0].starts_with("RELOADING=1 MONOTONIC_USEC="), "{said:?}");
        assert_eq!(said[1..], ["READY=1", "MAINPID=42 READY=1"]);
        assert_eq!(notifier.next_tick(), None);
    }

    #[test]
    fn without_a_manager_nothing_is_said_or_due() {
        let mut notifier = Notifier::new(record, false, None, Instant::now());
        notifier.ready();
        notifier.reloading();
        notifier.stopping();
        assert!(!notifier.tick(Instant::now() + 60 * SECOND, Facts::default, Vec::new));
        assert!(said().is_empty() && notifier.next_tick().is_none());
    }

    #[test]
    fn rates() {
        for (bits, text) in [(0.0, "0 bit/s"), (999.4, "999 bit/s"), (1000.0, "1.0 kbit/s"), (23.44e9, "23.4 Gbit/s")] {
            assert_eq!(bit_rate(bits), text);
        }
        assert_eq!(bit_rate(999.96e6), "1.0 Gbit/s");
    }
}
