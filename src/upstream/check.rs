//! Asks targets whether they work: one thread with an event loop of its own, off the data path, for all forwards.
//!
//! Each address is asked on its own, at its interval give or take a tenth, so that checks that began together drift
//! apart. The first answer decides at once: until then a target counts as up.

mod inquiry;
mod probe;
mod question;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use slab::Slab;

use self::inquiry::Inquiry;
use super::balance::Random;
use super::endpoint::{Endpoint, State};
use super::targets::Targets;
use crate::deadline::Deadlines;
use crate::panics::{self, Helper};
use crate::plan::{Check, Egress, OnDown, Transport};
use crate::sandbox::{self, Role};

const WAKER: Token = Token(usize::MAX);
/// How often the addresses of names are looked at: what is new is asked from then on, what has gone no more.
const LOOK_MS: u64 = 500;
/// The first checks of many targets are spread over this part of their interval.
const FIRST_PART: u32 = 4;

/// A forward whose targets are asked.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Its targets.
    pub targets: Arc<Targets>,
    /// How they are asked.
    pub check: Check,
    /// By what.
    pub transport: Transport,
    /// What becomes of the sessions of one that is down.
    pub on_down: OnDown,
    /// Where connections to them come from; empty leaves it to the kernel.
    pub sources: Vec<IpAddr>,
    /// What connections to them carry. A check speaks for no client: its header says so, and its address is our own.
    pub egress: Egress,
}

/// What workers are told.
#[derive(Debug, Clone)]
pub enum News {
    /// A target is there again.
    Up,
    /// That one is down, and its sessions are to end.
    End(Arc<Endpoint>),
}

/// The thread that asks. It ends when this value is dropped.
#[derive(Debug)]
pub struct Checker {
    /// Closed to end the thread.
    orders: Option<Sender<Vec<Checked>>>,
    waker: Arc<Waker>,
}

impl Checker {
    /// Starts the thread, with nobody to ask yet. `tell` is called with what workers are to know.
    ///
    /// # Errors
    /// The system has no descriptor or no thread for it.
    pub fn start(tell: impl Fn(News) + Send + 'static) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (orders, inbox) = channel();
        let mut asker = Asker {
            poll,
            inbox,
            wanted: Vec::new(),
            groups: Vec::new(),
            subjects: Slab::new(),
            deadlines: Deadlines::default(),
            random: Random::default(),
            begun: Instant::now(),
            look_ms: 0,
            tell: Box::new(tell),
        };
        thread::Builder::new().name("checks".into()).spawn(move || {
            crate::sys::leave_signals_to_main();
            sandbox::enter(Role::Check);
            panics::go_on(&mut asker);
        })?;
        Ok(Self { orders: Some(orders), waker })
    }

    /// Asks the targets of these forwards from now on, and of no others: those are up again.
    pub fn check(&self, forwards: Vec<Checked>) {
        if let Some(orders) = &self.orders {
            // It reads them as long as we are there.
            let _ = orders.send(forwards);
            let _ = self.waker.wake();
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.waker.wake();
    }
}

/// The thread's own.
struct Asker {
    poll: Poll,
    inbox: Receiver<Vec<Checked>>,
    /// What was asked for last, whole also after a panic.
    wanted: Vec<Checked>,
    groups: Vec<Checked>,
    /// Their keys are the tokens of their sockets and the keys of their timers.
    subjects: Slab<Subject>,
    deadlines: Deadlines,
    random: Random,
    begun: Instant,
    look_ms: u64,
    tell: Box<dyn Fn(News) + Send>,
}

/// An address that is asked.
struct Subject {
    endpoint: Arc<Endpoint>,
    group: usize,
    probe: Option<Inquiry>,
    started_ms: u64,
    in_row: u32,
    was_good: bool,
    is_down: bool,
    /// It was asked before, by this thread or an earlier one.
    is_known: bool,
    since: Instant,
}

impl Helper for Asker {
    fn work(&mut self, again: bool) -> Result<(), String> {
        if again {
            self.begin_anew();
        }
        self.run().map_err(|e| format!("its poller failed: {e}"))
    }

    fn pause(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(groups) => self.wanted = groups,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

impl Asker {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            let next_ms = self.deadlines.next_ms().unwrap_or(u64::MAX).min(self.look_ms);
            let timeout = if self.groups.is_empty() { None } else { Some(next_ms.saturating_sub(self.now_ms())) };
            match self.poll.poll(&mut events, timeout.map(Duration::from_millis)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
                Ok(()) => {}
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(groups) => {
                        self.wanted.clone_from(&groups);
                        self.regroup(groups);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            for event in events.iter().filter(|event| event.token() != WAKER) {
                self.advance(event.token().0);
            }
            if self.now_ms() >= self.look_ms {
                self.look();
            }
            self.expire();
        }
    }

    /// Goes on after a panic: what was under way is given up, and every address asked soon. How it stands is kept.
    fn begin_anew(&mut self) {
        let is_wanted = |old: &Checked| self.wanted.iter().any(|new| Arc::ptr_eq(&new.targets, &old.targets));
        // Who is asked no more is up again, and a panic may have come before that was said.
        for old in self.groups.iter().filter(|old| !is_wanted(old)) {
            let endpoints = old.targets.views().into_iter().flat_map(|view| view.endpoints);
            endpoints.for_each(|endpoint| endpoint.set_down(false, old.targets.now_ms()));
        }
        self.groups.clone_from(&self.wanted);
        // It may also have come before workers were told how others stand. What they know already does no harm.
        (self.tell)(News::Up);
        for group in self.groups.iter().filter(|group| group.on_down == OnDown::End) {
            let endpoints = group.targets.views().into_iter().flat_map(|view| view.endpoints);
            endpoints.filter(|endpoint| endpoint.is_down()).for_each(|endpoint| (self.tell)(News::End(endpoint)));
        }
        (self.subjects, self.deadlines, self.look_ms) = (Slab::new(), Deadlines::default(), 0);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes over another list of forwards. What is known of an address that stays is kept.
    fn regroup(&mut self, groups: Vec<Checked>) {
        let place = |old: &Checked| groups.iter().position(|new| Arc::ptr_eq(&new.targets, &old.targets));
        let places: Vec<Option<usize>> = self.groups.iter().map(place).collect();
        for key in self.keys() {
            match places[self.subjects[key].group] {
                Some(group) => {
                    let is_same = self.groups[self.subjects[key].group].check == groups[group].check;
                    self.subjects[key].group = group;
                    // It need not wait for the end of an interval that is another now.
                    if !is_same && self.subjects[key].probe.is_none() {
                        let spread = self.random.below(groups[group].check.interval / FIRST_PART);
                        self.deadlines.set(key, self.now_ms() + spread);
                    }
                }
                None => self.forget(key),
            }
        }
        self.groups = groups;
        self.look_ms = 0;
    }

    fn keys(&self) -> Vec<usize> {
        self.subjects.iter().map(|(key, _)| key).collect()
    }

    /// Asks it no more: nobody says any more that it is down.
    fn forget(&mut self, key: usize) {
        self.deadlines.clear(key);
        let subject = self.subjects.remove(key);
        let now_ms = self.groups[subject.group].targets.now_ms();
        subject.endpoint.set_down(false, now_ms);
    }

    /// Finds addresses that are new, and those that have gone.
    fn look(&mut self) {
        let now_ms = self.now_ms();
        self.look_ms = now_ms + LOOK_MS;
        let mut current: HashSet<(usize, u32)> = HashSet::new();
        let mut fresh = Vec::new();
        let known: HashSet<(usize, u32)> =
            self.subjects.iter().map(|(_, subject)| (subject.group, subject.endpoint.id())).collect();
        for (group, checked) in self.groups.iter().enumerate() {
            let views = checked.targets.views();
            for endpoint in views.into_iter().flat_map(|view| view.endpoints).filter(|endpoint| endpoint.is_current()) {
                current.insert((group, endpoint.id()));
                if !known.contains(&(group, endpoint.id())) {
                    fresh.push((group, endpoint));
                }
            }
        }
        for key in self.keys() {
            if !current.contains(&(self.subjects[key].group, self.subjects[key].endpoint.id())) {
                self.forget(key);
            }
        }
        for (group, endpoint) in fresh {
            let spread = self.random.below(self.groups[group].check.interval / FIRST_PART);
            let key = self.subjects.insert(Subject {
                is_down: endpoint.is_down(),
                is_known: endpoint.checks().0 > 0,
                endpoint,
                group,
                probe: None,
                started_ms: 0,
                in_row: 0,
                was_good: false,
                since: Instant::now(),
            });
            self.deadlines.set(key, now_ms + spread);
        }
    }

    fn expire(&mut self) {
        let mut due = Vec::new();
        self.deadlines.expire(self.now_ms(), &mut due);
        for key in due {
            let Some(subject) = self.subjects.get_mut(key) else { continue };
            match subject.probe.take() {
                Some(probe) => {
                    let timeout = self.groups[subject.group].check.timeout;
                    self.judge(key, Err(format!("{} within {timeout:?}", probe.waits_for())));
                }
                None => self.begin(key),
            }
        }
    }

    /// Begins a check.
    fn begin(&mut self, key: usize) {
        let now_ms = self.now_ms();
        let subject = &mut self.subjects[key];
        let group = &self.groups[subject.group];
        let Checked { check, targets, .. } = group;
        if subject.endpoint.state(targets.now_ms()) == State::Disabled {
            return self.rest(key);
        }
        subject.started_ms = now_ms;
        match Inquiry::begin(&subject.endpoint, group, self.poll.registry(), Token(key)) {
            Ok(probe) => {
                subject.probe = Some(probe);
                self.deadlines.set(key, now_ms + millis(check.timeout));
            }
            // Nothing that the target has to answer for, but nothing is known of it either.
            Err(e) if probe::is_ours(&e) => {
                log::warn!("cannot check target {}: {e}; it counts as it did before", subject.endpoint.label());
                self.rest(key);
            }
            Err(e) => self.judge(key, Err(e.to_string())),
        }
    }

    /// Goes on with a check whose socket may be ready.
    fn advance(&mut self, key: usize) {
        let Some(subject) = self.subjects.get_mut(key) else { return };
        let Some(probe) = &mut subject.probe else { return };
        let Some(result) = probe.advance(&self.groups[subject.group].check) else { return };
        subject.probe = None;
        self.judge(key, result);
    }

    /// The next check comes an interval after this one began.
    fn rest(&mut self, key: usize) {
        let now_ms = self.now_ms();
        let subject = &self.subjects[key];
        let interval = self.groups[subject.group].check.interval;
        let jittered_ms = millis(interval) * 9 / 10 + self.random.below(interval / 5);
        let from_ms = if subject.started_ms > 0 { subject.started_ms } else { now_ms };
        self.deadlines.set(key, (from_ms + jittered_ms).max(now_ms + 1));
    }

    /// What a check has come to.
    fn judge(&mut self, key: usize, result: Result<(), String>) {
        let subject = &mut self.subjects[key];
        let Checked { check, on_down, targets, .. } = &self.groups[subject.group];
        let good = result.is_ok();
        subject.endpoint.checked(good);
        subject.in_row = if subject.was_good == good { subject.in_row.saturating_add(1) } else { 1 };
        subject.was_good = good;
        let needed = match (subject.is_known, good) {
            (false, _) => 1,
            (true, true) => check.rise,
            (true, false) => check.fall,
        };
        subject.is_known = true;
        if subject.is_down == good && subject.in_row >= needed {
            subject.is_down = !good;
            let lasted = std::mem::replace(&mut subject.since, Instant::now()).elapsed();
            let (forward, label, in_row) = (targets.forward(), subject.endpoint.label(), subject.in_row);
            subject.endpoint.set_down(!good, targets.now_ms());
            match (result, on_down) {
                (Ok(()), _) => {
                    log::info!(
                        "forward {forward:?}: target {label} is up: {in_row} good checks in a row, after {lasted:.1?} down"
                    );
                    (self.tell)(News::Up);
                }
                (Err(why), on_down) => {
                    let ends = if *on_down == OnDown::End { "; its sessions end" } else { "" };
                    log::warn!(
                        "forward {forward:?}: target {label} is down: {in_row} failed checks in a row: {why}{ends}"
                    );
                    if *on_down == OnDown::End {
                        (self.tell)(News::End(Arc::clone(&subject.endpoint)));
                    }
                }
            }
        } else if let Err(why) = result {
            log::debug!("check of target {} failed: {why}", subject.endpoint.label());
        }
        self.rest(key);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 16)
}
