//! Pipes for splice(2): owned, pooled and budgeted.
//!
//! A forwarder moves bytes socket → pipe → socket without bringing them into its own memory. This crate is the middle
//! of that: [`Pipe`] moves bytes in and out and knows exactly how many are between, [`PipePool`] keeps a worker's pipes,
//! [`PipeBudget`] works out how many there may be. It knows neither TCP nor any poller, locks nothing, reads no clock,
//! and exists on Linux only.
//!
//! ```
//! # #[cfg(target_os = "linux")] {
//! # use std::{io::{Read, Write}, os::unix::net::UnixStream};
//! use pipes::PipeBudget;
//!
//! let mut pool = PipeBudget::detect(None, 1).pool();
//! let (mut client, from) = UnixStream::pair()?;
//! let (to, mut backend) = UnixStream::pair()?;
//! client.write_all(b"hello")?;
//!
//! let mut pipe = pool.get()?;
//! assert_eq!(pipe.fill_from(&from, 65536)?, 5);
//! assert_eq!(pipe.drain_into(&to)?, 5);
//! pool.put(pipe);
//!
//! let mut bytes = [0; 5];
//! backend.read_exact(&mut bytes)?;
//! assert_eq!(&bytes, b"hello");
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What splice(2) demands
//!
//! Ten rules keep a forwarder that splices correct. Some hold by the shape of this crate, others need the caller; each
//! has a test in `tests/kernel` or beside the code. Kernel files are those of Linux 6.12 and later.
//!
//! Held here:
//!
//! 1. *Only an empty pipe is filled.* A full pipe answers `EAGAIN` without a look at the socket (`splice_file_to_pipe` in
//!    `fs/splice.c`), an edge-triggered poller then never reports the bytes still in the socket. [`Pipe::fill_from`]
//!    insists on an empty pipe, so that its `WouldBlock` is about the source alone.
//! 2. *Draining asks for exactly what is pending.* For more the kernel expects a further splice and holds the last
//!    segment back, about 200 ms, when the pipe's slots end on a multiple of 16 (`splice_to_socket`).
//! 3. *`SPLICE_F_MORE` is never set*: the same delay every time, `TCP_NODELAY` or not (splice(2), tcp(7)).
//! 4. *A length is never 0 and never above 1 GiB.* 0 bytes moved would pass for the end of the stream, and lengths above
//!    `isize::MAX` are `EINVAL` on newer kernels (`rw_verify_area` in `fs/read_write.c`).
//! 5. *`EINTR` is no news*: the call is made again.
//! 6. *A pipe that holds bytes is closed, never pooled*: they would reach another connection.
//! 7. *No pipe below 16 slots (64 KiB with pages of 4 KiB).* Past `fs.pipe-user-pages-soft` an ordinary user's new pipes
//!    have two slots and may not grow; past `fs.pipe-max-size` none may (`alloc_pipe_info` and `pipe_set_size` in
//!    `fs/pipe.c`, pipe(7)). Sizes are read back, and a tiny pipe is closed and reported as [`NoPipe::Budget`].
//!
//! Left to the caller, who alone sees both sockets:
//!
//! 8. *A direction owns a pipe only while bytes are in it.* Then pipes count stalled directions, not connections.
//! 9. *The first error of a socket is kept.* After `ECONNRESET` has been reported once the next fill returns 0, as at a
//!    clean end. `SIGPIPE` comes with a dead target; Rust programs ignore it unless they were told not to.
//! 10. *Readable, yet `WouldBlock` with an empty pipe: one `recv`.* An urgent byte stops splice in front of it
//!     (`tcp_read_sock` in `net/ipv4/tcp.c`) while poll(2) goes on reporting the socket; only `recv` gets past. With a
//!     FIN behind that byte splice says 0 there, not `EAGAIN` (`tcp_splice_read`): before a 0 is believed, one `recv`.
//!
//! # Capacity is slots
//!
//! A pipe has one slot per page of its size, and a fragment of a socket's queue takes a slot whatever its length. Tiny
//! segments fill a 64 KiB pipe at a few dozen bytes; large fragments could hold several times its size. Newer kernels (seen
//! on 6.18) end a single splice at the free slots times the page size all the same, older ones do not. So
//! [`Pipe::pending`] may be below and above [`Pipe::size`], and a short fill does not mean that the socket is dry.
//!
//! # The budget
//!
//! The kernel counts the pages of all pipes of a user, 16384 by default: 64 pipes of 1 MiB, 1024 of 64 KiB. The budget
//! takes at most three quarters of them, a quarter of the descriptors, and, for processes the page limit does not hold
//! for, an eighth of the memory; each worker gets an even share. `CAP_SYS_RESOURCE` or `CAP_SYS_ADMIN` lifts the page
//! limit, only `CAP_SYS_RESOURCE` lifts `fs.pipe-max-size`, and both count in the initial user namespace alone. A pool
//! spends its share by need: see [`PipePool`].
#![cfg(target_os = "linux")]

mod budget;
mod limits;
mod pipe;
mod pool;

pub use budget::PipeBudget;
pub use limits::Limits;
pub use pipe::{MAX_FILL, NoPipe, Pipe, min_pipe_size};
pub use pool::PipePool;
