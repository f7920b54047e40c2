//! Names are looked up again by threads of their own, when their answers run out; whoever uses them is told of changes.
//!
//! A name that cannot be resolved takes seconds to say so: each name has its own thread, up to a bound, so that it
//! holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Place;
use super::exchange::Failure;
use super::lookup::{Found, Lookup, Trouble};
use crate::panics::{self, Helper};
use crate::plan::{Host, Plan, Resolving};
use crate::sandbox::{self, Role};

/// From a failure to the next look-up: the first time, and at the most.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Threads at most; names beyond share them.
const MOST_THREADS: usize = 32;
/// Bytes of a thread's stack; getaddrinfo(3) keeps its buffers there.
const STACK: usize = 256 * 1024;

/// Every name and service a target of the plan has.
#[must_use]
pub fn names(plan: &Plan) -> BTreeSet<Host> {
    let targets = plan.forwards.iter().flat_map(|forward| &forward.targets);
    let is_name = |host: &&Host| matches!(host, Host::Name(_) | Host::Service(_));
    targets.map(|target| &target.host).filter(is_name).cloned().collect()
}

/// What is known of the names, for people.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<BTreeMap<Host, NameView>>>);

/// How a name stands.
#[derive(Debug, Clone)]
pub struct NameView {
    /// The last good answer.
    pub places: Vec<Place>,
    /// When that was.
    pub answered: Option<Instant>,
    /// Look-ups so far.
    pub lookups: u64,
    /// Those that failed.
    pub failures: u64,
    /// Why the last one failed, if it did.
    pub trouble: Option<String>,
    /// When it is looked up next; the past while a look-up is on its way.
    pub next: Instant,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Host, NameView>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, in order.
    #[must_use]
    pub fn views(&self) -> Vec<(Host, NameView)> {
        self.lock().iter().map(|(host, view)| (host.clone(), view.clone())).collect()
    }

    /// Forgets those that are not among these, and knows of the others.
    pub fn keep(&self, names: &BTreeSet<Host>) {
        let mut known = self.lock();
        known.retain(|host, _| names.contains(host));
        for name in names {
            known.entry(name.clone()).or_insert_with(NameView::new);
        }
    }
}

impl NameView {
    fn new() -> Self {
        Self { places: Vec::new(), answered: None, lookups: 0, failures: 0, trouble: None, next: Instant::now() }
    }
}

/// The resolver's threads. They end when this value is dropped, each after the look-up it is in.
#[derive(Debug)]
pub struct Resolver {
    _stop: Vec<Sender<()>>,
}

impl Resolver {
    /// Starts the threads; `tell` is called with a name and its places whenever these change.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(
        names: BTreeSet<Host>,
        resolving: &Resolving,
        known: &Known,
        tell: impl Fn(&Host, &[Place]) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let mut shares: Vec<Vec<Watched>> = Vec::new();
        shares.resize_with(names.len().min(MOST_THREADS), Vec::new);
        let count = shares.len();
        for (i, host) in names.into_iter().enumerate() {
            shares[i % count].push(Watched { host, places: Vec::new(), failed: 0, due: Instant::now() });
        }
        let start = |share: Vec<Watched>| {
            let (stop, stopped) = channel();
            let (tell, known, resolving) = (tell.clone(), known.clone(), resolving.clone());
            let thread = std::thread::Builder::new().name("resolver".into()).stack_size(STACK);
            thread
                .spawn(move || {
                    crate::sys::leave_signals_to_main();
                    sandbox::enter(Role::Resolver);
                    let watch = Watch { lookup: Lookup::new(&resolving), resolving, known, tell, stopped };
                    panics::go_on(&mut Share { watch, names: share });
                })
                .map(|_| stop)
        };
        Ok(Self { _stop: shares.into_iter().map(start).collect::<io::Result<_>>()? })
    }
}

/// A name of one thread.
struct Watched {
    host: Host,
    /// What was told.
    places: Vec<Place>,
    /// Failures in a row.
    failed: u32,
    due: Instant,
}

/// One thread.
struct Watch<T> {
    lookup: Lookup,
    resolving: Resolving,
    known: Known,
    tell: T,
    stopped: Receiver<()>,
}

/// What one thread has to do.
struct Share<T> {
    watch: Watch<T>,
    names: Vec<Watched>,
}

impl<T: Fn(&Host, &[Place])> Helper for Share<T> {
    fn work(&mut self, again: bool) -> Result<(), String> {
        if again {
            self.watch.begin_anew(&mut self.names);
        }
        self.watch.run(&mut self.names);
        Ok(())
    }

    fn pause(&mut self, time: Duration) -> bool {
        self.watch.stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

impl<T: Fn(&Host, &[Place])> Watch<T> {
    /// Goes on after a panic, which counts as a failed look-up of the name it was in.
    fn begin_anew(&mut self, names: &mut [Watched]) {
        self.lookup = Lookup::new(&self.resolving);
        if let Some(next) = names.iter_mut().min_by_key(|watched| watched.due) {
            let trouble = Trouble::Failed(Failure { text: "the look-up panicked".to_owned(), is_silent: false });
            self.settle(next, Err(trouble));
        }
    }

    fn run(&mut self, names: &mut [Watched]) {
        while let Some(next) = names.iter_mut().min_by_key(|watched| watched.due) {
            let wait = next.due.saturating_duration_since(Instant::now());
            if self.stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let result = self.lookup.look_up(&next.host);
            // Another configuration may have come meanwhile, with other servers: their answers count.
            if self.stopped.try_recv() != Err(TryRecvError::Empty) {
                return;
            }
            self.settle(next, result);
        }
    }

    /// What comes of a look-up, and when the next one is.
    fn settle(&self, watched: &mut Watched, result: Result<Found, Trouble>) {
        let pause = match &result {
            Ok(found) => self.good(watched, found),
            Err(trouble) => self.bad(watched, trouble),
        };
        watched.due = Instant::now() + pause;
        self.note(watched, result);
    }

    fn good(&self, watched: &mut Watched, found: &Found) -> Duration {
        if std::mem::take(&mut watched.failed) > 0 {
            log::info!("{} is resolved again", watched.host);
        }
        if watched.places != found.places {
            log::info!("{} is {}", watched.host, List(&found.places));
            (self.tell)(&watched.host, &found.places);
            watched.places.clone_from(&found.places);
        }
        let Resolving { interval, least, most, .. } = self.resolving;
        interval.unwrap_or_else(|| found.holds.max(least).min(most))
    }

    /// The last good answer stays in use; the first failure in a row is worth a line.
    fn bad(&self, watched: &mut Watched, trouble: &Trouble) -> Duration {
        if watched.failed == 0 {
            let kept = if watched.places.is_empty() { "" } else { "; its last addresses stay in use" };
            log::warn!(
                "cannot resolve {}: {}{kept}; check the name and the name servers of this host",
                watched.host,
                trouble.text()
            );
        }
        let pause = RETRY.saturating_mul(1 << watched.failed.min(16)).min(LONGEST_RETRY);
        watched.failed += 1;
        self.resolving.interval.map_or(pause, |interval| interval.min(pause))
    }

    fn note(&self, watched: &Watched, result: Result<Found, Trouble>) {
        let mut known = self.known.lock();
        // One that no configuration has any more is of no interest.
        let Some(view) = known.get_mut(&watched.host) else { return };
        view.lookups += 1;
        view.next = watched.due;
        match result {
            Ok(found) => (view.places, view.answered, view.trouble) = (found.places, Some(Instant::now()), None),
            Err(trouble) => {
                view.failures += 1;
                view.trouble = Some(trouble.text().to_owned());
            }
        }
    }
}

/// Places with commas.
struct List<'a>(&'a [Place]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, place) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{place}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_told_once_and_the_thread_ends() {
        let (tx, rx) = channel();
        let names = BTreeSet::from([Host::Name("localhost".to_string())]);
        let known = Known::default();
        known.keep(&names);
        let tell = move |host: &Host, places: &[Place]| {
            let _ = tx.send((host.clone(), places.to_vec()));
        };
        let resolver = Resolver::start(names, &Resolving::default(), &known, tell).unwrap();
        let (host, places) = rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(host.to_string(), "localhost");
        assert!(places.iter().all(|place| place.ip.is_loopback()));
        drop(resolver);
        assert!(rx.recv_timeout(Duration::from_secs(10)).is_err(), "the sender is dropped with the thread");
        assert!(known.views().iter().all(|(_, view)| view.failures == 0));
    }
}
