//! The names of targets: looked up by threads of their own, told to every worker.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::names::{self, Known, Place, Resolver};
use crate::plan::{Forward, Host, Plan, Resolving};
use crate::upstream::{Targets, Upstreams};
use crate::worker::{Message, Peer};

/// Names and who wants to know.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeSet<Host>,
    resolving: Resolving,
    resolver: Option<Resolver>,
    known: Known,
    board: Arc<Mutex<Board>>,
}

/// What is known, and who is told. Both under one lock, so that a worker that learns of a new edition with the
/// addresses known now misses no later ones.
#[derive(Debug, Default)]
pub(super) struct Board {
    known: HashMap<Arc<Host>, Arc<[Place]>>,
    pub(super) peers: Vec<Arc<Peer>>,
}

/// The names of another plan, looked up already and not in use yet.
#[derive(Debug)]
pub(super) struct Prepared(Option<(BTreeSet<Host>, Resolving, Option<Resolver>)>);

impl Names {
    /// Starts to look up the names of a plan; nothing when they are the same.
    pub(super) fn prepare(&self, plan: &Plan) -> io::Result<Prepared> {
        let names = names::names(plan);
        if names == self.names && plan.resolving == self.resolving {
            return Ok(Prepared(None));
        }
        // What is found out before the plan is in use counts too.
        self.known.keep(&names.union(&self.names).cloned().collect());
        let board = Arc::clone(&self.board);
        let tell = move |host: &Host, places: &[Place]| {
            let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
            let (host, places): (Arc<Host>, Arc<[Place]>) = (host.clone().into(), places.into());
            board.known.insert(Arc::clone(&host), Arc::clone(&places));
            for peer in &board.peers {
                // One that has ended needs no telling.
                let _ = peer.mailbox.post(Message::Resolved(Arc::clone(&host), Arc::clone(&places)));
            }
        };
        let start = |names| Resolver::start(names, &plan.resolving, &self.known, tell);
        let resolver = if names.is_empty() { None } else { Some(start(names.clone())?) };
        Ok(Prepared(Some((names, plan.resolving.clone(), resolver))))
    }

    /// Goes on with those names. The look-ups of the others end.
    pub(super) fn commit(&mut self, prepared: Prepared) {
        let Some((names, resolving, resolver)) = prepared.0 else { return };
        self.board().known.retain(|host, _| names.contains(&**host));
        self.known.keep(&names);
        (self.names, self.resolving, self.resolver) = (names, resolving, resolver);
    }

    /// How each name stands.
    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// The same, for those who tell the workers something else.
    pub(super) fn shared(&self) -> &Arc<Mutex<Board>> {
        &self.board
    }

    /// What is known; nothing is told while it is held.
    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    /// The targets of a forward, with the addresses that are known.
    pub(super) fn upstreams(&self, forward: &Forward, targets: &Arc<Targets>) -> Upstreams {
        let mut upstreams = Upstreams::new(forward, targets);
        for target in &forward.targets {
            if let Some(places) = self.known.get(&target.host) {
                upstreams.resolved(&target.host, places);
            }
        }
        upstreams
    }
}
