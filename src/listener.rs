//! Listening sockets: bind, accept, admission.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};

use crate::plan::{Forward, Plan};
use crate::sys;

/// From this many ports in a range on, a port has one listener, dealt to the workers in turn, instead of one in each.
const DEALT_FROM: usize = 16;

/// One listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: Socket,
    /// The address it is bound to.
    pub address: SocketAddr,
    /// Index of the forward in the plan.
    pub forward: usize,
    /// Number of the listening address, the same in every worker.
    pub index: usize,
    /// Place of the port in its range.
    pub port_offset: u16,
    /// There may be connections to accept.
    pub ready: bool,
    /// Not now: descriptors or slots have run out.
    pub paused: bool,
}

/// Binds every listener of the plan, one set per worker. The first socket of each address listens already: that claims
/// the address against a second process, also one that starts at the same moment and would share it.
///
/// # Errors
/// An address that cannot be bound, named in the message with what can be done; nothing stays bound then.
pub fn bind_all(plan: &Plan, workers: usize) -> io::Result<Vec<Vec<Listener>>> {
    let mut sets: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
    // An address that is taken is found before any other is opened to clients.
    each_address(plan, |place| probe(place.address))?;
    each_address(plan, |place| {
        let shared = sys::REUSE_PORT_BALANCES && place.ports < DEALT_FROM;
        let owners = if shared { 0..workers } else { place.number % workers..place.number % workers + 1 };
        for (turn, set) in sets[owners].iter_mut().enumerate() {
            let socket = if turn == 0 { claim(place)? } else { bind(place, true)? };
            set.push(Listener {
                socket,
                address: place.address,
                forward: place.forward,
                index: place.number,
                port_offset: place.port_offset,
                ready: true,
                paused: false,
            });
        }
        Ok(())
    })?;
    Ok(sets)
}

/// Starts listening on every socket that does not yet.
///
/// # Errors
/// What listen(2) reports, with the address.
pub fn listen_all(plan: &Plan, sets: &[Vec<Listener>]) -> io::Result<()> {
    for listener in sets.iter().flatten() {
        let forward = &plan.forwards[listener.forward];
        let fail = |e: io::Error| io::Error::new(e.kind(), explain(listener.address, forward, &e));
        listener.socket.listen(backlog(forward)).map_err(fail)?;
    }
    Ok(())
}

/// One address of a plan.
struct Place<'a> {
    address: SocketAddr,
    plan: &'a Forward,
    forward: usize,
    number: usize,
    port_offset: u16,
    /// Ports of the range it belongs to.
    ports: usize,
}

fn each_address(plan: &Plan, mut visit: impl FnMut(&Place<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut number = 0;
    for (index, forward) in plan.forwards.iter().enumerate() {
        for listen in &forward.listen {
            for port_offset in 0..listen.ports.len() as u16 {
                let address = SocketAddr::new(listen.ip, listen.ports.first + port_offset);
                let ports = listen.ports.len();
                let place = Place { address, plan: forward, forward: index, number, port_offset, ports };
                visit(&place).map_err(|e| io::Error::new(e.kind(), explain(address, forward, &e)))?;
                number += 1;
            }
        }
    }
    Ok(())
}

fn backlog(forward: &Forward) -> i32 {
    i32::try_from(forward.tcp.backlog).unwrap_or(i32::MAX)
}

/// Sockets that share an address by SO_REUSEPORT do not notice another process that does the same; one without it does.
fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    only_v6(&socket, address)?;
    socket.bind(&address.into())
}

/// Listens alone, and only then lets others share the address: of two processes that do this at once, listen(2) tells
/// the later one (`inet_csk_listen_start` in net/ipv4/inet_connection_sock.c looks for conflicts once more).
fn claim(place: &Place<'_>) -> io::Result<Socket> {
    let socket = bind(place, false)?;
    socket.listen(backlog(place.plan))?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

fn bind(place: &Place<'_>, shared: bool) -> io::Result<Socket> {
    let socket = sys::stream(place.address)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    only_v6(&socket, place.address)?;
    sys::set_options(&socket, &place.plan.tcp)?;
    socket.bind(&place.address.into())?;
    Ok(socket)
}

/// `[::]:80` beside `0.0.0.0:80` is two listeners, not a conflict.
fn only_v6(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() { socket.set_only_v6(true) } else { Ok(()) }
}

fn explain(address: SocketAddr, forward: &Forward, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        io::ErrorKind::AddrNotAvailable => "no interface of this host has that address; `ip address` lists them",
        io::ErrorKind::PermissionDenied => {
            "ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE; or choose a higher port"
        }
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            "out of descriptors; raise the limit (ulimit -n, LimitNOFILE=), or use fewer workers or ports"
        }
        _ => "check the address",
    };
    format!("cannot listen on {address} for forward {:?}: {error}: {advice}", forward.name)
}

/// What an error of accept(2) means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptError {
    /// The queue is empty.
    Empty,
    /// Descriptors or memory have run out, or something else that may last: the connection stays in the queue, try
    /// again later.
    Exhausted,
    /// That one connection is gone, the next may be there.
    Gone,
}

impl AcceptError {
    /// Sorts an error. accept(2) also reports network errors that were pending on the new connection: that one is gone
    /// and the next may be there. Anything unknown may last, and waiting is safer than a spin.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            _ if error.kind() == io::ErrorKind::WouldBlock => Self::Empty,
            Some(
                libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ETIMEDOUT,
            ) => Self::Gone,
            _ => Self::Exhausted,
        }
    }
}

/// A shortage of descriptors or memory, as all workers together see it: worth one line, however often they try.
#[derive(Debug)]
pub struct Shortage {
    epoch: Instant,
    /// Milliseconds since `epoch`, plus one, when it was last felt; 0 for never.
    felt: AtomicU64,
}

/// So long without a failed try, and the next one is a new shortage.
const RELIEF_MS: u64 = 10_000;

impl Default for Shortage {
    fn default() -> Self {
        Self { epoch: Instant::now(), felt: AtomicU64::new(0) }
    }
}

impl Shortage {
    /// Notes a failed try; true when it is the first one of a new shortage.
    pub fn begins(&self) -> bool {
        let now_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.begins_at(now_ms)
    }

    fn begins_at(&self, now_ms: u64) -> bool {
        let last = self.felt.swap(now_ms + 1, Ordering::AcqRel);
        last == 0 || (now_ms + 1).saturating_sub(last) > RELIEF_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_begins_once_however_long_it_lasts() {
        let shortage = Shortage::default();
        let begins: Vec<u64> = (0..1000).map(|i| i * 50).filter(|ms| shortage.begins_at(*ms)).collect();
        assert_eq!(begins, [0], "a try every 50 ms is one shortage");
        assert!(!shortage.begins_at(50_000 + RELIEF_MS - 1_000));
        assert!(shortage.begins_at(50_000 + 3 * RELIEF_MS));
    }

    #[test]
    fn exhaustion_is_told_from_a_lost_connection() {
        for (errno, expected) in [
            (libc::EAGAIN, AcceptError::Empty),
            (libc::EMFILE, AcceptError::Exhausted),
            (libc::ENFILE, AcceptError::Exhausted),
            (libc::ENOBUFS, AcceptError::Exhausted),
            (libc::ENOMEM, AcceptError::Exhausted),
            (libc::ECONNABORTED, AcceptError::Gone),
            (libc::EPROTO, AcceptError::Gone),
            (libc::EINTR, AcceptError::Gone),
            (libc::EHOSTUNREACH, AcceptError::Gone),
            (libc::ENOSYS, AcceptError::Exhausted),
            (libc::EPERM, AcceptError::Exhausted),
        ] {
            assert_eq!(AcceptError::of(&io::Error::from_raw_os_error(errno)), expected, "{errno}");
        }
    }
}
