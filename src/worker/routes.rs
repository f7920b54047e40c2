//! Forwards as one worker sees them.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use crate::limits::ForwardLimits;
use crate::plan::Forward;
use crate::stats::ForwardStats;
use crate::upstream::{SourcePool, Targets, Upstreams};

/// A forward as it was configured at one time. Sessions keep the edition they began with, whatever a reload changes.
#[derive(Debug)]
pub struct Edition {
    /// Its number, the same in every worker; free for another one when nobody holds this one any more.
    pub id: usize,
    /// What was configured.
    pub forward: Arc<Forward>,
    /// Limits of the forward, shared by all its editions.
    pub limits: Arc<ForwardLimits>,
    /// Its targets as all workers share them, kept over all its editions.
    pub targets: Arc<Targets>,
    /// Index of the pool with its pipe size.
    pub pool: usize,
}

/// An edition with what one worker keeps for it.
#[derive(Debug)]
pub struct Route {
    /// Which.
    pub edition: Arc<Edition>,
    /// Its targets.
    pub upstreams: Upstreams,
    /// Where its connections to the targets come from.
    pub sources: SourcePool,
    /// Its counters.
    pub stats: Arc<ForwardStats>,
    /// The plan has it. Sessions of others do not move: they could come to a worker that has given it up.
    pub(super) current: bool,
    /// Sessions this worker holds.
    open: usize,
    /// No listener of any worker leads to it any more.
    retired: bool,
}

/// The routes of one worker by the number of their edition.
///
/// Invariant: a route stays as long as a session or a listener of the worker has its number.
#[derive(Debug, Default)]
pub struct Routes(Vec<Option<Route>>);

impl Route {
    /// Without a session, for the worker with that number.
    #[must_use]
    pub fn new(edition: Arc<Edition>, upstreams: Upstreams, stats: Arc<ForwardStats>, worker: usize) -> Self {
        let sources = SourcePool::new(&edition.forward.sources, worker);
        Self { edition, upstreams, sources, stats, current: false, open: 0, retired: false }
    }

    /// What was configured.
    #[must_use]
    pub fn forward(&self) -> &Forward {
        &self.edition.forward
    }
}

impl Routes {
    /// Adds one, unless it is there already.
    pub fn add(&mut self, route: Route) {
        let id = route.edition.id;
        if self.0.len() <= id {
            self.0.resize_with(id + 1, || None);
        }
        self.0[id].get_or_insert(route);
    }

    /// The one with that number, if it is here.
    pub(super) fn get(&self, id: usize) -> Option<&Route> {
        self.0.get(id)?.as_ref()
    }

    /// All of them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Route> {
        self.0.iter_mut().flatten()
    }

    /// A session begins.
    pub(super) fn open(&mut self, id: usize) {
        self[id].open += 1;
    }

    /// A session has ended; true when nobody needs the route any more but, perhaps, a listener.
    pub(super) fn close(&mut self, id: usize) -> bool {
        let route = &mut self[id];
        debug_assert!(route.open > 0, "a session ends once");
        route.open -= 1;
        route.retired && route.open == 0
    }

    /// No connection will come for it any more; true when nobody needs it any more but, perhaps, a listener.
    pub(super) fn retire(&mut self, id: usize) -> bool {
        let Some(Some(route)) = self.0.get_mut(id) else { return false };
        route.retired = true;
        route.open == 0
    }

    /// Whether it is of no use but to a listener.
    pub(super) fn is_spent(&self, id: usize) -> bool {
        matches!(self.0.get(id), Some(Some(route)) if route.retired && route.open == 0)
    }

    /// Gives one up.
    pub(super) fn remove(&mut self, id: usize) {
        if let Some(route) = self.0.get_mut(id) {
            *route = None;
        }
    }
}

impl Index<usize> for Routes {
    type Output = Route;
    fn index(&self, id: usize) -> &Route {
        self.0[id].as_ref().expect("a route stays while a session or a listener has its number")
    }
}

impl IndexMut<usize> for Routes {
    fn index_mut(&mut self, id: usize) -> &mut Route {
        self.0[id].as_mut().expect("a route stays while a session or a listener has its number")
    }
}
