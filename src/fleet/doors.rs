//! Every listening socket of the process, by address.
//!
//! The fleet owns them and workers borrow them, so that no worker's end closes a socket: closing a listener resets
//! whoever waits in its queue, also where other sockets listen on the address (SO_REUSEPORT binds a connection to one
//! socket when its SYN arrives, and `net.ipv4.tcp_migrate_req` is off by default).
//!
//! For the same reason an address never has fewer sockets than it once had: those that are more than workers are dealt
//! to the workers in turn. An address nobody asks for any more is given up; see [`super::closing`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::closing::{CLOSE, Closing};
use crate::address::Address;
use crate::listener::{self, Listener};
use crate::plan::{Forward, ListenOptions, Plan, TcpOptions};
use crate::sandbox;
use crate::socket_file::SocketFile;
use crate::sys;

/// From this many ports of a forward on, a port has one listener, dealt to the workers in turn, instead of one in each.
const DEALT_FROM: usize = 16;

/// All listening sockets.
#[derive(Debug, Default)]
pub struct Doors {
    open: Vec<Door>,
    closing: Vec<Closing>,
}

/// A listener that was open before this process was.
#[derive(Debug)]
pub struct Inherited {
    /// It listens.
    pub socket: Socket,
    /// A service manager keeps it when this process ends, so no other is put beside it, whose queue would end with us.
    pub lent: bool,
}

/// The sockets that listen on one address.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) address: Address,
    pub(super) sockets: Vec<Arc<Socket>>,
    /// The file of a unix socket, which goes with the last to hold it here.
    pub(super) file: Option<Arc<SocketFile>>,
    /// The worker the first of the sockets goes to; the others go to those that follow.
    pub(super) turn: usize,
    /// They were lent: no other is put beside them.
    pub(super) lent: bool,
    /// What the sockets are set to.
    pub(super) set: Option<Settings>,
    /// What its connections belong to; `None` while no plan has asked for it.
    pub(super) place: Option<Place>,
}

/// What the sockets of a door are set to.
pub(super) type Settings = (TcpOptions, i32, ListenOptions);

/// What the connections of an address belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Index of the forward in the plan, and from [`Doors::commit`] on the number of its edition.
    pub(super) forward: usize,
    /// Number of the address among those of its forward.
    pub(super) index: usize,
    pub(super) port_offset: u16,
}

/// What a plan needs, opened and not in use yet. Dropping it closes what is new and changes nothing.
#[derive(Debug)]
pub struct Prepared {
    doors: Vec<Door>,
    /// Bound and not listening yet: a socket that listens gets connections.
    bound: Vec<Arc<Socket>>,
}

impl Prepared {
    /// Gives every socket to the user this process will become.
    ///
    /// # Errors
    /// What fchown(2) reports.
    pub(super) fn give(&self) -> io::Result<()> {
        let sockets = self.doors.iter().flat_map(|door| &door.sockets).chain(&self.bound);
        sockets.map(AsRef::as_ref).try_for_each(sandbox::give_socket)
    }
}

impl Doors {
    /// Sockets that listen already: passed on by a service manager or by the process this one replaces.
    ///
    /// # Errors
    /// A socket that does not listen, or has no address a configuration could name.
    pub fn inherit(sockets: Vec<Inherited>) -> io::Result<Self> {
        let mut doors = Self::default();
        let mut known: HashMap<Address, usize> = HashMap::new();
        for Inherited { socket, lent } in sockets {
            let address = Address::of(&socket.local_addr()?);
            let refuse = |why| io::Error::new(io::ErrorKind::InvalidInput, format!("an inherited socket {why}"));
            let address = address.ok_or_else(|| refuse("has neither an IP address nor a name"))?;
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if !socket.is_listener()? {
                return Err(refuse("does not listen"));
            }
            socket.set_nonblocking(true)?;
            socket.set_cloexec(true)?;
            match known.get(&address) {
                Some(door) => {
                    let door = &mut doors.open[*door];
                    door.sockets.push(Arc::new(socket));
                    door.lent |= lent;
                }
                None => {
                    known.insert(address, doors.open.len());
                    let file = address.path().and_then(|path| SocketFile::found(path).ok()).map(Arc::new);
                    let sockets = vec![Arc::new(socket)];
                    doors.open.push(Door { address, sockets, file, turn: 0, lent, set: None, place: None });
                }
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
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.open.iter().map(|door| door.address)
    }

    /// Opens what a plan needs and is not there yet; what is there is taken as it is. A new address listens at once:
    /// that claims it against a second process, also one that starts at the same moment and would share it. A further
    /// socket of an address that is there is only bound.
    ///
    /// # Errors
    /// An address that cannot be bound, named in the message with what can be done; nothing has changed then.
    pub fn prepare(&self, plan: &Plan, workers: usize) -> io::Result<Prepared> {
        let again = self.closing.iter().filter_map(Closing::again);
        // An address may be open, and have old listeners beside that hear nothing any more.
        let doors = again.chain(self.open.iter().cloned());
        let mut known: HashMap<Address, Door> = doors.map(|door| (door.address, door)).collect();
        let places = || plan.forwards.iter().flat_map(|forward| forward.addresses().map(move |(at, _)| (at, forward)));
        // An address that is taken is found before any other is opened to clients.
        for (address, forward) in places().filter(|(address, _)| !known.contains_key(address)) {
            self.probe(address, forward).map_err(|e| listener::explain(address, forward, &e))?;
        }
        let mut prepared = Prepared { doors: Vec::new(), bound: Vec::new() };
        for (number, forward) in plan.forwards.iter().enumerate() {
            let mut index = 0;
            let ports: usize = forward.listen.iter().map(|listen| listen.ports.len()).sum();
            for listen in &forward.listen {
                for (address, port_offset) in listen.addresses() {
                    let shared = sys::REUSE_PORT_BALANCES && ports < DEALT_FROM && !address.is_unix();
                    let wanted = if shared { workers } else { 1 };
                    let place = Place { forward: number, index, port_offset };
                    let door = prepared.open(address, place, forward, wanted, known.remove(&address));
                    prepared.doors.push(door.map_err(|e| listener::explain(address, forward, &e))?);
                    index += 1;
                }
            }
        }
        Ok(prepared)
    }

    /// Looks whether an address is free. A worker may be closing our own last socket of it at this moment.
    fn probe(&self, address: Address, forward: &Forward) -> io::Result<()> {
        let until = Instant::now() + CLOSE;
        loop {
            match listener::probe(address, forward) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && self.closing.iter().any(|c| c.address == address) => {
                    if Instant::now() >= until {
                        return Err(e);
                    }
                    std::thread::yield_now();
                }
                result => return result,
            }
        }
    }

    /// Puts what was prepared into use. `editions` has the number of each forward's edition, in the order of the plan.
    /// Addresses the plan does not ask for are given up.
    pub fn commit(&mut self, prepared: Prepared, plan: &Plan, editions: &[usize], now: Instant) {
        let Prepared { mut doors, bound } = prepared;
        let bound: HashSet<*const Socket> = bound.iter().map(Arc::as_ptr).collect();
        for door in &mut doors {
            if let Some(place) = door.place {
                door.set_to(&plan.forwards[place.forward], &bound);
                if let Some(file) = door.file.as_ref().filter(|_| !door.lent) {
                    file.own();
                }
                door.place = Some(Place { forward: editions[place.forward], ..place });
            }
        }
        let taken: HashSet<Address> = doors.iter().map(|door| door.address).collect();
        self.closing.retain(|closing| closing.is_deaf || !taken.contains(&closing.address));
        let old = std::mem::replace(&mut self.open, doors);
        self.give_up(old.into_iter().filter(|door| !taken.contains(&door.address)), now);
    }

    /// Leaves every open door to another process, but for addresses that one does not serve: those are given up.
    pub(super) fn leave(&mut self, given_up: &[Address], now: Instant) {
        let given_up: HashSet<&Address> = given_up.iter().collect();
        let open = std::mem::take(&mut self.open).into_iter();
        let (given_up, left): (Vec<Door>, Vec<Door>) = open.partition(|door| given_up.contains(&door.address));
        left.iter().filter_map(|door| door.file.as_ref()).for_each(|file| file.leave());
        self.give_up(given_up.into_iter(), now);
    }

    fn give_up(&mut self, doors: impl Iterator<Item = Door>, now: Instant) {
        self.closing.extend(doors.filter_map(|door| Closing::new(door, now)));
    }

    /// Whether no socket is open or about to close.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closing.is_empty()
    }

    /// The listeners of each of the workers in `seats`, whose numbers are in ascending order and more than none.
    #[must_use]
    pub fn deal(&self, seats: &[usize]) -> HashMap<usize, Vec<Listener>> {
        let mut sets: HashMap<usize, Vec<Listener>> = HashMap::new();
        let mut give = |socket, turn: usize, place: Place, closing| {
            let Place { forward, index, port_offset } = place;
            let listener = Listener { socket, forward, index, port_offset, ready: true, paused: false, closing };
            sets.entry(seats[turn % seats.len()]).or_default().push(listener);
        };
        for door in &self.open {
            let Some(place) = door.place else { continue };
            let sockets = door.sockets.iter().enumerate();
            sockets.for_each(|(i, socket)| give(Arc::clone(socket), door.turn + i, place, false));
        }
        for closing in &self.closing {
            closing.open().for_each(|(turn, socket)| give(socket, turn, closing.place, closing.is_told()));
        }
        sets
    }

    /// Editions connections may still come for though no plan has them any more.
    pub fn closing_editions(&self) -> impl Iterator<Item = usize> {
        self.closing.iter().map(|closing| closing.place.forward)
    }

    /// When [`Self::close_due`] and [`Self::closed`] are to be asked again.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let look = now + Duration::from_millis(50);
        self.closing.iter().map(|closing| if closing.is_told() { look } else { closing.until() }).min()
    }

    /// Whether workers are to be told that some listener will get no connection any more.
    pub fn close_due(&mut self, now: Instant) -> bool {
        let due = |closing: &&mut Closing| !closing.is_told() && closing.until() <= now;
        self.closing.iter_mut().filter(due).map(Closing::let_go).count() > 0
    }

    /// Forgets the sockets workers have closed; whether there were any.
    pub fn closed(&mut self) -> bool {
        let before = self.closing.len();
        self.closing.retain(Closing::is_open);
        // Whatever its workers have done with connections accepted from it has happened before.
        fence(Ordering::Acquire);
        self.closing.len() < before
    }
}

impl Door {
    /// Brings its sockets to what a forward wants of them, and has those listen that do not yet.
    fn set_to(&mut self, forward: &Forward, bound: &HashSet<*const Socket>) {
        let wanted = (forward.tcp, listener::backlog(forward), forward.listen_options.clone());
        let changed = self.set.as_ref() != Some(&wanted);
        if !changed && bound.is_empty() {
            return;
        }
        let address = self.address;
        if let Some(file) = self.file.as_ref().filter(|_| changed && !self.lent)
            && let Err(e) = listener::unix::set_file(file.path(), &wanted.2)
        {
            log::warn!("{address}: cannot change mode or owner: {e}; both stay as they are");
        }
        self.sockets.retain(|socket| {
            let new = bound.contains(&Arc::as_ptr(socket));
            if changed && let Err(e) = sys::reset_options(socket, address, &wanted.0) {
                log::warn!("{address}: cannot change the options of a listener: {e}; new sessions keep the old ones");
            }
            if !new && !changed {
                return true;
            }
            listener::set_fast_open(socket, address, forward);
            // listen(2) of a socket that listens sets its backlog. For a new one it would take another address or no
            // memory to fail: the other sockets of the address take its connections.
            let listens = socket.listen(wanted.1);
            if let Err(e) = &listens {
                log::warn!("{address}: cannot listen with a further socket, or another backlog: {e}");
            }
            listens.is_ok() || !new
        });
        self.set = Some(wanted);
    }
}

impl Prepared {
    /// How many sockets will listen.
    pub fn sockets(&self) -> usize {
        self.doors.iter().map(|door| door.sockets.len()).sum()
    }

    fn open(
        &mut self,
        address: Address,
        place: Place,
        forward: &Forward,
        wanted: usize,
        known: Option<Door>,
    ) -> io::Result<Door> {
        let was_open = known.as_ref().is_some_and(|door| !door.sockets.is_empty());
        let mut door = match known {
            Some(door) => Door { place: Some(place), ..door },
            None => {
                let (socket, file) = listener::claim(address, forward)?;
                Door {
                    address,
                    sockets: vec![Arc::new(socket)],
                    file: file.map(Arc::new),
                    turn: if wanted > 1 { 0 } else { self.doors.len() },
                    lent: false,
                    set: Some((forward.tcp, listener::backlog(forward), forward.listen_options.clone())),
                    place: Some(place),
                }
            }
        };
        while door.sockets.len() < wanted && !door.lent {
            // An inherited socket may be alone; so that others can stand beside it, it must allow that.
            let shared = door.sockets.first().map_or(Ok(()), |first| first.set_reuse_port(true));
            match shared.and_then(|()| listener::bind(address, forward, true)) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    self.bound.push(Arc::clone(&socket));
                    door.sockets.push(socket);
                }
                // Another user's socket, or a low port without the privilege to bind it again: the address is served
                // all the same, and workers hand connections to one another.
                Err(e) if was_open => {
                    log::debug!("{address}: {} sockets for {wanted} workers: {e}", door.sockets.len());
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(door)
    }
}
