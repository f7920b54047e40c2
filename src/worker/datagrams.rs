//! Datagrams: from a listener to the flow of their client and on to the target, and back.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mio::Interest;
use mio::unix::SourceFd;

use super::{Life, Worker};
use crate::limits::Ticket;
use crate::plan::{Refusal, Transport};
use crate::stats::{Bytes, DropCause, EndReason, ForwardStats, SessionRecord};
use crate::sys;
use crate::udp::batch::{Batch, Books, Course, Datagram, Message, SLOTS};
use crate::udp::doors::{datagrams, set_buffers};
use crate::udp::flow::{Flow, FlowEnd, FlowKey};
use crate::udp::table::Ready;
use crate::udp::{cause_of, socket};

/// Batches taken from one listener in a turn.
const BATCHES: usize = 4;
/// Messages taken from one flow at a time, so that one batch serves several.
const OF_FLOW: usize = 8;

impl FlowEnd {
    fn of(reason: EndReason) -> Self {
        Self { reason, errno: None }
    }

    /// What an error of a flow's own socket means: the target, or something on the way to it, has answered so.
    fn by(error: &io::Error) -> Option<Self> {
        let reason = match error.raw_os_error()? {
            libc::ECONNREFUSED => EndReason::Refused,
            libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN | libc::EACCES | libc::EPERM => {
                EndReason::ConnectFailed
            }
            _ => return None,
        };
        Some(Self { reason, errno: error.raw_os_error() })
    }
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
                    if let Some(route) = self.parts.routes.get(forward) {
                        route.stats.datagrams.receives.add(1);
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
            Ok(flow) => {
                let joins = self.datagrams.flows[flow].joins[0];
                self.count_joined(forward, &message);
                batch.add(index, Course { flow, way: flow, from: None, to: None, joins });
            }
            Err(cause) => {
                if let Some(route) = self.parts.routes.get(forward) {
                    route.stats.datagrams.drops[cause as usize].add(message.count() as u64);
                }
            }
        }
    }

    fn count_joined(&self, forward: usize, message: &Message) {
        if message.count() > 1
            && let Some(route) = self.parts.routes.get(forward)
        {
            route.stats.datagrams.joined.add(message.count() as u64);
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
            let mut books = Upward { stats: &route.stats, sent: 0, bytes: 0, joins: true, end: None };
            batch.send(&flow.socket, group, &mut books);
            flow.requests += books.sent;
            flow.bytes.client_to_backend.copy += books.bytes;
            flow.joins[0] &= books.joins;
            flow.active_us = self.now_us;
            let end = books.end;
            if let Some(end) = end {
                ended.push((number, end));
            } else if route.forward().udp.responses == Some(0) && flow.requests > 0 {
                ended.push((number, FlowEnd::of(EndReason::Done)));
            }
        }
        ended.into_iter().for_each(|(number, end)| self.end_flow(number, end));
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
            self.take_from_flow(number, batch, &mut ended);
        }
        self.send_down(batch, &mut ended);
        ended.into_iter().for_each(|(number, end)| self.end_flow(number, end));
    }

    fn take_from_flow(&mut self, number: usize, batch: &mut Batch, ended: &mut Vec<(usize, FlowEnd)>) {
        let Some(flow) = self.datagrams.flows.get_mut(number) else { return };
        flow.queued = false;
        match batch.receive(&flow.socket, OF_FLOW) {
            Ok((messages, more)) => {
                let route = &self.parts.routes[flow.forward];
                route.stats.datagrams.receives.add(1);
                flow.active_us = self.now_us;
                if flow.answers == 0 && !messages.is_empty() {
                    let time = Duration::from_micros(self.now_us.saturating_sub(flow.opened_us));
                    route.stats.first_byte_time.record(time);
                }
                let FlowKey { listener, client, local } = flow.key;
                let course =
                    Course { flow: number, way: listener, from: local, to: Some(client), joins: flow.joins[1] };
                let joined: usize =
                    messages.clone().map(|m| batch.message(m).count()).filter(|datagrams| *datagrams > 1).sum();
                route.stats.datagrams.joined.add(joined as u64);
                messages.for_each(|message| batch.add(message, course));
                if more {
                    self.datagrams.note(Ready::Flow(number));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => self.datagrams.note(Ready::Flow(number)),
            Err(e) => match FlowEnd::by(&e) {
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
                ended.push((group[0].flow, FlowEnd::of(EndReason::Done)));
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
            let at_ms = flow.deadline_ms(self.parts.routes[flow.forward].forward().udp.timeout);
            if at_ms <= now_ms && !flow.queued {
                self.end_flow(number, FlowEnd::of(EndReason::Idle));
            } else {
                self.datagrams.set_deadline(number, at_ms.max(now_ms + 1));
            }
        }
        self.datagrams.due = due;
    }
}

/// A flow that begins.
impl Worker {
    /// Begins the flow of a client. What stands against it is the cause by which its datagram is dropped.
    fn begin_flow(&mut self, key: FlowKey) -> Result<usize, DropCause> {
        let listening = &self.datagrams.listeners[key.listener];
        if listening.closing || self.life != Life::Serving {
            return Err(DropCause::Drain);
        }
        let (forward, port_offset) = (listening.listener.forward, listening.listener.port_offset);
        let client = key.client.ip();
        match self.parts.routes[forward].forward().access.refuses(client) {
            Some(Refusal::Denied) => return Err(DropCause::Denied),
            Some(Refusal::NotAllowed) => return Err(DropCause::NotAllowed),
            None => {}
        }
        let ticket = self.admit_flow(forward, client)?;
        match self.connect_flow(forward, port_offset) {
            Ok((socket, target)) => self.enter_flow(key, forward, socket, target, ticket),
            Err(cause) => {
                self.leave_flow(forward, ticket);
                Err(cause)
            }
        }
    }

    fn admit_flow(&mut self, forward: usize, client: IpAddr) -> Result<Option<Box<Ticket>>, DropCause> {
        let cause = |reason| if reason == EndReason::Rate { DropCause::Rate } else { DropCause::Limit };
        if !self.parts.shared.flows.take() {
            return Err(DropCause::Limit);
        }
        let limits = &self.parts.routes[forward].edition.limits;
        let (admitted, told) = self.parts.shared.limits.admit_at_once(limits, self.now_us);
        let entered = match admitted {
            Ok(()) => self.parts.shared.limits.enter(limits, client, self.now_us).map_err(|reason| (reason, true)),
            Err(reason) => Err((reason, false)),
        };
        let back = match &entered {
            Err((_, true)) => Some(self.parts.shared.limits.withdraw(limits)),
            _ => None,
        };
        self.tell(told);
        back.into_iter().for_each(|told| self.tell(told));
        entered.map_err(|(reason, _)| {
            let _ = self.parts.shared.flows.give();
            cause(reason)
        })
    }

    /// Gives back what a flow held of limits.
    fn leave_flow(&mut self, forward: usize, ticket: Option<Box<Ticket>>) {
        let _ = self.parts.shared.flows.give();
        let limits = &self.parts.routes[forward].edition.limits;
        let told = self.parts.shared.limits.leave(limits, ticket, self.now_us);
        self.tell(told);
    }

    /// A socket that is connected to the next target whose address the system takes.
    fn connect_flow(&mut self, forward: usize, port_offset: u16) -> Result<(socket2::Socket, SocketAddr), DropCause> {
        let first = self.parts.routes[forward].upstreams.pick();
        let upstreams = &self.parts.routes[forward].upstreams;
        let mut last = if upstreams.candidates() == 0 { DropCause::Unresolved } else { DropCause::Unreachable };
        for attempt in 0..upstreams.candidates() {
            let Some(target) = upstreams.candidate(first, attempt, port_offset) else { break };
            match self.connect_to(forward, target) {
                Ok(socket) => return Ok((socket, target)),
                Err(e) => last = connect_cause(&e),
            }
            if last == DropCause::NoDescriptors {
                if self.parts.shared.shortage.begins() {
                    log::error!(
                        "cannot begin a flow; {} descriptors are allowed (ulimit -n, LimitNOFILE=); datagrams of new clients \
                         are dropped until one is free",
                        sys::descriptor_limit()
                    );
                }
                self.freed |= self.parts.pumps.give_up_pipes();
                break;
            }
        }
        Err(last)
    }

    fn connect_to(&self, forward: usize, target: SocketAddr) -> io::Result<socket2::Socket> {
        let route = &self.parts.routes[forward];
        let connect = |source: Option<IpAddr>| {
            let socket = datagrams(target)?;
            set_buffers(&socket, route.forward())?;
            socket::prepare(&socket, None)?;
            if let Some(source) = source {
                sys::bind_source(&socket, source).inspect_err(|e| route.sources.lacks(source, e))?;
            }
            socket.connect(&target.into())?;
            Ok(socket)
        };
        if route.sources.is_empty() {
            return connect(None);
        }
        let mut result = Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        for source in route.sources.turn(target.ip()) {
            result = connect(Some(source));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn enter_flow(
        &mut self,
        key: FlowKey,
        forward: usize,
        socket: socket2::Socket,
        target: SocketAddr,
        ticket: Option<Box<Ticket>>,
    ) -> Result<usize, DropCause> {
        let fd = socket.as_raw_fd();
        let flow = Flow {
            socket,
            key,
            forward,
            target,
            ticket,
            opened_us: self.now_us,
            active_us: self.now_us,
            requests: 0,
            answers: 0,
            bytes: Bytes::default(),
            joins: [socket::SEGMENTS; 2],
            queued: false,
        };
        let at_ms = flow.deadline_ms(self.parts.routes[forward].forward().udp.timeout);
        let number = self.datagrams.insert(flow);
        self.datagrams.set_deadline(number, at_ms);
        self.parts.routes.open(forward);
        let stats = &self.parts.routes[forward].stats;
        stats.accepted.add(1);
        stats.open.add(1);
        self.parts.me.load.fetch_add(1, Ordering::Relaxed);
        let token = Ready::Flow(number).token();
        if let Err(e) = self.parts.poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE) {
            log::warn!("cannot watch a flow: {e}; fs.epoll.max_user_watches limits how many there may be");
            self.end_flow(number, FlowEnd { reason: EndReason::Error, errno: e.raw_os_error() });
            return Err(DropCause::Error);
        }
        Ok(number)
    }

    /// Ends a flow: counts it, reports it and gives back what it held.
    pub(super) fn end_flow(&mut self, number: usize, end: FlowEnd) {
        let Some(mut flow) = self.datagrams.remove(number) else { return };
        self.freed = true;
        let route = &self.parts.routes[flow.forward];
        route.stats.open.sub(1);
        route.stats.ends[end.reason as usize].add(1);
        let duration = Duration::from_micros(self.now_us.saturating_sub(flow.opened_us));
        route.stats.session_time.record(duration);
        self.parts.me.load.fetch_sub(1, Ordering::Relaxed);
        if self.parts.log.is_some() {
            let address = self.datagrams.listeners.get(flow.key.listener).map(|l| l.listener.address);
            self.keep_record(SessionRecord {
                at: SystemTime::now(),
                forward: std::sync::Arc::clone(&self.parts.routes[flow.forward].edition.forward),
                arm: None,
                client: flow.key.client,
                transport: Transport::Udp,
                listener: address.unwrap_or(flow.key.client),
                target: Some(flow.target),
                bytes: flow.bytes,
                duration,
                reason: end.reason,
                errno: end.errno,
            });
        }
        self.leave_flow(flow.forward, flow.ticket.take());
        self.drop_spent_listener(flow.key.listener);
        if self.parts.routes.close(flow.forward) {
            self.sweep(flow.forward);
        }
    }

    /// Ends every flow.
    pub(super) fn end_flows(&mut self, reason: EndReason) {
        let all: Vec<usize> = self.datagrams.flows.iter().map(|(number, _)| number).collect();
        all.into_iter().for_each(|number| self.end_flow(number, FlowEnd::of(reason)));
    }
}

/// What an error of making a flow's socket means. connect(2) says EAGAIN where no local port is left
/// (`inet_autobind` in net/ipv4/af_inet.c), bind(2) EADDRINUSE.
fn connect_cause(error: &io::Error) -> DropCause {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EADDRINUSE | libc::EADDRNOTAVAIL) => DropCause::NoPorts,
        Some(libc::ENOBUFS | libc::ENOMEM) => DropCause::NoDescriptors,
        _ => match cause_of(error) {
            DropCause::Error => DropCause::Unreachable,
            cause => cause,
        },
    }
}

/// Books of what one flow sends to its target.
struct Upward<'a> {
    stats: &'a ForwardStats,
    sent: u64,
    bytes: u64,
    joins: bool,
    end: Option<FlowEnd>,
}

impl Books for Upward<'_> {
    fn sent(&mut self, _: &Datagram, bytes: usize) {
        self.sent += 1;
        self.bytes += bytes as u64;
        self.stats.datagrams.up.add(1);
        self.stats.up_copy.add(bytes as u64);
    }

    fn dropped(&mut self, _: &Datagram, cause: DropCause, error: &io::Error) {
        self.stats.datagrams.drops[cause as usize].add(1);
        self.end = self.end.or(FlowEnd::by(error));
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
struct Downward<'a> {
    flows: &'a mut slab::Slab<Flow>,
    routes: &'a super::Routes,
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
