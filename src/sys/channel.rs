//! A pair of connected sockets that carries short messages and open descriptors between a process and its child.
//!
//! `SOCK_SEQPACKET` (unix(7)) keeps the bounds of messages and tells of the other side's end.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Bytes of one message.
pub const MAX_MESSAGE: usize = 4096;
/// Descriptors with one message; the kernel's own limit is 253 (`SCM_MAX_FD` in include/net/scm.h).
pub const MAX_DESCRIPTORS: usize = 64;

/// One side of the pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A message and the descriptors that came with it, which no child inherits.
pub type Received = (Vec<u8>, Vec<OwnedFd>);

impl Channel {
    /// Our side, and the descriptor that is to become the child's.
    ///
    /// # Errors
    /// What socketpair(2) reports.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(ours), theirs))
    }

    /// The side a parent has given as standard input; a call to [`Self::receive`] waits at most for `patience`.
    ///
    /// # Errors
    /// What dup(2) or setsockopt(2) reports, such as that standard input is no socket.
    pub fn from_stdin(patience: Duration) -> io::Result<Self> {
        let channel = Self(io::stdin().as_fd().try_clone_to_owned()?);
        channel.wait_for(Some(patience))?;
        Ok(channel)
    }

    /// How long [`Self::receive`] waits; `None` for as long as the other side lives.
    ///
    /// # Errors
    /// What setsockopt(2) reports.
    pub fn wait_for(&self, patience: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, patience)?)
    }

    /// Sends a message with descriptors; without `wait` only when there is room for it.
    ///
    /// # Errors
    /// `WouldBlock` when the other side has to read first, `BrokenPipe` when it is gone, `InvalidInput` for too much at
    /// once, or what sendmsg(2) reports.
    pub fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
        if message.is_empty() || message.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
            let text = format!("a message has 1 to {MAX_MESSAGE} bytes and at most {MAX_DESCRIPTORS} descriptors");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(fits, "the space is for as many");
        }
        loop {
            let flags = SendFlags::NOSIGNAL | if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
            match sendmsg(&self.0, &[IoSlice::new(message)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                // The other side is gone and has left words of ours unread; that is told once, and from then on PIPE.
                Err(rustix::io::Errno::CONNRESET) => return Err(io::ErrorKind::BrokenPipe.into()),
                // A packet is sent whole or not at all.
                result => return Ok(result.map(drop)?),
            }
        }
    }

    /// The next message; `None` once the other side is gone and everything it said has been read.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, at once or after the time of [`Self::wait_for`]; `InvalidData` for a message
    /// that is too long or whose descriptors could not be taken.
    pub fn receive(&self, wait: bool) -> io::Result<Option<Received>> {
        // One byte more than allowed, so that a longer one is noticed also where it is not cut.
        let mut bytes = [0; MAX_MESSAGE + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        let message = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Err(rustix::io::Errno::INTR) => {}
                // It went away with words of ours unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                result => break result?,
            }
        };
        let mut descriptors = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                descriptors.extend(rights);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            let text = "descriptors were lost on the way; raise their limit (ulimit -n, LimitNOFILE=)";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if message.bytes > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
        }
        Ok((message.bytes > 0).then(|| (bytes[..message.bytes].to_vec(), descriptors)))
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    fn both() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel(theirs))
    }

    #[test]
    fn messages_keep_their_bounds_and_their_descriptors() {
        let (parent, child) = both();
        let (mut reader, writer) = std::io::pipe().unwrap();
        parent.send(b"one", &[], true).unwrap();
        parent.send(b"two", &[writer.as_fd(), reader.as_fd()], true).unwrap();
        drop((parent, writer));
        let (message, none) = child.receive(true).unwrap().unwrap();
        assert_eq!((message.as_slice(), none.len()), (&b"one"[..], 0));
        let (message, mut taken) = child.receive(true).unwrap().unwrap();
        assert_eq!((message.as_slice(), taken.len()), (&b"two"[..], 2));
        for fd in &taken {
            let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, nix::libc::FD_CLOEXEC, "a child inherits nothing");
        }
        assert!(child.receive(true).unwrap().is_none(), "the other side is gone");
        std::io::Write::write_all(&mut File::from(taken.swap_remove(0)), b"through").unwrap();
        let mut text = [0; 7];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"through");
    }

    #[test]
    fn nothing_waits_longer_than_it_was_told() {
        let (parent, child) = both();
        assert_eq!(parent.receive(false).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        child.wait_for(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(child.receive(true).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let full = (0..100_000).find_map(|_| parent.send(&[b'x'; MAX_MESSAGE], &[], false).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock, "a reader that sleeps holds nobody up");
        drop(child);
        assert_eq!(parent.send(b"x", &[], true).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert!(parent.receive(true).unwrap().is_none());
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let (parent, child) = both();
        for (message, fds) in [(0, 0), (MAX_MESSAGE + 1, 0), (1, MAX_DESCRIPTORS + 1)] {
            let stderr = io::stderr();
            let error = parent.send(&vec![b'x'; message], &vec![stderr.as_fd(); fds], true).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        // Someone else's program may send what ours would not.
        rustix::net::send(&parent.0, &[b'x'; MAX_MESSAGE + 1], SendFlags::empty()).unwrap();
        assert_eq!(child.receive(true).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
