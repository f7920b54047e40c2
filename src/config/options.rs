//! The options: one list that is the command line, the keys of the YAML and the help text at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::engine::EngineOption;
use super::error::Fault;
use super::limit::Sources;
use super::names::Resolvers;
use super::node::{Key, Node};
use super::value::{self, Maybe};
use super::{address, node};
use crate::plan::{
    AcceptProxy, Balance, Check, Confinement, Health, Keep, LogFormat, OnDown, Pattern, Pin, Rate, Resolve, RunAs,
    Scheduling, WhenFull,
};
use crate::proxy::Version;

/// Makes a struct of options that is a part of the command line, and lets YAML set the same fields by name.
macro_rules! options {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty = $parse:ident, $allowed:ident;)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
        pub struct $name {
            $($(#[$field_meta])* #[arg(long, value_parser = value::$parse)] pub $field: Option<$type>,)+
        }

        impl $name {
            /// The names in YAML, in the order of the help text.
            pub(super) const KEYS: &'static [&'static str] = &[$(stringify!($field),)+];

            /// Sets the option of that name; `false` when there is none.
            pub(super) fn set(&mut self, name: &str, key: &Key, node: &Node) -> Result<bool, Fault> {
                match name {
                    $(stringify!($field) => node::set_once(&mut self.$field, name, key, node, value::$parse, value::$allowed)?,)+
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// These options, and where one is not set, the other's.
            #[must_use]
            pub(super) fn or(self, other: &Self) -> Self {
                Self { $($field: self.$field.or_else(|| other.$field.clone()),)+ }
            }
        }
    };
}

options! {
    /// Options of the process.
    ProcessOptions {
        /// Event loops: auto is one per CPU this process may use [default: auto]
        #[arg(value_name = "N", help_heading = "Workers and engine")]
        workers: Maybe<usize> = workers, WORKERS;
        /// Bind each worker to a CPU of its own: auto, on, off; auto does so when there is a CPU for each [default: auto]
        #[arg(value_name = "WHEN", help_heading = "Workers and engine")]
        pin: Pin = pin, PIN;
        /// Keep busy sessions on as few workers as can carry them, which takes fewer wake-ups for the same bytes: on, off
        /// [default: on]
        #[arg(value_name = "WHEN", help_heading = "Workers and engine")]
        gather: bool = gather, GATHER;
        /// How the scheduler takes workers: batch lets others finish first, so that a wake-up moves more; normal takes the
        /// CPU at once; auto is batch while a worker mostly moves streams [default: auto]
        #[arg(value_name = "HOW", help_heading = "Workers and engine")]
        scheduling: Scheduling = scheduling, SCHEDULING;
        /// A worker that has nothing to do looks for events for so long before it sleeps: a time up to 10ms, such as 50us,
        /// or none. Answers come sooner, and CPU time is spent waiting: for hosts with a CPU to spare for each worker
        /// [default: none]
        #[arg(value_name = "TIME", help_heading = "Workers and engine")]
        spin: Maybe<Duration> = spin, SPIN;
        /// Sessions open at once, of all forwards together: a number or none [default: none]
        #[arg(value_name = "N", help_heading = "Limits and time")]
        max_connections: Maybe<u64> = max_connections, MAX_CONNECTIONS;
        /// Sessions of one source open at once, of all forwards together: a number or none. A source is an IPv4
        /// address or an IPv6 /64 network; one too many is refused [default: none]
        #[arg(value_name = "N", help_heading = "Limits and time")]
        max_connections_per_source: Maybe<u64> = max_connections, MAX_CONNECTIONS;
        /// After SIGTERM or SIGINT, answer /readyz with 503 at once and accept for so long before draining begins, so that a
        /// balancer takes this host out first: a time such as 10s [default: 0s]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        drain_delay: Duration = drain_delay, DRAIN_DELAY;
        /// After SIGTERM or SIGINT, let sessions finish for so long: a time such as 30s, or none to wait for ever [default: 30s]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        drain_timeout: Maybe<Duration> = drain, DRAIN;
        /// After a new process has taken over (SIGUSR2), let the old one's sessions go on for so long: a time such as 1h, or
        /// none until the last one ends [default: none]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        upgrade_drain_timeout: Maybe<Duration> = drain, DRAIN;
        /// Who looks names up: dns asks name servers and keeps to the time an answer holds, and leaves to the system what
        /// these cannot know; system leaves all of it to the C library, every 30 seconds [default: dns]
        #[arg(value_name = "HOW", help_heading = "Names")]
        resolve: Resolve = resolve, RESOLVE;
        /// From one look-up of a name to the next: ttl as long as its answer holds, or a time such as 10s [default: ttl]
        #[arg(value_name = "TIME", help_heading = "Names")]
        resolve_interval: Maybe<Duration> = resolve_interval, RESOLVE_INTERVAL;
        /// The longest an answer is taken to hold: a time such as 10m [default: 1h]
        #[arg(value_name = "TIME", help_heading = "Names")]
        resolve_max: Duration = resolve_bound, RESOLVE_BOUND;
        /// The shortest an answer is taken to hold: a time such as 5s [default: 1s]
        #[arg(value_name = "TIME", help_heading = "Names")]
        resolve_min: Duration = resolve_bound, RESOLVE_BOUND;
        /// Name servers to ask, and no others: addresses such as 10.0.0.53, 10.0.0.53:5353 or fd00::53, several with commas
        /// [default: none, those of /etc/resolv.conf]
        #[arg(value_name = "ADDRESS", help_heading = "Names")]
        resolvers: Resolvers = resolvers, RESOLVERS;
        /// Serve metrics and health over HTTP here, such as 127.0.0.1:9464 [default: off]
        #[arg(value_name = "ADDRESS:PORT", help_heading = "Watching")]
        metrics: SocketAddr = metrics, METRICS;
        /// Answer `spliced stats` on this unix socket [default: off]
        #[arg(value_name = "PATH", help_heading = "Watching")]
        control: PathBuf = path, PATH;
        /// Shape of the line each finished session leaves: text, json, rinetd, common [default: text]
        #[arg(value_name = "FORMAT", help_heading = "Watching")]
        log_format: LogFormat = log_format, LOG_FORMAT;
        /// Append session lines to this file [default: standard error]
        #[arg(value_name = "PATH", help_heading = "Watching")]
        log_file: PathBuf = path, PATH;
        /// Write the process id to this file while running [default: off]
        #[arg(value_name = "PATH", help_heading = "Watching")]
        pid_file: PathBuf = path, PATH;
        /// Started by root, become this user once the listeners are bound: a name or number, with the group after a colon
        /// where it is not the user's own [default: stay]
        #[arg(value_name = "NAME[:GROUP]", help_heading = "Least privilege")]
        user: RunAs = user, USER;
        /// Capabilities that stay: none, or net_bind_service (a reload may add low ports), net_admin (it may add
        /// --transparent and --mark), sys_resource (pipes past the limits of an ordinary user), or several with commas;
        /// auto is net_bind_service where a listener has a low port, and net_admin where a forward is transparent or has
        /// a mark [default: auto]
        #[arg(value_name = "LIST", help_heading = "Least privilege")]
        keep_capabilities: Keep = keep_capabilities, KEEP_CAPABILITIES;
        /// Confine the process (no_new_privs, system-call filters, Landlock): auto as far as the kernel can; strict all of
        /// it or no start, and only the TCP ports known at start; off [default: auto]
        #[arg(value_name = "HOW", help_heading = "Least privilege")]
        sandbox: Confinement = sandbox, SANDBOX;
    }
}

options! {
    /// Options of a forward. At the top level of a file they are the defaults of all forwards.
    ForwardOptions {
        /// How bytes move: auto, splice (through a pipe in the kernel), copy (through memory); or ab: sessions are dealt at
        /// random to arms that `spliced stats` compares, such as ab:splice=50,copy-64KiB=50, which is what ab alone
        /// means [default: auto]
        #[arg(value_name = "ENGINE", help_heading = "Workers and engine")]
        engine: EngineOption = engine, ENGINE;
        /// Most bytes one read takes with copy: 1KiB to 16MiB [default: 64KiB]
        #[arg(value_name = "SIZE", help_heading = "Workers and engine")]
        copy_buffer: usize = copy_buffer, COPY_BUFFER;
        /// Size of a pipe with splice: 64KiB to 1GiB; auto is 1MiB where the system's limits allow it [default: auto]
        #[arg(value_name = "SIZE", help_heading = "Workers and engine")]
        pipe_size: Maybe<usize> = pipe_size, PIPE_SIZE;
        /// Which of several targets a session begins with: round_robin, least_connections, source_hash, random_two
        /// [default: round_robin]
        #[arg(value_name = "HOW", help_heading = "Targets")]
        balance: Balance = balance, BALANCE;
        /// How many other addresses are tried when connecting fails: a number, or all to try each once [default: all]
        #[arg(value_name = "N", help_heading = "Targets")]
        retries: Maybe<u32> = retries, RETRIES;
        /// With addresses of both families behind a name: how long one is waited for before one of the other is tried beside
        /// it, and the first to answer is taken; a time such as 250ms, or none [default: 250ms]
        #[arg(value_name = "TIME", help_heading = "Targets")]
        connect_attempt_delay: Maybe<Duration> = attempt_delay, ATTEMPT_DELAY;
        /// How long one address may take to answer before the next is tried: a time such as 500ms; auto shares what is left
        /// of --connect-timeout among those that are left [default: auto]
        #[arg(value_name = "TIME", help_heading = "Targets")]
        connect_attempt_timeout: Maybe<Duration> = attempt_timeout, ATTEMPT_TIMEOUT;
        /// Leave a target out for a while after so many failures to connect in a row, each time twice as long up to a most;
        /// never the last one; or none [default: fails=3,eject=10s,eject_max=5m]
        #[arg(value_name = "HEALTH", help_heading = "Targets")]
        health: Maybe<Health> = health, HEALTH;
        /// Ask targets whether they work: none, connect, or such as interval=2s,timeout=1s,rise=2,fall=3,port=8080; what is
        /// sent and expected only a file can say [default: none]
        #[arg(value_name = "CHECK", help_heading = "Targets")]
        check: Maybe<Check> = check, CHECK;
        /// Sessions of a target that checks find down, or that is disabled: keep them, or end them [default: keep]
        #[arg(value_name = "WHAT", help_heading = "Targets")]
        on_down: OnDown = on_down, ON_DOWN;
        /// What a connection meets while --max-connections or --connection-rate is reached: queue lets it wait in the
        /// kernel's queue, refuse resets it at once [default: queue]
        #[arg(value_name = "HOW", help_heading = "Limits and time")]
        when_full: WhenFull = when_full, WHEN_FULL;
        /// New connections per second: such as 100/s or "100/s burst 500" (a second's worth unless given), or none
        /// [default: none]
        #[arg(value_name = "RATE", help_heading = "Limits and time")]
        connection_rate: Maybe<Rate> = connection_rate, CONNECTION_RATE;
        /// The same for each source; more than that is always refused [default: none]
        #[arg(value_name = "RATE", help_heading = "Limits and time")]
        connection_rate_per_source: Maybe<Rate> = connection_rate, CONNECTION_RATE;
        /// Bytes per second in each direction, all sessions of a forward together: such as 10MiB/s or
        /// "10MiB/s burst 20MiB" (a tenth of a second's worth unless given), or none [default: none]
        #[arg(value_name = "RATE", help_heading = "Limits and time")]
        rate: Maybe<Rate> = byte_rate, BYTE_RATE;
        /// The same for each source [default: none]
        #[arg(value_name = "RATE", help_heading = "Limits and time")]
        rate_per_source: Maybe<Rate> = byte_rate, BYTE_RATE;
        /// From accepting a client to a connected target, all attempts together: a time such as 250ms, or none [default: 5s]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        connect_timeout: Maybe<Duration> = timeout, TIMEOUT;
        /// End sessions without a byte for so long: a time such as 1h, or none [default: none]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        idle_timeout: Maybe<Duration> = timeout, TIMEOUT;
        /// The same once one side has closed its half: a time such as 10m, or none [default: 10m]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        half_closed_timeout: Maybe<Duration> = timeout, TIMEOUT;
        /// Name a session in the log once its bytes have waited so long for a side that takes none: a time such as 30s, or
        /// none [default: 1m]
        #[arg(value_name = "TIME", help_heading = "Watching")]
        stall_warning: Maybe<Duration> = timeout, TIMEOUT;
        /// Probe a silent peer after so long: whole seconds such as 30s, or none [default: 2m]
        #[arg(value_name = "TIME", help_heading = "Sockets")]
        keepalive: Maybe<Duration> = keepalive, KEEPALIVE;
        /// End a session whose sent bytes stay unacknowledged for so long: a time such as 30s, or none [default: none]
        #[arg(value_name = "TIME", help_heading = "Sockets")]
        user_timeout: Maybe<Duration> = user_timeout, USER_TIMEOUT;
        /// A flow of datagrams ends after so long without one in either direction: a time such as 30s [default: 1m]
        #[arg(value_name = "TIME", help_heading = "Limits and time")]
        udp_timeout: Duration = udp_timeout, UDP_TIMEOUT;
        /// A flow of datagrams ends as soon as the target has answered each of the client's so many times: a number, 0 where
        /// it does not answer, or none [default: none]
        #[arg(value_name = "N", help_heading = "Limits and time")]
        udp_responses: Maybe<u32> = udp_responses, UDP_RESPONSES;
        /// SO_RCVBUF of both sockets: a size such as 4MiB; auto leaves the kernel's tuning on, and is 4MiB for listeners of
        /// datagrams [default: auto]
        #[arg(value_name = "SIZE", help_heading = "Sockets")]
        receive_buffer: Maybe<usize> = socket_buffer, SOCKET_BUFFER;
        /// SO_SNDBUF of both sockets: a size such as 4MiB; auto leaves the kernel's tuning on, and is 4MiB for listeners of
        /// datagrams [default: auto]
        #[arg(value_name = "SIZE", help_heading = "Sockets")]
        send_buffer: Maybe<usize> = socket_buffer, SOCKET_BUFFER;
        /// Connections the kernel queues before they are accepted, capped by net.core.somaxconn [default: 4096]
        #[arg(value_name = "N", help_heading = "Sockets")]
        backlog: u32 = backlog, BACKLOG;
        /// TCP Fast Open: data in the SYN from clients, and to targets where the client's first bytes are there: on, off, or
        /// how many such handshakes a listener has at once; on is 256 [default: off]
        #[arg(value_name = "WHEN", help_heading = "Sockets")]
        fast_open: Maybe<u32> = fast_open, FAST_OPEN;
        /// Multipath TCP on both sides, where the kernel has it and the peer speaks it: on, off [default: off]
        #[arg(value_name = "WHEN", help_heading = "Sockets")]
        mptcp: bool = switch, SWITCH;
        /// Whether listeners on IPv6 addresses take IPv6 clients only: on, off; with off one on :: takes IPv4 clients too
        /// [default: on]
        #[arg(value_name = "WHEN", help_heading = "Sockets")]
        v6only: bool = switch, SWITCH;
        /// Listen to clients that come by this network interface only, such as eth0, or none [default: none]
        #[arg(value_name = "NAME", help_heading = "Sockets")]
        device: Maybe<String> = device, DEVICE;
        /// Open the listeners in this network namespace: a name of `ip netns`, a path such as /proc/1/ns/net, or none; it
        /// takes CAP_SYS_ADMIN at the start, and a reload can use the namespaces of the start [default: none]
        #[arg(value_name = "NAME", help_heading = "Sockets")]
        netns: Maybe<String> = netns, NETNS;
        /// Permission bits of the files of unix listeners, in octal, such as 0660; auto is what the umask leaves
        /// [default: auto]
        #[arg(value_name = "MODE", help_heading = "Sockets")]
        unix_mode: Maybe<u32> = unix_mode, UNIX_MODE;
        /// Who owns the files of unix listeners: a name or number, with the group after a colon where it is not the
        /// user's own, or none; only root may give them away [default: none, who the process becomes]
        #[arg(value_name = "NAME[:GROUP]", help_heading = "Sockets")]
        unix_owner: Maybe<RunAs> = unix_owner, UNIX_OWNER;
        /// Local address of the connections to the target; of several, with commas, each takes its turn, and where one has
        /// no port left the next is tried [default: none, the kernel chooses]
        #[arg(value_name = "ADDRESS", help_heading = "Sockets")]
        source: Sources = sources, SOURCES;
        /// DSCP of all packets to both sides: 0 to 63, a name such as ef, af21 or cs1, or none [default: none]
        #[arg(value_name = "CLASS", help_heading = "Sockets")]
        dscp: Maybe<u8> = dscp, DSCP;
        /// SO_MARK of the connections to the target, for routing and packet filters: a number such as 7 or 0x7, or none;
        /// needs CAP_NET_ADMIN [default: none]
        #[arg(value_name = "MARK", help_heading = "Sockets")]
        mark: Maybe<u32> = mark, MARK;
        /// Network device the connections to the target leave through, such as eth1, or none [default: none]
        #[arg(value_name = "DEVICE", help_heading = "Sockets")]
        bind_device: Maybe<String> = device, DEVICE;
        /// Connect to the targets from this network namespace: a name of `ip netns`, a path such as /proc/1/ns/net, or none;
        /// it takes CAP_SYS_ADMIN at the start, and a reload can use the namespaces of the start [default: none]
        #[arg(value_name = "NAME", help_heading = "Sockets")]
        to_netns: Maybe<String> = netns, NETNS;
        /// Connect to the target from the client's own address: on, off; needs CAP_NET_ADMIN and routing that brings
        /// the answers back to this host [default: off]
        #[arg(value_name = "WHEN", help_heading = "Who the client is")]
        transparent: bool = transparent, TRANSPARENT;
        /// Tell the target who the client is with a header of the PROXY protocol: v1, v2, off [default: off]
        #[arg(value_name = "VERSION", help_heading = "Who the client is")]
        send_proxy: Maybe<Version> = send_proxy, SEND_PROXY;
        /// Take a PROXY header from these proxies, addresses or networks with commas, or none; with "timeout 3s" it must
        /// come so soon (3s unless given). Others are refused, and so are connections without one, unless it says
        /// "optional" [default: none]
        #[arg(value_name = "NETWORKS", help_heading = "Who the client is")]
        accept_proxy: Maybe<AcceptProxy> = accept_proxy, ACCEPT_PROXY;
    }
}

/// What a command line says beside its file: it has the last word over the file and over each of its forwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Overrides {
    /// Options of the process.
    #[command(flatten)]
    pub process: ProcessOptions,
    /// Options of every forward.
    #[command(flatten)]
    pub forward: ForwardOptions,
    /// Let only these clients in: an address, a network, or text with * and ?; may be repeated, adds to the file's
    #[arg(long, value_name = "PATTERN", value_parser = address::pattern, help_heading = "Who may connect")]
    pub allow: Vec<Pattern>,
    /// Keep these clients out, also when allowed; may be repeated, adds to the file's
    #[arg(long, value_name = "PATTERN", value_parser = address::pattern, help_heading = "Who may connect")]
    pub deny: Vec<Pattern>,
    /// Let only the clients of this file in: an address or a network a line, read at the start and at a reload; may be
    /// repeated, adds to the file's
    #[arg(long, value_name = "PATH", value_parser = value::path, help_heading = "Who may connect")]
    pub allow_file: Vec<PathBuf>,
    /// Keep the clients of this file out, as --allow-file
    #[arg(long, value_name = "PATH", value_parser = value::path, help_heading = "Who may connect")]
    pub deny_file: Vec<PathBuf>,
}
