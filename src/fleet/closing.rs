//! Listeners that are given up. They hear no SYN any more from that moment on, handshakes that have begun come to their
//! end, and each is closed by its worker the moment its queue is empty.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::doors::{Door, Place};
use crate::address::Address;

/// How long handshakes that have begun may take: a lost segment of one is sent again after a second, and then both ways
/// take their time.
const GRACE: Duration = Duration::from_millis(1500);
/// How long close(2) may take in another thread.
pub(super) const CLOSE: Duration = Duration::from_millis(100);

/// A door that is given up.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) address: Address,
    /// What its connections belong to.
    pub(super) place: Place,
    turn: usize,
    lent: bool,
    sockets: Vec<Weak<Socket>>,
    /// The same sockets while handshakes have their time. After that only workers hold them.
    held: Vec<Arc<Socket>>,
    until: Instant,
    /// They hear nothing any more, and never will again: only others can serve the address.
    pub(super) is_deaf: bool,
}

impl Closing {
    /// Gives a door up; `None` when no worker serves it.
    pub(super) fn new(door: Door, now: Instant) -> Option<Self> {
        let Door { address, sockets, turn, place: Some(place), lent, .. } = door else { return None };
        // The file of a unix socket goes with the door, and nobody finds it any more.
        let is_lost = address.path().is_some() && !lent;
        let mut is_deaf = is_lost;
        // Whoever lent sockets goes on to use them, and what waits in their queues is his.
        for socket in sockets.iter().filter(|_| !lent && !address.is_unix()) {
            match deafen(socket) {
                Ok(()) => is_deaf = true,
                Err(e) => log::debug!("{address}: a listener hears clients until it is closed: {e}"),
            }
        }
        let until = if is_deaf && !is_lost { now + GRACE } else { now };
        let weak = sockets.iter().map(Arc::downgrade).collect();
        Some(Self { address, place, turn, lent, sockets: weak, held: sockets, until, is_deaf })
    }

    /// Those of its sockets that are open, each with its worker's turn.
    pub(super) fn open(&self) -> impl Iterator<Item = (usize, Arc<Socket>)> {
        let turns = self.turn..;
        turns.zip(&self.sockets).filter_map(|(turn, socket)| Some((turn, socket.upgrade()?)))
    }

    /// The door as it may be opened again; `None` when all of its sockets are closed. Sockets that hear nothing are in
    /// nobody's way, so new ones are bound beside them; in the place of a unix socket there is nothing any more.
    pub(super) fn again(&self) -> Option<Door> {
        let mut sockets: Vec<Arc<Socket>> = self.open().map(|(_, socket)| socket).collect();
        if sockets.is_empty() {
            return None;
        }
        if self.is_deaf {
            if self.address.is_unix() {
                return None;
            }
            sockets.clear();
        }
        Some(Door {
            address: self.address,
            sockets,
            file: None,
            turn: self.turn,
            lent: self.lent,
            set: None,
            place: None,
        })
    }

    /// Whether handshakes have had their time, and workers close what has an empty queue.
    pub(super) fn is_told(&self) -> bool {
        self.held.is_empty()
    }

    /// When they have had it.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Leaves the sockets to the workers that have them; they are to be told.
    pub(super) fn let_go(&mut self) {
        self.held.clear();
    }

    /// Whether a socket is open.
    pub(super) fn is_open(&self) -> bool {
        self.sockets.iter().any(|socket| socket.strong_count() > 0)
    }
}

/// Lets a listener finish handshakes and begin none, by binding it to an interface there is none of: a SYN looks for a
/// listener of the interface it came by, the other segments of a handshake find what the SYN has left
/// (`inet_lookup_listener` and `inet_match` in the kernel's include/net/inet_hashtables.h). Clients are refused as they
/// are once it is closed. It needs no capability since Linux 5.7; taking it back would (SO_BINDTODEVICE in socket(7)).
#[cfg(target_os = "linux")]
fn deafen(socket: &Socket) -> io::Result<()> {
    // The kernel does not look whether there is such an interface (`sock_bindtoindex_locked` in net/core/sock.c), and
    // counts them up from 1. The number is SOL_SOCKET's, whatever the protocol in the function's name.
    let nowhere = std::num::NonZeroU32::new(i32::MAX.unsigned_abs());
    socket.bind_device_by_index_v4(nowhere)
}

#[cfg(not(target_os = "linux"))]
fn deafen(_: &Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn give_up(address: SocketAddr) -> Result<(), io::Error> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let queued = TcpStream::connect(address)?;
        let socket = Arc::new(Socket::from(listener));
        socket.set_reuse_port(true)?;
        let place = Some(Place { forward: 0, index: 0, port_offset: 0 });
        let door = Door {
            address: address.into(),
            sockets: vec![Arc::clone(&socket)],
            file: None,
            turn: 3,
            lent: false,
            set: None,
            place,
        };
        let now = Instant::now();
        let mut closing = Closing::new(door, now).expect("a worker serves it");
        assert!(closing.is_deaf && !closing.is_told() && closing.until() == now + GRACE);
        assert_eq!(TcpStream::connect(address).expect_err("nobody hears it").kind(), io::ErrorKind::ConnectionRefused);

        // Another one stands beside it, and gets all there is.
        let again = closing.again().expect("it is open");
        assert!(again.sockets.is_empty());
        let beside = Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        beside.set_reuse_address(true)?;
        beside.set_reuse_port(true)?;
        beside.bind(&address.into())?;
        beside.listen(64)?;
        let clients: Vec<TcpStream> = (0..32).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
        for client in clients {
            assert_eq!(beside.accept()?.1.as_socket(), Some(client.local_addr()?));
        }

        // Whoever was there before is served.
        assert_eq!(socket.accept()?.1.as_socket(), Some(queued.local_addr()?));
        socket.set_nonblocking(true)?;
        assert_eq!(socket.accept().expect_err("nobody else").kind(), io::ErrorKind::WouldBlock);

        // The last one to hold it closes it.
        closing.let_go();
        assert_eq!(closing.open().map(|(turn, _)| turn).collect::<Vec<_>>(), [3]);
        drop(socket);
        assert!(!closing.is_open() && closing.again().is_none());
        Ok(())
    }

    #[test]
    fn what_is_given_up_hears_nothing_and_serves_its_queue() {
        give_up((Ipv4Addr::LOCALHOST, 0).into()).expect("IPv4");
        give_up((Ipv6Addr::LOCALHOST, 0).into()).expect("IPv6");
    }

    #[test]
    fn what_was_lent_is_left_as_it_is() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("an address");
        let address = listener.local_addr().expect("an address");
        let lender = listener.try_clone().expect("a descriptor");
        let place = Some(Place { forward: 0, index: 0, port_offset: 0 });
        let sockets = vec![Arc::new(Socket::from(listener))];
        let mut closing = Closing::new(
            Door { address: address.into(), sockets, file: None, turn: 0, lent: true, set: None, place },
            Instant::now(),
        )
        .expect("a worker serves it");
        assert!(!closing.is_deaf);
        assert!(closing.again().is_some_and(|door| door.lent && door.sockets.len() == 1));
        closing.let_go();
        let client = TcpStream::connect(address).expect("whoever lent it serves it");
        assert_eq!(lender.accept().expect("a connection").1, client.local_addr().expect("an address"));
    }
}
