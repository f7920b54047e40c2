//! The system calls every system has: a datagram each. The address a datagram was sent to is not told, so a listener that
//! is bound to no address answers from the one the system chooses.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, send, sendto};
use socket2::Socket;

use super::batch::{Message, SLOT};

/// Whether several datagrams of a length may be sent as one.
pub const SEGMENTS: bool = false;

/// Nothing to prepare.
///
/// # Errors
/// None.
pub fn prepare(_socket: &Socket, _listens_on: Option<SocketAddr>) -> io::Result<()> {
    Ok(())
}

/// Asks for a receive buffer of so many bytes.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.set_recv_buffer_size(bytes)
}

/// Asks for a send buffer of so many bytes.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_send_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.set_send_buffer_size(bytes)
}

/// Receives at most as many datagrams as `room` has slots; where each stands goes to `messages`. True when there may be
/// more.
///
/// # Errors
/// What recvfrom(2) reports about the first.
pub fn receive(socket: &Socket, room: &mut [u8], messages: &mut Vec<Message>) -> io::Result<bool> {
    for (slot, space) in room.chunks_exact_mut(SLOT).enumerate() {
        match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), space) {
            Ok((len, from)) => {
                let from = from.as_ref().and_then(address_of);
                messages.push(Message { from, local: None, start: slot * SLOT, len, segment: None, lost: 0 });
            }
            Err(e) if slot == 0 => return Err(e.into()),
            // Whatever it is, the next call reports it again but for an error that was pending, and that one is told by
            // the next datagram sent.
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

/// Never called, as [`SEGMENTS`] says.
///
/// # Errors
/// Always `Unsupported`.
pub fn send_segments(
    _socket: &Socket,
    _to: Option<SocketAddr>,
    _from: Option<IpAddr>,
    _parts: &[IoSlice<'_>],
    _segment: u16,
) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether an error of [`send_segments`] only says that the datagrams have to go one by one.
#[must_use]
pub fn cannot_segment(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

/// Sends the first datagram; how many have gone.
///
/// # Errors
/// What sendto(2) reports.
pub fn send_each(
    socket: &Socket,
    _from: Option<IpAddr>,
    datagrams: &[(Option<SocketAddr>, &[u8])],
) -> io::Result<usize> {
    let Some((to, bytes)) = datagrams.first() else { return Ok(0) };
    match to {
        Some(to) => sendto(socket.as_raw_fd(), bytes, &SockaddrStorage::from(*to), MsgFlags::empty())?,
        None => send(socket.as_raw_fd(), bytes, MsgFlags::empty())?,
    };
    Ok(1)
}
