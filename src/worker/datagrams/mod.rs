//! Datagrams: from a listener to the flow of their client and on to the target, and back.

mod begin;
mod books;
mod failover;
mod listeners;
mod streams;

use std::io;
use std::time::Duration;

use self::books::{Downward, Upward};
use super::Worker;
use crate::pump::Direction;
use crate::stats::{DropCause, EndReason, ForwardStats};
use crate::udp::batch::{Batch, Course, SLOTS};
use crate::udp::flow::{Flow, FlowEnd, FlowKey};
use crate::udp::table::Ready;

/// Batches taken from one listener in a turn.
const BATCHES: usize = 4;
/// Messages taken from one flow at a time, so that one batch serves several.
const OF_FLOW: usize = 8;

/// What an error of a flow's own socket means: the target, or something on the way to it, has answered so.
fn end_by(error: &io::Error) -> Option<FlowEnd> {
    let reason = match error.raw_os_error()? {
        libc::ECONNREFUSED => EndReason::Refused,
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN | libc::EACCES | libc::EPERM => {
            EndReason::ConnectFailed
        }
        _ => return None,
    };
    Some(FlowEnd { reason, errno: error.raw_os_error() })
}

impl Worker {
    /// Forwards what sockets that are ready have.
    pub(super) fn forward_datagrams(&mut self) {
        if !self.datagrams.has_ready() {
            return;
        }
        let mut batch = std::mem::take(&mut self.datagrams.batch);
        let mut listening = std::mem::take(&mut self.datagrams.listening);
        listening.retain(|number| self.take_datagrams(*number, &mut batch));
        self.datagrams.listening.append(&mut listening);
        self.take_answers(&mut batch);
        batch.clear();
        self.datagrams.batch = batch;
    }

    /// Takes what a listener has and sends it on; true when it may have more.
    fn take_datagrams(&mut self, number: usize, batch: &mut Batch) -> bool {
        for _ in 0..BATCHES {
            batch.clear();
            let Some(listening) = self.datagrams.listeners.get_mut(number) else { return false };
            let forward = listening.listener.forward;
            match batch.receive(&listening.listener.socket, SLOTS) {
                Ok((messages, more)) => {
                    let lost = batch.lost(messages.clone(), &mut listening.lost);
                    if let Some(route) = self.parts.routes.get(forward) {
                        route.stats.datagrams.receives.add(1);
                        route.stats.datagrams.drops[DropCause::Socket as usize].add(lost);
                    }
                    messages.for_each(|message| self.sort_in(number, message, batch));
                    self.send_up(batch);
                    if more {
                        continue;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // An error that was pending is told once. One that lasts tells itself by the next event.
                Err(e) => log::debug!("cannot receive datagrams: {e}"),
            }
            if let Some(listening) = self.datagrams.listeners.get_mut(number) {
                listening.ready = false;
            }
            return false;
        }
        true
    }

    /// Finds the flow of a message, or begins one; drops it where there is to be none.
    fn sort_in(&mut self, number: usize, index: usize, batch: &mut Batch) {
        let message = batch.message(index);
        let Some(client) = message.from else { return };
        let key = FlowKey { listener: number, client, local: message.local };
        let known = self.datagrams.index.get(&key).copied();
        let flow = known.map_or_else(|| self.begin_flow(key), Ok);
        let forward = self.datagrams.listeners[number].listener.forward;
        match flow {
            Ok(number) => {
                let flow = &self.datagrams.flows[number];
                let (joins, route) = (flow.joins[0], &self.parts.routes[flow.forward]);
                let count = message.count() as u64;
                route.stats.datagrams.joined.add(if count > 1 { count } else { 0 });
                let limits = &route.edition.limits;
                if limits.lets_pass(flow.ticket.as_deref(), Direction::Up, message.len, self.now_us) {
                    batch.add(index, Course { flow: number, way: number, from: None, to: None, joins });
                } else {
                    route.stats.datagrams.drops[DropCause::Rate as usize].add(count);
                }
            }
            Err(cause) => {
                if let Some(route) = self.parts.routes.get(forward) {
                    route.stats.datagrams.drops[cause as usize].add(message.count() as u64);
                }
            }
        }
    }

    /// Sends what clients have sent.
    fn send_up(&mut self, batch: &mut Batch) {
        let mut ended = Vec::new();
        batch.ordered();
        for group in batch.datagrams().chunk_by(|a, b| a.way == b.way) {
            let number = group[0].flow;
            let Some(flow) = self.datagrams.flows.get_mut(number) else { continue };
            let route = &self.parts.routes[flow.forward];
            flow.active_us = self.now_us;
            let end = if flow.framing.is_some() {
                streams::push_up(flow, &route.stats, batch, group)
            } else {
                if let Some(spare) = &mut flow.spare {
                    group.iter().for_each(|datagram| spare.keep(batch.bytes(datagram)));
                }
                let mut books = Upward::new(&route.stats);
                batch.send(&flow.socket, group, &mut books);
                books.close(flow);
                books.end
            };
            if let Some(end) = end {
                ended.push((number, end));
            } else if route.forward().udp.responses == Some(0) && flow.requests > 0 && flow.waiting() == 0 {
                ended.push((number, FlowEnd { reason: EndReason::Done, errno: None }));
            }
        }
        ended.into_iter().for_each(|(number, end)| self.leave_target(number, end));
    }

    /// Takes what targets have sent, several flows a batch, and sends it to the clients.
    fn take_answers(&mut self, batch: &mut Batch) {
        let ready = std::mem::take(&mut self.datagrams.ready);
        let mut ended = Vec::new();
        batch.clear();
        for number in ready {
            if batch.is_full() {
                self.send_down(batch, &mut ended);
            }
            let Some(flow) = self.datagrams.flows.get_mut(number) else { continue };
            flow.queued = false;
            if flow.client.is_some() {
                self.send_down(batch, &mut ended);
                self.serve_tunnel(number, batch, &mut ended);
            } else if flow.framing.is_some() {
                self.take_from_stream(number, batch, &mut ended);
            } else {
                self.take_from_flow(number, batch, &mut ended);
            }
        }
        self.send_down(batch, &mut ended);
        ended.into_iter().for_each(|(number, end)| self.leave_target(number, end));
    }

    fn take_from_flow(&mut self, number: usize, batch: &mut Batch, ended: &mut Vec<(usize, FlowEnd)>) {
        let Some(flow) = self.datagrams.flows.get_mut(number) else { return };
        match batch.receive(&flow.socket, OF_FLOW) {
            Ok((messages, more)) => {
                let route = &self.parts.routes[flow.forward];
                route.stats.datagrams.receives.add(1);
                let lost = batch.lost(messages.clone(), &mut flow.lost);
                route.stats.datagrams.drops[DropCause::Socket as usize].add(lost);
                note_answer(flow, self.now_us, &route.stats);
                let course = course_down(number, flow);
                for index in messages {
                    let message = batch.message(index);
                    let count = message.count() as u64;
                    route.stats.datagrams.joined.add(if count > 1 { count } else { 0 });
                    let limits = &route.edition.limits;
                    if limits.lets_pass(flow.ticket.as_deref(), Direction::Down, message.len, self.now_us) {
                        batch.add(index, course);
                    } else {
                        route.stats.datagrams.drops[DropCause::Rate as usize].add(count);
                    }
                }
                if more {
                    self.datagrams.note(Ready::Flow(number));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => self.datagrams.note(Ready::Flow(number)),
            Err(e) => match end_by(&e) {
                Some(end) => ended.push((number, end)),
                None => {
                    log::debug!("cannot receive an answer: {e}");
                    self.datagrams.note(Ready::Flow(number));
                }
            },
        }
    }

    fn send_down(&mut self, batch: &mut Batch, ended: &mut Vec<(usize, FlowEnd)>) {
        batch.ordered();
        for group in batch.datagrams().chunk_by(|a, b| (a.way, a.from) == (b.way, b.from)) {
            let Some(listening) = self.datagrams.listeners.get(group[0].way) else { continue };
            let mut books = Downward { flows: &mut self.datagrams.flows, routes: &self.parts.routes };
            batch.send(&listening.listener.socket, group, &mut books);
        }
        for group in batch.datagrams().chunk_by(|a, b| a.flow == b.flow) {
            let Some(flow) = self.datagrams.flows.get(group[0].flow) else { continue };
            if flow.is_answered(self.parts.routes[flow.forward].forward().udp.responses) {
                ended.push((group[0].flow, FlowEnd { reason: EndReason::Done, errno: None }));
            }
        }
        batch.clear();
    }

    /// Ends flows that had no datagram for as long as they may.
    pub(super) fn expire_flows(&mut self) {
        let Some(deadlines) = &mut self.datagrams.deadlines else { return };
        let (now_ms, mut due) = (self.now_us / 1000, std::mem::take(&mut self.datagrams.due));
        deadlines.expire(now_ms, &mut due);
        for number in due.drain(..) {
            let Some(flow) = self.datagrams.flows.get(number) else { continue };
            let (at_ms, reason) = flow.deadline(self.parts.routes[flow.forward].forward());
            if at_ms <= now_ms && !flow.queued {
                self.end_flow(number, FlowEnd { reason, errno: None });
            } else {
                self.datagrams.set_deadline(number, at_ms.max(now_ms + 1));
            }
        }
        self.datagrams.due = due;
    }
}

/// Where a flow's answers go.
fn course_down(number: usize, flow: &Flow) -> Course {
    let FlowKey { listener, client, local } = flow.key;
    Course { flow: number, way: listener, from: local, to: Some(client), joins: flow.joins[1] }
}

/// The target has sent something.
fn note_answer(flow: &mut Flow, now_us: u64, stats: &ForwardStats) {
    flow.active_us = now_us;
    if !std::mem::replace(&mut flow.was_answered, true) {
        stats.first_byte_time.record(Duration::from_micros(now_us.saturating_sub(flow.opened_us)));
        flow.spare = None;
    }
    // Each time: failures of other flows are in a row only as long as nobody has an answer in between.
    if let Some(lease) = flow.lease.as_ref().filter(|lease| lease.endpoint().answers()) {
        log::info!("forward {:?}: target {} answers again", lease.endpoint().forward(), lease.endpoint().label());
    }
}
