//! One attempt to connect: a socket to one address, from the first source that has a port left.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use socket2::Socket;

use super::{Connector, End};
use crate::address::Address;
use crate::netns;
use crate::stats::EndReason;
use crate::sys;
use crate::upstream::Hop;

/// An attempt that is on its way.
pub(super) struct Begun {
    pub(super) socket: Socket,
    local: Option<SocketAddr>,
    /// Bytes of the client's that went with the SYN.
    pub(super) early: usize,
}

impl Begun {
    /// Has a circle recognised that this connection is part of; what the session is to forget at its end.
    pub(super) fn remember(&self, target: Address, hop: Hop, forward: usize, by: &Connector<'_>) -> u64 {
        // Clients with that address in another network namespace are others.
        let local = self.local.filter(|_| by.forward.egress.netns.is_none());
        local.zip(target.socket()).map_or(0, |(local, target)| by.trace.remember(local, target, hop, forward))
    }
}

/// Makes the socket and starts the handshake, from the first source address that has a port left; also says which local
/// address it has got.
pub(super) fn begin(
    address: Address,
    client: Address,
    by: &Connector<'_>,
    attempt: u32,
    early: &[u8],
) -> io::Result<Begun> {
    if by.forward.egress.transparent {
        // The client of a unix socket has no address, and a unix socket shows none.
        return match (client.ip(), address.ip()) {
            (Some(from), Some(to)) if from.is_ipv4() == to.is_ipv4() => {
                begin_from(Some(from), address, by, attempt, early)
            }
            _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
    }
    let ip = match address.ip() {
        Some(ip) if !by.sources.is_empty() => ip,
        _ => return begin_from(None, address, by, attempt, early),
    };
    // Going out from another address than those asked for would be worse than trying the next target.
    let mut last = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
    for source in by.sources.turn(ip) {
        match begin_from(Some(source), address, by, attempt, early) {
            // That an address has no port left says more than that there is no such address.
            Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
                last = if connect_end(&last).reason == EndReason::NoPorts { last } else { e };
            }
            result => return result,
        }
    }
    Err(last)
}

fn begin_from(
    source: Option<IpAddr>,
    address: Address,
    by: &Connector<'_>,
    attempt: u32,
    early: &[u8],
) -> io::Result<Begun> {
    let socket = netns::stream(by.forward.egress.netns.as_deref(), address, by.forward.tcp.mptcp)?;
    sys::set_options(&socket, address, &by.forward.tcp)?;
    if let Some(ip) = address.ip().filter(|_| by.forward.egress.is_marked()) {
        sys::set_egress(&socket, &by.forward.egress, ip.is_ipv6())?;
    }
    if let Some(source) = source {
        sys::bind_source(&socket, source).map_err(|e| {
            by.sources.lacks(source, &e);
            // Without its number, which connect(2) gives too, for another reason: no port is left.
            io::Error::new(e.kind(), e)
        })?;
    }
    let early = start_handshake(&socket, address, early)?;
    let local = socket.local_addr().ok().and_then(|l| l.as_socket());
    by.registry
        .register(&mut SourceFd(&socket.as_raw_fd()), super::backend_token(by.key, attempt), sys::interest())
        .inspect_err(|_| give_up(&socket))?;
    Ok(Begun { socket, local, early })
}

/// Begins to connect; how many of the early bytes went with the SYN. Asks again when it was interrupted: nothing else
/// tells whether the handshake has begun (EALREADY, EISCONN) or not.
fn start_handshake(socket: &Socket, address: Address, early: &[u8]) -> io::Result<usize> {
    let to = address.to_sock_addr()?;
    if !early.is_empty()
        && let Some(sent) = sys::connect_with(socket, &to, early)?
    {
        return Ok(sent);
    }
    loop {
        match socket.connect(&to).map_err(|e| (e.raw_os_error(), e)) {
            Ok(()) | Err((Some(libc::EINPROGRESS | libc::EALREADY | libc::EISCONN), _)) => return Ok(0),
            Err((Some(libc::EINTR), _)) => {}
            Err((_, e)) => return Err(e),
        }
    }
}

/// Makes closing an attempt send a reset: the backend may have taken the connection already, and an empty stream that
/// ends with a FIN would look like a client that had nothing to say.
pub(super) fn give_up(socket: &Socket) {
    let _ = socket.set_linger(Some(Duration::ZERO));
}

pub(super) fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

pub(super) fn connect_end(error: &io::Error) -> End {
    let reason = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => EndReason::Refused,
        // A reset that answers a SYN is reported as a refusal (tcp_reset in net/ipv4/tcp_input.c), so the handshake was
        // over here: the backend took the connection and reset it before this worker looked.
        Some(libc::ECONNRESET | libc::EPIPE) => EndReason::ResetByBackend,
        Some(libc::ETIMEDOUT) => EndReason::ConnectTimeout,
        // No port is left towards this target (`__inet_hash_connect` in net/ipv4/inet_hashtables.c).
        Some(libc::EADDRNOTAVAIL) => EndReason::NoPorts,
        _ => EndReason::ConnectFailed,
    };
    End { reason, errno: error.raw_os_error() }
}
