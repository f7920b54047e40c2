//! The system calls of Linux: several datagrams a call (recvmmsg(2), sendmmsg(2)), and several joined to one by the kernel
//! (`UDP_GRO`, `UDP_SEGMENT`, udp(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::Socket;

use super::batch::{Message, SLOT, SLOTS};

/// Whether several datagrams of a length may be sent as one.
pub const SEGMENTS: bool = true;

/// Has the kernel join datagrams that came together, tell how many it had no room for, and the address each was sent to
/// where the socket is bound to none. A kernel without the first (before 5.0) hands over one at a time.
///
/// # Errors
/// What setsockopt(2) reports about the last.
pub fn prepare(socket: &Socket, listens_on: Option<SocketAddr>) -> io::Result<()> {
    if let Err(e) = setsockopt(socket, sockopt::UdpGroSegment, &true) {
        log::debug!("datagrams come one by one: {e}");
    }
    if let Err(e) = setsockopt(socket, sockopt::RxqOvfl, &1) {
        log::debug!("what a queue has no room for is not counted: {e}");
    }
    match listens_on {
        Some(SocketAddr::V4(address)) if address.ip().is_unspecified() => {
            setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        Some(SocketAddr::V6(address)) if address.ip().is_unspecified() => {
            setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        _ => {}
    }
    Ok(())
}

/// Gives a socket a receive buffer of so many bytes: beyond `net.core.rmem_max` where CAP_NET_ADMIN allows it.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).or_else(|_| socket.set_recv_buffer_size(bytes))
}

/// Gives a socket a send buffer of so many bytes: beyond `net.core.wmem_max` where CAP_NET_ADMIN allows it.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_send_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::SndBufForce, &bytes).or_else(|_| socket.set_send_buffer_size(bytes))
}

/// Receives at most as many messages as `room` has slots; where each stands goes to `messages`. True when there may be
/// more.
///
/// # Errors
/// What recvmmsg(2) reports.
pub fn receive(socket: &Socket, room: &mut [u8], messages: &mut Vec<Message>) -> io::Result<bool> {
    let slots = room.len() / SLOT;
    let mut spaces = room.chunks_exact_mut(SLOT);
    let mut slices: [[IoSliceMut<'_>; 1]; SLOTS] =
        std::array::from_fn(|_| [IoSliceMut::new(spaces.next().unwrap_or_default())]);
    // Made anew each time: the kernel writes into them how much control data a message had, and the next call would
    // have no room for more than that, which is how the length of joined datagrams would get lost.
    let space = cmsg_space!(libc::in6_pktinfo, libc::c_int, u32);
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(slots, Some(space));
    let received =
        recvmmsg(socket.as_raw_fd(), &mut headers, slices[..slots].iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    let mut count = 0;
    for (slot, message) in received.enumerate() {
        count += 1;
        let (mut local, mut segment, mut lost) = (None, None, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::UdpGroSegments(bytes) => segment = usize::try_from(bytes).ok(),
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    local = Some(IpAddr::V4(u32::from_be(info.ipi_spec_dst.s_addr).into()));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    local = Some(IpAddr::V6(info.ipi6_addr.s6_addr.into()));
                }
                // Only said once there were some.
                ControlMessageOwned::RxqOvfl(count) => lost = count,
                _ => {}
            }
        }
        let from = message.address.as_ref().and_then(address_of);
        messages.push(Message { from, local, start: slot * SLOT, len: message.bytes, segment, lost });
    }
    Ok(count == slots)
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
}

/// Sends the parts as one message that the kernel takes apart into datagrams of `segment` bytes.
///
/// # Errors
/// What sendmsg(2) reports. Where the way out cannot do it, which the other call can, that is EIO, EINVAL, EMSGSIZE or
/// EOPNOTSUPP: see [`cannot_segment`].
pub fn send_segments(
    socket: &Socket,
    to: Option<SocketAddr>,
    from: Option<IpAddr>,
    parts: &[IoSlice<'_>],
    segment: u16,
) -> io::Result<()> {
    let to = to.map(SockaddrStorage::from);
    let length = ControlMessage::UdpGsoSegments(&segment);
    let fd = socket.as_raw_fd();
    let send = |control: &[ControlMessage<'_>]| sendmsg(fd, parts, control, MsgFlags::MSG_DONTWAIT, to.as_ref());
    match from {
        None => send(&[length])?,
        Some(IpAddr::V4(ip)) => {
            let info = info_v4(ip);
            send(&[length, ControlMessage::Ipv4PacketInfo(&info)])?
        }
        Some(IpAddr::V6(ip)) => {
            let info = info_v6(ip);
            send(&[length, ControlMessage::Ipv6PacketInfo(&info)])?
        }
    };
    Ok(())
}

/// Whether an error of [`send_segments`] only says that the datagrams have to go one by one: no checksum offload (EIO),
/// longer than the device takes (EINVAL), or a kernel before 4.18.
#[must_use]
pub fn cannot_segment(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

/// Sends one datagram each, all from one local address; how many have gone. Only an error of the first one is reported.
///
/// # Errors
/// What sendmsg(2) or sendmmsg(2) reports about the first.
pub fn send_each(
    socket: &Socket,
    from: Option<IpAddr>,
    datagrams: &[(Option<SocketAddr>, &[u8])],
) -> io::Result<usize> {
    match from {
        None => send_with(socket, &[], datagrams),
        Some(IpAddr::V4(ip)) => {
            let info = info_v4(ip);
            send_with(socket, &[ControlMessage::Ipv4PacketInfo(&info)], datagrams)
        }
        Some(IpAddr::V6(ip)) => {
            let info = info_v6(ip);
            send_with(socket, &[ControlMessage::Ipv6PacketInfo(&info)], datagrams)
        }
    }
}

fn send_with(
    socket: &Socket,
    control: &[ControlMessage<'_>],
    datagrams: &[(Option<SocketAddr>, &[u8])],
) -> io::Result<usize> {
    let fd = socket.as_raw_fd();
    if let [(to, bytes)] = datagrams {
        let to = to.map(SockaddrStorage::from);
        sendmsg(fd, &[IoSlice::new(bytes)], control, MsgFlags::MSG_DONTWAIT, to.as_ref())?;
        return Ok(1);
    }
    let addresses: Vec<Option<SockaddrStorage>> = datagrams.iter().map(|(to, _)| to.map(Into::into)).collect();
    let slices: Vec<[IoSlice<'_>; 1]> = datagrams.iter().map(|(_, bytes)| [IoSlice::new(bytes)]).collect();
    let space = match control {
        [] => None,
        [ControlMessage::Ipv4PacketInfo(_)] => Some(cmsg_space!(libc::in_pktinfo)),
        _ => Some(cmsg_space!(libc::in6_pktinfo)),
    };
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(datagrams.len(), space);
    let sent = sendmmsg(fd, &mut headers, &slices, &addresses, control, MsgFlags::MSG_DONTWAIT)?;
    Ok(sent.count())
}

fn info_v4(ip: std::net::Ipv4Addr) -> libc::in_pktinfo {
    let none = libc::in_addr { s_addr: 0 };
    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() }, ipi_addr: none }
}

fn info_v6(ip: std::net::Ipv6Addr) -> libc::in6_pktinfo {
    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 }
}
