//! One forwarder under test: `spliced forward` as a child process, and what its control socket says.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::child::Child;
use super::host::ThreadTimes;
use super::{format_size, parse_size};

/// How long a forwarder may take to be ready, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest path of a unix socket that every system takes (`sun_path` is 104 to 108 bytes).
const LONGEST_SOCKET_PATH: usize = 100;

/// One of the things compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arm {
    /// No forwarder at all: the limit of this host.
    Direct,
    /// Through pipes.
    Splice,
    /// Through memory, with that many bytes a read.
    Copy(usize),
    /// Whatever suits the traffic.
    Auto,
}

impl Arm {
    /// What `spliced ab` compares unless told otherwise.
    pub const DEFAULT: [Self; 6] =
        [Self::Direct, Self::Splice, Self::Copy(8 << 10), Self::Copy(16 << 10), Self::Copy(64 << 10), Self::Auto];

    /// Engine and copy buffer as the forwarder's options; `None` without a forwarder.
    fn options(self) -> Option<Vec<String>> {
        let option = |engine: &str| vec!["--engine".to_owned(), engine.to_owned()];
        match self {
            Self::Direct => None,
            Self::Splice => Some(option("splice")),
            Self::Auto => Some(option("auto")),
            Self::Copy(size) => {
                let mut options = option("copy");
                options.extend(["--copy-buffer".to_owned(), format_size(size)]);
                Some(options)
            }
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.pad("direct"),
            Self::Splice => f.pad("splice"),
            Self::Auto => f.pad("auto"),
            Self::Copy(size) => f.pad(&format!("copy-{}", format_size(*size))),
        }
    }
}

impl FromStr for Arm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "direct" => Ok(Self::Direct),
            "splice" => Ok(Self::Splice),
            "auto" => Ok(Self::Auto),
            "copy" => Ok(Self::Copy(64 << 10)),
            _ => match text.strip_prefix("copy-").map(parse_size) {
                Some(Ok(size)) if (1 << 10..=16 << 20).contains(&size) => Ok(Self::Copy(size)),
                Some(Ok(_)) => Err("a copy buffer has 1KiB to 16MiB".into()),
                Some(Err(error)) => Err(error),
                None => Err("an arm is direct, splice, auto or copy-SIZE such as copy-64KiB".into()),
            },
        }
    }
}

/// A running forwarder; ended when dropped.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    control: PathBuf,
    child: Child,
    /// Bound to the port and never listening, so that nobody else is given it.
    _port: Socket,
}

/// What the comparison needs of `spliced stats --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Stats {
    /// CPU time of the process.
    pub cpu: CpuSeconds,
    /// What it may use.
    pub engine_available: Available,
    /// Counters of all forwards.
    pub total: Total,
}

/// CPU time of a process as getrusage(2) has it.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct CpuSeconds {
    /// In user mode.
    pub user_seconds: f64,
    /// In the kernel.
    pub system_seconds: f64,
}

/// Engines the process can use.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Available {
    /// False in a portable build and once the kernel has refused splice.
    pub splice: bool,
}

/// Counters of the process.
#[derive(Debug, Clone, Deserialize)]
pub struct Total {
    /// Bytes by direction.
    pub bytes: Directions,
    /// Fallbacks by reason.
    pub fallbacks: BTreeMap<String, u64>,
    /// Ends of sessions by reason.
    pub ends: BTreeMap<String, u64>,
}

/// Bytes of both directions.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Directions {
    /// Towards the backend.
    pub client_to_backend: Paths,
    /// Towards the client.
    pub backend_to_client: Paths,
}

/// Bytes by the way they took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// Through a pipe.
    pub splice: u64,
    /// Through memory.
    pub copy: u64,
}

/// One reading of a forwarder, for the difference of two.
#[derive(Debug, Clone)]
pub struct Reading {
    stats: Stats,
    threads: Option<ThreadTimes>,
}

/// What a forwarder did and used between two readings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Usage {
    /// User and system time of the forwarder alone, in seconds.
    pub cpu_seconds: f64,
    /// `schedstat` (nanoseconds of the scheduler) or `getrusage`.
    pub cpu_source: &'static str,
    /// Bytes passed on, both directions together.
    pub bytes: Paths,
    /// Bytes passed on to the backend.
    pub bytes_to_backend: u64,
    /// Fallbacks by reason; only those that happened.
    pub fallbacks: BTreeMap<String, u64>,
}

impl Forwarder {
    /// Starts the forwarder of an arm in front of `target` and waits until it takes connections. `None` for
    /// [`Arm::Direct`].
    ///
    /// # Errors
    /// What kept it from starting, with its own words.
    pub fn start(program: &Path, arm: Arm, target: SocketAddr, directory: &Path) -> io::Result<Option<Self>> {
        let Some(options) = arm.options() else { return Ok(None) };
        let port = reserve_port()?;
        let address = port.local_addr()?.as_socket().ok_or_else(|| io::Error::other("a socket without an address"))?;
        let control = directory.join(format!("{arm}.sock"));
        let mut args: Vec<String> = ["ab-role", "guard", "--socket"].map(str::to_owned).into();
        let socket = control.to_str().ok_or_else(|| io::Error::other("TMPDIR is not valid UTF-8"))?.to_owned();
        args.extend([socket.clone(), "--".into(), "forward".into(), address.to_string(), target.to_string()]);
        args.extend(options);
        args.extend(["--control".into(), socket, "-q".into()]);
        let child = Child::spawn("the forwarder", program, args)?;
        let mut forwarder = Self { address, control, child, _port: port };
        forwarder.wait_ready()?;
        Ok(Some(forwarder))
    }

    /// Where it takes connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters and CPU time now.
    ///
    /// # Errors
    /// When it has ended (with its last words) or does not answer.
    pub fn read(&mut self) -> io::Result<Reading> {
        let stats = self.stats();
        if let Some(end) = self.child.exited() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, end));
        }
        Ok(Reading { stats: stats?, threads: ThreadTimes::of(self.child.pid()) })
    }

    /// Why it is no longer running; `None` while it is.
    pub fn exited(&mut self) -> Option<String> {
        self.child.exited()
    }

    fn stats(&self) -> io::Result<Stats> {
        let at = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("no answer from its control socket {}: {error}", self.control.display()),
            )
        };
        let mut socket = UnixStream::connect(&self.control).map_err(at)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(at)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(at)?;
        socket.write_all(b"stats\n").map_err(at)?;
        let mut answer = Vec::new();
        socket.take(16 << 20).read_to_end(&mut answer).map_err(at)?;
        serde_json::from_slice(&answer).map_err(|error| at(error.into()))
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            let failed = match self.stats() {
                Ok(_) => match TcpStream::connect_timeout(&self.address, PATIENCE) {
                    Ok(_) => return Ok(()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if let Some(end) = self.child.exited() {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, end));
            }
            if begun.elapsed() > PATIENCE {
                let what = format!("it was not ready within {} s: {failed}{}", PATIENCE.as_secs(), self.child.said());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Reading {
    /// Whether the process may use splice.
    #[must_use]
    pub fn splice_available(&self) -> bool {
        self.stats.engine_available.splice
    }

    /// Sessions that ended otherwise than whole, by reason, as the tail of a message; empty when there are none.
    #[must_use]
    pub fn broken_sessions(&self) -> String {
        let broken = self.stats.total.ends.iter().filter(|(reason, n)| **n > 0 && *reason != "done");
        let broken: Vec<String> = broken.map(|(reason, n)| format!("{reason} {n}")).collect();
        if broken.is_empty() {
            String::new()
        } else {
            format!("; ends of the forwarder's sessions: {}", broken.join(", "))
        }
    }

    /// What happened since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Usage {
        let (cpu_seconds, cpu_source) = match (&self.threads, &earlier.threads) {
            (Some(now), Some(then)) => (now.seconds_since(then), "schedstat"),
            _ => (self.stats.cpu.total() - earlier.stats.cpu.total(), "getrusage"),
        };
        let (now, then) = (&self.stats.total, &earlier.stats.total);
        let up = now.bytes.client_to_backend.since(then.bytes.client_to_backend);
        let down = now.bytes.backend_to_client.since(then.bytes.backend_to_client);
        let fallbacks = now.fallbacks.iter().filter_map(|(reason, n)| {
            let n = n.saturating_sub(*then.fallbacks.get(reason).unwrap_or(&0));
            (n > 0).then(|| (reason.clone(), n))
        });
        Usage {
            cpu_seconds,
            cpu_source,
            bytes: Paths { splice: up.splice + down.splice, copy: up.copy + down.copy },
            bytes_to_backend: up.splice + up.copy,
            fallbacks: fallbacks.collect(),
        }
    }
}

impl CpuSeconds {
    fn total(self) -> f64 {
        self.user_seconds + self.system_seconds
    }
}

impl Paths {
    /// Both together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.splice + self.copy
    }

    fn since(self, earlier: Self) -> Self {
        Self { splice: self.splice.saturating_sub(earlier.splice), copy: self.copy.saturating_sub(earlier.copy) }
    }
}

/// A free port of 127.0.0.1, kept for a forwarder of the same user until the socket is dropped.
fn reserve_port() -> io::Result<Socket> {
    let reserve = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // The forwarder binds with both, and first with SO_REUSEADDR alone to see that nobody listens.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        Ok(socket)
    };
    reserve().map_err(|error: io::Error| io::Error::new(error.kind(), format!("no free port on 127.0.0.1: {error}")))
}

/// A directory for control sockets that only this user may enter; removed when dropped.
#[derive(Debug)]
pub struct SocketDir(PathBuf);

impl SocketDir {
    /// Makes one below the system's directory for temporary files.
    ///
    /// # Errors
    /// Names the directory, and TMPDIR as the way to another.
    pub fn create() -> io::Result<Self> {
        let base = std::env::temp_dir();
        let failed = |kind, why: String| {
            let what =
                format!("cannot make a directory for sockets in {}: {why}; set TMPDIR to another", base.display());
            Err(io::Error::new(kind, what))
        };
        for attempt in 0..100 {
            let path = base.join(format!("spliced-ab-{}-{attempt}", std::process::id()));
            if path.as_os_str().len() + "/copy-16384KiB.sock".len() > LONGEST_SOCKET_PATH {
                return failed(io::ErrorKind::InvalidInput, "its path is too long for a socket".into());
            }
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return failed(error.kind(), error.to_string()),
            }
        }
        failed(io::ErrorKind::AlreadyExists, "a hundred names are taken".into())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        // What cannot be removed now is a few empty sockets in a directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_read_back_as_they_are_written() {
        for arm in Arm::DEFAULT {
            assert_eq!(arm.to_string().parse(), Ok(arm));
        }
        assert_eq!("copy".parse(), Ok(Arm::Copy(65536)));
        assert_eq!("copy-1000".parse::<Arm>().ok(), None);
        for bad in ["", "spliced", "copy-", "copy-17MiB", "copy-0", "Splice"] {
            assert!(bad.parse::<Arm>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reserved_port_is_held() {
        let held = reserve_port().expect("a port");
        let address = held.local_addr().expect("an address").as_socket().expect("inet");
        assert_ne!(address.port(), 0);
        let other = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        assert!(other.bind(&address.into()).is_err(), "without both options nobody else gets it");
        assert!(TcpStream::connect_timeout(&address, PATIENCE).is_err(), "and nobody listens");
    }

    #[test]
    fn the_socket_directory_is_private_and_removed() {
        use std::os::unix::fs::PermissionsExt;
        let directory = SocketDir::create().expect("a directory");
        let path = directory.path().to_owned();
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("x"), "").expect("writes");
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn differences_are_of_two_readings() {
        let reading = |cpu: f64, splice: u64, refused: u64| Reading {
            stats: Stats {
                cpu: CpuSeconds { user_seconds: cpu, system_seconds: cpu * 2.0 },
                engine_available: Available { splice: true },
                total: Total {
                    bytes: Directions {
                        client_to_backend: Paths { splice, copy: 10 },
                        backend_to_client: Paths { splice: 0, copy: splice / 2 },
                    },
                    fallbacks: BTreeMap::from([("urgent".into(), 3), ("splice_refused".into(), refused)]),
                    ends: BTreeMap::from([("done".into(), 9), ("idle".into(), 0), ("refused".into(), refused)]),
                },
            },
            threads: None,
        };
        assert_eq!(reading(1.0, 0, 0).broken_sessions(), "");
        assert_eq!(reading(1.0, 0, 2).broken_sessions(), "; ends of the forwarder's sessions: refused 2");
        let usage = reading(2.0, 1000, 1).since(&reading(1.5, 400, 0));
        assert!((usage.cpu_seconds - 1.5).abs() < 1e-9);
        assert_eq!(usage.cpu_source, "getrusage");
        assert_eq!(usage.bytes, Paths { splice: 600, copy: 300 });
        assert_eq!(usage.bytes_to_backend, 600);
        assert_eq!(usage.fallbacks, BTreeMap::from([("splice_refused".into(), 1)]));
    }
}
