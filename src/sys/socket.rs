//! Sockets made in as few system calls as the system allows.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::plan::{Egress, TcpOptions};

/// A TCP socket that neither blocks nor is inherited by a child.
///
/// # Errors
/// What socket(2) reports.
pub fn stream(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    #[cfg(target_os = "linux")]
    {
        Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Takes one connection; it neither blocks nor is inherited by a child.
///
/// # Errors
/// What accept4(2) reports.
pub fn accept(listener: &Socket) -> io::Result<(Socket, SocketAddr)> {
    #[cfg(target_os = "linux")]
    let (socket, address) = listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
    #[cfg(not(target_os = "linux"))]
    let (socket, address) = {
        let (socket, address) = listener.accept()?;
        socket.set_nonblocking(true)?;
        (socket, address)
    };
    match address.as_socket() {
        Some(address) => Ok((socket, address)),
        None => Err(io::Error::new(io::ErrorKind::Unsupported, "a peer without an IP address")),
    }
}

/// Sets what both sides of a session share. On a listener every accepted connection inherits it (tcp(7)).
///
/// Urgent bytes are kept in line, so that a forwarder, which cannot pass the mark on, at least loses no byte.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_options(socket: &Socket, options: &TcpOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    if let Some(idle) = options.keepalive {
        let interval = Duration::from_secs((idle.as_secs() / 4).max(1));
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(4);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    options.dscp.map_or(Ok(()), |dscp| set_dscp(socket, dscp))
}

/// Marks every packet a socket sends. The lower two bits are the kernel's: congestion notification.
fn set_dscp(socket: &Socket, dscp: u8) -> io::Result<()> {
    let class = u32::from(dscp) << 2;
    let is_v6 = socket.local_addr()?.is_ipv6();
    if is_v6 { socket.set_tclass_v6(class) } else { socket.set_tos_v4(class) }
}

/// Sets what a connection to a target carries beside the client's bytes, before it is bound.
///
/// # Errors
/// What setsockopt(2) reports: EPERM without `CAP_NET_ADMIN`, ENODEV for a device that is not there.
#[cfg(target_os = "linux")]
pub fn set_egress(socket: &Socket, egress: &Egress, is_v6: bool) -> io::Result<()> {
    if let Some(device) = &egress.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(mark) = egress.mark {
        socket.set_mark(mark)?;
    }
    match (egress.transparent, is_v6) {
        (false, _) => Ok(()),
        (true, false) => socket.set_ip_transparent_v4(true),
        (true, true) => socket.set_ip_transparent_v6(true),
    }
}

/// Nothing of it exists here.
///
/// # Errors
/// Something is asked for.
#[cfg(not(target_os = "linux"))]
pub fn set_egress(_: &Socket, egress: &Egress, _: bool) -> io::Result<()> {
    let none = Egress { send_proxy: egress.send_proxy, ..Egress::default() };
    if *egress == none { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Sets a socket that was set before to something else: what is left to the kernel now goes back to its own value.
/// Buffer sizes cannot: once set, the kernel does not tune them any more, so they stay.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn reset_options(socket: &Socket, options: &TcpOptions) -> io::Result<()> {
    set_options(socket, options)?;
    socket.set_keepalive(options.keepalive.is_some())?;
    if options.dscp.is_none() {
        set_dscp(socket, 0)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if options.user_timeout.is_none() {
        socket.set_tcp_user_timeout(Some(Duration::ZERO))?;
    }
    Ok(())
}

/// Binds an outgoing connection to a local address; where possible without taking a port yet, so that one address
/// serves as many connections as there are ports per target.
///
/// # Errors
/// What setsockopt(2) or bind(2) reports.
pub fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// The addresses an accepted connection may have been made to: the one it arrived at, and, where the packet filter
/// has redirected it (iptables REDIRECT, nft dnat), the one before that.
#[must_use]
pub fn meant_for(socket: &Socket) -> [Option<SocketAddr>; 2] {
    let local = socket.local_addr().ok().and_then(|address| address.as_socket());
    #[cfg(target_os = "linux")]
    let original = if local.is_some_and(|address| address.is_ipv6()) {
        socket.original_dst_v6().ok().and_then(|address| address.as_socket())
    } else {
        socket.original_dst_v4().ok().and_then(|address| address.as_socket())
    };
    #[cfg(not(target_os = "linux"))]
    let original = None;
    [local, original]
}
