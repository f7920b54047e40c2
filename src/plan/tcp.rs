//! When a session ends by itself, and the options of its sockets.

use std::time::Duration;

/// When a session ends by itself. `None` never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From accepting the client to a connected target, all attempts together.
    pub connect: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// Without a byte once one side has closed its half.
    pub half_closed: Option<Duration>,
}

/// Socket options of both sides. `None` leaves the kernel's own value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// Idle time before the first keepalive probe; probes then follow every quarter of it (at least 1 s), and
    /// the fourth without an answer ends the session. Whole seconds, at least 1.
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
    pub user_timeout: Option<Duration>,
    /// `SO_RCVBUF` in bytes. Setting it ends the kernel's autotuning.
    pub receive_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes. Setting it ends the kernel's autotuning.
    pub send_buffer: Option<usize>,
    /// DSCP of every packet we send, 0 to 63 (`IP_TOS`, `IPV6_TCLASS`).
    pub dscp: Option<u8>,
    /// Connections the kernel queues before `accept`; capped by `net.core.somaxconn`.
    pub backlog: u32,
    /// TCP Fast Open on both sides: how many connections with data in their SYN a listener has at once.
    pub fast_open: Option<u32>,
    /// Multipath TCP on both sides, where the kernel has it.
    pub mptcp: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Some(Duration::from_secs(5)), idle: None, half_closed: Some(Duration::from_secs(600)) }
    }
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Some(Duration::from_secs(120)),
            user_timeout: None,
            receive_buffer: None,
            send_buffer: None,
            dscp: None,
            backlog: 4096,
            fast_open: None,
            mptcp: false,
        }
    }
}
