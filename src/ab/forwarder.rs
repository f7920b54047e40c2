//! One forwarder under test: `spliced forward` as a child process, and what its control socket says.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::arm::Arm;
use super::child::Child;
use super::usage::{Reading, Stats};

/// How long a forwarder may take to be ready, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest path of a unix socket that every system takes (`sun_path` is 104 to 108 bytes).
const LONGEST_SOCKET_PATH: usize = 100;

/// A running forwarder; ended when dropped.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    control: PathBuf,
    child: Child,
    /// Bound to the port and never listening, so that nobody else is given it.
    _port: Socket,
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
            return Err(io::Error::other(end));
        }
        Ok(Reading::new(stats?, self.child.pid()))
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
                return Err(io::Error::other(end));
            }
            if begun.elapsed() > PATIENCE {
                let what = format!("it was not ready within {} s: {failed}{}", PATIENCE.as_secs(), self.child.said());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
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
}
