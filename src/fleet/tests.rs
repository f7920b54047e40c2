use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::plan::{Access, Engine, Host, Listen, LogPlan, Ports, Target, TcpOptions, Timeouts};
use crate::stats::EndReason;
use crate::worker::Accepted;

fn plan(listen: SocketAddr, target: SocketAddr) -> Plan {
    let forward = Forward {
        name: "test".into(),
        listen: vec![Listen { ip: listen.ip(), ports: Ports::one(listen.port()) }],
        targets: vec![Target { host: Host::Ip(target.ip()), ports: Ports::one(target.port()), weight: 1 }],
        engine: Engine::Auto,
        arms: Vec::new(),
        copy_buffer: 64 * 1024,
        pipe_size: None,
        max_connections: None,
        timeouts: Timeouts::default(),
        tcp: TcpOptions::default(),
        source: None,
        access: Access::default(),
    };
    Plan {
        workers: Some(1),
        pin: Pin::Off,
        max_connections: None,
        drain: None,
        upgrade_drain: None,
        control: None,
        metrics: None,
        log: LogPlan::default(),
        pid_file: None,
        forwards: vec![forward],
    }
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

#[test]
fn a_panic_resets_the_sessions_of_its_worker_and_is_told() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reserved, listen) = reserve();
    let mut poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
    let plan = Arc::new(plan(listen, backend.local_addr().unwrap()));
    let mut fleet = Fleet::start(&plan, Doors::default(), None, waker).unwrap();

    let mut client = TcpStream::connect(listen).unwrap();
    let (mut server, _) = backend.accept().unwrap();
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    fleet.shared.mailboxes[0].post(Message::Panic).unwrap();

    let error = |stream: &mut TcpStream| stream.read(&mut [0; 1]).unwrap_err().kind();
    assert_eq!(error(&mut client), io::ErrorKind::ConnectionReset, "a cut stream must not look complete");
    assert_eq!(error(&mut server), io::ErrorKind::ConnectionReset);

    let until = Instant::now() + Duration::from_secs(10);
    let mut ends = fleet.reap();
    while ends.is_empty() && Instant::now() < until {
        poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_millis(100))).unwrap();
        ends = fleet.reap();
    }
    assert_eq!(ends, [(0, WorkerEnd::Panicked)]);
    assert_eq!((fleet.running(), fleet.open_sessions()), (0, 0));
    let panics = &fleet.stats()[0].forwards[0].ends[crate::stats::EndReason::WorkerPanic as usize];
    assert_eq!(panics.get(), 1);
}

/// A fleet that was passed a listener with connections in its queue and gives it away before it has taken any.
fn passed_on(given_up: impl Fn(SocketAddr) -> Vec<SocketAddr>) -> (TcpListener, TcpListener, Vec<TcpStream>) {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
    let plan = Arc::new(plan(address, backend.local_addr().unwrap()));
    let doors = Doors::inherit(vec![Inherited { socket: front.try_clone().unwrap().into(), lent: false }]).unwrap();
    let mut fleet = Fleet::prepare(&plan, doors, None, waker).unwrap();
    let clients = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    // The worker finds this before it looks for connections.
    fleet.let_go(&given_up(address));
    for listener in [&backend, &front] {
        socket2::SockRef::from(listener).set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    (backend, front, clients)
}

#[test]
fn what_waits_on_an_address_that_is_given_up_is_served() {
    let (backend, _front, clients) = passed_on(|address| vec![address]);
    for mut client in clients {
        client.write_all(b"?").unwrap();
        backend.accept().unwrap();
    }
}

#[test]
fn what_waits_on_an_address_somebody_else_serves_is_left_to_them() {
    let (backend, front, clients) = passed_on(|_| Vec::new());
    for mut client in clients {
        let (mut taken, _) = front.accept().unwrap();
        taken.write_all(b"!").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    backend.set_nonblocking(true).unwrap();
    assert_eq!(backend.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "none was taken");
}

/// A worker without listeners and without a thread, for a plan with one slot.
fn lone_worker(target: SocketAddr) -> (Worker, Arc<Shared>, Arc<WorkerStats>) {
    let mut plan = plan(target, target);
    plan.max_connections = Some(1);
    let plan = Arc::new(plan);
    let (shared, mut ends) = share(&plan, 1).unwrap();
    let (poll, inbox) = ends.pop().unwrap();
    let budgets = Budgets::of(&plan, 1);
    let stats = Arc::new(WorkerStats::new([0]));
    let parts = Parts {
        id: 0,
        poll,
        plan: Arc::clone(&plan),
        shared: Arc::clone(&shared),
        inbox,
        listeners: Vec::new(),
        routes: routes(&plan, &budgets),
        pumps: Pumps::new(
            65536,
            budgets.budgets.iter().map(PipeBudget::pool).collect(),
            Arc::new(AtomicBool::new(true)),
        ),
        stats: Arc::clone(&stats),
        log: None,
    };
    (Worker::new(parts).unwrap(), shared, stats)
}

/// Hands a client to the worker as another worker would, and returns the client's end.
fn hand_over(shared: &Shared) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (socket, address) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    assert!(shared.slots.take());
    shared.loads[0].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    shared.mailboxes[0].post(Message::Accepted(Accepted::of(socket.into(), address))).unwrap();
    client
}

fn was_reset(mut client: TcpStream) -> bool {
    client.read(&mut [0; 1]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

/// The others go on after a panic: what was on its way to the failed worker must not cost them slots for ever.
#[test]
fn a_connection_on_its_way_to_a_worker_that_failed_is_reset_and_its_slot_is_free() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (worker, shared, stats) = lone_worker(backend.local_addr().unwrap());
    let client = hand_over(&shared);
    assert!(!shared.slots.take());
    drop(worker);
    assert!(was_reset(client), "a clean end would look like an answer");
    assert!(shared.slots.take());
    assert_eq!(stats.forwards[0].ends[EndReason::WorkerPanic as usize].get(), 1);
    assert_eq!(stats.forwards[0].accepted.get(), 1);
}

/// Once told to end everything a worker begins nothing more, or it would outlive the process's patience.
#[test]
fn a_connection_that_arrives_after_the_stop_is_ended_with_the_rest() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut worker, shared, stats) = lone_worker(backend.local_addr().unwrap());
    shared.mailboxes[0].post(Message::Stop).unwrap();
    let client = hand_over(&shared);
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || say.send(worker.run().is_ok()));
    assert_eq!(said.recv_timeout(Duration::from_secs(20)), Ok(true), "it ends");
    assert!(was_reset(client));
    assert!(shared.slots.take());
    assert_eq!(stats.forwards[0].ends[EndReason::Drain as usize].get(), 1);
}
