//! What may go wrong: every system call the data path makes, with the errors its manual page allows.

use std::fmt;

use crate::common::path::Via;
use crate::common::pattern::Random;

/// What sessions may come to under a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every byte arrives and every stream ends with its FIN, as if nothing had happened.
    Whole,
    /// A session that met the fault may end, as a reset and with a counted reason.
    MayEnd,
}

/// What runs while the calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// A transfer that was open before, and new sessions.
    All,
    /// As `All`, without clients that reset.
    NoResets,
    /// Only the transfer that was open before.
    Transfer,
}

/// Which of the calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Only the first one.
    First,
    /// From one call on, every so many.
    Every(u64, u64),
    /// One in the middle.
    Once(u64),
}

/// One call, how it fails and what may come of it.
#[derive(Debug, Clone, Copy)]
struct Row {
    call: &'static str,
    errors: &'static str,
    outcome: Outcome,
    load: Load,
    /// Another fault that has the call made at all; empty where none is needed.
    after: &'static str,
}

/// One plan. Its text says everything about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) via: Via,
    pub(crate) call: &'static str,
    /// An errno, or `delay` for a call that waits before it is made.
    pub(crate) error: &'static str,
    pub(crate) when: When,
    pub(crate) outcome: Outcome,
    pub(crate) load: Load,
    after: &'static str,
}

/// The calls of a worker while it forwards, as a trace of it shows, and what each is made to say.
///
/// EAGAIN is told of bytes only, once and in the middle of a transfer that goes on both ways: a kernel says so when a
/// socket is dry or full, and then an event follows; a lie without one would strand any edge-triggered program. For the
/// same reason close(2) only waits: strace fails a call by not making it, and a kernel frees the descriptor in any case.
/// setsockopt(2) fails without clients that reset, because SO_LINGER is what a reset is made with, and its page knows
/// no error that a correct call could meet. accept4(2) knows EINVAL only of a socket that does not listen, as one that a
/// reload has just closed: nothing more comes of it, and nobody tries again. epoll_wait(2) is only interrupted: its
/// other errors are those of a broken program. Calls that manage memory fail once: the allocator has a second way to ask.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { call: "splice", errors: "EINTR EINVAL ENOSYS EPERM", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "splice", errors: "ENOMEM", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "splice", errors: "EAGAIN", outcome: Outcome::Whole, load: Load::Transfer, after: "" },
    Row { call: "recvfrom", errors: "EINTR", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "recvfrom", errors: "ENOMEM EINVAL ECONNREFUSED EPERM ENOSYS", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "recvfrom", errors: "EAGAIN", outcome: Outcome::Whole, load: Load::Transfer, after: "" },
    Row { call: "sendto", errors: "EINTR", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "sendto", errors: "ENOBUFS ENOMEM EPERM EINVAL EPIPE ECONNRESET", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "sendto", errors: "EAGAIN", outcome: Outcome::Whole, load: Load::Transfer, after: "" },
    Row { call: "shutdown", errors: "ENOTCONN EINVAL ENOBUFS", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "epoll_wait", errors: "EINTR", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "epoll_ctl", errors: "ENOMEM ENOSPC EPERM EINVAL", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "accept4", errors: "EINTR ECONNABORTED EPROTO EMFILE ENFILE ENOBUFS ENOMEM EPERM ENOSYS ENETDOWN", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "socket", errors: "EMFILE ENFILE ENOBUFS ENOMEM", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "socket", errors: "EPERM EINVAL EAFNOSUPPORT", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "setsockopt", errors: "ENOMEM ENOBUFS", outcome: Outcome::Whole, load: Load::NoResets, after: "" },
    Row { call: "setsockopt", errors: "EPERM EINVAL ENOPROTOOPT", outcome: Outcome::MayEnd, load: Load::NoResets, after: "" },
    Row { call: "connect", errors: "EINTR ENOMEM ENOBUFS", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "connect", errors: "EAGAIN EADDRNOTAVAIL ECONNREFUSED ENETUNREACH ETIMEDOUT EPERM EINVAL", outcome: Outcome::MayEnd, load: Load::All, after: "" },
    Row { call: "getsockname", errors: "ENOBUFS EINVAL ENOTSOCK", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "getsockopt", errors: "ENOBUFS EINVAL EPERM", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "pipe2", errors: "EMFILE ENFILE ENOMEM EPERM ENOSYS EINVAL", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "fcntl", errors: "EINTR EAGAIN EBUSY EPERM ENOMEM EMFILE EINVAL ENOSYS", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "write", errors: "EINTR", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "read", errors: "EINTR", outcome: Outcome::Whole, load: Load::All, after: REFUSED_OUT },
    Row { call: "read", errors: "EAGAIN EIO ENOMEM", outcome: Outcome::MayEnd, load: Load::All, after: REFUSED_OUT },
    Row { call: "poll", errors: "EINTR ENOMEM EINVAL", outcome: Outcome::Whole, load: Load::All, after: STARVED },
    Row { call: "getrusage", errors: "EINVAL ENOSYS", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "mmap", errors: "ENOMEM EPERM", outcome: Outcome::Whole, load: Load::All, after: "" },
    Row { call: "mprotect", errors: "ENOMEM", outcome: Outcome::Whole, load: Load::All, after: "" },
];

/// splice is refused with bytes in the pipe, every second call being one out of it: they are read out.
const REFUSED_OUT: &str = "splice:error=EINVAL:when=2+2";
/// Worth a line of the log, which looks first whether standard error takes it.
const STARVED: &str = "accept4:error=EMFILE:when=1";

/// Calls that are made to wait a few milliseconds.
const DELAYED: &str = "splice recvfrom sendto shutdown epoll_wait epoll_ctl accept4 socket setsockopt connect getsockname pipe2 fcntl close write futex";

/// Which engine makes which call when nothing is amiss; the others hardly ever do.
fn is_made(via: Via, call: &str) -> bool {
    match call {
        "splice" | "pipe2" | "read" => via.splices(),
        "sendto" => via != Via::SPLICE,
        _ => true,
    }
}

impl Plan {
    /// Every plan, the places of the faults drawn from `random`.
    pub(crate) fn all(random: &mut Random) -> Vec<Self> {
        let mut plans = Vec::new();
        for via in [Via::SPLICE, Via::COPY, Via::AUTO].into_iter().filter(|via| *via != Via::SPLICE || via.splices()) {
            for row in ROWS.iter().filter(|row| is_made(via, row.call)) {
                for error in row.errors.split(' ') {
                    plans.extend(row.whens(via, error, random).map(|when| row.plan(via, error, when)));
                }
            }
            for call in DELAYED.split(' ').filter(|call| is_made(via, call)) {
                let row = Row { call, errors: "", outcome: Outcome::Whole, load: Load::All, after: "" };
                plans.push(row.plan(via, "delay", When::Every(1, 3 + random.below(6))));
            }
        }
        plans
    }

    /// One plan of every call and engine, drawn from `random`.
    pub(crate) fn sample(random: &mut Random) -> Vec<Self> {
        let mut rest = Self::all(random);
        let mut sample = Vec::new();
        while let Some(first) = rest.first().copied() {
            let is_like = |plan: &Self| plan.via == first.via && plan.call == first.call;
            let alike: Vec<Self> = rest.iter().filter(|plan| is_like(plan)).copied().collect();
            rest.retain(|plan| !is_like(plan));
            sample.push(alike[usize::try_from(random.below(alike.len() as u64)).expect("an index")]);
        }
        sample
    }

    /// What strace is told: the fault of the plan first.
    pub(crate) fn faults(&self) -> Vec<String> {
        let after = if self.after.is_empty() { None } else { Some(self.after.to_owned()) };
        std::iter::once(self.fault()).chain(after).collect()
    }

    fn fault(&self) -> String {
        let how = if self.error == "delay" { "delay_enter=4000".to_owned() } else { format!("error={}", self.error) };
        format!("{}:{how}:{}", self.call, self.when)
    }

    /// Whether the session of the other worker rests meanwhile: its worker must be woken by nothing but what this one
    /// writes to it when it hands a connection over.
    pub(crate) fn is_quiet(&self) -> bool {
        self.call == "write"
    }

    /// Whether a worker makes the call for certain under this load; some are made only now and then.
    pub(crate) fn is_certain(&self) -> bool {
        let rare = ["write", "mmap", "mprotect", "futex", "fcntl", "getsockopt", "read"];
        let at_ends = ["recvfrom", "sendto"].contains(&self.call) && self.via != Via::COPY;
        !rare.contains(&self.call) && !at_ends
    }
}

impl Row {
    fn plan(&self, via: Via, error: &'static str, when: When) -> Plan {
        Plan { via, call: self.call, error, when, outcome: self.outcome, load: self.load, after: self.after }
    }

    fn whens(&self, via: Via, error: &str, random: &mut Random) -> impl Iterator<Item = When> + use<> {
        let (first, step) = (1 + random.below(4), 2 + random.below(5));
        let whens = match (self.call, error) {
            // What is left for the others in `auto` and `splice` is an end of a stream: no byte and no event follows.
            ("recvfrom" | "sendto", "EAGAIN") if via != Via::COPY => Vec::new(),
            (_, "EAGAIN") if self.load == Load::Transfer => vec![When::Once(2 + random.below(12))],
            ("setsockopt", _) => vec![When::First, When::Once(2 + random.below(5))],
            ("mmap" | "mprotect", _) => vec![When::First],
            // Pipes are kept: the first one may be the only one. CPU time is measured once a second, a
            // shortage said once.
            ("pipe2" | "getrusage" | "poll", _) => vec![When::First, When::Every(1, step)],
            _ => vec![When::First, When::Every(first, step), When::Once(2 + random.below(12))],
        };
        whens.into_iter()
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("when=1"),
            Self::Every(first, step) => write!(f, "when={first}+{step}"),
            Self::Once(at) => write!(f, "when={at}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Via::Engine(engine) = self.via else { return f.write_str("direct") };
        write!(f, "{engine} {}", self.fault())
    }
}
