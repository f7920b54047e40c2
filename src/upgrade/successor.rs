//! The running process's side: starts the new process, passes the descriptors on, waits until it accepts.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use log::debug;
use mio::unix::{SourceFd, pipe};
use mio::{Interest, Registry, Token};

use super::last_words::LastWords;
use super::protocol::{Bequest, Parcel, Ready, Reply, parcels, receive};
use super::{DEADLINE, Estate, Program};
use crate::sys::channel::Channel;

/// How long one that has closed the channel may take to exit: its status says more than a kill.
const EXIT: Duration = Duration::from_secs(1);
/// Between two looks whether it has exited.
const LOOK: Duration = Duration::from_millis(10);

/// A new process that does not accept yet. Dropping it kills it.
#[derive(Debug)]
pub struct Successor {
    child: Option<Child>,
    channel: Channel,
    stderr: Option<pipe::Receiver>,
    words: LastWords,
    outbox: VecDeque<Parcel>,
    given_up: Vec<SocketAddr>,
    /// What it is, once it is ready and was told to begin.
    told: Option<Ready>,
    until: Instant,
    failing: Option<Failing>,
}

/// It cannot succeed any more; its exit is awaited.
#[derive(Debug)]
struct Failing {
    why: String,
    kill_at: Instant,
    killed: bool,
}

/// How far a [`Successor`] is.
#[derive(Debug)]
pub enum Progress {
    /// On its way.
    Waiting,
    /// It accepts: what was passed on is its own, and this process is to stop accepting.
    Begun(Ready),
    /// It is gone; why, in words for the log.
    Failed(String),
}

impl Successor {
    /// Starts the program and begins to pass on the estate. Events come under the two tokens; each of them, and each
    /// time [`Self::next_look`] names, is a reason to call [`Self::advance`].
    ///
    /// # Errors
    /// Nothing was started; why, in words for the log.
    pub fn start(
        program: &Program,
        estate: Estate,
        registry: &Registry,
        tokens: [Token; 2],
        now: Instant,
    ) -> Result<Self, String> {
        let begin = || -> io::Result<Self> {
            let outbox = parcels(estate)?.into();
            let (channel, theirs) = Channel::pair()?;
            let mut child = program.start(theirs)?;
            let stderr = child.stderr.take().map(pipe::Receiver::from);
            // From here on dropping it ends the process.
            let mut successor = Self {
                child: Some(child),
                channel,
                stderr,
                words: LastWords::default(),
                outbox,
                given_up: Vec::new(),
                told: None,
                until: now + DEADLINE,
                failing: None,
            };
            let both = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut SourceFd(&successor.channel.as_raw_fd()), tokens[0], both)?;
            if let Some(stderr) = &mut successor.stderr {
                stderr.set_nonblocking(true)?;
                registry.register(stderr, tokens[1], Interest::READABLE)?;
            }
            Ok(successor)
        };
        begin().map_err(|error| match error.raw_os_error() {
            Some(_) => format!(
                "cannot open the channel to a new process: {error}; raise the limit on descriptors (ulimit -n, \
                 LimitNOFILE=), or try again when fewer sessions are open"
            ),
            None => error.to_string(),
        })
    }

    /// The new process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Goes on as far as it can without waiting.
    pub fn advance(&mut self, now: Instant) -> Progress {
        self.listen_to_words();
        if self.failing.is_none() {
            match self.converse(now) {
                Ok(Some(ready)) => return Progress::Begun(ready),
                Ok(None) if now >= self.until => {
                    let what = if self.told.is_some() { "it did not begin" } else { "it was not ready" };
                    self.fail(format!("{what} within {DEADLINE:?}"), now);
                }
                Ok(None) => {}
                Err((why, patience)) => self.fail(why, now + patience),
            }
        }
        match self.bury(now) {
            Some(reason) => Progress::Failed(reason),
            None => Progress::Waiting,
        }
    }

    /// When [`Self::advance`] has something to do, whatever the events say.
    #[must_use]
    pub fn next_look(&self, now: Instant) -> Instant {
        if self.failing.is_some() { now + LOOK } else { self.until }
    }

    /// Gives it up. It is killed, and [`Self::advance`] tells when it is gone.
    pub fn abandon(&mut self, why: &str, now: Instant) {
        if self.failing.is_none() {
            self.fail(why.to_owned(), now);
        }
    }

    /// Leaves it alone, once it has begun.
    #[must_use]
    pub fn leave(mut self) -> Former {
        Former { pid: self.pid(), child: self.child.take(), given_up: std::mem::take(&mut self.given_up) }
    }

    fn fail(&mut self, why: String, kill_at: Instant) {
        self.outbox.clear();
        self.failing = Some(Failing { why, kill_at, killed: false });
    }

    fn listen_to_words(&mut self) {
        if self.stderr.as_mut().is_some_and(|stderr| self.words.read(stderr)) {
            self.stderr = None;
        }
    }

    /// Sends what the channel takes and reads what it has: begun, not yet, or why never and how long it may take to
    /// exit.
    fn converse(&mut self, now: Instant) -> Result<Option<Ready>, (String, Duration)> {
        let at_once = |why: String| (why, Duration::ZERO);
        self.send_on().map_err(|error| at_once(format!("the listeners could not be passed on: {error}")))?;
        loop {
            match receive::<Reply>(&self.channel, false) {
                // No more than an IP address has ports, or it is none of ours.
                Ok(Some((Reply::GivesUp { addresses }, _))) if self.given_up.len() <= 1 << 16 => {
                    self.given_up.extend(addresses);
                }
                Ok(Some((Reply::Ready(ready), _)))
                    if self.outbox.is_empty() && ready.pid == self.pid() && self.told.is_none() =>
                {
                    (self.told, self.until) = (Some(ready), now + DEADLINE);
                    self.outbox.push_back(Parcel { message: Bequest::Go, descriptors: Vec::new() });
                    self.send_on().map_err(|error| at_once(format!("it could not be told to begin: {error}")))?;
                }
                // Until it says so this process accepts too: one that dies before leaves nobody without a listener.
                Ok(Some((Reply::Begun, _))) if self.told.is_some() && self.outbox.is_empty() => {
                    return Ok(self.told.take());
                }
                Ok(Some(_)) => return Err(at_once("it says that it is ready before it can be".to_owned())),
                Ok(None) if self.told.is_some() => return Err(("it was ready and did not begin".to_owned(), EXIT)),
                Ok(None) => return Err(("it did not become ready".to_owned(), EXIT)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(at_once(format!("its answer was not understood: {error}"))),
            }
        }
    }

    fn send_on(&mut self) -> io::Result<()> {
        while let Some(parcel) = self.outbox.front() {
            match parcel.send(&self.channel) {
                Ok(()) => _ = self.outbox.pop_front(),
                // There is no room, or its end, which is found where its words are read.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Kills it when its time is over and reaps it; the whole reason once it is gone.
    fn bury(&mut self, now: Instant) -> Option<String> {
        let failing = self.failing.as_mut()?;
        let child = self.child.as_mut()?;
        if !failing.killed && now >= failing.kill_at {
            failing.killed = true;
            if let Err(error) = child.kill() {
                debug!("cannot kill process {}: {error}", child.id());
            }
        }
        let status = match child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => ended(status, failing.killed),
            Err(error) => format!("its end is not known: {error}"),
        };
        let why = std::mem::take(&mut failing.why);
        self.child = None;
        self.listen_to_words();
        let words = self.words.join();
        let words = if words.is_empty() { "it said nothing".to_owned() } else { format!("its last words: {words}") };
        Some(format!("{why}; {status}; {words}"))
    }
}

fn ended(status: ExitStatus, killed: bool) -> String {
    if killed { "it was killed".to_owned() } else { format!("it ended with {status}") }
}

impl Drop for Successor {
    /// Killed before the channel closes: its end would tell the new process to go on alone.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The process that has taken over, as far as we are its parent still.
#[derive(Debug)]
pub struct Former {
    pid: u32,
    child: Option<Child>,
    given_up: Vec<SocketAddr>,
}

impl Former {
    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Addresses it was given listeners of and does not serve.
    #[must_use]
    pub fn given_up(&self) -> &[SocketAddr] {
        &self.given_up
    }

    /// Reaps it in case it has ended before us; how, the first time that is known, and whether that was well: it was
    /// replaced in its turn, or told to stop.
    pub fn reap(&mut self) -> Option<(bool, String)> {
        let status = self.child.as_mut()?.try_wait().transpose()?;
        self.child = None;
        status.ok().map(|status| (status.success(), ended(status, false)))
    }
}
