//! Datagrams of which one side is a stream: a target that speaks TCP, or a client that does.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::begin::Sender;
use super::books::Upward;
use super::{course_down, note_answer};
use crate::address::Address;
use crate::limits::Ticket;
use crate::plan::{Refusal, Transport};
use crate::pump::Direction;
use crate::stats::{DropCause, EndReason, ForwardStats};
use crate::udp::batch::{Batch, Course, Datagram};
use crate::udp::flow::{Client, Flow, FlowEnd, FlowKey};
use crate::udp::framing::{Framing, Left, MANY};
use crate::udp::table::Ready;
use crate::worker::{Accepted, Life, Worker};

/// Reads from one stream in a turn.
const READS: usize = 4;

const DONE: FlowEnd = FlowEnd { reason: EndReason::Done, errno: None };

/// What an error of a stream means.
fn end_of(error: &io::Error, reset: EndReason, vanished: EndReason) -> FlowEnd {
    let reason = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => EndReason::Refused,
        Some(libc::ECONNRESET | libc::EPIPE) => reset,
        Some(libc::ETIMEDOUT) => vanished,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => EndReason::ConnectFailed,
        _ => EndReason::Error,
    };
    FlowEnd { reason, errno: error.raw_os_error() }
}

fn by_backend(error: &io::Error) -> FlowEnd {
    end_of(error, EndReason::ResetByBackend, EndReason::BackendVanished)
}

fn by_client(error: &io::Error) -> FlowEnd {
    end_of(error, EndReason::ResetByClient, EndReason::ClientVanished)
}

/// Puts datagrams into the stream to the target; what has no room there is dropped.
pub(super) fn push_up(flow: &mut Flow, stats: &ForwardStats, batch: &Batch, group: &[Datagram]) -> Option<FlowEnd> {
    let framing = flow.framing.as_mut()?;
    let lost = group.iter().filter(|datagram| !framing.push(batch.bytes(datagram))).count();
    stats.datagrams.drops[DropCause::NoRoom as usize].add(lost as u64);
    let mut left = Left::default();
    let result = framing.flush(&flow.socket, &mut left);
    stats.datagrams.up.add(left.datagrams);
    stats.datagrams.sends.add(left.calls);
    stats.up_copy.add(left.bytes);
    flow.requests += left.datagrams;
    flow.bytes.client_to_backend.copy += left.bytes;
    result.err().map(|e| by_backend(&e))
}

/// Writes what waits for the client.
fn flush_down(flow: &mut Flow, stats: &ForwardStats) -> Option<FlowEnd> {
    let client = flow.client.as_mut()?;
    let mut left = Left::default();
    let result = client.framing.flush(&client.stream, &mut left);
    stats.datagrams.down.add(left.datagrams);
    stats.datagrams.sends.add(left.calls);
    stats.down_copy.add(left.bytes);
    flow.answers += left.datagrams;
    flow.bytes.backend_to_client.copy += left.bytes;
    result.err().map(|e| by_client(&e))
}

impl Worker {
    /// Goes on with a flow whose target speaks a stream: the end of the handshake, what waits for it, what it has sent.
    pub(super) fn take_from_stream(&mut self, number: usize, batch: &mut Batch, ended: &mut Vec<(usize, FlowEnd)>) {
        let Some(flow) = self.datagrams.flows.get_mut(number) else { return };
        let route = &self.parts.routes[flow.forward];
        let Some(framing) = flow.framing.as_mut() else { return };
        if !framing.connected {
            if let Ok(Some(e)) = flow.socket.take_error() {
                return ended.push((number, by_backend(&e)));
            }
            if flow.socket.peer_addr().is_err() {
                return;
            }
            framing.connected = true;
            let time = Duration::from_micros(self.now_us.saturating_sub(flow.opened_us));
            route.stats.connect_time.record(time);
        }
        if let Some(end) = push_up(flow, &route.stats, batch, &[]) {
            return ended.push((number, end));
        }
        for _ in 0..READS {
            if batch.is_full() {
                self.send_down(batch, ended);
            }
            let Some(flow) = self.datagrams.flows.get_mut(number) else { return };
            let course = course_down(number, flow);
            let Some(framing) = flow.framing.as_mut() else { return };
            let result = batch.read(framing, &flow.socket, course);
            let (is_over, is_cut) = (framing.ended, framing.is_cut());
            let route = &self.parts.routes[flow.forward];
            match result {
                Ok(count) => {
                    route.stats.datagrams.receives.add(1);
                    if count > 0 {
                        note_answer(flow, self.now_us, &route.stats);
                    }
                    let limits = &route.edition.limits;
                    let bytes = batch.last_bytes(count);
                    if !limits.lets_pass(flow.ticket.as_deref(), Direction::Down, bytes, self.now_us) {
                        batch.forget_last(count);
                        route.stats.datagrams.drops[DropCause::Rate as usize].add(count as u64);
                    }
                    if is_over {
                        route.stats.datagrams.drops[DropCause::Error as usize].add(u64::from(is_cut));
                        return ended.push((number, DONE));
                    }
                    if count >= MANY {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return ended.push((number, by_backend(&e))),
            }
        }
        self.datagrams.note(Ready::Flow(number));
    }

    /// Goes on with a flow whose client speaks a stream. The batch is empty before and afterwards.
    pub(super) fn serve_tunnel(&mut self, number: usize, batch: &mut Batch, ended: &mut Vec<(usize, FlowEnd)>) {
        let end = self.tunnel_up(number, batch).or_else(|| self.tunnel_down(number, batch));
        batch.clear();
        let Some(flow) = self.datagrams.flows.get(number) else { return };
        let expected = self.parts.routes[flow.forward].forward().udp.responses.or(Some(1));
        let is_over = flow.client.as_ref().is_some_and(|client| client.framing.ended)
            && flow.waiting() == 0
            && flow.is_answered(expected);
        if let Some(end) = end.or(is_over.then_some(DONE)) {
            ended.push((number, end));
        }
    }

    fn tunnel_up(&mut self, number: usize, batch: &mut Batch) -> Option<FlowEnd> {
        let flow = self.datagrams.flows.get_mut(number)?;
        let route = &self.parts.routes[flow.forward];
        for _ in 0..READS {
            batch.clear();
            let client = flow.client.as_mut()?;
            if client.framing.ended {
                return None;
            }
            let course = Course { flow: number, way: number, from: None, to: None, joins: flow.joins[0] };
            match batch.read(&mut client.framing, &client.stream, course) {
                Ok(count) => {
                    route.stats.datagrams.receives.add(1);
                    if client.framing.ended {
                        route.stats.datagrams.drops[DropCause::Error as usize].add(u64::from(client.framing.is_cut()));
                    }
                    flow.active_us = self.now_us;
                    let limits = &route.edition.limits;
                    let bytes = batch.last_bytes(count);
                    if !limits.lets_pass(flow.ticket.as_deref(), Direction::Up, bytes, self.now_us) {
                        route.stats.datagrams.drops[DropCause::Rate as usize].add(count as u64);
                        continue;
                    }
                    let mut books = Upward::new(&route.stats);
                    batch.send(&flow.socket, batch.datagrams(), &mut books);
                    books.close(flow);
                    if books.end.is_some() {
                        return books.end;
                    }
                    if count >= MANY {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Some(by_client(&e)),
            }
        }
        self.datagrams.note(Ready::Flow(number));
        None
    }

    fn tunnel_down(&mut self, number: usize, batch: &mut Batch) -> Option<FlowEnd> {
        batch.clear();
        let flow = self.datagrams.flows.get_mut(number)?;
        let route = &self.parts.routes[flow.forward];
        let (mut again, limits) = (false, &route.edition.limits);
        match batch.receive(&flow.socket, super::OF_FLOW) {
            Ok((messages, more)) => {
                again = more;
                route.stats.datagrams.receives.add(1);
                let lost = batch.lost(messages.clone(), &mut flow.lost);
                route.stats.datagrams.drops[DropCause::Socket as usize].add(lost);
                note_answer(flow, self.now_us, &route.stats);
                let course = course_down(number, flow);
                messages.for_each(|message| batch.add(message, course));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => match super::end_by(&e) {
                Some(end) => return Some(end),
                None => again = true,
            },
        }
        let client = flow.client.as_mut()?;
        for datagram in batch.datagrams() {
            let bytes = batch.bytes(datagram);
            let cause = if !limits.lets_pass(flow.ticket.as_deref(), Direction::Down, bytes.len(), self.now_us) {
                DropCause::Rate
            } else if !client.framing.push(bytes) {
                DropCause::NoRoom
            } else {
                continue;
            };
            route.stats.datagrams.drops[cause as usize].add(1);
        }
        let end = flush_down(flow, &route.stats);
        if again && end.is_none() {
            self.datagrams.note(Ready::Flow(number));
        }
        end
    }

    /// Makes a flow of a connection whose datagrams go to a target that takes datagrams. Its slot and its place in the load
    /// table are taken already.
    pub(in crate::worker) fn begin_tunnel(&mut self, mut accepted: Accepted) {
        // The flow takes a place of its own.
        self.parts.me.load.fetch_sub(1, Ordering::Relaxed);
        let forward = accepted.forward;
        let ticket = accepted.ticket.take();
        // The configuration lets no unix socket lead to datagrams.
        let Address::Ip(client) = accepted.client else {
            return self.refuse_tunnel(&accepted, ticket, EndReason::Error);
        };
        let refused = match self.parts.routes[forward].forward().access.refuses(client.ip()) {
            _ if self.life == Life::Stopping => Some(EndReason::Drain),
            Some(Refusal::Denied) => Some(EndReason::Denied),
            Some(Refusal::NotAllowed) => Some(EndReason::NotAllowed),
            None if accepted.hop.is_loop(forward) => Some(EndReason::Loop),
            None => None,
        };
        if let Some(reason) = refused {
            return self.refuse_tunnel(&accepted, ticket, reason);
        }
        if !self.parts.shared.flows.take() {
            return self.refuse_tunnel(&accepted, ticket, EndReason::Limit);
        }
        let sender = Sender { client: client.ip(), port_offset: accepted.port_offset, hop: accepted.hop };
        let target = match self.connect_flow(forward, sender, Transport::Udp, &mut Vec::new()) {
            Ok(target) => target,
            Err(cause) => {
                let _ = self.parts.shared.flows.give();
                let reason = match cause {
                    DropCause::Unresolved => EndReason::Unresolved,
                    DropCause::NoDescriptors => EndReason::NoDescriptors,
                    DropCause::NoPorts => EndReason::NoPorts,
                    _ => EndReason::ConnectFailed,
                };
                return self.refuse_tunnel(&accepted, ticket, reason);
            }
        };
        let listener = self.parts.routes[forward].forward().address(accepted.listener);
        let Some(listener) = listener.and_then(Address::socket) else {
            let _ = self.parts.shared.flows.give();
            return self.refuse_tunnel(&accepted, ticket, EndReason::Error);
        };
        let framing = Framing::connected();
        let stream = Client { stream: accepted.socket, framing, listener };
        let key = FlowKey { listener: usize::MAX, client, local: None };
        // An error has ended and counted it.
        let _ = self.enter_flow(key, forward, target, ticket, Some(Box::new(stream)));
    }

    fn refuse_tunnel(&mut self, accepted: &Accepted, ticket: Option<Box<Ticket>>, reason: EndReason) {
        self.turn_down(accepted, reason);
        let limits = &self.parts.routes[accepted.forward].edition.limits;
        let told = self.parts.shared.limits.leave(limits, ticket, self.now_us);
        self.tell(told);
    }
}
