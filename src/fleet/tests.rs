use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use mio::Poll;

use super::*;
use crate::limits::{Admission, ForwardLimits, Slots};
use crate::plan::{Host, Limits, Ports, example};
use crate::pump::Pumps;
use crate::stats::{EndReason, ForwardStats};
use crate::sys::pipes::PipeBudget;
use crate::upstream::{Targets, Upstreams};
use crate::worker::{Accepted, Edition, MAILBOX, Parts, Peer, Route, Routes, Worker};

fn plan(listen: SocketAddr, target: SocketAddr) -> Plan {
    let listen = (listen.ip(), Ports::one(listen.port()));
    let target = (Host::Ip(target.ip()), Ports::one(target.port()));
    example::plan(example::forward("test", listen, target))
}

/// A port nobody listens on, kept for a listener that shares it.
fn reserve() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A fleet of one worker that forwards from `listen`, and the poller its ends wake.
fn fleet(plan: &Arc<Plan>) -> (Fleet, Poll) {
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
    let mut fleet = Fleet::new(plan, Doors::default(), waker);
    let ready = fleet.prepare(plan).unwrap();
    fleet.commit(ready, None);
    (fleet, poll)
}

fn peer(fleet: &Fleet, seat: usize) -> &Arc<Peer> {
    &fleet.seats[seat].peer
}

fn ends(fleet: &Fleet, reason: EndReason) -> u64 {
    fleet.forwards().flat_map(|forward| forward.stats).map(|stats| stats.ends[reason as usize].get()).sum()
}

/// Waits for a worker to end.
fn next_end(fleet: &mut Fleet, poll: &mut Poll) -> Vec<(usize, WorkerEnd)> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let ends = fleet.reap(Instant::now());
        if !ends.is_empty() || Instant::now() > until {
            return ends;
        }
        poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_millis(100))).unwrap();
    }
}

fn session(listen: SocketAddr, backend: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(listen).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut server, _) = backend.accept().unwrap();
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    (client, server)
}

#[test]
fn a_panic_resets_the_sessions_of_its_worker_and_another_takes_its_place() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reserved, listen) = reserve();
    let plan = Arc::new(plan(listen, backend.local_addr().unwrap()));
    let (mut fleet, mut poll) = fleet(&plan);

    let (mut client, mut server) = session(listen, &backend);
    peer(&fleet, 0).mailbox.post(Message::Panic).unwrap();
    let error = |stream: &mut TcpStream| stream.read(&mut [0; 1]).unwrap_err().kind();
    assert_eq!(error(&mut client), io::ErrorKind::ConnectionReset, "a cut stream must not look complete");
    assert_eq!(error(&mut server), io::ErrorKind::ConnectionReset);
    // Nobody serves now. Whoever connects waits in the queue of a listener that outlives its worker.
    let waiting = TcpStream::connect(listen).unwrap();

    assert_eq!(next_end(&mut fleet, &mut poll), [(0, WorkerEnd::Panicked("asked to".to_owned()))]);
    assert_eq!((fleet.running(), fleet.panics()), (1, 1));
    let (mut server, _) = backend.accept().unwrap();
    (&waiting).write_all(b"hello").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    session(listen, &backend);
    assert_eq!(ends(&fleet, EndReason::WorkerPanic), 1);
}

#[test]
fn after_five_panics_in_a_minute_nobody_is_replaced() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reserved, listen) = reserve();
    let plan = Arc::new(plan(listen, backend.local_addr().unwrap()));
    let (mut fleet, mut poll) = fleet(&plan);
    for failures in 1..=5 {
        assert!(!fleet.has_given_up());
        peer(&fleet, 0).mailbox.post(Message::Panic).unwrap();
        assert_eq!(next_end(&mut fleet, &mut poll).len(), 1, "{failures}");
    }
    assert!(fleet.has_given_up());
    assert_eq!(fleet.running(), 0);
}

/// A place that is taken away and given back just as its worker ends: somebody must serve its listeners.
#[test]
fn a_place_given_back_to_a_worker_that_has_ended_is_filled() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reserved, listen) = reserve();
    let one = plan(listen, backend.local_addr().unwrap());
    let two = Arc::new(Plan { workers: Some(2), ..one.clone() });
    let (mut fleet, mut poll) = fleet(&two);
    let ready = fleet.prepare(&Arc::new(one)).unwrap();
    fleet.commit(ready, None);
    // The worker has ended, and the fleet does not know yet.
    poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_secs(20))).unwrap();
    let ready = fleet.prepare(&two).unwrap();
    fleet.commit(ready, None);
    assert_eq!(next_end(&mut fleet, &mut poll), [(1, WorkerEnd::Finished)]);
    assert_eq!((fleet.running(), fleet.panics()), (2, 0));
    for _ in 0..20 {
        session(listen, &backend);
    }
}

/// What a change replaces is given up once nobody needs it: numbers, counters, sockets, threads.
#[test]
fn changes_back_and_forth_keep_nothing() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = backend.local_addr().unwrap();
    let ((_first, a), (_second, b)) = (reserve(), reserve());
    let both = |workers| {
        let mut plan = plan(a, to);
        let mut other = self::plan(b, to).forwards.remove(0);
        other.name = "other".into();
        plan.forwards.push(other);
        Arc::new(Plan { workers: Some(workers), ..plan })
    };
    let one = Arc::new(plan(a, to));
    let (mut fleet, mut poll) = fleet(&one);
    let (mut client, mut server) = session(a, &backend);
    let settled = |fleet: &Fleet| {
        (fleet.running(), fleet.forwards().count(), fleet.editions.iter().flatten().count(), fleet.closing.len())
    };
    for round in 0..20 {
        for plan in [both(1 + round % 4), Arc::clone(&one)] {
            let ready = fleet.prepare(&plan).unwrap();
            fleet.commit(ready, None);
            if plan.forwards.len() == 2 {
                drop(session(b, &backend));
            }
            // As the control thread does; a place that is to be filled again just as its worker ends is another test.
            let until = Instant::now() + Duration::from_secs(20);
            while fleet.running() > plan.workers.unwrap() && Instant::now() < until {
                poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_millis(20))).unwrap();
                fleet.reap(Instant::now());
            }
        }
        client.write_all(b"?").unwrap();
        server.read_exact(&mut [0; 1]).unwrap();
        if round % 10 < 9 {
            continue;
        }
        // Listeners that are given up have their editions for as long as handshakes may take.
        let until = Instant::now() + Duration::from_secs(20);
        while settled(&fleet) != (1, 1, 1, 0) && Instant::now() < until {
            poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_millis(20))).unwrap();
            fleet.tick(Instant::now());
            fleet.reap(Instant::now());
        }
        assert_eq!(settled(&fleet), (1, 1, 1, 0));
    }
    assert!(fleet.editions.len() <= 12, "numbers are used again: {}", fleet.editions.len());
    assert_eq!(fleet.past().sessions_accepted, 20, "what was counted is not forgotten");
    assert!(TcpStream::connect(b).is_err());
    session(a, &backend);
}

/// A worker without listeners and without a thread, and one slot.
struct Lone {
    worker: Worker,
    me: Arc<Peer>,
    shared: Arc<Shared>,
    limits: Arc<ForwardLimits>,
    stats: Arc<ForwardStats>,
}

impl Lone {
    fn new(target: SocketAddr) -> Self {
        let poll = Poll::new().unwrap();
        let (me, inbox) = Peer::new(Waker::new(poll.registry(), MAILBOX).unwrap());
        let mut plan = plan(target, target);
        plan.max_connections = Some(1);
        let limits = limits::Limits::new(&plan);
        let shared = Arc::new(Shared {
            limits,
            trace: Trace::default(),
            flows: Slots::new(None),
            shortage: Shortage::default(),
            transit: Transit::default(),
        });
        let forward = Arc::new(plan.forwards.remove(0));
        let limits = Arc::new(ForwardLimits::new(None, &forward.limits));
        let stats = Arc::new(ForwardStats::new(0));
        let targets = Arc::new(Targets::new(&forward.name, shared.limits.begun()));
        targets.update(&forward);
        let upstreams = Upstreams::new(&forward, &targets);
        let edition = Arc::new(Edition { id: 0, forward, limits: Arc::clone(&limits), targets, pool: 0 });
        let mut routes = Routes::default();
        routes.add(Route::new(edition, upstreams, Arc::clone(&stats), 0));
        let pools = vec![PipeBudget::detect(None, 1).pool()];
        let parts = Parts {
            id: 0,
            me: Arc::clone(&me),
            serving: 1,
            board: Arc::new(Board::new(1, false, crate::plan::Scheduling::Auto, None)),
            peers: Arc::new([Arc::clone(&me)]),
            poll,
            shared: Arc::clone(&shared),
            inbox,
            listeners: slab::Slab::new(),
            routes,
            pumps: Pumps::new(65536, pools, Arc::new(AtomicBool::new(true))),
            stats: Arc::default(),
            log: None,
        };
        Self { worker: Worker::new(parts).unwrap(), me, shared, limits, stats }
    }

    /// Hands a client to it as another worker would, and returns the client's end.
    fn hand_over(&self) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (socket, address) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        assert_eq!(self.shared.limits.admit(&self.limits, 0, 0).0, Admission::Enter);
        self.me.load.fetch_add(1, Ordering::Relaxed);
        self.me.mailbox.post(Message::Accepted(Accepted::of(socket.into(), address))).unwrap();
        client
    }
}

fn was_reset(mut client: TcpStream) -> bool {
    client.read(&mut [0; 1]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

/// The others go on after a panic: what was on its way to the failed worker must not cost them slots for ever.
#[test]
fn a_connection_on_its_way_to_a_worker_that_failed_is_reset_and_its_slot_is_free() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let lone = Lone::new(backend.local_addr().unwrap());
    let client = lone.hand_over();
    assert!(!lone.shared.limits.slots.take());
    drop(lone.worker);
    assert!(was_reset(client), "a clean end would look like an answer");
    assert!(lone.shared.limits.slots.take());
    assert_eq!(lone.stats.ends[EndReason::WorkerPanic as usize].get(), 1);
    assert_eq!(lone.stats.accepted.get(), 1);
}

/// Once told to end everything a worker begins nothing more, or it would outlive the process's patience.
#[test]
fn a_connection_that_arrives_after_the_stop_is_ended_with_the_rest() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let lone = Lone::new(backend.local_addr().unwrap());
    lone.me.mailbox.post(Message::Stop).unwrap();
    let client = lone.hand_over();
    let mut worker = lone.worker;
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || say.send(worker.run().is_ok()));
    assert_eq!(said.recv_timeout(Duration::from_secs(20)), Ok(true), "it ends");
    assert!(was_reset(client));
    assert!(lone.shared.limits.slots.take());
    assert_eq!(lone.stats.ends[EndReason::Drain as usize].get(), 1);
}

/// Limits are changed under open sessions: what waits for one goes on, what is too many stays.
#[test]
fn limits_change_in_place() {
    use crate::plan::Rate;

    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reserved, listen) = reserve();
    let mut plan = plan(listen, backend.local_addr().unwrap());
    plan.max_connections = Some(1);
    // So slow that the second kilobyte would come in a second and the last one in an hour.
    let slow = Rate { per_second: 1024, burst: 1024 };
    plan.forwards[0].limits = Limits { rate: Some(slow), ..Limits::default() };
    let (mut fleet, _poll) = fleet(&Arc::new(plan.clone()));
    let mut clients = [TcpStream::connect(listen).unwrap(), TcpStream::connect(listen).unwrap()];
    let (mut server, _) = backend.accept().unwrap();
    let bytes = vec![7; 3 << 20];
    let sent = bytes.clone();
    std::thread::spawn(move || clients.iter_mut().try_for_each(|client| client.write_all(&sent)).map(|()| clients));
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    server.read_exact(&mut [0; 1024]).unwrap();
    backend.set_nonblocking(true).unwrap();
    assert!(backend.accept().is_err(), "the second one waits");

    let change = |fleet: &mut Fleet, plan: &Plan| {
        let ready = fleet.prepare(&Arc::new(plan.clone())).unwrap();
        fleet.commit(ready, None);
    };
    plan.max_connections = Some(2);
    plan.forwards[0].limits = Limits::default();
    change(&mut fleet, &plan);
    let mut rest = vec![0; bytes.len() - 1024];
    server.read_exact(&mut rest).unwrap();
    assert!(rest == bytes[1024..]);
    let until = Instant::now() + Duration::from_secs(20);
    let _second = loop {
        if let Ok(second) = backend.accept() {
            break second;
        }
        assert!(Instant::now() < until, "the second one is served when there is a slot for it");
        std::thread::park_timeout(Duration::from_millis(5));
    };
    assert_eq!(fleet.open_sessions(), 2);
    plan.max_connections = Some(1);
    change(&mut fleet, &plan);
    assert_eq!(fleet.open_sessions(), 2, "sessions stay");
    fleet.stop();
}
