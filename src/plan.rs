//! What runs: validated, plain values. The rest of the program sees nothing else of configuration.
//!
//! A [`Plan`] is made by [`crate::config`] and never changes afterwards. Sizes are bytes, times are
//! [`Duration`]s, and `None` always means "no limit" or "leave it to the kernel", as the field says.

mod access;
mod client;
mod engine;
#[cfg(test)]
pub(crate) mod example;
mod limits;
mod listen;
mod names;
mod nets;
mod process;
mod targets;
mod tcp;
mod udp;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use self::access::{Access, AccessFiles, Pattern, Refusal};
pub use self::client::{AcceptProxy, Egress};
pub use self::engine::{Arm, Engine};
pub use self::limits::{Limits, Rate, WhenFull};
pub use self::listen::{Listen, ListenOptions, Local};
pub use self::names::{Resolve, Resolving};
pub use self::nets::{NetFile, NetSet, Summary};
pub use self::process::{Confinement, Keep, LogFormat, LogPlan, Pin, Privileges, RunAs, Scheduling};
pub use self::targets::{Balance, Balancing, Check, Health, OnDown};
pub use self::tcp::{TcpOptions, Timeouts};
pub use self::udp::{Transport, Udp};
use crate::address::{Address, UnixName};

/// Everything one process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How many event loops; `None` is one per CPU of the affinity mask.
    pub workers: Option<usize>,
    /// Whether each worker is bound to a CPU of its own.
    pub pin: Pin,
    /// Whether busy sessions are kept on as few workers as can carry them.
    pub gather: bool,
    /// How the scheduler is to take the workers.
    pub scheduling: Scheduling,
    /// How long a worker that has nothing to do looks for events before it sleeps; `None` sleeps at once.
    pub spin: Option<Duration>,
    /// Open sessions over all forwards; `None` is bounded only by descriptors.
    pub max_connections: Option<u64>,
    /// Open sessions of one source over all forwards; `None` is no limit.
    pub max_connections_per_source: Option<u64>,
    /// How long it still accepts after SIGTERM or SIGINT, not ready any more.
    pub drain_delay: Duration,
    /// How long sessions may finish after that; `None` waits for ever.
    pub drain: Option<Duration>,
    /// How long sessions of a process that another has taken over from may go on; `None` until the last one ends.
    pub upgrade_drain: Option<Duration>,
    /// Unix socket that answers `spliced stats`.
    pub control: Option<PathBuf>,
    /// Address of the metrics endpoint.
    pub metrics: Option<SocketAddr>,
    /// One line per finished session.
    pub log: LogPlan,
    /// How names are looked up.
    pub resolving: Resolving,
    /// File that holds the process id while the process runs.
    pub pid_file: Option<PathBuf>,
    /// What the process keeps of its rights once its listeners are bound.
    pub privileges: Privileges,
    /// The forwards, in the order they were written. Never empty.
    pub forwards: Vec<Forward>,
}

/// Listeners that lead to targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Unique in the plan; names the forward in logs and counters.
    pub name: String,
    /// Where clients connect by TCP; no address appears twice in a plan. Empty only where `udp.listen` is not.
    pub listen: Vec<Listen>,
    /// Where sessions go. Never empty.
    pub targets: Vec<Target>,
    /// Which of them a session goes to.
    pub balancing: Balancing,
    /// How bytes move where there are no arms.
    pub engine: Engine,
    /// Live A/B: what each new session may be dealt to; empty when all sessions are alike, otherwise 2 to 16.
    pub arms: Vec<Arm>,
    /// Bytes one read may take with the copy engine: 1 KiB to 16 MiB.
    pub copy_buffer: usize,
    /// Bytes of one pipe, 64 KiB to 1 GiB; `None` takes 1 MiB where the budget allows, else the largest that fits.
    pub pipe_size: Option<usize>,
    /// Open sessions of this forward.
    pub max_connections: Option<u64>,
    /// Its other limits.
    pub limits: Limits,
    /// When a session ends by itself.
    pub timeouts: Timeouts,
    /// A session is named in the log once its bytes have waited for so long and none was taken; `None` never.
    pub stall_warning: Option<Duration>,
    /// Options of both sockets.
    pub tcp: TcpOptions,
    /// Options of the listening sockets.
    pub listen_options: ListenOptions,
    /// Local addresses of connections to the targets, used in turn; empty leaves the choice to the kernel.
    pub sources: Vec<IpAddr>,
    /// Its datagrams.
    pub udp: Udp,
    /// What connections to the targets carry beside the client's bytes.
    pub egress: Egress,
    /// Who may say on whose behalf it connects; `None` is nobody.
    pub accept_proxy: Option<AcceptProxy>,
    /// Who may connect.
    pub access: Access,
}

/// A range of ports, both ends included; a single port is a range of one. Contains 0 only as [`Ports::NONE`] and
/// [`Ports::BY_RECORD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The first port.
    pub first: u16,
    /// The last port, not below `first`.
    pub last: u16,
}

/// A place sessions are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Address or name.
    pub host: Host,
    /// One port for every listener, or a range as long as the listener's, mapped one to one. Of a service it is
    /// [`Ports::BY_RECORD`], and means nothing.
    pub ports: Ports,
    /// Share of new sessions relative to the other targets: 1 to 256.
    pub weight: u16,
    /// Used only while no other target can be.
    pub backup: bool,
    /// Open sessions to each of its addresses.
    pub max_connections: Option<u64>,
    /// How long its share grows once it is there again.
    pub slow_start: Option<Duration>,
}

/// A host as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A name, resolved while running and never on the data path.
    Name(String),
    /// A unix socket; the ports of its target are [`Ports::NONE`].
    Unix(UnixName),
    /// The name of a service (SRV, RFC 2782), whose records say hosts, ports, weights and priorities.
    Service(String),
}

impl Ports {
    /// What stands in for the ports of a unix socket, which has none.
    pub const NONE: Self = Self { first: 0, last: 0 };
    /// Stands where the records of a service say the port.
    pub const BY_RECORD: Self = Self { first: 0, last: 0 };

    /// A single port.
    #[must_use]
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// How many ports there are, at least 1.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Never true: a range has at least one port.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Plan {
    /// Whether a target is a unix socket.
    #[must_use]
    pub fn has_unix_target(&self) -> bool {
        let mut targets = self.forwards.iter().flat_map(|forward| &forward.targets);
        targets.any(|target| matches!(target.host, Host::Unix(_)))
    }
}

impl Target {
    /// A target like any other of its forward.
    #[must_use]
    pub fn new(host: Host, ports: Ports) -> Self {
        Self { host, ports, weight: 1, backup: false, max_connections: None, slow_start: None }
    }
}

impl Forward {
    /// `stall_warning` where nobody says otherwise.
    pub const STALL_WARNING: Duration = Duration::from_secs(60);

    /// The engine as it is written in a configuration: `splice`, or `ab:splice=50,copy-64KiB=50`.
    #[must_use]
    pub fn engine_text(&self) -> String {
        if self.arms.is_empty() {
            return self.engine.to_string();
        }
        let arms: Vec<String> = self.arms.iter().map(|arm| format!("{}={}", arm.name, arm.share)).collect();
        format!("ab:{}", arms.join(","))
    }

    /// Every address it listens on, ranges expanded, with the place of the port in its range.
    pub fn addresses(&self) -> impl Iterator<Item = (Address, u16)> {
        self.listen.iter().flat_map(Listen::addresses)
    }

    /// One of [`Self::addresses`] by its place there, without counting through ranges.
    #[must_use]
    pub fn address(&self, mut index: usize) -> Option<Address> {
        for listen in &self.listen {
            match u16::try_from(index).ok().filter(|_| index < listen.ports.len()) {
                Some(offset) => return Some(listen.address(offset)),
                None => index = index.checked_sub(listen.ports.len())?,
            }
        }
        None
    }

    /// What targets are asked by when they are checked: datagrams where clients may send them some.
    #[must_use]
    pub fn checked_by(&self) -> Transport {
        let listens = if self.udp.listen.is_empty() { Transport::Tcp } else { Transport::Udp };
        self.udp.targets.unwrap_or(listens)
    }

    /// The same for datagrams.
    pub fn udp_addresses(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        let all = self.udp.listen.iter().flat_map(Listen::addresses);
        all.filter_map(|(address, offset)| Some((address.socket()?, offset)))
    }

    /// Its listeners as they are written in a configuration.
    pub fn listeners(&self) -> impl Iterator<Item = String> {
        self.listen.iter().map(ToString::to_string).chain(self.udp.listen.iter().map(|listen| format!("udp:{listen}")))
    }

    /// Its targets as they are written in a configuration, without their weights.
    pub fn written_targets(&self) -> impl Iterator<Item = String> {
        self.targets.iter().map(|target| self.written_target(target))
    }

    /// A target as it is written in a configuration.
    #[must_use]
    pub fn written_target(&self, target: &Target) -> String {
        self.udp.targets.map_or_else(|| target.to_string(), |transport| format!("{transport}:{target}"))
    }

    /// Most bytes a read of any of its sessions may take.
    #[must_use]
    pub fn largest_read(&self) -> usize {
        self.arms.iter().map(|arm| arm.copy_buffer).fold(self.copy_buffer, usize::max)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Service(name) => write!(f, "srv:{name}"),
            Self::Unix(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.ports),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.ports),
            Host::Name(name) => write!(f, "{name}:{}", self.ports),
            own @ (Host::Service(_) | Host::Unix(_)) => own.fmt(f),
        }
    }
}
