//! What runs: validated, plain values. The rest of the program sees nothing else of configuration.
//!
//! A [`Plan`] is made by [`crate::config`] and never changes afterwards. Sizes are bytes, times are
//! [`Duration`]s, and `None` always means "no limit" or "leave it to the kernel", as the field says.

mod client;
#[cfg(test)]
pub(crate) mod example;
mod limits;
mod listen;
mod names;
mod nets;
mod targets;
mod udp;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::client::{AcceptProxy, Egress};
pub use self::limits::{Limits, Rate, WhenFull};
pub use self::listen::{Listen, ListenOptions, Local};
pub use self::names::{Resolve, Resolving};
pub use self::nets::{NetFile, NetSet, Summary};
pub use self::targets::{Balance, Balancing, Check, Health, OnDown};
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

/// How bytes move between the sockets of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Engine {
    /// Decides per direction: copy for small messages, splice for bursts.
    #[default]
    Auto,
    /// Always through a pipe, as long as the kernel gives one.
    Splice,
    /// Always `recv` and `send` through the worker's scratch buffer.
    Copy,
}

/// One side of a live A/B.
///
/// Two arms may come to the same (`copy` beside `copy-64KiB`): such a comparison with nothing to find shows how far
/// chance alone goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arm {
    /// `splice`, `auto`, `copy`, `copy-64KiB` …: unique in its forward.
    pub name: String,
    /// How bytes of its sessions move.
    pub engine: Engine,
    /// Bytes one read may take when it copies: 1 KiB to 16 MiB.
    pub copy_buffer: usize,
    /// Its share of new sessions relative to the other arms: 1 to 1000.
    pub share: u32,
}

/// Whether workers are bound to CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Pin {
    /// Bound when the affinity mask has a CPU for each worker.
    #[default]
    Auto,
    /// Bound; more workers than CPUs share them in turn.
    On,
    /// Left to the scheduler.
    Off,
}

/// How the kernel's scheduler takes a worker thread (sched(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scheduling {
    /// `SCHED_BATCH` while it mostly moves streams, `SCHED_OTHER` otherwise.
    #[default]
    Auto,
    /// Always `SCHED_BATCH`.
    Batch,
    /// As the process was started.
    Normal,
}

/// When a session ends by itself. `None` never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From accepting the client to a connected target, all attempts together.
    pub connect: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// Without a byte once one side has closed its half.
    pub half_closed: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Some(Duration::from_secs(5)), idle: None, half_closed: Some(Duration::from_secs(600)) }
    }
}

/// Socket options of both sides. `None` leaves the kernel's own value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// Idle time before the first keepalive probe; probes then follow every quarter of it (at least 1 s), and
    /// the fourth without an answer ends the session. Whole seconds, at least 1.
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`: how long sent bytes may stay unacknowledged.
    pub user_timeout: Option<Duration>,
    /// `SO_RCVBUF` in bytes. Setting it ends the kernel's autotuning.
    pub receive_buffer: Option<usize>,
    /// `SO_SNDBUF` in bytes. Setting it ends the kernel's autotuning.
    pub send_buffer: Option<usize>,
    /// DSCP of every packet we send, 0 to 63 (`IP_TOS`, `IPV6_TCLASS`).
    pub dscp: Option<u8>,
    /// Connections the kernel queues before `accept`; capped by `net.core.somaxconn`.
    pub backlog: u32,
    /// TCP Fast Open on both sides: how many connections with data in their SYN a listener has at once.
    pub fast_open: Option<u32>,
    /// Multipath TCP on both sides, where the kernel has it.
    pub mptcp: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Some(Duration::from_secs(120)),
            user_timeout: None,
            receive_buffer: None,
            send_buffer: None,
            dscp: None,
            backlog: 4096,
            fast_open: None,
            mptcp: false,
        }
    }
}

/// What a process keeps of its rights once its listeners are bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Privileges {
    /// Who the process becomes; `None` stays who started it.
    pub user: Option<RunAs>,
    /// Capabilities that stay.
    pub keep: Keep,
    /// How far the process confines itself.
    pub sandbox: Confinement,
}

/// A user and a group as written: names, or numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RunAs {
    /// Name or number of the user.
    pub user: String,
    /// Name or number of the group; `None` is the user's own.
    pub group: Option<String>,
}

/// Capabilities that stay, as far as the process has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Keep {
    /// `CAP_NET_BIND_SERVICE`, so that a reload can add low ports; `None` keeps it where a port of the plan is low.
    pub bind: Option<bool>,
    /// `CAP_NET_ADMIN`, so that connections to targets can come from the client's address or have a mark; `None` keeps
    /// it where a forward of the plan asks for that.
    pub net: Option<bool>,
    /// `CAP_SYS_RESOURCE`, so that `fs.pipe-user-pages-soft` and `fs.pipe-max-size` do not bound the pipes.
    pub pipes: bool,
}

/// How far a process confines itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Confinement {
    /// As far as the kernel can; what it cannot is logged.
    #[default]
    Auto,
    /// All parts or no start, and only the TCP ports of the plan.
    Strict,
    /// Not at all.
    Off,
}

/// The session log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogPlan {
    /// Shape of a line.
    pub format: LogFormat,
    /// Where lines go; `None` is standard error.
    pub file: Option<PathBuf>,
}

/// Shape of a session's log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LogFormat {
    /// `key=value` pairs for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// rinetd's tab-separated log.
    Rinetd,
    /// The common log format as rinetd writes it.
    Common,
}

/// Who may connect: rinetd's order. A client must match an allow rule where there are any, and no deny rule, first
/// of the process, then of the forward.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Process-wide allow patterns, one list for all forwards.
    pub global_allow: Arc<[Pattern]>,
    /// Process-wide deny patterns, one list for all forwards.
    pub global_deny: Arc<[Pattern]>,
    /// Allow patterns of this forward.
    pub allow: Vec<Pattern>,
    /// Deny patterns of this forward.
    pub deny: Vec<Pattern>,
    /// Files with more of each.
    pub files: AccessFiles,
}

/// Files with networks, as they were when the configuration was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessFiles {
    /// Process-wide, to allow.
    pub global_allow: Arc<[NetFile]>,
    /// Process-wide, to deny.
    pub global_deny: Arc<[NetFile]>,
    /// Of this forward, to allow.
    pub allow: Vec<NetFile>,
    /// Of this forward, to deny.
    pub deny: Vec<NetFile>,
}

impl AccessFiles {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &NetFile> {
        self.global_allow.iter().chain(&*self.global_deny).chain(&self.allow).chain(&self.deny)
    }
}

/// Matches client addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// An address or a network.
    Net(ipnet::IpNet),
    /// rinetd's text pattern over the numeric address: `*` any run, `?` one character. Lower case.
    Text(String),
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

impl Access {
    /// Why a client is refused, or `None` when it may connect.
    #[must_use]
    pub fn refuses(&self, client: IpAddr) -> Option<Refusal> {
        if self.is_open() {
            return None;
        }
        let client = client.to_canonical();
        let is_without_patterns = self.lists().iter().all(|list| list.is_empty());
        let text = if is_without_patterns { String::new() } else { client.to_string() };
        let any = |patterns: &[Pattern], files: &[NetFile]| {
            patterns.iter().any(|p| p.matches(client, &text)) || files.iter().any(|file| file.nets.contains(client))
        };
        let AccessFiles { global_allow, global_deny, allow, deny } = &self.files;
        for ((allow, allow_files), (deny, deny_files)) in [
            ((&*self.global_allow, &**global_allow), (&*self.global_deny, &**global_deny)),
            ((&*self.allow, &**allow), (&*self.deny, &**deny)),
        ] {
            let allows_all = allow.is_empty() && allow_files.is_empty();
            if !allows_all && !any(allow, allow_files) {
                return Some(Refusal::NotAllowed);
            }
            if any(deny, deny_files) {
                return Some(Refusal::Denied);
            }
        }
        None
    }

    /// True when no rule exists.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty()) && self.files.iter().next().is_none()
    }

    fn lists(&self) -> [&[Pattern]; 4] {
        [&self.global_allow, &self.global_deny, &self.allow, &self.deny]
    }
}

/// Why [`Access::refuses`] a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are allow rules and none matched.
    NotAllowed,
    /// A deny rule matched.
    Denied,
}

impl Pattern {
    /// Whether the client matches; `text` is the numeric form of `client`.
    #[must_use]
    pub fn matches(&self, client: IpAddr, text: &str) -> bool {
        match self {
            Self::Net(net) => net.contains(&client),
            Self::Text(pattern) => wildcard(pattern.as_bytes(), text.as_bytes()),
        }
    }
}

/// Glob match with `*` and `?`, linear in time for one star, quadratic at worst; both texts are short.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
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

impl fmt::Display for RunAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user)?;
        self.group.iter().try_for_each(|group| write!(f, ":{group}"))
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.bind.is_none() || self.net.is_none(), "auto"),
            (self.bind == Some(true), "net_bind_service"),
            (self.net == Some(true), "net_admin"),
            (self.pipes, "sys_resource"),
        ];
        let names: Vec<&str> = names.into_iter().filter(|(is_kept, _)| *is_kept).map(|(_, name)| name).collect();
        f.write_str(if names.is_empty() { "none".to_owned() } else { names.join(",") }.as_str())
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Strict => "strict",
            Self::Off => "off",
        })
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Splice => "splice",
            Self::Copy => "copy",
        })
    }
}
