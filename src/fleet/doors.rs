//! Every listening socket of the process, by address.
//!
//! The fleet owns them and workers borrow them, so that no worker's end closes a socket: closing a listener resets
//! whoever waits in its queue, also where other sockets listen on the address (SO_REUSEPORT binds a connection to one
//! socket when its SYN arrives, and `net.ipv4.tcp_migrate_req` is off by default).
//!
//! For the same reason an address never has fewer sockets than it once had: those that are more than workers are dealt
//! to the workers in turn.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use socket2::Socket;

use crate::listener::{self, Listener, Place};
use crate::plan::{Forward, Plan, TcpOptions};
use crate::sys;

/// From this many ports in a range on, a port has one listener, dealt to the workers in turn, instead of one in each.
const DEALT_FROM: usize = 16;

/// All listening sockets.
#[derive(Debug, Default)]
pub struct Doors {
    open: Vec<Door>,
    /// To be set and to listen: those that are only bound, and those that listened before this process was.
    unset: Vec<(Arc<Socket>, TcpOptions, i32)>,
}

/// The sockets that listen on one address.
#[derive(Debug, Clone)]
pub struct Door {
    address: SocketAddr,
    sockets: Vec<Arc<Socket>>,
    /// The worker the first of the sockets goes to; the others go to those that follow.
    turn: usize,
    /// They were lent: no other is put beside them.
    lent: bool,
    /// What the plan says about the address; `None` while no plan has asked for it.
    place: Option<Place>,
}

/// A listener that was open before this process was.
#[derive(Debug)]
pub struct Inherited {
    /// It listens.
    pub socket: Socket,
    /// A service manager keeps it when this process ends, so no other is put beside it, whose queue would end with us.
    pub lent: bool,
}

/// What a plan needs, opened and not in use yet. Dropping it closes what is new and changes nothing.
#[derive(Debug)]
pub struct Prepared {
    doors: Vec<Door>,
    /// Bound and not listening yet, for a socket that listens gets connections; or listening with options of others.
    unset: Vec<(Arc<Socket>, TcpOptions, i32)>,
}

impl Doors {
    /// Sockets that listen already: passed on by a service manager or by the process this one replaces.
    ///
    /// # Errors
    /// A socket that does not listen, or not on an IP address.
    pub fn inherit(sockets: Vec<Inherited>) -> io::Result<Self> {
        let mut doors = Self::default();
        for Inherited { socket, lent } in sockets {
            let address = socket.local_addr()?.as_socket();
            let refuse = |why| io::Error::new(io::ErrorKind::InvalidInput, format!("an inherited socket {why}"));
            let address = address.ok_or_else(|| refuse("has no IP address"))?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if !socket.is_listener()? {
                return Err(refuse("does not listen"));
            }
            socket.set_nonblocking(true)?;
            socket.set_cloexec(true)?;
            match doors.open.iter_mut().find(|door| door.address == address) {
                Some(door) => {
                    door.sockets.push(Arc::new(socket));
                    door.lent |= lent;
                }
                None => doors.open.push(Door { address, sockets: vec![Arc::new(socket)], turn: 0, lent, place: None }),
            }
        }
        Ok(doors)
    }

    /// Every socket, and whether it is lent, to pass on to another process. Passing a socket on does not stop this process
    /// from accepting: that takes [`Fleet::let_go`](super::Fleet::let_go).
    pub fn sockets(&self) -> impl Iterator<Item = (&Arc<Socket>, bool)> {
        self.open.iter().flat_map(|door| door.sockets.iter().map(|socket| (socket, door.lent)))
    }

    /// Every listening address.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.open.iter().map(|door| door.address)
    }

    /// Opens what a plan needs and is not there yet; what is there is taken as it is. A new address listens at once:
    /// that claims it against a second process, also one that starts at the same moment and would share it. A further
    /// socket of an address that is there is only bound.
    ///
    /// # Errors
    /// An address that cannot be bound, named in the message with what can be done; nothing has changed then.
    pub fn prepare(&self, plan: &Plan, workers: usize) -> io::Result<Prepared> {
        let known: HashMap<SocketAddr, &Door> = self.open.iter().map(|door| (door.address, door)).collect();
        // An address that is taken is found before any other is opened to clients.
        for place in listener::places(plan).filter(|place| !known.contains_key(&place.address)) {
            let forward = &plan.forwards[place.forward];
            listener::probe(place.address).map_err(|e| listener::explain(place.address, forward, &e))?;
        }
        let mut prepared = Prepared { doors: Vec::new(), unset: Vec::new() };
        for place in listener::places(plan) {
            let forward = &plan.forwards[place.forward];
            let door = prepared.open(place, forward, workers, known.get(&place.address).copied());
            prepared.doors.push(door.map_err(|e| listener::explain(place.address, forward, &e))?);
        }
        Ok(prepared)
    }

    /// Puts what was prepared into use and returns the doors no plan asks for any more.
    pub fn commit(&mut self, prepared: Prepared) -> Vec<Door> {
        let retired = self.adopt(prepared);
        self.listen();
        retired
    }

    /// The same, but what was only bound does not listen before [`Self::listen`].
    pub(super) fn adopt(&mut self, prepared: Prepared) -> Vec<Door> {
        let Prepared { doors, unset } = prepared;
        self.unset.extend(unset);
        let old = std::mem::replace(&mut self.open, doors);
        let kept: HashMap<SocketAddr, ()> = self.open.iter().map(|door| (door.address, ())).collect();
        old.into_iter().filter(|door| !kept.contains_key(&door.address)).collect()
    }

    /// Sets every socket that is not set yet and lets it listen.
    pub(super) fn listen(&mut self) {
        for (socket, options, backlog) in std::mem::take(&mut self.unset) {
            if let Err(e) = sys::set_options(&socket, &options) {
                log::warn!("cannot set the options of a listener: {e}; its sessions have others");
            }
            // It would take another address or no memory to fail here; the other sockets of the address go on.
            if let Err(e) = socket.listen(backlog) {
                log::warn!("a further socket of an address cannot listen: {e}; the others take its connections");
                self.open.iter_mut().for_each(|door| door.sockets.retain(|other| !Arc::ptr_eq(other, &socket)));
            }
        }
    }

    /// The listeners of each of so many workers.
    #[must_use]
    pub fn deal(&self, workers: usize) -> Vec<Vec<Listener>> {
        let mut sets: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
        for door in &self.open {
            let Some(place) = door.place else { continue };
            for (i, socket) in door.sockets.iter().enumerate() {
                sets[(door.turn + i) % workers].push(Listener {
                    socket: Arc::clone(socket),
                    address: door.address,
                    forward: place.forward,
                    index: place.number,
                    port_offset: place.port_offset,
                    ready: true,
                    paused: false,
                });
            }
        }
        sets
    }
}

impl Prepared {
    fn open(&mut self, place: Place, forward: &Forward, workers: usize, known: Option<&Door>) -> io::Result<Door> {
        let shared = sys::REUSE_PORT_BALANCES && place.ports < DEALT_FROM;
        let mut door = match known {
            Some(door) => {
                let sockets = door.sockets.iter().map(Arc::clone);
                self.unset.extend(sockets.map(|socket| (socket, forward.tcp, listener::backlog(forward))));
                Door { place: Some(place), ..door.clone() }
            }
            None => Door {
                address: place.address,
                sockets: vec![Arc::new(listener::claim(place.address, forward)?)],
                turn: if shared { 0 } else { place.number },
                lent: false,
                place: Some(place),
            },
        };
        let wanted = if shared && !door.lent { workers } else { 1 };
        while door.sockets.len() < wanted {
            // An inherited socket may not be shareable; so that others can stand beside it, it must allow that.
            let bound =
                door.sockets[0].set_reuse_port(true).and_then(|()| listener::bind(place.address, forward, true));
            match bound {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    self.unset.push((Arc::clone(&socket), forward.tcp, listener::backlog(forward)));
                    door.sockets.push(socket);
                }
                // Another user's socket, or a low port without the privilege to bind it again: the address is served
                // all the same, and workers hand connections to one another.
                Err(e) if known.is_some() => {
                    let have = door.sockets.len();
                    log::debug!("{}: {have} sockets for {workers} workers: {e}", place.address);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(door)
    }
}
