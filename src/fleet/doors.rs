//! Every listening socket of the process, by address.
//!
//! The fleet owns them and workers borrow them, so that no worker's end closes a socket: closing a listener resets
//! whoever waits in its queue, also where other sockets listen on the address (SO_REUSEPORT binds a connection to one
//! socket when its SYN arrives, and `net.ipv4.tcp_migrate_req` is off by default).
//!
//! For the same reason an address never has fewer sockets than it once had: those that are more than workers are dealt
//! to the workers in turn. An address nobody asks for any more takes no new SYN, goes on for [`GRACE`] so that
//! handshakes that have begun come to their end, and is closed once its queue is empty.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::endpoint::Endpoint;
use crate::listener::{self, Listener};
use crate::plan::{Forward, ListenOptions, Plan, TcpOptions};
use crate::sandbox;
use crate::socket_file::SocketFile;
use crate::sys;

/// From this many ports in a range on, a port has one listener, dealt to the workers in turn, instead of one in each.
const DEALT_FROM: usize = 16;
/// How long a listener that is given up waits for handshakes that have begun: the first retransmission of a lost
/// segment of one comes after a second.
const GRACE: Duration = Duration::from_secs(1);

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
struct Door {
    address: Endpoint,
    sockets: Vec<Arc<Socket>>,
    /// The file of a unix socket, which goes with the last to hold it here.
    file: Option<Arc<SocketFile>>,
    /// The worker the first of the sockets goes to; the others go to those that follow.
    turn: usize,
    /// They were lent: no other is put beside them.
    lent: bool,
    /// What the sockets are set to.
    set: Option<Settings>,
    /// What its connections belong to; `None` while no plan has asked for it.
    place: Option<Place>,
}

/// What the sockets of a door are set to.
type Settings = (TcpOptions, i32, ListenOptions);

/// What the connections of an address belong to.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Index of the forward in the plan, and from [`Doors::commit`] on the number of its edition.
    forward: usize,
    /// Number of the address among those of its forward.
    index: usize,
    port_offset: u16,
}

/// A door that is given up.
#[derive(Debug)]
struct Closing {
    door: Door,
    /// When handshakes have had their time.
    until: Instant,
    /// Workers were told to let go of it.
    told: bool,
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
        let mut known: HashMap<Endpoint, usize> = HashMap::new();
        for Inherited { socket, lent } in sockets {
            let address = Endpoint::of(&socket.local_addr()?);
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
    pub fn addresses(&self) -> impl Iterator<Item = Endpoint> {
        self.open.iter().map(|door| door.address)
    }

    /// Opens what a plan needs and is not there yet; what is there is taken as it is. A new address listens at once:
    /// that claims it against a second process, also one that starts at the same moment and would share it. A further
    /// socket of an address that is there is only bound.
    ///
    /// # Errors
    /// An address that cannot be bound, named in the message with what can be done; nothing has changed then.
    pub fn prepare(&self, plan: &Plan, workers: usize) -> io::Result<Prepared> {
        let closing = self.closing.iter().filter(|closing| closing.may_reopen()).map(|closing| &closing.door);
        let known: HashMap<Endpoint, &Door> =
            self.open.iter().chain(closing).map(|door| (door.address, door)).collect();
        let places = || plan.forwards.iter().flat_map(|forward| forward.addresses().map(move |(at, _)| (at, forward)));
        // An address that is taken is found before any other is opened to clients.
        for (address, forward) in places().filter(|(address, _)| !known.contains_key(address)) {
            listener::probe(address).map_err(|e| listener::explain(address, forward, &e))?;
        }
        let mut prepared = Prepared { doors: Vec::new(), bound: Vec::new() };
        for (number, forward) in plan.forwards.iter().enumerate() {
            let mut index = 0;
            for listen in &forward.listen {
                for (address, port_offset) in listen.addresses() {
                    let shared = sys::REUSE_PORT_BALANCES && listen.ports.len() < DEALT_FROM && !address.is_unix();
                    let wanted = if shared { workers } else { 1 };
                    let place = Place { forward: number, index, port_offset };
                    let door = prepared.open(address, place, forward, wanted, known.get(&address).copied());
                    prepared.doors.push(door.map_err(|e| listener::explain(address, forward, &e))?);
                    index += 1;
                }
            }
        }
        Ok(prepared)
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
        let taken: HashSet<Endpoint> = doors.iter().map(|door| door.address).collect();
        let is_again = |closing: &Closing| taken.contains(&closing.door.address) && closing.may_reopen();
        let (again, closing) = std::mem::take(&mut self.closing).into_iter().partition(is_again);
        let again: Vec<Closing> = again;
        again.iter().flat_map(|closing| &closing.door.sockets).for_each(|socket| take_syns(socket));
        self.closing = closing;
        let old = std::mem::replace(&mut self.open, doors);
        old.into_iter().filter(|door| !taken.contains(&door.address)).for_each(|door| self.give_up(door, now));
    }

    /// Leaves every open door to another process, but for addresses that one does not serve: those are given up.
    pub(super) fn leave(&mut self, given_up: &[Endpoint], now: Instant) {
        let given_up: HashSet<&Endpoint> = given_up.iter().collect();
        for door in std::mem::take(&mut self.open) {
            if given_up.contains(&door.address) {
                self.give_up(door, now);
            } else if let Some(file) = &door.file {
                file.leave();
            }
        }
    }

    /// Whether no socket is open or about to close.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.closing.is_empty()
    }

    fn give_up(&mut self, mut door: Door, now: Instant) {
        if !door.address.is_unix() {
            door.sockets.iter().for_each(|socket| refuse_syns(socket));
        }
        // Without its file nobody finds a unix socket any more; a service manager keeps its own.
        door.file = None;
        // Without a place no worker has it, and nobody would serve its queue.
        if door.place.is_some() {
            self.closing.push(Closing { door, until: now + GRACE, told: false });
        }
    }

    /// The listeners of each of the workers in `seats`, whose numbers are in ascending order and more than none.
    #[must_use]
    pub fn deal(&self, seats: &[usize]) -> HashMap<usize, Vec<Listener>> {
        let mut sets: HashMap<usize, Vec<Listener>> = HashMap::new();
        let closing = self.closing.iter().map(|closing| (&closing.door, closing.told));
        for (door, closing) in self.open.iter().map(|door| (door, false)).chain(closing) {
            let Some(Place { forward, index, port_offset }) = door.place else { continue };
            for (i, socket) in door.sockets.iter().enumerate() {
                let socket = Arc::clone(socket);
                let listener = Listener { socket, forward, index, port_offset, ready: true, paused: false, closing };
                sets.entry(seats[(door.turn + i) % seats.len()]).or_default().push(listener);
            }
        }
        sets
    }

    /// Editions connections may still come for though no plan has them any more.
    pub fn closing_editions(&self) -> impl Iterator<Item = usize> {
        self.closing.iter().filter_map(|closing| closing.door.place).map(|place| place.forward)
    }

    /// When [`Self::close_due`] and [`Self::closed`] are to be asked again.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let look = now + Duration::from_millis(50);
        self.closing.iter().map(|closing| if closing.told { look } else { closing.until }).min()
    }

    /// Whether workers are to be told that some listener will get no connection any more.
    pub fn close_due(&mut self, now: Instant) -> bool {
        let due = |closing: &&mut Closing| !closing.told && closing.until <= now;
        self.closing.iter_mut().filter(due).map(|closing| closing.told = true).count() > 0
    }

    /// Closes the sockets every worker has let go of; whether there were any.
    pub fn closed(&mut self) -> bool {
        let before = self.closing.len();
        // With nobody else to hold it, all that was accepted from it has been told before.
        self.closing.retain_mut(|closing| {
            !closing.told || closing.door.sockets.iter_mut().any(|socket| Arc::get_mut(socket).is_none())
        });
        self.closing.len() < before
    }
}

impl Closing {
    /// Whether a plan that has the address again gets the same sockets: not those of a file that is gone.
    fn may_reopen(&self) -> bool {
        self.door.address.path().is_none()
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
        address: Endpoint,
        place: Place,
        forward: &Forward,
        wanted: usize,
        known: Option<&Door>,
    ) -> io::Result<Door> {
        let mut door = match known {
            Some(door) => Door { place: Some(place), ..door.clone() },
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
            let bound = door.sockets[0].set_reuse_port(true).and_then(|()| listener::bind(address, forward, true));
            match bound {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    self.bound.push(Arc::clone(&socket));
                    door.sockets.push(socket);
                }
                // Another user's socket, or a low port without the privilege to bind it again: the address is served
                // all the same, and workers hand connections to one another.
                Err(e) if known.is_some() => {
                    log::debug!("{address}: {} sockets for {wanted} workers: {e}", door.sockets.len());
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(door)
    }
}

/// Lets a listener finish handshakes and begin none.
fn refuse_syns(socket: &Socket) {
    #[cfg(target_os = "linux")]
    {
        use socket2::SockFilter;
        // A filter of a TCP socket sees a segment from its TCP header on (tcp_filter in net/ipv4/tcp_ipv4.c); byte 13
        // holds the flags, 2 is SYN. What it returns is how much of the segment is kept.
        let (load, jump_if_set, give) = (0x30, 0x45, 0x06);
        let filter = [
            SockFilter::new(load, 0, 0, 13),
            SockFilter::new(jump_if_set, 0, 1, 2),
            SockFilter::new(give, 0, 0, 0),
            SockFilter::new(give, 0, 0, u32::MAX),
        ];
        if let Err(e) = socket.attach_filter(&filter) {
            log::debug!("a listener that closes goes on to take connections until then: {e}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// Takes back [`refuse_syns`].
fn take_syns(socket: &Socket) {
    #[cfg(target_os = "linux")]
    if let Err(e) = socket.detach_filter() {
        log::debug!("a listener had no filter: {e}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}
