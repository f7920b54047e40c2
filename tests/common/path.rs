//! The way from a client to a backend: through the program under test with one engine, or direct.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::netns::Chain;
use super::pattern::exchange;
use super::peer::{Reserved, accept, backend, connect};
use super::spliced::{Launcher, Spliced};
use super::stats::Stats;

/// What is between client and backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// Nothing: proves that a scenario asks only what TCP itself gives.
    Direct,
    /// The program with that engine.
    Engine(&'static str),
}

impl Via {
    /// Nothing in between.
    pub(crate) const DIRECT: Self = Self::Direct;
    /// Decides per direction.
    pub(crate) const AUTO: Self = Self::Engine("auto");
    /// Through memory.
    pub(crate) const COPY: Self = Self::Engine("copy");
    /// Through pipes.
    pub(crate) const SPLICE: Self = Self::Engine("splice");

    /// Whether this build and engine can use pipes at all.
    pub(crate) fn splices(self) -> bool {
        cfg!(not(spliced_portable)) && matches!(self, Self::AUTO | Self::SPLICE)
    }
}

/// A backend and the way to it.
#[derive(Debug)]
pub(crate) struct Path {
    /// Where the other end of each connection arrives.
    pub(crate) backend: TcpListener,
    /// The program in between.
    pub(crate) spliced: Option<Spliced>,
    front: SocketAddr,
    chain: Option<Chain>,
}

impl Path {
    /// To a backend on loopback.
    pub(crate) fn new(via: Via) -> Self {
        Self::with(via, backend(), |launcher| launcher)
    }

    /// To a backend given, with more options.
    pub(crate) fn with(via: Via, backend: TcpListener, options: impl FnOnce(Launcher<'_>) -> Launcher<'_>) -> Self {
        let back = backend.local_addr().expect("bound");
        let Via::Engine(engine) = via else { return Self { front: back, backend, spliced: None, chain: None } };
        let port = Reserved::loopback();
        let launcher = Launcher::forward(port.address(), back).option("--engine", engine);
        let spliced = options(launcher).start();
        Self { backend, spliced: Some(spliced), front: port.address(), chain: None }
    }

    /// To a backend given, from a configuration file with more top-level lines, such as `timeouts: { idle: 1s }`.
    pub(crate) fn configured(via: Via, backend: TcpListener, lines: &str) -> Self {
        let back = backend.local_addr().expect("bound");
        let Via::Engine(engine) = via else { return Self { front: back, backend, spliced: None, chain: None } };
        let port = Reserved::loopback();
        let front = port.address();
        let forward = format!("forwards: [{{ name: test, listen: \"{front}\", to: \"{back}\", engine: {engine} }}]\n");
        let spliced = Launcher::config(&format!("{lines}\n{forward}")).start();
        Self { backend, spliced: Some(spliced), front, chain: None }
    }

    /// Through three network namespaces.
    pub(crate) fn through(via: Via, chain: Chain, options: impl FnOnce(Launcher<'_>) -> Launcher<'_>) -> Self {
        let backend = chain.server.listen(Chain::BACK);
        let Via::Engine(engine) = via else {
            chain.route();
            return Self { backend, spliced: None, front: Chain::BACK, chain: Some(chain) };
        };
        let launcher = Launcher::forward(Chain::FRONT, Chain::BACK).option("--engine", engine);
        let spliced = options(launcher.inside(&chain.forwarder)).start();
        Self { backend, spliced: Some(spliced), front: Chain::FRONT, chain: Some(chain) }
    }

    /// Where clients connect.
    pub(crate) fn front(&self) -> SocketAddr {
        self.front
    }

    /// The namespaces it goes through.
    pub(crate) fn chain(&self) -> &Chain {
        self.chain.as_ref().expect("a path through namespaces")
    }

    /// A client's connection; the backend's end is still to be accepted.
    pub(crate) fn connect(&self) -> TcpStream {
        match &self.chain {
            Some(chain) => chain.client.connect(self.front),
            None => connect(self.front),
        }
    }

    /// Both ends of a new connection.
    pub(crate) fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.connect();
        (client, accept(&self.backend))
    }

    /// One session that carries `up` and `down` bytes at the same time, each followed by a FIN, checked whole.
    pub(crate) fn exchange(&self, up: u64, down: u64) {
        let (client, server) = self.pair();
        exchange(&client, &server, up, down);
    }

    /// The counters once every session has ended; `None` on the direct way. They must hold the bytes exactly.
    pub(crate) fn settled(&self, up: u64, down: u64) -> Option<Stats> {
        let spliced = self.spliced.as_ref()?;
        let stats = spliced.stats_until("all sessions have ended", |stats| stats.open() == 0);
        assert_eq!((stats.up().all(), stats.down().all()), (up, down), "bytes counted up and down");
        let forward = stats.0.pointer("/forwards/0/bytes").expect("bytes of the only forward");
        assert_eq!(Some(forward), stats.0.pointer("/total/bytes"), "the only forward has all the bytes");
        Some(stats)
    }

    /// Waits until that many sessions have ended for a reason; nothing to wait for on the direct way.
    pub(crate) fn ended(&self, reason: &str, count: u64) {
        if let Some(spliced) = &self.spliced {
            spliced.ended(reason, count);
        }
    }

    /// Everything given back, clean exit.
    pub(crate) fn finish(self) {
        if let Some(spliced) = self.spliced {
            spliced.finish();
        }
    }
}
