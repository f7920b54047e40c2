//! TCP Fast Open (RFC 7413): data in the SYN, for whoever has been here before.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use socket2::{SockAddr, Socket};

/// What `net.ipv4.tcp_fastopen` allows (ip-sysctl in the kernel's documentation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastOpen {
    /// Connections made from here.
    pub connect: bool,
    /// Connections taken here.
    pub listen: bool,
}

impl FastOpen {
    /// As this network namespace has it; the kernel's default where that cannot be read.
    #[must_use]
    pub fn allowed() -> Self {
        let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap_or_default();
        Self::of(text.trim().parse().unwrap_or(1))
    }

    /// By the bits of that setting.
    #[must_use]
    pub fn of(bits: u32) -> Self {
        Self { connect: bits & 1 != 0, listen: bits & 2 != 0 }
    }

    /// What to say where not both are allowed.
    #[must_use]
    pub fn shortfall(self) -> Option<String> {
        let what = match self {
            Self { connect: true, listen: true } => return None,
            Self { connect: true, listen: false } => "connections to targets only",
            Self { connect: false, listen: true } => "listeners only",
            Self { connect: false, listen: false } => "nobody",
        };
        Some(format!(
            "net.ipv4.tcp_fastopen lets {what} use TCP Fast Open; both may with: sysctl -w net.ipv4.tcp_fastopen=3"
        ))
    }
}

#[cfg(target_os = "linux")]
mod listen {
    /// `TCP_FASTOPEN` (tcp(7)).
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Queue;
    nix::setsockopt_impl!(Queue, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, u32, nix::sys::socket::sockopt::SetStruct<u32>);
}

/// Lets a listener take data with a SYN, from so many connections at once that have not finished their handshake.
///
/// # Errors
/// What setsockopt(2) reports.
#[cfg(target_os = "linux")]
pub fn listen_fast_open(socket: &Socket, queue: u32) -> io::Result<()> {
    Ok(nix::sys::socket::setsockopt(socket, listen::Queue, &queue)?)
}

/// Not there.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn listen_fast_open(_socket: &Socket, _queue: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Begins to connect with data in the SYN; how many bytes of it are on their way. None where the target has not been
/// here before: its cookie is asked for then, for the next time. `None` where it is not to be had, and nothing has begun.
///
/// # Errors
/// What sendto(2) reports.
pub fn connect_with(socket: &Socket, to: &SockAddr, data: &[u8]) -> io::Result<Option<usize>> {
    #[cfg(target_os = "linux")]
    loop {
        let flags = libc::MSG_FASTOPEN | super::SEND_FLAGS;
        match socket.send_to_with_flags(data, to, flags).map_err(|e| (e.raw_os_error(), e)) {
            Ok(sent) => return Ok(Some(sent)),
            Err((Some(libc::EINPROGRESS), _)) => return Ok(Some(0)),
            Err((Some(libc::EOPNOTSUPP | libc::ENOPROTOOPT), _)) => return Ok(None),
            Err((Some(libc::EINTR), _)) => {}
            Err((_, e)) => return Err(e),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (socket, to, data);
        Ok(None)
    }
}

/// What a socket has received, without taking it.
///
/// # Errors
/// What recv(2) reports.
pub fn peek(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    let flags = nix::sys::socket::MsgFlags::MSG_PEEK;
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), buffer, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_forbids_is_said() {
        for (bits, part) in [(0, "nobody"), (1, "targets only"), (2, "listeners only"), (0x400, "nobody")] {
            let said = FastOpen::of(bits).shortfall().unwrap();
            assert!(said.contains(part) && said.contains("tcp_fastopen=3"), "{said}");
        }
        assert_eq!(FastOpen::of(3).shortfall(), None);
    }
}
