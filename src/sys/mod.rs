//! What differs between Linux and the rest. Nothing outside this module asks which system it runs on.

#[cfg(all(target_os = "linux", not(spliced_portable)))]
pub use ::pipes;
#[cfg(not(all(target_os = "linux", not(spliced_portable))))]
#[path = "no_pipes.rs"]
pub mod pipes;

#[cfg(target_os = "linux")]
pub mod channel;
#[cfg(not(target_os = "linux"))]
#[path = "no_channel.rs"]
pub mod channel;
mod fast_open;
mod limits;
mod socket;
mod thread;

pub use self::fast_open::{FastOpen, connect_with, listen_fast_open, peek};
pub use self::limits::{descriptor_limit, raise_descriptor_limit};
pub use self::socket::{accept, bind_source, meant_for, reset_options, set_dscp, set_egress, set_options, stream};
pub use self::thread::{allowed_cpus, be_batch, is_batch, is_ordinary, pin_to, thread_cpu_ns, thread_cpu_time};

/// Whether this build has a splice path at all.
pub const HAS_SPLICE: bool = cfg!(all(target_os = "linux", not(spliced_portable)));

/// Whether the kernel spreads connections over listeners that share an address.
pub const REUSE_PORT_BALANCES: bool = cfg!(target_os = "linux");

/// Flags of every `send`: a dead peer is an error, never a signal.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd"
))]
pub const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;
/// Flags of every `send`; here std's own handling of SIGPIPE covers a dead peer.
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd"
)))]
pub const SEND_FLAGS: i32 = 0;

/// What a session's sockets are registered for, once and for all.
#[must_use]
pub fn interest() -> mio::Interest {
    let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let both = both | mio::Interest::PRIORITY;
    both
}

/// Whether an event tells of an urgent byte. Where the poller cannot tell, every event may.
#[must_use]
pub fn is_urgent(event: &mio::event::Event) -> bool {
    if cfg!(any(target_os = "linux", target_os = "android")) { event.is_priority() } else { event.is_readable() }
}
