//! Who keeps the books of datagrams that are sent.

use std::io;

use super::end_by;
use crate::stats::{DropCause, ForwardStats};
use crate::udp::batch::{Books, Datagram};
use crate::udp::flow::{Flow, FlowEnd};
use crate::worker::Routes;

/// Books of what one flow sends to its target.
pub(super) struct Upward<'a> {
    pub(super) stats: &'a ForwardStats,
    pub(super) sent: u64,
    pub(super) bytes: u64,
    pub(super) joins: bool,
    pub(super) end: Option<FlowEnd>,
    /// Datagrams and bytes that were not taken because of that.
    pub(super) refused: (u64, u64),
}

impl Books for Upward<'_> {
    fn sent(&mut self, _: &Datagram, bytes: usize) {
        self.sent += 1;
        self.bytes += bytes as u64;
        self.stats.datagrams.up.add(1);
        self.stats.up_copy.add(bytes as u64);
    }

    fn dropped(&mut self, datagram: &Datagram, cause: DropCause, error: &io::Error) {
        match end_by(error) {
            // Whether it is lost is not known before the flow's end.
            Some(end) => {
                self.end = self.end.or(Some(end));
                self.refused = (self.refused.0 + 1, self.refused.1 + datagram.bytes() as u64);
            }
            None => self.stats.datagrams.drops[cause as usize].add(1),
        }
    }

    fn called(&mut self, _: &Datagram, segmented: usize) {
        self.stats.datagrams.sends.add(1);
        self.stats.datagrams.segmented.add(segmented as u64);
    }

    fn cannot_join(&mut self, _: usize) {
        self.joins = false;
    }
}

/// Books of what goes to clients, of several flows.
pub(super) struct Downward<'a> {
    pub(super) flows: &'a mut slab::Slab<Flow>,
    pub(super) routes: &'a Routes,
}

impl Books for Downward<'_> {
    fn sent(&mut self, datagram: &Datagram, bytes: usize) {
        let Some(flow) = self.flows.get_mut(datagram.flow) else { return };
        flow.answers += 1;
        flow.bytes.backend_to_client.copy += bytes as u64;
        let stats = &self.routes[flow.forward].stats;
        stats.datagrams.down.add(1);
        stats.down_copy.add(bytes as u64);
    }

    fn dropped(&mut self, datagram: &Datagram, cause: DropCause, _: &io::Error) {
        let Some(flow) = self.flows.get_mut(datagram.flow) else { return };
        self.routes[flow.forward].stats.datagrams.drops[cause as usize].add(1);
    }

    fn called(&mut self, first: &Datagram, segmented: usize) {
        let Some(flow) = self.flows.get(first.flow) else { return };
        let stats = &self.routes[flow.forward].stats.datagrams;
        stats.sends.add(1);
        stats.segmented.add(segmented as u64);
    }

    fn cannot_join(&mut self, flow: usize) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.joins[1] = false;
        }
    }
}

impl<'a> Upward<'a> {
    pub(super) fn new(stats: &'a ForwardStats) -> Self {
        Self { stats, sent: 0, bytes: 0, joins: true, end: None, refused: (0, 0) }
    }

    /// What one flow has sent, put down for it.
    pub(super) fn close(&self, flow: &mut Flow) {
        flow.requests += self.sent;
        flow.bytes.client_to_backend.copy += self.bytes;
        flow.joins[0] &= self.joins;
        flow.refused = (flow.refused.0 + self.refused.0, flow.refused.1 + self.refused.1);
    }
}
