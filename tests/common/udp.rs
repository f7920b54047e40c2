//! Datagrams: ports of our own, clients and a backend that echoes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::deadline::LONG;

/// A port of the loopback addresses that nobody has: below those the system gives out, no other test's of this process,
/// and none of the other build's, whose tests may run beside these.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = if cfg!(spliced_portable) { 12_000 } else { 20_000 };
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = first + (std::process::id() as u16).wrapping_mul(97).wrapping_add(offset) % 8_000;
        if UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// A loopback address with such a port.
pub(crate) fn address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port()))
}

/// A client's socket with a deadline, connected to that address.
pub(crate) fn client(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from(std::net::Ipv6Addr::LOCALHOST) };
    let socket = UdpSocket::bind((any, 0)).expect("a loopback port");
    socket.set_read_timeout(Some(LONG)).expect("a deadline");
    socket.connect(to).expect("an address");
    socket
}

/// Sends a datagram and returns what comes back.
pub(crate) fn ask(client: &UdpSocket, question: &[u8]) -> Vec<u8> {
    client.send(question).expect("the kernel takes a datagram");
    receive(client)
}

/// The next datagram.
pub(crate) fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut answer = vec![0; 65_536];
    let bytes = client.recv(&mut answer).expect("an answer within the deadline");
    answer.truncate(bytes);
    answer
}

/// Whether nothing comes for a while.
pub(crate) fn is_silent(client: &UdpSocket, wait: Duration) -> bool {
    client.set_read_timeout(Some(wait)).expect("a deadline");
    let silent = client.recv(&mut [0; 16]).is_err();
    client.set_read_timeout(Some(LONG)).expect("a deadline");
    silent
}

/// Sends back what it gets, so many times.
#[derive(Debug)]
pub(crate) struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// One answer to each datagram.
    pub(crate) fn start() -> Self {
        Self::answering(1)
    }

    /// So many answers to each datagram, one after the other.
    pub(crate) fn answering(times: usize) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a loopback port");
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a large buffer");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a deadline");
        let (address, stop) = (socket.local_addr().expect("bound"), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut datagram = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((bytes, from)) = socket.recv_from(&mut datagram) else { continue };
                for _ in 0..times {
                    let _ = socket.send_to(&datagram[..bytes], from);
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().expect("stopped once").join();
    }
}
