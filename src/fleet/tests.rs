use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::limits::Admission;
use crate::plan::{Access, Engine, Host, Limits, Listen, LogPlan, Ports, Target, TcpOptions, Timeouts};
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
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        stall_warning: None,
        tcp: TcpOptions::default(),
        sources: Vec::new(),
        access: Access::default(),
    };
    Plan {
        workers: Some(1),
        pin: Pin::Off,
        gather: false,
        max_connections: None,
        max_connections_per_source: None,
        drain: None,
        control: None,
        metrics: None,
        log: LogPlan::default(),
        pid_file: None,
        privileges: Default::default(),
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
    let mut fleet = Fleet::start(&plan, None, waker).unwrap();

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

/// A worker without listeners and without a thread, for a plan with one slot.
fn lone_worker(target: SocketAddr) -> (Worker, Arc<Shared>, Arc<WorkerStats>) {
    let mut plan = plan(target, target);
    plan.max_connections = Some(1);
    let plan = Arc::new(plan);
    let (shared, mut ends) = share(&plan, &[Vec::new()]).unwrap();
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
        routes: routes(&plan, &budgets, &shared, 0),
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
    assert_eq!(shared.limits.admit(0, 0, 0).0, Admission::Enter);
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
    assert!(!shared.limits.slots.take());
    drop(worker);
    assert!(was_reset(client), "a clean end would look like an answer");
    assert!(shared.limits.slots.take());
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
    assert!(shared.limits.slots.take());
    assert_eq!(stats.forwards[0].ends[EndReason::Drain as usize].get(), 1);
}

/// Limits are changed under open sessions: what waits for one goes on, what is too many stays.
#[test]
fn limits_change_in_place() {
    use crate::plan::{Limits, Rate};

    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_reserved, listen) = reserve();
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
    let mut plan = plan(listen, backend.local_addr().unwrap());
    plan.max_connections = Some(1);
    // So slow that the second kilobyte would come in a second and the last one in an hour.
    let slow = Rate { per_second: 1024, burst: 1024 };
    plan.forwards[0].limits = Limits { rate: Some(slow), ..Limits::default() };
    let fleet = Fleet::start(&Arc::new(plan.clone()), None, waker).unwrap();
    let clients = [TcpStream::connect(listen).unwrap(), TcpStream::connect(listen).unwrap()];
    let (mut server, _) = backend.accept().unwrap();
    let bytes = vec![7; 3 << 20];
    let (mut first, sent) = (clients[0].try_clone().unwrap(), bytes.clone());
    std::thread::spawn(move || first.write_all(&sent));
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    server.read_exact(&mut [0; 1024]).unwrap();
    backend.set_nonblocking(true).unwrap();
    assert!(backend.accept().is_err(), "the second one waits");

    plan.max_connections = Some(2);
    plan.forwards[0].limits = Limits::default();
    fleet.update_limits(&plan);
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
    fleet.update_limits(&plan);
    assert_eq!(fleet.open_sessions(), 2, "sessions stay");
    fleet.stop();
}
