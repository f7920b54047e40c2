//! The names of targets: looked up by threads of their own, told to every worker.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::plan::{Forward, Host, Plan};
use crate::upstream::{self, Resolver, Targets, Upstreams};
use crate::worker::{Message, Peer};

/// Names and who wants to know.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: BTreeSet<String>,
    resolver: Option<Resolver>,
    board: Arc<Mutex<Board>>,
}

/// What is known, and who is told. Both under one lock, so that a worker that learns of a new edition with the
/// addresses known now misses no later ones.
#[derive(Debug, Default)]
pub(super) struct Board {
    known: HashMap<Arc<str>, Arc<[IpAddr]>>,
    pub(super) peers: Vec<Arc<Peer>>,
}

/// The names of another plan, looked up already and not in use yet.
#[derive(Debug)]
pub(super) struct Prepared(Option<(BTreeSet<String>, Option<Resolver>)>);

impl Names {
    /// Starts to look up the names of a plan; nothing when they are the same.
    pub(super) fn prepare(&self, plan: &Plan) -> io::Result<Prepared> {
        let names = upstream::names(plan);
        if names == self.names {
            return Ok(Prepared(None));
        }
        let board = Arc::clone(&self.board);
        let tell = move |name: &str, addresses: &[IpAddr]| {
            let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
            let (name, addresses): (Arc<str>, Arc<[IpAddr]>) = (name.into(), addresses.into());
            board.known.insert(Arc::clone(&name), Arc::clone(&addresses));
            for peer in &board.peers {
                // One that has ended needs no telling.
                let _ = peer.mailbox.post(Message::Resolved(Arc::clone(&name), Arc::clone(&addresses)));
            }
        };
        let start = |names| Resolver::start(names, tell);
        let resolver = if names.is_empty() { None } else { Some(start(names.clone())?) };
        Ok(Prepared(Some((names, resolver))))
    }

    /// Goes on with those names. The look-ups of the others end.
    pub(super) fn commit(&mut self, prepared: Prepared) {
        let Some((names, resolver)) = prepared.0 else { return };
        self.board().known.retain(|name, _| names.contains(&**name));
        (self.names, self.resolver) = (names, resolver);
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
            if let Host::Name(name) = &target.host
                && let Some(addresses) = self.known.get(name.as_str())
            {
                upstreams.resolved(name, addresses);
            }
        }
        upstreams
    }
}
