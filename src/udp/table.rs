//! The listeners and flows of one worker.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use mio::Token;
use slab::Slab;

use super::batch::Batch;
use super::flow::{Flow, FlowKey, Listener};
use crate::deadline::Deadlines;

/// Marks the tokens of sockets that carry datagrams.
pub(crate) const DATAGRAMS: usize = 1 << (usize::BITS - 3);
/// Among those, marks the flows' own.
const FLOW: usize = 1 << (usize::BITS - 4);

/// A listener of this worker.
#[derive(Debug)]
pub struct Listening {
    /// Which.
    pub listener: Listener,
    /// Flows that came by it.
    pub flows: usize,
    /// There may be datagrams.
    pub ready: bool,
    /// Its events are watched.
    pub watched: bool,
    /// What the kernel had dropped of it so far, by the last datagram; `None` before the first one.
    pub lost: Option<u32>,
    /// It is not among those dealt to this worker any more, and goes when its last flow has ended.
    pub closing: bool,
}

/// What one worker holds of datagrams.
#[derive(Debug, Default)]
pub struct Table {
    /// Listeners by number.
    pub listeners: Slab<Listening>,
    /// Flows by number.
    pub flows: Slab<Flow>,
    /// Flows by what tells them apart.
    pub index: HashMap<FlowKey, usize>,
    /// When flows are to be looked at, by number.
    pub deadlines: Option<Box<Deadlines>>,
    /// Listeners that may have datagrams.
    pub listening: Vec<usize>,
    /// Flows that may have some.
    pub ready: Vec<usize>,
    /// What is on its way.
    pub batch: Batch,
    /// For flows that are due, kept for its memory.
    pub due: Vec<usize>,
}

/// What a token of ours stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// A listener.
    Listener(usize),
    /// A flow.
    Flow(usize),
}

impl Ready {
    /// The token.
    #[must_use]
    pub fn token(self) -> Token {
        Token(match self {
            Self::Listener(number) => DATAGRAMS | number,
            Self::Flow(number) => DATAGRAMS | FLOW | number,
        })
    }

    /// What a token with the mark of datagrams stands for.
    #[must_use]
    pub fn of(token: Token) -> Self {
        let number = token.0 & !(DATAGRAMS | FLOW);
        if token.0 & FLOW == 0 { Self::Listener(number) } else { Self::Flow(number) }
    }
}

impl Table {
    /// Notes that a socket may have datagrams.
    pub fn note(&mut self, ready: Ready) {
        match ready {
            Ready::Listener(number) => {
                if let Some(listening) = self.listeners.get_mut(number).filter(|listening| !listening.ready) {
                    listening.ready = true;
                    self.listening.push(number);
                }
            }
            Ready::Flow(number) => {
                if let Some(flow) = self.flows.get_mut(number).filter(|flow| !flow.queued) {
                    flow.queued = true;
                    self.ready.push(number);
                }
            }
        }
    }

    /// Whether some socket may have datagrams.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.listening.is_empty() || !self.ready.is_empty()
    }

    /// When flows are next to be looked at, in milliseconds.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.deadlines.as_ref()?.next_ms()
    }

    /// Has a flow looked at then.
    pub fn set_deadline(&mut self, flow: usize, at_ms: u64) {
        self.deadlines.get_or_insert_default().set(flow, at_ms);
    }

    /// Adds a flow.
    pub fn insert(&mut self, flow: Flow) -> usize {
        let key = flow.key;
        let has_listener = flow.client.is_none();
        let number = self.flows.insert(flow);
        if has_listener {
            self.listeners[key.listener].flows += 1;
            self.listeners[key.listener].listener.flows.fetch_add(1, Ordering::AcqRel);
            self.index.insert(key, number);
        }
        number
    }

    /// Takes a flow out, if it is there.
    pub fn remove(&mut self, number: usize) -> Option<Flow> {
        let flow = self.flows.try_remove(number)?;
        if flow.client.is_none() {
            self.listeners[flow.key.listener].flows -= 1;
            self.listeners[flow.key.listener].listener.flows.fetch_sub(1, Ordering::AcqRel);
            self.index.remove(&flow.key);
        }
        if let Some(deadlines) = &mut self.deadlines {
            deadlines.clear(number);
        }
        if flow.queued {
            self.ready.retain(|other| *other != number);
        }
        Some(flow)
    }

    /// Forgets every flow; those that there were.
    pub fn take_flows(&mut self) -> Slab<Flow> {
        for (_, listening) in &mut self.listeners {
            listening.listener.flows.fetch_sub(std::mem::take(&mut listening.flows), Ordering::AcqRel);
        }
        std::mem::take(&mut self.flows)
    }

    /// Whether a listener counts for that edition, be it only the datagrams it drops because it is to go.
    #[must_use]
    pub fn leads_to(&self, forward: usize) -> bool {
        self.listeners.iter().any(|(_, listening)| listening.listener.forward == forward)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart() {
        for ready in [Ready::Listener(0), Ready::Listener(70_000), Ready::Flow(0), Ready::Flow(1 << 30)] {
            assert_eq!(Ready::of(ready.token()), ready);
            assert!(ready.token().0 & DATAGRAMS != 0 && ready.token().0 < 1 << (usize::BITS - 2));
        }
    }
}
