//! Every socket of the process that clients send datagrams to, by address.
//!
//! An address has a socket in each worker: the kernel chooses one by a hash of the client's address and port
//! (SO_REUSEPORT), so a client stays with its worker as long as their number stays. It never gets fewer, because that would
//! move clients about and throw away what waits in the queues; those that are more than workers are dealt to the workers
//! in turn.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::flow::Listener;
use super::{buffers, socket};
use crate::plan::{Forward, Plan};
use crate::{listener, sandbox, sys};

/// From this many ports in a range on, a port has one socket instead of one in each worker.
const DEALT_FROM: usize = 16;
/// How often it is looked whether flows of an address that is given up have ended.
const LOOK: Duration = Duration::from_millis(250);

/// All of them.
#[derive(Debug, Default)]
pub struct Doors {
    open: Vec<Door>,
    /// Addresses no plan has any more, kept as long as some worker has flows there: all their sockets, or the kernel would
    /// choose others for the clients of these flows.
    closing: Vec<Door>,
}

/// The sockets of one address.
#[derive(Debug, Clone)]
struct Door {
    address: SocketAddr,
    sockets: Vec<Arc<Socket>>,
    /// The worker the first of them goes to.
    turn: usize,
    place: Option<Place>,
    /// Flows that came by it, of all workers.
    flows: Arc<AtomicUsize>,
}

/// What the datagrams of an address belong to.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Index of the forward in the plan, and from [`Doors::commit`] on the number of its edition.
    forward: usize,
    port_offset: u16,
}

/// What a plan needs, opened and not in use yet. Dropping it closes what is new and changes nothing.
#[derive(Debug)]
pub struct Prepared {
    doors: Vec<Door>,
    new: Vec<Arc<Socket>>,
}

impl Prepared {
    /// Gives every socket to the user this process will become.
    ///
    /// # Errors
    /// What fchown(2) reports.
    pub fn give(&self) -> io::Result<()> {
        self.new.iter().map(AsRef::as_ref).try_for_each(sandbox::give_socket)
    }

    /// How many sockets there will be.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.doors.iter().map(|door| door.sockets.len()).sum()
    }
}

impl Doors {
    /// Sockets the process this one replaces has passed on.
    ///
    /// # Errors
    /// A socket without an IP address.
    pub fn inherit(sockets: Vec<Socket>) -> io::Result<Self> {
        let mut doors = Self::default();
        for socket in sockets {
            let address = socket.local_addr()?.as_socket();
            let none = || io::Error::new(io::ErrorKind::InvalidInput, "an inherited socket has no IP address");
            let address = address.ok_or_else(none)?;
            socket.set_nonblocking(true)?;
            socket.set_cloexec(true)?;
            let socket = Arc::new(socket);
            match doors.open.iter_mut().find(|door| door.address == address) {
                Some(door) => door.sockets.push(socket),
                None => doors.open.push(Door {
                    address,
                    sockets: vec![socket],
                    turn: 0,
                    place: None,
                    flows: Arc::default(),
                }),
            }
        }
        Ok(doors)
    }

    /// Every socket that is open, to pass on to another process.
    pub fn sockets(&self) -> impl Iterator<Item = &Arc<Socket>> {
        self.open.iter().flat_map(|door| &door.sockets)
    }

    /// Opens what a plan needs and is not there yet.
    ///
    /// # Errors
    /// An address that cannot be bound, named in the message with what can be done; nothing has changed then.
    pub fn prepare(&self, plan: &Plan, workers: usize) -> io::Result<Prepared> {
        let known: HashMap<SocketAddr, &Door> =
            self.open.iter().chain(&self.closing).map(|door| (door.address, door)).collect();
        let mut prepared = Prepared { doors: Vec::new(), new: Vec::new() };
        for (number, forward) in plan.forwards.iter().enumerate() {
            for listen in &forward.udp.listen {
                let shared = sys::REUSE_PORT_BALANCES && listen.ports.len() < DEALT_FROM;
                for (address, port_offset) in listen.addresses() {
                    let Some(address) = address.socket() else { continue };
                    let place = Place { forward: number, port_offset };
                    let known = known.get(&address).copied();
                    let wanted = if shared { workers } else { 1 };
                    let door = prepared.open(address, place, forward, wanted, known);
                    prepared.doors.push(door.map_err(|e| listener::explain(address.into(), forward, &e))?);
                }
            }
        }
        Ok(prepared)
    }

    /// Puts what was prepared into use; `editions` has the number of each forward's edition, in the order of the plan.
    pub fn commit(&mut self, prepared: Prepared, plan: &Plan, editions: &[usize]) {
        let mut doors = prepared.doors;
        let new: HashSet<*const Socket> = prepared.new.iter().map(Arc::as_ptr).collect();
        let mut scarce = HashMap::new();
        for door in &mut doors {
            if let Some(place) = &mut door.place {
                let forward = &plan.forwards[place.forward];
                place.forward = editions[place.forward];
                for socket in &door.sockets {
                    if let Err(e) = buffers::set_of_listener(socket, forward) {
                        log::warn!("{}: cannot change the options of a listener: {e}", door.address);
                    }
                    if new.contains(&Arc::as_ptr(socket)) {
                        scarce.entry(forward.name.as_str()).or_insert_with(|| buffers::scarce(socket, forward));
                    }
                }
            }
        }
        scarce.into_values().flatten().for_each(|scarce| scarce.tell());
        let taken: HashSet<SocketAddr> = doors.iter().map(|door| door.address).collect();
        self.closing.retain(|door| !taken.contains(&door.address));
        let old = std::mem::replace(&mut self.open, doors);
        self.closing.extend(old.into_iter().filter(|door| !taken.contains(&door.address)));
    }

    /// Gives up addresses without a flow; whether there were any, and workers are to be told.
    pub fn close_due(&mut self) -> bool {
        let before = self.closing.len();
        self.closing.retain(|door| door.flows.load(Ordering::Acquire) > 0);
        self.closing.len() < before
    }

    /// When [`Self::close_due`] is to be asked again.
    #[must_use]
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        (!self.closing.is_empty()).then(|| now + LOOK)
    }

    /// The listeners of each of the workers in `seats`, whose numbers are in ascending order and more than none.
    #[must_use]
    pub fn deal(&self, seats: &[usize]) -> HashMap<usize, Vec<Listener>> {
        let mut sets: HashMap<usize, Vec<Listener>> = HashMap::new();
        let all = self.open.iter().map(|door| (door, false)).chain(self.closing.iter().map(|door| (door, true)));
        for (door, closing) in all {
            let Some(Place { forward, port_offset }) = door.place else { continue };
            for (i, socket) in door.sockets.iter().enumerate() {
                let (socket, flows) = (Arc::clone(socket), Arc::clone(&door.flows));
                let listener = Listener { socket, address: door.address, forward, port_offset, flows, closing };
                sets.entry(seats[(door.turn + i) % seats.len()]).or_default().push(listener);
            }
        }
        sets
    }
}

impl Prepared {
    fn open(
        &mut self,
        address: SocketAddr,
        place: Place,
        forward: &Forward,
        wanted: usize,
        known: Option<&Door>,
    ) -> io::Result<Door> {
        let mut door = match known {
            Some(door) => Door { place: Some(place), ..door.clone() },
            None => {
                let turn = if wanted > 1 { 0 } else { self.doors.len() };
                let sockets = vec![self.claim(address, forward)?];
                Door { address, sockets, turn, place: Some(place), flows: Arc::default() }
            }
        };
        while door.sockets.len() < wanted {
            match bind(address, forward, true) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    self.new.push(Arc::clone(&socket));
                    door.sockets.push(socket);
                }
                // Another user's socket, or a low port without the privilege to bind it again: those there are serve.
                Err(e) if known.is_some() => {
                    log::debug!("{address}: {} sockets for {wanted} workers: {e}", door.sockets.len());
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(door)
    }

    /// Binds alone, which another process that has the address makes fail, and only then lets others share it.
    fn claim(&mut self, address: SocketAddr, forward: &Forward) -> io::Result<Arc<Socket>> {
        let socket = bind(address, forward, false)?;
        socket.set_reuse_port(true)?;
        let socket = Arc::new(socket);
        self.new.push(Arc::clone(&socket));
        Ok(socket)
    }
}

fn bind(address: SocketAddr, forward: &Forward, shared: bool) -> io::Result<Socket> {
    let socket = datagrams(address)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    listener::narrow(&socket, address, forward)?;
    buffers::set_of_listener(&socket, forward)?;
    socket::prepare(&socket, Some(address))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A UDP socket that neither blocks nor is inherited by a child.
///
/// # Errors
/// What socket(2) reports.
pub fn datagrams(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
