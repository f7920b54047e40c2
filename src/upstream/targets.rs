//! The targets of one forward as all workers share them: what outlives editions, workers and answers to names.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use super::endpoint::{Admin, Endpoint};
use crate::address::Place;
use crate::names::Entry;
use crate::plan::{Forward, Ports, Target};

/// Words with a bit for each of as many workers as a configuration may ask for, 1024.
const WORDS: usize = 16;

/// Everything workers share about the targets of one forward. A reload keeps it; only its list of targets changes.
#[derive(Debug)]
pub struct Targets {
    forward: Arc<str>,
    begun: Instant,
    next_id: AtomicU32,
    /// Grows whenever an address is added.
    version: AtomicU64,
    known: Mutex<Vec<Known>>,
    /// Targets that were removed, as long as sessions hold their addresses.
    gone: Mutex<Vec<Known>>,
    waiting: Waiting,
}

/// A configured target.
#[derive(Debug)]
struct Known {
    target: Target,
    admin: Admin,
    weight: Option<u16>,
    /// It came while the forward was running.
    is_late: bool,
    endpoints: Vec<Weak<Endpoint>>,
}

/// A target with its addresses, to be shown or checked.
#[derive(Debug, Clone)]
pub struct TargetView {
    /// As it is configured.
    pub target: Target,
    /// The weight a command gave it.
    pub weight: Option<u16>,
    /// Its addresses; none while its name has none.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// What a command does to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Lets it take sessions, or not.
    Admin(Admin),
    /// Gives it another weight; `None` the configured one again.
    Weight(Option<u16>),
}

/// Workers with sessions that wait for room at a target.
///
/// Invariant: no worker waits for room that is there. It marks itself before it looks a second time, and whoever gives
/// room back looks for marks afterwards: with sequentially consistent operations one of the two sees the other.
#[derive(Debug, Default)]
struct Waiting {
    any: AtomicBool,
    words: [AtomicU64; WORDS],
}

impl Targets {
    /// Without a target yet. `begun` is when the clock of all workers began.
    #[must_use]
    pub fn new(forward: &str, begun: Instant) -> Self {
        Self {
            forward: forward.into(),
            begun,
            next_id: AtomicU32::new(0),
            version: AtomicU64::new(0),
            known: Mutex::default(),
            gone: Mutex::default(),
            waiting: Waiting::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds of the workers' clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The name of the forward.
    #[must_use]
    pub fn forward(&self) -> &str {
        &self.forward
    }

    /// Takes over the targets of another configuration. Those that stay keep all that is known of them.
    pub fn update(&self, forward: &Forward) {
        let mut known = self.known();
        let is_late = !known.is_empty();
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *known);
        for target in &forward.targets {
            let same = |other: &Known| (&other.target.host, other.target.ports) == (&target.host, target.ports);
            let kept = before.iter().position(same).map(|at| before.swap_remove(at));
            // One that comes again while it has sessions keeps its addresses, so that each is there once; what commands said
            // of it is over.
            let kept = kept.or_else(|| {
                let back = gone.iter().position(same).map(|at| gone.swap_remove(at))?;
                let now_ms = self.now_ms();
                let alive = back.endpoints.iter().filter_map(Weak::upgrade);
                alive.for_each(|endpoint| endpoint.command(Admin::default(), None, now_ms));
                Some(Known { admin: Admin::default(), weight: None, is_late: true, ..back })
            });
            known.push(match kept {
                Some(kept) => Known { target: target.clone(), ..kept },
                None => Known {
                    target: target.clone(),
                    admin: Admin::default(),
                    weight: None,
                    is_late,
                    endpoints: Vec::new(),
                },
            });
        }
        let alive = |known: &Known| known.endpoints.iter().any(|endpoint| endpoint.strong_count() > 0);
        for endpoint in before.iter().flat_map(|known| &known.endpoints).filter_map(Weak::upgrade) {
            endpoint.current.store(false, Ordering::Relaxed);
        }
        gone.extend(before);
        gone.retain(alive);
        drop((known, gone));
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Changes whenever there may be other addresses.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// What is shared about one address of a target; `is_late` when the target had others before.
    pub(super) fn endpoint(&self, target: &Target, place: Place, entry: Option<Entry>, is_late: bool) -> Arc<Endpoint> {
        let ports = entry.map_or(target.ports, |entry| Ports::one(entry.port));
        let make = || {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            Arc::new(Endpoint::new(id, &self.forward, &target.to_string(), place, ports))
        };
        let mut all = self.known();
        let same = |other: &&mut Known| (&other.target.host, other.target.ports) == (&target.host, target.ports);
        // A worker may not have heard yet that the target is gone.
        let Some(known) = all.iter_mut().find(same) else { return make() };
        known.endpoints.retain(|endpoint| endpoint.strong_count() > 0);
        let mut alive = known.endpoints.iter().filter_map(Weak::upgrade);
        if let Some(endpoint) = alive.find(|endpoint| (endpoint.place(), endpoint.ports()) == (place, ports)) {
            endpoint.current.store(true, Ordering::Relaxed);
            return endpoint;
        }
        let endpoint = make();
        let now_ms = self.now_ms();
        endpoint.command(known.admin, known.weight, now_ms);
        if is_late || known.is_late {
            endpoint.is_back(now_ms);
        }
        known.endpoints.push(Arc::downgrade(&endpoint));
        drop(all);
        self.version.fetch_add(1, Ordering::SeqCst);
        endpoint
    }

    /// Every target with the addresses it has now, and those it had as long as sessions hold them; then those that were
    /// removed and have sessions left.
    #[must_use]
    pub fn views(&self) -> Vec<TargetView> {
        let view = |known: &Known| {
            let alive = known.endpoints.iter().filter_map(Weak::upgrade);
            let endpoints = alive.filter(|e| e.current.load(Ordering::Relaxed) || e.open() > 0).collect();
            TargetView { target: known.target.clone(), weight: known.weight, endpoints }
        };
        let mut views: Vec<TargetView> = self.known().iter().map(view).collect();
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|known| known.endpoints.iter().any(|endpoint| endpoint.strong_count() > 0));
        views.extend(gone.iter().map(view).filter(|view| !view.endpoints.is_empty()));
        views
    }

    /// Does to a target, by the name the configuration has for it, what a command says. The result has its addresses.
    ///
    /// # Errors
    /// There is no such target: the ones there are.
    pub fn command(&self, name: &str, command: Command) -> Result<Vec<Arc<Endpoint>>, String> {
        let mut all = self.known();
        let names: Vec<String> = all.iter().map(|known| known.target.to_string()).collect();
        let Some(at) = names.iter().position(|known| known == name) else {
            return Err(format!(
                "forward {:?} has no target {name:?}; its targets: {}",
                &*self.forward,
                names.join(", ")
            ));
        };
        let known = &mut all[at];
        match command {
            Command::Admin(admin) => known.admin = admin,
            Command::Weight(weight) => known.weight = weight,
        }
        let endpoints: Vec<_> = known.endpoints.iter().filter_map(Weak::upgrade).collect();
        let now_ms = self.now_ms();
        endpoints.iter().for_each(|endpoint| endpoint.command(known.admin, known.weight, now_ms));
        Ok(endpoints)
    }

    /// A worker's sessions wait for room at any target; it is to look once more before it waits.
    pub fn wait(&self, worker: usize) {
        self.waiting.words[worker / 64 % WORDS].fetch_or(1 << (worker % 64), Ordering::SeqCst);
        self.waiting.any.store(true, Ordering::SeqCst);
    }

    /// Workers to be told that there may be room; each must mark itself again.
    pub fn waiting(&self) -> impl Iterator<Item = usize> {
        let any = self.waiting.any.load(Ordering::SeqCst) && self.waiting.any.swap(false, Ordering::SeqCst);
        let words = if any { &self.waiting.words[..] } else { &[] };
        words.iter().enumerate().flat_map(|(word, marks)| {
            let marks = marks.swap(0, Ordering::SeqCst);
            (0..64).filter(move |bit| marks >> bit & 1 == 1).map(move |bit| word * 64 + bit)
        })
    }
}
