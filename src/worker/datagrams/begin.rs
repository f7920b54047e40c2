//! A flow's beginning and its end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mio::Interest;
use mio::unix::SourceFd;
use socket2::Socket;

use super::failover;
use crate::address::Address;
use crate::limits::Ticket;
use crate::plan::{Refusal, Transport};
use crate::stats::{Bytes, DropCause, EndReason, SessionRecord};
use crate::sys;
use crate::udp::buffers;
use crate::udp::doors::datagrams;
use crate::udp::flow::{Client, Flow, FlowEnd, FlowKey};
use crate::udp::table::Ready;
use crate::udp::{cause_of, socket};
use crate::upstream::{Ask, Hop, Lease, Pick};
use crate::worker::{Life, Worker};

/// A flow's socket, what it is connected to, its hold of that, and its entry among our own connections.
type Target = (Socket, SocketAddr, Lease, u64);

/// Who sends datagrams, as far as a target is chosen by it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    pub(super) client: IpAddr,
    pub(super) port_offset: u16,
    pub(super) hop: Hop,
}

impl Worker {
    /// Begins the flow of a client. What stands against it is the cause by which its datagram is dropped.
    pub(super) fn begin_flow(&mut self, key: FlowKey) -> Result<usize, DropCause> {
        let listening = &self.datagrams.listeners[key.listener];
        if listening.closing || listening.listener.closing || self.life != Life::Serving {
            return Err(DropCause::Drain);
        }
        let (forward, port_offset) = (listening.listener.forward, listening.listener.port_offset);
        let client = key.client.ip();
        let (hop, came_to) = self.hop_of(key);
        // With our own address as its sender the answers would come back to us, and with that of a target they would be
        // taken for questions.
        let is_ours = key.client == came_to || self.parts.routes[forward].upstreams.leads_to(key.client, port_offset);
        if hop.is_loop(forward) || is_ours {
            return Err(DropCause::Loop);
        }
        match self.parts.routes[forward].forward().access.refuses(client) {
            Some(Refusal::Denied) => return Err(DropCause::Denied),
            Some(Refusal::NotAllowed) => return Err(DropCause::NotAllowed),
            None => {}
        }
        let ticket = self.admit_flow(forward, client)?;
        let transport = self.parts.routes[forward].forward().udp.targets.unwrap_or(Transport::Udp);
        match self.connect_flow(forward, Sender { client, port_offset, hop }, transport, &mut Vec::new()) {
            Ok(target) => self.enter_flow(key, forward, target, ticket, None),
            Err(cause) => {
                self.leave_flow(forward, ticket);
                Err(cause)
            }
        }
    }

    /// What led to a flow, and where its client sends to.
    pub(super) fn hop_of(&self, key: FlowKey) -> (Hop, SocketAddr) {
        let listener = &self.datagrams.listeners[key.listener].listener;
        let came_to = SocketAddr::new(key.local.unwrap_or(listener.address.ip()), listener.address.port());
        (self.parts.shared.trace.look_up(key.client, || [Some(came_to), None]), came_to)
    }

    fn admit_flow(&mut self, forward: usize, client: IpAddr) -> Result<Option<Box<Ticket>>, DropCause> {
        let cause = |reason| if reason == EndReason::Rate { DropCause::Rate } else { DropCause::Limit };
        if !self.parts.shared.flows.take() {
            return Err(DropCause::Limit);
        }
        let limits = &self.parts.routes[forward].edition.limits;
        let (admitted, told) = self.parts.shared.limits.admit_at_once(limits, self.now_us);
        let entered = match admitted {
            Ok(()) => {
                self.parts.shared.limits.enter(limits, client.into(), self.now_us).map_err(|reason| (reason, true))
            }
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

    /// A socket that is connected to the next target whose address the system takes, of those that are not in `tried`;
    /// others are added to it.
    pub(super) fn connect_flow(
        &mut self,
        forward: usize,
        Sender { client, port_offset, hop }: Sender,
        transport: Transport,
        tried: &mut Vec<u32>,
    ) -> Result<Target, DropCause> {
        let now_ms = self.now_us / 1000;
        let mut last = DropCause::Unreachable;
        loop {
            let client = SocketAddr::new(client.to_canonical(), 0).into();
            let ask = Ask { client, port_offset, tried, rival_of: None, now_ms };
            let (lease, target) = match self.parts.routes[forward].upstreams.choose(&ask) {
                Pick::To { lease, address: Address::Ip(address), .. } => (lease, address),
                // The configuration lets no unix socket be a target of datagrams.
                Pick::To { .. } => return Err(DropCause::Unreachable),
                Pick::Full => return Err(DropCause::Limit),
                Pick::Unresolved => return Err(DropCause::Unresolved),
                Pick::Nothing => return Err(last),
            };
            match self.connect_to(forward, target, transport) {
                Ok(socket) => {
                    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
                    let remember = |local| self.parts.shared.trace.remember(local, target, hop, forward);
                    return Ok((socket, target, lease, local.map_or(0, remember)));
                }
                Err(e) => {
                    last = connect_cause(&e);
                    if last == DropCause::Unreachable {
                        self.blame(
                            forward,
                            &lease,
                            FlowEnd { reason: EndReason::ConnectFailed, errno: e.raw_os_error() },
                        );
                    }
                }
            }
            tried.push(lease.endpoint().id());
            if last == DropCause::NoDescriptors {
                if self.parts.shared.shortage.begins() {
                    log::error!(
                        "cannot begin a flow; {} descriptors are allowed (ulimit -n, LimitNOFILE=); datagrams of new clients \
                         are dropped until one is free",
                        sys::descriptor_limit()
                    );
                }
                self.freed |= self.parts.pumps.give_up_pipes();
                return Err(last);
            }
        }
    }

    fn connect_to(&self, forward: usize, target: SocketAddr, transport: Transport) -> io::Result<Socket> {
        let route = &self.parts.routes[forward];
        let connect = |source: Option<IpAddr>| {
            let socket = match transport {
                Transport::Tcp => sys::stream(target.into(), false)?,
                Transport::Udp => datagrams(target)?,
            };
            match transport {
                Transport::Tcp => sys::set_options(&socket, target.into(), &route.forward().tcp)?,
                Transport::Udp => {
                    buffers::set_of_flow(&socket, route.forward())?;
                    socket::prepare(&socket, None)?;
                }
            }
            if route.forward().egress.is_marked() {
                sys::set_egress(&socket, &route.forward().egress, target.is_ipv6())?;
            }
            if let Some(source) = source {
                sys::bind_source(&socket, source).inspect_err(|e| route.sources.lacks(source, e))?;
            }
            match socket.connect(&target.into()) {
                Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
                _ => Ok(socket),
            }
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

    pub(super) fn enter_flow(
        &mut self,
        key: FlowKey,
        forward: usize,
        (socket, target, lease, trace): Target,
        ticket: Option<Box<Ticket>>,
        client: Option<Box<Client>>,
    ) -> Result<usize, DropCause> {
        let has_listener = client.is_none();
        let into_stream = has_listener && self.parts.routes[forward].forward().udp.into_stream();
        let can_move = has_listener && failover::can_move(self.parts.routes[forward].forward());
        let fds = [Some(socket.as_raw_fd()), client.as_ref().map(|client| client.stream.as_raw_fd())];
        let flow = Flow {
            socket,
            framing: into_stream.then(Box::default),
            client,
            key,
            forward,
            target,
            lease: Some(lease),
            ticket,
            trace,
            opened_us: self.now_us,
            active_us: self.now_us,
            requests: 0,
            answers: 0,
            bytes: Bytes::default(),
            joins: [socket::SEGMENTS; 2],
            was_answered: false,
            spare: can_move.then(Box::default),
            refused: (0, 0),
            lost: Some(0),
            queued: false,
        };
        let (at_ms, _) = flow.deadline(self.parts.routes[forward].forward());
        let number = self.datagrams.insert(flow);
        self.datagrams.set_deadline(number, at_ms);
        self.parts.routes.open(forward);
        let stats = &self.parts.routes[forward].stats;
        stats.accepted.add(1);
        stats.open.add(1);
        self.parts.me.load.fetch_add(1, Ordering::Relaxed);
        let token = Ready::Flow(number).token();
        let interest = if into_stream { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        for (fd, interest) in fds.into_iter().flatten().zip([interest, Interest::READABLE | Interest::WRITABLE]) {
            if let Err(e) = self.parts.poll.registry().register(&mut SourceFd(&fd), token, interest) {
                log::warn!("cannot watch a flow: {e}; fs.epoll.max_user_watches limits how many there may be");
                self.end_flow(number, FlowEnd { reason: EndReason::Error, errno: e.raw_os_error() });
                return Err(DropCause::Error);
            }
        }
        Ok(number)
    }

    /// Ends a flow: counts it, reports it and gives back what it held.
    pub(in crate::worker) fn end_flow(&mut self, number: usize, end: FlowEnd) {
        let Some(mut flow) = self.datagrams.remove(number) else { return };
        self.freed = true;
        self.parts.shared.trace.forget(flow.trace);
        let route = &self.parts.routes[flow.forward];
        if let Some(lease) = flow.lease.take().filter(|_| failover::is_to_blame(&flow, end, route.forward())) {
            self.blame(flow.forward, &lease, end);
        }
        route.stats.open.sub(1);
        route.stats.ends[end.reason as usize].add(1);
        route.stats.datagrams.drops[DropCause::Unreachable as usize].add(flow.waiting() as u64 + flow.refused.0);
        let duration = Duration::from_micros(self.now_us.saturating_sub(flow.opened_us));
        route.stats.session_time.record(duration);
        self.parts.me.load.fetch_sub(1, Ordering::Relaxed);
        if self.parts.log.is_some() {
            let (transport, listener) = match &flow.client {
                Some(client) => (Transport::Tcp, client.listener),
                None => (Transport::Udp, self.datagrams.listeners[flow.key.listener].listener.address),
            };
            self.keep_record(SessionRecord {
                at: SystemTime::now(),
                forward: Arc::clone(&self.parts.routes[flow.forward].edition.forward),
                arm: None,
                client: flow.key.client.into(),
                transport,
                proxy: None,
                listener: listener.into(),
                target: Some(flow.target.into()),
                bytes: flow.bytes,
                duration,
                reason: end.reason,
                errno: end.errno,
            });
        }
        self.leave_flow(flow.forward, flow.ticket.take());
        match flow.client.take() {
            Some(client) if !matches!(end.reason, EndReason::Done | EndReason::Idle) => {
                _ = client.stream.set_linger(Some(Duration::ZERO))
            }
            Some(_) => {}
            None => self.drop_spent_listener(flow.key.listener),
        }
        if self.parts.routes.close(flow.forward) {
            self.sweep(flow.forward);
        }
    }

    /// Ends every flow.
    pub(in crate::worker) fn end_flows(&mut self, reason: EndReason) {
        let all: Vec<usize> = self.datagrams.flows.iter().map(|(number, _)| number).collect();
        all.into_iter().for_each(|number| self.end_flow(number, FlowEnd { reason, errno: None }));
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
