//! One pipe: two descriptors and the exact number of bytes between them.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{SysconfVar, pipe2, read, sysconf};

/// The most bytes one [`Pipe::fill_from`] asks for: 1 GiB. Lengths above `isize::MAX` are `EINVAL` on newer kernels.
pub const MAX_FILL: usize = 1 << 30;

/// Slots a pipe must have to be worth its system calls; what an unrestricted pipe2(2) gives.
pub(crate) const MIN_SLOTS: usize = 16;

/// A pipe that knows how many bytes it holds.
///
/// Both ends are non-blocking and closed on exec. Dropping it closes both and discards what it still holds.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    pending: u32,
    size: u32,
}

/// Why there is no pipe. The flow that wanted one copies for now and asks again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPipe {
    /// `EMFILE` (this process) or `ENFILE` (the system, or `fs.pipe-user-pages-hard`): no descriptors left.
    Descriptors(Errno),
    /// The pool's share is in use, or the kernel gave a pipe below [`min_pipe_size`], which was closed again.
    Budget,
    /// pipe2(2) or fcntl(2) failed in another way, `ENOMEM` for example.
    Other(Errno),
}

/// Bytes of one page of this machine; pipe limits count pages, and a slot of a pipe is one.
pub(crate) fn page_size() -> usize {
    // Answered by libc from the auxiliary vector, without a system call.
    sysconf(SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(4096)
}

/// The smallest pipe this crate hands out, in bytes: 16 slots, 64 KiB where pages are 4 KiB.
#[must_use]
pub fn min_pipe_size() -> usize {
    MIN_SLOTS * page_size()
}

impl Pipe {
    /// Makes a pipe of `size` bytes, or of what the kernel allows, as long as that is at least [`min_pipe_size`].
    ///
    /// The kernel rounds up to a power of two; [`Pipe::size`] is what it says, not what was asked for.
    ///
    /// # Errors
    /// [`NoPipe`]; nothing stays open. An ordinary user past `fs.pipe-user-pages-soft` gets [`NoPipe::Budget`]: such a
    /// user's new pipes have two slots and may not grow (`alloc_pipe_info` and `pipe_set_size` in `fs/pipe.c`).
    pub fn new(size: usize) -> Result<Self, NoPipe> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(NoPipe::from_pipe2)?;
        let size = set_size(&writer, size.max(min_pipe_size())).map_err(NoPipe::Other)?;
        if (size as usize) < min_pipe_size() {
            return Err(NoPipe::Budget);
        }
        Ok(Self { reader, writer, pending: 0, size })
    }

    /// Asks the kernel for another size of an empty pipe and reads back what it is now. Shrinking is always allowed.
    pub(crate) fn resize(&mut self, size: usize) {
        debug_assert!(self.is_empty(), "resizing a pipe that holds {} bytes", self.pending);
        // An error here means that not even F_GETPIPE_SZ works on our own pipe; its size then is as it was.
        self.size = set_size(&self.writer, size).unwrap_or(self.size);
    }

    /// The inode: no other pipe has it, now or later.
    #[cfg(test)]
    pub(crate) fn id(&self) -> u64 {
        nix::sys::stat::fstat(&self.reader).expect("fstat of an open pipe").st_ino
    }

    /// Moves up to `len` bytes from a socket into the pipe, which must be empty. 0 is the end of the stream, or an
    /// urgent byte with a FIN somewhere behind it: only `recv` tells them apart.
    ///
    /// Because the pipe is empty, [`io::ErrorKind::WouldBlock`] means that the *source* is dry, or that only an urgent
    /// byte is next. `len` is brought into 1 to [`MAX_FILL`]. The source must be non-blocking itself: for a socket
    /// the kernel looks at `O_NONBLOCK` of the file, not at `SPLICE_F_NONBLOCK` (`tcp_splice_read` in `net/ipv4/tcp.c`).
    ///
    /// # Errors
    /// What splice(2) says, except `EINTR`, which is tried again. `raw_os_error` is always there. Keep the first error
    /// of a socket: after `ECONNRESET` has been reported once the next call returns 0, like a clean end.
    pub fn fill_from<S: AsFd>(&mut self, source: S, len: usize) -> io::Result<usize> {
        debug_assert!(self.is_empty(), "filling a pipe that holds {} bytes: EAGAIN would be ambiguous", self.pending);
        let len = len.min(MAX_FILL.saturating_sub(self.pending())).max(1);
        let n = move_bytes(source, &self.writer, len)?;
        // n <= len <= 2^30, so this neither truncates nor overflows.
        self.pending += n as u32;
        Ok(n)
    }

    /// Moves bytes from the pipe into a socket: asks for exactly what is pending, returns how many went.
    ///
    /// Never more than is pending, and never `SPLICE_F_MORE`: both make the kernel hold back the last segment for about
    /// 200 ms (`splice_to_socket` in `fs/splice.c` sets `MSG_MORE`). Returns 0, without a system call, for an empty pipe.
    /// The target must be non-blocking itself.
    ///
    /// # Errors
    /// What splice(2) says, except `EINTR`, which is tried again. After any error all pending bytes are still in the
    /// pipe, see [`Pipe::read_out`]. A dead target raises SIGPIPE too, which Rust's runtime ignores by default.
    pub fn drain_into<T: AsFd>(&mut self, target: T) -> io::Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        let n = move_bytes(&self.reader, target, self.pending())?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "splice(2) moved nothing out of a pipe that holds bytes and gave no error",
            ));
        }
        debug_assert!(n <= self.pending(), "splice(2) moved more than it was asked to");
        self.pending = self.pending.saturating_sub(n as u32);
        Ok(n)
    }

    /// Reads everything pending into memory, for a target that cannot be spliced to. The pipe is empty afterwards.
    ///
    /// # Errors
    /// Of read(2), or [`io::ErrorKind::UnexpectedEof`] if the pipe holds fewer bytes than counted, which no kernel
    /// does; the pipe must then be closed: the bytes read so far are gone.
    pub fn read_out(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.pending()];
        let mut filled = 0;
        while filled < bytes.len() {
            match read(&self.reader, &mut bytes[filled..]) {
                Ok(0) | Err(Errno::EAGAIN) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    filled += n;
                    self.pending -= n as u32;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(bytes)
    }

    /// Bytes in the pipe, exact. May be above [`Pipe::size`]: capacity counts slots, and a fragment of a socket's
    /// queue takes one, whether it has one byte or 64 KiB.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending as usize
    }

    /// Whether no byte is in the pipe.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending == 0
    }

    /// Size in bytes as the kernel reported it; the number of slots times the page size.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size as usize
    }
}

/// Sets the size of a pipe as far as the kernel allows; returns what it is afterwards.
fn set_size(pipe: &OwnedFd, size: usize) -> Result<u32, Errno> {
    let wanted = i32::try_from(size.min(MAX_FILL)).unwrap_or(i32::MAX);
    // F_SETPIPE_SZ answers with the size it set. Where it is refused (EPERM, ENOMEM) the pipe stays as it was.
    let size = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted)).or_else(|_| fcntl(pipe, FcntlArg::F_GETPIPE_SZ))?;
    Ok(u32::try_from(size).unwrap_or(0))
}

/// splice(2) without offsets, again on `EINTR`.
fn move_bytes<S: AsFd, T: AsFd>(source: S, target: T, len: usize) -> io::Result<usize> {
    let (source, target) = (source.as_fd(), target.as_fd());
    loop {
        match splice(source, None, target, None, len, SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(n) => return Ok(n),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl NoPipe {
    fn from_pipe2(errno: Errno) -> Self {
        match errno {
            Errno::EMFILE | Errno::ENFILE => Self::Descriptors(errno),
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for NoPipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptors(Errno::ENFILE) => f.write_str(
                "no pipe: the system is out of files, or this user is past fs.pipe-user-pages-hard (ENFILE from pipe2); \
                 raise fs.file-max or fs.pipe-user-pages-hard",
            ),
            Self::Descriptors(errno) => write!(
                f,
                "no pipe: this process is out of descriptors ({errno:?} from pipe2); raise its limit (ulimit -n, LimitNOFILE=)"
            ),
            Self::Budget => f.write_str(
                "no pipe: the budget is in use or the kernel gives this user only tiny pipes; \
                 raise fs.pipe-user-pages-soft or ulimit -n, or run with CAP_SYS_RESOURCE",
            ),
            Self::Other(errno) => write!(f, "no pipe: pipe2 or fcntl failed: {errno}"),
        }
    }
}

impl Error for NoPipe {}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::fcntl::FdFlag;

    use super::*;

    #[test]
    fn a_pipe_is_small_because_directions_hold_them() {
        assert!(size_of::<Option<Pipe>>() <= 16);
    }

    #[test]
    fn both_ends_are_non_blocking_and_closed_on_exec() {
        let pipe = Pipe::new(min_pipe_size()).unwrap();
        for end in [&pipe.reader, &pipe.writer] {
            let status = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL).unwrap());
            assert!(status.contains(OFlag::O_NONBLOCK), "{status:?}");
            let flags = FdFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC), "{flags:?}");
        }
    }

    #[test]
    fn the_size_is_what_the_kernel_says() {
        for (asked, size) in [(0, 1), (1, 1), (min_pipe_size(), 1), (min_pipe_size() + 1, 2), (3 * min_pipe_size(), 4)]
        {
            let pipe = Pipe::new(asked).unwrap();
            assert_eq!(pipe.size(), size * min_pipe_size());
            assert_eq!(fcntl(&pipe.reader, FcntlArg::F_GETPIPE_SZ), Ok(pipe.size() as i32));
        }
    }

    #[test]
    fn a_resized_pipe_is_as_large_as_it_says() {
        let mut pipe = Pipe::new(min_pipe_size()).unwrap();
        for size in [4 * min_pipe_size(), min_pipe_size()] {
            pipe.resize(size);
            assert_eq!(pipe.size(), size);
            assert_eq!(fcntl(&pipe.writer, FcntlArg::F_GETPIPE_SZ), Ok(size as i32));
        }
    }

    #[test]
    fn a_broken_count_is_an_error_and_not_invented_bytes() {
        let mut pipe = Pipe::new(min_pipe_size()).unwrap();
        pipe.pending = 10;
        assert_eq!(pipe.read_out().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "filling a pipe that holds 3 bytes")]
    fn only_an_empty_pipe_may_be_filled() {
        let (near, far) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut &near, b"abcdef").unwrap();
        let mut pipe = Pipe::new(min_pipe_size()).unwrap();
        assert_eq!(pipe.fill_from(&far, 3).unwrap(), 3);
        let _ = pipe.fill_from(&far, 3);
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for (refusal, word) in [
            (NoPipe::from_pipe2(Errno::EMFILE), "ulimit -n"),
            (NoPipe::from_pipe2(Errno::ENFILE), "fs.file-max"),
            (NoPipe::from_pipe2(Errno::ENOMEM), "ENOMEM"),
            (NoPipe::Budget, "fs.pipe-user-pages-soft"),
        ] {
            assert!(refusal.to_string().contains(word), "{refusal}");
        }
    }
}
