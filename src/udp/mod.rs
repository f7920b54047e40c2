//! Datagrams: what each client sends from one port is a flow, with a connected socket of its own towards the target.
//!
//! In reading order: `doors` are the sockets clients send to, `flow` is one client, `table` what a worker holds, `batch`
//! the datagrams of a few system calls, `socket` the system calls, `framing` datagrams in a stream. How a worker forwards them is in
//! [`crate::worker`]: flows live in the same event loops as sessions, are counted as sessions, and keep the edition of
//! their forward they began with.
//!
//! Datagrams are never split, joined or put out of order here. What the kernel hands over as one
//! (`UDP_GRO`) is taken apart by the length it tells, and what leaves as one is as many datagrams of one length, the last
//! one shorter at most, which the kernel takes apart again (`UDP_SEGMENT`). Where there is no room a datagram is dropped
//! and counted: nothing here waits for a slow reader.

pub mod batch;
pub mod buffers;
pub mod doors;
pub mod flow;
pub mod framing;
#[cfg(all(target_os = "linux", not(spliced_portable)))]
pub mod socket;
#[cfg(not(all(target_os = "linux", not(spliced_portable))))]
#[path = "plain.rs"]
pub mod socket;
pub mod table;

use std::io;

use crate::stats::DropCause;

/// What an error of a socket's call means for the datagram it was about.
#[must_use]
pub fn cause_of(error: &io::Error) -> DropCause {
    match error.raw_os_error() {
        _ if error.kind() == io::ErrorKind::WouldBlock => DropCause::NoRoom,
        Some(libc::ENOBUFS | libc::ENOMEM) => DropCause::NoRoom,
        Some(libc::EMSGSIZE) => DropCause::TooLong,
        Some(libc::EMFILE | libc::ENFILE) => DropCause::NoDescriptors,
        Some(
            libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENETDOWN
            | libc::EACCES
            | libc::EPERM,
        ) => DropCause::Unreachable,
        _ => DropCause::Error,
    }
}
