//! How much of a burst the kernel keeps for us.
//!
//! Datagrams that come faster than they are taken wait in the socket's queue, and what finds it full is lost. A stream
//! would slow its sender down; nothing slows these. So listeners ask for far more than the kernel gives unasked (208 KiB,
//! of which a datagram of 1,200 bytes takes 2,304), which costs memory only while datagrams wait.

use std::io;

use socket2::Socket;

use super::socket;
use crate::plan::Forward;
use crate::sys;

/// What a listener asks for in either direction where nobody says otherwise.
pub const LISTENER: usize = 4 << 20;

/// Sets the buffers of a listener, and the class of what it sends.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_of_listener(socket: &Socket, forward: &Forward) -> io::Result<()> {
    let receive = forward.tcp.receive_buffer.unwrap_or(LISTENER);
    let send = forward.tcp.send_buffer.unwrap_or(LISTENER);
    // What was given with rights that are gone by now would be cut to the limit of everybody else.
    if given(socket.recv_buffer_size()?) != receive {
        socket::set_receive_buffer(socket, receive)?;
    }
    if given(socket.send_buffer_size()?) != send {
        socket::set_send_buffer(socket, send)?;
    }
    forward.tcp.dscp.map_or(Ok(()), |dscp| sys::set_dscp(socket, dscp))
}

/// Sets the buffers of a flow's own socket where the forward wants other ones than the kernel's, and the class of what it
/// sends.
///
/// # Errors
/// What setsockopt(2) reports.
pub fn set_of_flow(socket: &Socket, forward: &Forward) -> io::Result<()> {
    if let Some(bytes) = forward.tcp.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = forward.tcp.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    forward.tcp.dscp.map_or(Ok(()), |dscp| sys::set_dscp(socket, dscp))
}

/// What was asked for of a size read back: Linux doubles it for its own needs (socket(7)).
fn given(read_back: usize) -> usize {
    if cfg!(target_os = "linux") { read_back / 2 } else { read_back }
}

/// A receive buffer smaller than what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scarce {
    forward: String,
    given: usize,
    wanted: usize,
    /// Somebody has asked for it.
    is_configured: bool,
}

/// Whether a listener has got less than it has asked for.
#[must_use]
pub fn scarce(socket: &Socket, forward: &Forward) -> Option<Scarce> {
    let wanted = forward.tcp.receive_buffer.unwrap_or(LISTENER);
    let given = given(socket.recv_buffer_size().ok()?);
    let (is_configured, forward) = (forward.tcp.receive_buffer.is_some(), forward.name.clone());
    (given < wanted).then_some(Scarce { forward, given, wanted, is_configured })
}

impl Scarce {
    /// Says so, and what can be done.
    pub fn tell(&self) {
        let level = if self.is_configured { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{self}");
    }
}

impl std::fmt::Display for Scarce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { forward, given, wanted, .. } = self;
        let (given, kib) = (given / 1024, wanted / 1024);
        write!(
            f,
            "forward {forward:?}: listeners for datagrams have a receive buffer of {given} KiB instead of {kib} KiB; bursts \
             beyond it are lost (drops: socket): raise it with `sysctl -w net.core.rmem_max={wanted}`, or keep CAP_NET_ADMIN"
        )
    }
}
