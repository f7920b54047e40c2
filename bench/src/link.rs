//! Two TCP connections over loopback with room for a forwarder between them.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::Socket;
use spliced::plan::TcpOptions;
use spliced::sys;

/// Longest wait for any progress within this host: time for a few retransmissions, each later than the one before.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a message to arrive as a whole, before what there is of it is moved.
const SETTLED: Duration = Duration::from_millis(20);

/// writer → source, then room for a forwarder, then target → reader. No socket blocks.
///
/// The sockets carry the options spliced sets, and fixed buffers: autotuning would let a benchmark that runs later find
/// larger ones than its predecessor.
#[derive(Debug)]
pub struct Link {
    writer: Socket,
    /// Where the forwarder reads.
    pub source: Socket,
    /// Where the forwarder writes.
    pub target: Socket,
    reader: Socket,
    /// Never read from: a peek that truncates only counts.
    counting: Box<[MaybeUninit<u8>]>,
}

impl Link {
    /// Connects the four sockets; `buffer` is what each is asked to hold, in bytes. The kernel may give less.
    ///
    /// # Errors
    /// What the system calls report.
    pub fn new(buffer: usize) -> io::Result<Self> {
        let (writer, source) = connection(buffer)?;
        let (target, reader) = connection(buffer)?;
        Ok(Self { writer, source, target, reader, counting: vec![MaybeUninit::uninit(); buffer].into() })
    }

    /// How many bytes can be queued on this link before anything is moved, on the safe side.
    ///
    /// # Errors
    /// What getsockopt(2) reports.
    pub fn room(&self) -> io::Result<usize> {
        // Linux reports twice what was asked for, the other half being for its own bookkeeping (socket(7)); half of
        // the rest makes up for bookkeeping that is larger than that.
        let receives = self.source.recv_buffer_size()?.min(self.reader.recv_buffer_size()?);
        let sends = self.writer.send_buffer_size()?.min(self.target.send_buffer_size()?);
        Ok((receives.min(sends) / 4).clamp(1, self.counting.len()))
    }

    /// Writes as much of `bytes` as the socket takes at once, and says how much.
    ///
    /// # Errors
    /// What send(2) reports.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut put = 0;
        while put < bytes.len() {
            match (&self.writer).write(&bytes[put..]) {
                Ok(n) => put += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(put)
    }

    /// Waits until `expected` bytes can be read from [`Link::source`], but not for ever: short of memory, the kernel
    /// drops what it has to send again later. Says how many there are.
    ///
    /// # Errors
    /// What recv(2) reports.
    pub fn arrived(&mut self, expected: usize) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            let arrived = match self.source.recv_with_flags(&mut self.counting, libc::MSG_PEEK | libc::MSG_TRUNC) {
                Ok(n) => n,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
                Err(e) => return Err(e),
            };
            if arrived >= expected || start.elapsed() > SETTLED {
                return Ok(arrived);
            }
            // Loopback delivers within the sender's system call, save what it leaves to the next soft interrupt.
            std::thread::yield_now();
        }
    }

    /// Reads exactly `bytes.len()` bytes from where the target sends them.
    ///
    /// # Errors
    /// What the system calls report, [`io::ErrorKind::UnexpectedEof`], or [`io::ErrorKind::TimedOut`] if they do not
    /// arrive.
    pub fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let (mut taken, start) = (0, Instant::now());
        while taken < bytes.len() {
            match (&self.reader).read(&mut bytes[taken..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => taken += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => patience(start)?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Lets the kernel go on with what it has in hand.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when nothing has come of it for very long.
pub fn patience(start: Instant) -> io::Result<()> {
    if start.elapsed() < PATIENCE {
        std::thread::yield_now();
        return Ok(());
    }
    let message = format!(
        "no progress on loopback within {PATIENCE:?}: a packet filter in the way, or all memory for TCP in use (net.ipv4.tcp_mem)?"
    );
    Err(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// A connection over loopback: the connecting and the accepted end.
fn connection(buffer: usize) -> io::Result<(Socket, Socket)> {
    let options = TcpOptions {
        keepalive: None,
        receive_buffer: Some(buffer),
        send_buffer: Some(buffer),
        ..TcpOptions::default()
    };
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = sys::stream(local.into(), false)?;
    // Before listen and connect: the window scale is settled in the handshake. Accepted sockets inherit it all.
    sys::set_options(&listener, local.into(), &options)?;
    listener.set_nonblocking(false)?;
    listener.bind(&local.into())?;
    listener.listen(1)?;
    let near = sys::stream(local.into(), false)?;
    sys::set_options(&near, local.into(), &options)?;
    near.set_nonblocking(false)?;
    near.connect(&listener.local_addr()?)?;
    near.set_nonblocking(true)?;
    let (far, _) = sys::accept(&listener)?;
    Ok((near, far))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_waits_at_the_source_and_only_there() {
        let mut link = Link::new(1 << 20).unwrap();
        assert_eq!(link.arrived(0).unwrap(), 0);
        assert_eq!(link.put(b"hello").unwrap(), 5);
        let start = Instant::now();
        while link.arrived(5).unwrap() < 5 {
            patience(start).unwrap();
        }
        let mut bytes = [0; 6];
        assert_eq!((&link.source).read(&mut bytes).unwrap(), 5, "counting has taken nothing");
        assert_eq!(&bytes[..5], b"hello");
        assert_eq!((&link.reader).read(&mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn nobody_waits_for_ever_for_what_was_never_put() {
        let mut link = Link::new(64 << 10).unwrap();
        link.put(b"ab").unwrap();
        assert!(link.arrived(3).unwrap() <= 2);
    }

    #[test]
    fn an_end_behind_the_target_is_an_error() {
        let mut link = Link::new(64 << 10).unwrap();
        link.target.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(link.take(&mut [0]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
