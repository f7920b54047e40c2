//! Sockets made in as few system calls as the system allows.

use std::io;
use std::net::{IpAddr, SocketAddr};
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::address::{Address, Caller};
use crate::plan::{Egress, TcpOptions};

/// A TCP or unix stream socket that neither blocks nor is inherited by a child. With `mptcp` it speaks Multipath TCP
/// where the kernel has that, and TCP to whoever does not.
///
/// # Errors
/// What socket(2) reports.
pub fn stream(address: Address, mptcp: bool) -> io::Result<Socket> {
    match address.socket().map(Domain::for_address) {
        None => nonblocking(Domain::UNIX, None),
        #[cfg(target_os = "linux")]
        Some(domain) if mptcp && !NO_MPTCP.load(Ordering::Relaxed) => {
            nonblocking(domain, Some(Protocol::MPTCP)).or_else(|error| {
                // Not there, not switched on (net.mptcp.enabled), or filtered: TCP does in its place.
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) {
                    return Err(error);
                }
                if !NO_MPTCP.swap(true, Ordering::Relaxed) {
                    log::warn!("no Multipath TCP: {error}; TCP is used (sysctl net.mptcp.enabled=1, CONFIG_MPTCP)");
                }
                nonblocking(domain, Some(Protocol::TCP))
            })
        }
        Some(domain) => {
            let _ = mptcp;
            nonblocking(domain, Some(Protocol::TCP))
        }
    }
}

/// The kernel has refused Multipath TCP.
#[cfg(target_os = "linux")]
static NO_MPTCP: AtomicBool = AtomicBool::new(false);

fn nonblocking(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    #[cfg(target_os = "linux")]
    {
        Socket::new(domain, Type::STREAM.nonblocking(), protocol)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let socket = Socket::new(domain, Type::STREAM, protocol)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Takes one connection; it neither blocks nor is inherited by a child. The client of a unix socket is known by its
/// user and process.
///
/// # Errors
/// What accept4(2) reports.
pub fn accept(listener: &Socket) -> io::Result<(Socket, Address)> {
    #[cfg(target_os = "linux")]
    let (socket, address) = listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
    #[cfg(not(target_os = "linux"))]
    let (socket, address) = {
        let (socket, address) = listener.accept()?;
        socket.set_nonblocking(true)?;
        (socket, address)
    };
    let client = match address.as_socket() {
        // An IPv4 client of an IPv6 socket is known by its IPv4 address, as everywhere.
        Some(address) => Address::Ip(SocketAddr::new(address.ip().to_canonical(), address.port())),
        None => Address::Caller(caller(&socket)?),
    };
    Ok((socket, client))
}

/// Who was at the other end of a unix socket when it connected (`SO_PEERCRED`, unix(7)).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn caller(socket: &Socket) -> io::Result<Caller> {
    let found = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(Caller { uid: found.uid(), pid: u32::try_from(found.pid()).unwrap_or(0) })
}

/// Who was at the other end of a unix socket when it connected (getpeereid(3)).
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn caller(socket: &Socket) -> io::Result<Caller> {
    let (uid, _) = nix::unistd::getpeereid(socket)?;
    Ok(Caller { uid: uid.as_raw(), pid: 0 })
}

/// Sets what both sides of a session share. On a TCP listener every accepted connection inherits it (tcp(7)), on that of
/// a unix socket none does. `address` says which of both it is: a unix socket has no other options than buffers.
///
/// Urgent bytes are kept in line, so that a forwarder, which cannot pass the mark on, at least loses no byte.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_options(socket: &Socket, address: Address, options: &TcpOptions) -> io::Result<()> {
    missing_in_mptcp(options, socket.set_out_of_band_inline(true))?;
    if !address.is_unix() {
        set_tcp_options(socket, options)?;
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
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_dscp(socket: &Socket, dscp: u8) -> io::Result<()> {
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

/// Multipath TCP lacks some options of TCP, more of them in older kernels (`mptcp_supported_sockopt` in
/// net/mptcp/sockopt.c): it goes without them.
fn missing_in_mptcp(options: &TcpOptions, result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if options.mptcp && matches!(e.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => Ok(()),
        result => result,
    }
}

fn set_tcp_options(socket: &Socket, options: &TcpOptions) -> io::Result<()> {
    missing_in_mptcp(options, socket.set_tcp_nodelay(true))?;
    if let Some(idle) = options.keepalive {
        let interval = Duration::from_secs((idle.as_secs() / 4).max(1));
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(4);
        missing_in_mptcp(options, socket.set_tcp_keepalive(&keepalive))?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(timeout) = options.user_timeout {
        missing_in_mptcp(options, socket.set_tcp_user_timeout(Some(timeout)))?;
    }
    Ok(())
}

/// Sets a socket that was set before to something else: what is left to the kernel now goes back to its own value.
/// Buffer sizes cannot: once set, the kernel does not tune them any more, so they stay.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn reset_options(socket: &Socket, address: Address, options: &TcpOptions) -> io::Result<()> {
    set_options(socket, address, options)?;
    if address.is_unix() {
        return Ok(());
    }
    socket.set_keepalive(options.keepalive.is_some())?;
    if options.dscp.is_none() {
        set_dscp(socket, 0)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if options.user_timeout.is_none() {
        missing_in_mptcp(options, socket.set_tcp_user_timeout(Some(Duration::ZERO)))?;
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
