//! Listening sockets: how they are bound, what an error of accept(2) means, and a shortage of descriptors.

pub(crate) mod unix;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use socket2::{Domain, Protocol, Socket, Type};

use crate::address::Address;
use crate::netns;
use crate::plan::Forward;
use crate::socket_file::SocketFile;
use crate::sys;

/// One listening socket as one worker sees it. The socket belongs to the fleet: a worker that ends, however it ends,
/// closes nothing and resets nobody who waits in its queue.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The socket.
    pub socket: Arc<Socket>,
    /// Number of the forward's edition.
    pub forward: usize,
    /// Number of the address among those of its forward.
    pub index: usize,
    /// Place of the port in its range.
    pub port_offset: u16,
    /// There may be connections to accept.
    pub ready: bool,
    /// Not now: descriptors or slots have run out.
    pub paused: bool,
    /// No connection comes any more: to be given up once its queue is empty.
    pub closing: bool,
}

/// Connections its listeners queue, as listen(2) takes it.
pub(crate) fn backlog(forward: &Forward) -> i32 {
    i32::try_from(forward.tcp.backlog).unwrap_or(i32::MAX)
}

/// Sockets that share an address by SO_REUSEPORT do not notice another process that does the same; one without it does.
pub(crate) fn probe(address: Address, forward: &Forward) -> io::Result<()> {
    match address {
        Address::Ip(address) => netns::listening(forward, move |forward| probe_ip(address, forward)),
        Address::Unix(name) => netns::listening(forward, move |_| unix::probe(name)),
        Address::Caller(_) => Ok(()),
    }
}

fn probe_ip(address: SocketAddr, forward: &Forward) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    narrow(&socket, address, forward)?;
    socket.bind(&address.into())
}

/// Listens alone, and only then lets others share the address: of two processes that do this at once, listen(2) tells
/// the later one (`inet_csk_listen_start` in net/ipv4/inet_connection_sock.c looks for conflicts once more). A unix
/// socket stays alone, and has a file.
pub(crate) fn claim(address: Address, forward: &Forward) -> io::Result<(Socket, Option<SocketFile>)> {
    if let Address::Unix(name) = address {
        return netns::listening(forward, move |forward| unix::claim(name, forward));
    }
    let socket = bind(address, forward, false)?;
    socket.listen(backlog(forward))?;
    socket.set_reuse_port(true)?;
    Ok((socket, None))
}

/// Binds without listening; `shared` lets it stand beside others on the address.
pub(crate) fn bind(address: Address, forward: &Forward, shared: bool) -> io::Result<Socket> {
    netns::listening(forward, move |forward| bind_here(address, forward, shared))
}

fn bind_here(address: Address, forward: &Forward, shared: bool) -> io::Result<Socket> {
    let socket = sys::stream(address, forward.tcp.mptcp)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    address.socket().map_or(Ok(()), |address| narrow(&socket, address, forward))?;
    sys::set_options(&socket, address, &forward.tcp)?;
    socket.bind(&address.to_sock_addr()?)?;
    set_fast_open(&socket, address, forward);
    Ok(socket)
}

/// Fast Open makes some connections faster; without it all of them work.
pub(crate) fn set_fast_open(socket: &Socket, address: Address, forward: &Forward) {
    let queue = forward.tcp.fast_open.unwrap_or(0);
    if !address.is_unix()
        && let Err(e) = sys::listen_fast_open(socket, queue)
        && queue > 0
    {
        log::warn!("{address}: no TCP Fast Open: {e}; clients connect without it");
    }
}

/// Sets which clients it is for. `[::]:80` beside `0.0.0.0:80` is two listeners, not a conflict, unless asked otherwise.
pub(crate) fn narrow(socket: &Socket, address: SocketAddr, forward: &Forward) -> io::Result<()> {
    let options = &forward.listen_options;
    if address.is_ipv6() {
        socket.set_only_v6(options.v6_only)?;
    }
    let Some(device) = &options.device else { return Ok(()) };
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let bound = socket.bind_device(Some(device.as_bytes()));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let bound: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
    bound.map_err(|e| {
        let advice = match e.raw_os_error() {
            Some(libc::ENODEV) => "`ip link` lists the devices of this host",
            Some(libc::EPERM) => "before Linux 5.7 it takes CAP_NET_RAW",
            _ => "check the device",
        };
        io::Error::new(e.kind(), format!("device {device}: {e}: {advice}"))
    })
}

/// An error about a listening address, with what can be done.
pub(crate) fn explain(address: Address, forward: &Forward, error: &io::Error) -> io::Error {
    let of_unix;
    let advice = match error.kind() {
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            "out of descriptors; raise the limit (ulimit -n, LimitNOFILE=), or use fewer workers or ports"
        }
        _ if let Address::Unix(name) = address => {
            of_unix = unix::advice(name, error);
            &of_unix
        }
        io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        io::ErrorKind::AddrNotAvailable => "no interface of this host has that address; `ip address` lists them",
        io::ErrorKind::PermissionDenied => {
            "ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE; or choose a higher port"
        }
        _ => "check the address",
    };
    let text = format!("cannot listen on {address} for forward {:?}: {error}: {advice}", forward.name);
    io::Error::new(error.kind(), text)
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
            // It does not listen.
            Some(libc::EINVAL) => Self::Empty,
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
            (libc::EINVAL, AcceptError::Empty),
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
