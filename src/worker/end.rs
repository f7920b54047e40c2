//! The end of a session, and what a worker reports.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::{Accepted, GONE, Life, Message, TRIM_MS, Worker};
use crate::address::Address;
use crate::arms::ArmIndex;
use crate::limits::Ticket;
use crate::plan::{Forward, Transport};
use crate::session::{End, Session};
use crate::stats::{Bytes, EndReason, SessionRecord};
use crate::sys;

/// Finished sessions are handed to the log at once when there are that many.
const REPORT: usize = 256;

impl Worker {
    /// Ends a session: counts it, reports it, gives back what it held and closes it.
    pub(super) fn end(&mut self, key: usize, end: End) {
        let Some(mut session) = self.sessions.try_remove(key) else { return };
        self.deadlines.clear(key);
        if session.wants_retry() {
            // Its key may soon be another session's, which would then stand in the queue twice.
            self.retry.retain(|waiting| *waiting != key);
        }
        self.freed = true;
        let forward = session.origin().forward;
        let stats = &self.parts.routes[forward].stats;
        stats.open.sub(1);
        self.stalls.forget(key, stats);
        stats.ends[end.reason as usize].add(1);
        let duration = Duration::from_micros(self.now_us.saturating_sub(session.origin().opened_us));
        stats.session_time.record(duration);
        if let Some(arm) = session.arm {
            stats.arms[arm.get()].open.sub(1);
            stats.arms[arm.get()].session.record(duration);
        }
        self.give_back(key, &mut session);
        self.record(forward, session.origin().listener, |forward, listener| SessionRecord {
            at: SystemTime::now(),
            forward,
            arm: session.arm.map(ArmIndex::get),
            client: session.origin().client,
            transport: Transport::Tcp,
            proxy: session.proxy(),
            listener,
            target: session.target(),
            bytes: session.bytes(),
            duration,
            reason: end.reason,
            errno: end.errno,
        });
        session.close(end.reason, &mut self.parts.pumps, self.parts.routes[forward].edition.pool);
        if self.parts.routes.close(forward) {
            self.sweep(forward);
        }
    }

    /// Resets a connection that a limit keeps from being a session: it holds no slot.
    pub(super) fn turn_down(&mut self, accepted: &Accepted, reason: EndReason) {
        let _ = accepted.socket.set_linger(Some(Duration::ZERO));
        let stats = &self.parts.routes[accepted.forward].stats;
        stats.accepted.add(1);
        stats.ends[reason as usize].add(1);
        stats.session_time.record(Duration::ZERO);
        self.record(accepted.forward, accepted.listener, |forward, listener| SessionRecord {
            at: SystemTime::now(),
            forward,
            arm: None,
            client: accepted.client,
            transport: Transport::Tcp,
            proxy: None,
            listener,
            target: None,
            bytes: Bytes::default(),
            duration: Duration::ZERO,
            reason,
            errno: None,
        });
    }

    /// Reports a finished session of a forward and one of its addresses, where there is a log.
    fn record(
        &mut self,
        forward: usize,
        listener: usize,
        session: impl FnOnce(Arc<Forward>, Address) -> SessionRecord,
    ) {
        if self.parts.log.is_none() {
            return;
        }
        let forward = Arc::clone(&self.parts.routes[forward].edition.forward);
        if let Some(address) = forward.address(listener) {
            self.keep_record(session(forward, address));
        }
    }

    /// Keeps the record of a finished session for the log.
    pub(super) fn keep_record(&mut self, record: SessionRecord) {
        self.finished.push(record);
        if self.finished.len() >= REPORT {
            self.report_sessions();
        }
    }

    fn give_back(&mut self, key: usize, session: &mut Session) {
        let forward = session.origin().forward;
        let raced = session.leave_race(&self.parts.shared.trace).is_some();
        if session.release() || raced {
            self.tell_of_room(forward);
        }
        let limits = &self.parts.routes[forward].edition.limits;
        let ticket = self.passes.end(key, limits);
        self.parts.me.load.fetch_sub(1, Ordering::Relaxed);
        self.parts.shared.trace.forget(session.trace());
        let told = self.parts.shared.limits.leave(limits, ticket, self.now_us);
        self.tell(told);
    }

    /// Ends a turn: counters that are not kept as things happen, and finished sessions.
    pub(super) fn report(&mut self) {
        if self.trim_ms > 0 && self.now_ms() >= self.trim_ms {
            self.parts.pumps.trim();
            self.trim_ms = 0;
        }
        let stats = &self.parts.stats;
        stats.turns.add(1);
        let [in_use, pooled, budget, size] = self.parts.pumps.pipes();
        if pooled > 0 && self.trim_ms == 0 {
            self.trim_ms = self.now_us / 1000 + TRIM_MS;
        }
        stats.pipes_in_use.set(in_use as u64);
        stats.pipes_pooled.set(pooled as u64);
        stats.pipes_budget.set(budget as u64);
        stats.pipe_size.set(size as u64);
        if self.now_us >= self.measure_us {
            self.measure_us = self.now_us + 1_000_000;
            let busy_ns = u64::try_from(sys::thread_cpu_time().as_nanos()).unwrap_or(0);
            stats.busy_ns.set(self.busy_before_ns + busy_ns);
        }
        if !self.finished.is_empty() {
            self.report_sessions();
        }
    }

    fn report_sessions(&mut self) {
        let records = std::mem::take(&mut self.finished);
        let count = records.len() as u64;
        // A log that does not keep up costs lines, never time on the data path.
        if self.parts.log.as_ref().is_some_and(|log| log.try_send(records).is_err()) {
            self.parts.stats.log_dropped.add(count);
        }
    }
}

impl Worker {
    /// Resets connections that are on their way to a worker that ends, and gives back what was taken for them.
    fn turn_away(&mut self, reason: EndReason) {
        while let Ok(message) = self.parts.inbox.try_recv() {
            match message {
                Message::Accepted(accepted) => {
                    let _ = accepted.socket.set_linger(Some(Duration::ZERO));
                    if let Some(route) = self.parts.routes.get(accepted.forward) {
                        route.stats.accepted.add(1);
                    }
                    self.count_lost(accepted.forward, accepted.ticket, reason);
                }
                Message::Moved(session, ticket) => {
                    session.reset();
                    self.parts.shared.transit.arrives();
                    self.count_lost(session.origin().forward, ticket, reason);
                }
                _ => {}
            }
        }
    }

    fn count_lost(&mut self, forward: usize, ticket: Option<Box<Ticket>>, reason: EndReason) {
        // In the way out of a panic nothing may panic again.
        let Some(route) = self.parts.routes.get(forward) else { return };
        route.stats.ends[reason as usize].add(1);
        let told = self.parts.shared.limits.leave(&route.edition.limits, ticket, self.now_us);
        self.tell(told);
    }
}

impl Drop for Worker {
    /// A worker that fails takes its sessions with it: no stream may look complete, so every one is reset and counted.
    fn drop(&mut self) {
        self.parts.me.load.store(GONE, Ordering::Relaxed);
        let reason = if self.life == Life::Serving { EndReason::WorkerPanic } else { EndReason::Drain };
        self.turn_away(reason);
        if !std::thread::panicking() {
            return;
        }
        for (key, session) in std::mem::take(&mut self.sessions) {
            session.reset();
            let forward = session.origin().forward;
            let Some(route) = self.parts.routes.get(forward) else { continue };
            route.stats.open.sub(1);
            if let Some(arm) = session.arm {
                route.stats.arms[arm.get()].open.sub(1);
            }
            self.parts.shared.trace.forget(session.trace());
            let ticket = self.passes.end(key, &route.edition.limits);
            self.count_lost(forward, ticket, EndReason::WorkerPanic);
        }
        for (_, flow) in self.datagrams.take_flows() {
            let Some(route) = self.parts.routes.get(flow.forward) else { continue };
            route.stats.open.sub(1);
            let _ = self.parts.shared.flows.give();
            self.count_lost(flow.forward, flow.ticket, EndReason::WorkerPanic);
        }
    }
}
