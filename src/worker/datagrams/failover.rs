//! Targets that fail, and what becomes of their flows.
//!
//! Nothing connects, so what is known of a target is what its host says (ICMP, which the socket of a flow reports as an
//! error) and whether it answers. It counts as what a connection that fails counts as: so many failures in a row, with no
//! answer to any flow in between, eject the target. A flow that had no answer yet goes on to the next target, with what its
//! client has sent; one that had ends, and the next datagram of its client begins another.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::Interest;
use mio::unix::SourceFd;

use super::begin::Sender;
use crate::plan::{Forward, Host, Transport};
use crate::stats::{DropCause, EndReason};
use crate::udp::flow::{Flow, FlowEnd};
use crate::udp::table::Ready;
use crate::upstream::{Ejected, Endpoint, Lease};
use crate::worker::{Life, Worker};

/// Whether a flow may have another target to go to.
pub(super) fn can_move(forward: &Forward) -> bool {
    let literal = |host: &Host| matches!(host, Host::Ip(_) | Host::Unix(_));
    let several = forward.targets.len() > 1 || forward.targets.iter().any(|target| !literal(&target.host));
    several && forward.balancing.retries != Some(0)
}

/// Whether a flow's end says something of its target.
pub(super) fn is_to_blame(flow: &Flow, end: FlowEnd, forward: &Forward) -> bool {
    match end.reason {
        EndReason::Refused | EndReason::ConnectFailed => !matches!(end.errno, Some(libc::EPERM | libc::EACCES)),
        EndReason::ConnectTimeout => true,
        // Silence means something only where answers are expected.
        EndReason::Idle => {
            let expects = forward.udp.responses.is_some_and(|responses| responses > 0);
            expects && flow.requests > 0 && !flow.was_answered && flow.client.is_none()
        }
        _ => false,
    }
}

impl Worker {
    /// Notes that a target has failed a flow.
    pub(super) fn blame(&self, forward: usize, lease: &Lease, end: FlowEnd) {
        let route = &self.parts.routes[forward];
        if let Some(Ejected(time)) = route.upstreams.failed(lease, self.now_us / 1000) {
            let (name, label) = (lease.endpoint().forward(), lease.endpoint().label());
            let fails = route.forward().balancing.health.map_or(0, |health| health.fails);
            let why = if end.reason == EndReason::Idle { "no answer" } else { end.reason.name() };
            log::warn!(
                "forward {name:?}: target {label} is ejected for {time:?}: it failed {fails} flows or more in a row, the last \
                 one: {why}"
            );
        }
    }

    /// Takes a flow to another target where its own is to blame for the end and it can be moved; else ends it.
    pub(super) fn leave_target(&mut self, number: usize, end: FlowEnd) {
        let is_targets = matches!(end.reason, EndReason::Refused | EndReason::ConnectFailed | EndReason::TargetDown);
        if !is_targets || !self.move_flow(number, end) {
            self.end_flow(number, end);
        }
    }

    /// Gives a flow that had no answer yet another target; false where there is none, and nothing has changed.
    fn move_flow(&mut self, number: usize, end: FlowEnd) -> bool {
        let Some(flow) = self.datagrams.flows.get_mut(number) else { return false };
        let (forward, key) = (flow.forward, flow.key);
        let is_stream = flow.framing.is_some();
        // A stream that stood may have taken something.
        let stood = flow.framing.as_ref().is_some_and(|framing| framing.connected);
        if self.life == Life::Stopping || stood {
            return false;
        }
        let Some(mut spare) = flow.spare.take() else { return false };
        let retries = self.parts.routes[forward].forward().balancing.retries;
        if retries.is_some_and(|most| spare.tried.len() >= most as usize) {
            return false;
        }
        let Some(lease) = flow.lease.take() else { return false };
        spare.tried.push(lease.endpoint().id());
        if is_to_blame(&self.datagrams.flows[number], end, self.parts.routes[forward].forward()) {
            self.blame(forward, &lease, end);
        }
        drop(lease);
        let port_offset = self.datagrams.listeners[key.listener].listener.port_offset;
        let transport = if is_stream { Transport::Tcp } else { Transport::Udp };
        let sender = Sender { client: key.client.ip(), port_offset, hop: self.hop_of(key).0 };
        let found = self.connect_flow(forward, sender, transport, &mut spare.tried);
        let Ok((socket, target, lease, trace)) = found else { return false };
        let interest = if is_stream { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let token = Ready::Flow(number).token();
        let watched = self.parts.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, interest);
        if let Err(e) = watched {
            log::warn!("cannot watch a flow: {e}; fs.epoll.max_user_watches limits how many there may be");
            self.parts.shared.trace.forget(trace);
            return false;
        }
        let flow = &mut self.datagrams.flows[number];
        let left: SocketAddr = std::mem::replace(&mut flow.target, target);
        log::debug!("a flow of {} goes from target {left} to {target}: {}", key.client, end.reason.name());
        self.parts.shared.trace.forget(std::mem::replace(&mut flow.trace, trace));
        // Closing it also ends the watch of the one before.
        (flow.socket, flow.lease, flow.lost) = (socket, Some(lease), Some(0));
        self.parts.routes[forward].stats.retries.add(1);
        self.send_again(number, &spare.datagrams);
        if let Some(flow) = self.datagrams.flows.get_mut(number) {
            flow.spare = Some(spare);
        }
        true
    }

    /// Sends what a flow has kept to its new target. What was counted as passed on before is not counted once more.
    fn send_again(&mut self, number: usize, datagrams: &[Box<[u8]>]) {
        let flow = &mut self.datagrams.flows[number];
        let stats = &self.parts.routes[flow.forward].stats;
        let mut lost = 0;
        for datagram in datagrams {
            match flow.socket.send(datagram) {
                Ok(_) => stats.datagrams.sends.add(1),
                Err(e) => {
                    log::debug!("cannot pass a datagram on to target {}: {e}", flow.target);
                    lost += 1;
                }
            }
        }
        let (refused, bytes) = std::mem::take(&mut flow.refused);
        // The first ones are those that are kept.
        let passed = refused.min((datagrams.len() as u64).saturating_sub(flow.requests));
        let bytes = (bytes * passed).checked_div(refused).unwrap_or(0);
        flow.requests += passed;
        flow.bytes.client_to_backend.copy += bytes;
        stats.datagrams.up.add(passed);
        stats.up_copy.add(bytes);
        stats.datagrams.drops[DropCause::Unreachable as usize].add(lost + refused - passed);
    }

    /// Ends the flows of a target that is down; those that had no answer yet go on to the next.
    pub(in crate::worker) fn end_flows_of(&mut self, endpoint: &Arc<Endpoint>) {
        let has_it = |flow: &Flow| flow.lease.as_ref().is_some_and(|lease| Arc::ptr_eq(lease.endpoint(), endpoint));
        let all = self.datagrams.flows.iter().filter(|(_, flow)| has_it(flow));
        let all: Vec<usize> = all.map(|(number, _)| number).collect();
        for number in all {
            self.leave_target(number, FlowEnd { reason: EndReason::TargetDown, errno: None });
        }
    }
}
