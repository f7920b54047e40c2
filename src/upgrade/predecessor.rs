//! The new process's side: takes what the running one passes on, and waits for its turn.

use std::collections::HashSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use log::{info, warn};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{dup2_stderr, dup2_stdin};
use socket2::{Socket, Type};

use super::DEADLINE;
use super::protocol::{Bequest, MAX_ADDRESSES, Ready, Reply, VARIABLE, VERSION, receive, send};
use crate::fleet::Inherited;
use crate::plan::{Forward, Plan};
use crate::sys::channel::Channel;

/// The running process that has started this one, and what it has passed on and nobody has taken yet.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    version: String,
    pid: u32,
    /// The real standard input and standard error.
    streams: Option<[OwnedFd; 2]>,
    listeners: Vec<(SocketAddr, Inherited)>,
    datagrams: Vec<(SocketAddr, Socket)>,
    given_up: Vec<SocketAddr>,
    metrics: Option<TcpListener>,
    control: Option<Control>,
    pid_file: Option<File>,
    keeps: Ready,
}

/// A control socket and what its file is known by.
#[derive(Debug)]
pub struct Control {
    /// The listening socket.
    pub listener: UnixListener,
    /// Device of its file.
    pub device: u64,
    /// Inode of its file.
    pub inode: u64,
}

impl Predecessor {
    /// Takes everything a running process passes on; `None` when this process was started by no such process. To be
    /// called before standard input is read, which is the channel.
    ///
    /// # Errors
    /// The other process speaks another protocol, or passes on what cannot be used; in words for the user.
    pub fn connect() -> Result<Option<Self>, String> {
        let Some(theirs) = env::var_os(VARIABLE) else { return Ok(None) };
        if theirs != VERSION {
            return Err(format!(
                "the running process hands over by protocol {}, this program knows {VERSION}; restart it instead: \
                 SIGTERM lets its sessions finish",
                theirs.to_string_lossy()
            ));
        }
        let channel = Channel::from_stdin(DEADLINE).map_err(|error| {
            format!(
                "{VARIABLE} is set, but standard input is no running process: {error}; start it without the variable"
            )
        })?;
        let mut predecessor = Self::behind(channel);
        predecessor.inherit().map_err(|error| format!("taking over from the running process: {error}"))?;
        Ok(Some(predecessor))
    }

    /// One that has handed nothing over yet.
    fn behind(channel: Channel) -> Self {
        Self {
            channel,
            version: String::new(),
            pid: 0,
            streams: None,
            listeners: Vec::new(),
            datagrams: Vec::new(),
            given_up: Vec::new(),
            metrics: None,
            control: None,
            pid_file: None,
            keeps: Ready::nothing(),
        }
    }

    /// The listeners the plan asks for. What waits in the others stays with the process before: it holds them too.
    pub fn take_listeners(&mut self, plan: &Plan) -> Vec<Inherited> {
        let wanted: HashSet<SocketAddr> =
            plan.forwards.iter().flat_map(Forward::addresses).map(|(address, _)| address).collect();
        let all = std::mem::take(&mut self.listeners).into_iter();
        let (taken, given_up): (Vec<_>, Vec<_>) = all.partition(|(address, _)| wanted.contains(address));
        self.given_up = given_up.into_iter().map(|(address, _)| address).collect();
        self.given_up.sort_unstable();
        self.given_up.dedup();
        taken.into_iter().map(|(_, passed)| passed).collect()
    }

    /// The sockets for datagrams that the plan asks for.
    pub fn take_datagrams(&mut self, plan: &Plan) -> Vec<Socket> {
        let wanted: HashSet<SocketAddr> =
            plan.forwards.iter().flat_map(Forward::udp_addresses).map(|(address, _)| address).collect();
        let all = std::mem::take(&mut self.datagrams).into_iter();
        all.filter(|(address, _)| wanted.contains(address)).map(|(_, socket)| socket).collect()
    }

    /// The metrics listener, when it is bound to this address.
    pub fn take_metrics(&mut self, address: SocketAddr) -> Option<TcpListener> {
        self.metrics.take().filter(|listener| listener.local_addr().is_ok_and(|bound| bound == address))
    }

    /// The control socket, when `path` is its file.
    pub fn take_control(&mut self, path: &Path) -> Option<Control> {
        let found = fs::symlink_metadata(path).ok()?;
        let same = |control: &Control| (control.device, control.inode) == (found.dev(), found.ino());
        let control = self.control.take().filter(same);
        self.keeps.control = control.is_some();
        control
    }

    /// The locked pid file, when it is the one at `path`.
    pub fn take_pid_file(&mut self, path: &Path) -> Option<File> {
        let named = fs::metadata(path).ok()?;
        let same = |open: fs::Metadata| (open.dev(), open.ino()) == (named.dev(), named.ino());
        let file = self.pid_file.take().filter(|file| file.metadata().is_ok_and(same));
        self.keeps.pid_file = file.is_some();
        file
    }

    /// Says that everything is in place, and whether control socket and pid file were taken; returns once this process
    /// is to accept: it was told to, or the other one is gone. Standard input and standard error are the real ones then.
    ///
    /// # Errors
    /// The other process says something else; in words for the user.
    pub fn take_over(self) -> Result<Turn, String> {
        let failed = |error: io::Error| format!("taking over from process {}: {error}", self.pid);
        let given_up = self.given_up.chunks(MAX_ADDRESSES).map(|some| Reply::GivesUp { addresses: some.to_vec() });
        for reply in given_up.chain([Reply::Ready(self.keeps.clone())]) {
            match send(&self.channel, &reply) {
                // It is gone, which is found out below.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                result => result.map_err(failed)?,
            }
        }
        // However long it takes: as long as that process lives and has not given up, it serves.
        self.channel.wait_for(None).map_err(failed)?;
        let told = match receive::<Bequest>(&self.channel, true).map_err(failed)? {
            None => false,
            Some((Bequest::Go, _)) => true,
            Some((other, _)) => return Err(format!("process {} says {other:?} instead of go", self.pid)),
        };
        if let Some([stdin, stderr]) = &self.streams {
            // Where it fails the channel's end stays standard input, and standard error leads to the other process.
            let results = [dup2_stdin(stdin), dup2_stderr(stderr)];
            if let Some(error) = results.into_iter().find_map(Result::err) {
                warn!("the standard streams cannot be taken over: {error}");
            }
        }
        if told {
            info!("took over from process {} (version {})", self.pid, self.version);
        } else {
            warn!("process {} (version {}) is gone; going on in its place", self.pid, self.version);
        }
        Ok(Turn { channel: self.channel, pid: self.pid })
    }

    fn inherit(&mut self) -> io::Result<()> {
        let mut passed = 0;
        loop {
            let message = receive(&self.channel, true).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => {
                    io::Error::new(io::ErrorKind::TimedOut, format!("it says nothing for {DEADLINE:?}"))
                }
                _ => error,
            })?;
            // It is gone: what it has not passed on is free to be opened anew.
            let Some((message, mut descriptors)) = message else { return Ok(()) };
            match message {
                Bequest::Hello { version, pid } => {
                    (self.version, self.pid) = (version, pid);
                    self.streams = descriptors.try_into().ok();
                }
                Bequest::Listeners { lent } => {
                    passed += descriptors.len();
                    for descriptor in descriptors {
                        match listener(descriptor)? {
                            (address, socket, true) => self.listeners.push((address, Inherited { socket, lent })),
                            (address, socket, false) => self.datagrams.push((address, socket)),
                        }
                    }
                }
                Bequest::Metrics => self.metrics = descriptors.pop().map(TcpListener::from),
                Bequest::Control { device, inode } => {
                    let listener = descriptors.pop().map(UnixListener::from);
                    self.control = listener.map(|listener| Control { listener, device, inode });
                }
                Bequest::PidFile => self.pid_file = descriptors.pop().map(File::from),
                Bequest::End { listeners } if listeners == passed => return Ok(()),
                Bequest::End { listeners } => {
                    return Err(invalid(format!("{listeners} listeners were to come and {passed} came")));
                }
                Bequest::Go => return Err(invalid("it says go before anything else".to_owned())),
            }
        }
    }
}

/// It is this process's turn to accept; the one before accepts too, until [`Self::begun`].
#[derive(Debug)]
pub struct Turn {
    channel: Channel,
    pid: u32,
}

impl Turn {
    /// Says that this process accepts.
    pub fn begun(self) {
        match send(&self.channel, &Reply::Begun) {
            // It is gone, and needs no telling.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                warn!("process {} cannot be told that this one accepts: {error}", self.pid);
            }
            _ => {}
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// What was passed on as a listener, when it is one, and whether it is one for streams.
fn listener(descriptor: OwnedFd) -> io::Result<(SocketAddr, Socket, bool)> {
    let socket = Socket::from(descriptor);
    let address = socket.local_addr()?.as_socket();
    let listens = getsockopt(&socket, sockopt::AcceptConn)?;
    let kind = socket.r#type()?;
    match address {
        Some(address) if listens && kind == Type::STREAM => Ok((address, socket, true)),
        Some(address) if kind == Type::DGRAM => Ok((address, socket, false)),
        _ => Err(invalid(format!("no listening TCP socket and no UDP socket ({address:?})"))),
    }
}

#[cfg(test)]
mod tests {
    use socket2::Domain;

    use super::*;

    fn nobody() -> Predecessor {
        Predecessor::behind(Channel::pair().unwrap().0)
    }

    #[test]
    fn only_what_fits_the_plan_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("one"), dir.path().join("two"));
        let mut predecessor = nobody();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = metrics.local_addr().unwrap();
        predecessor.metrics = Some(metrics.try_clone().unwrap());
        assert!(predecessor.take_metrics(address).is_some());
        predecessor.metrics = Some(metrics);
        assert!(predecessor.take_metrics("127.0.0.1:1".parse().unwrap()).is_none());
        for (named, taken) in [(&path, true), (&other, false)] {
            fs::write(&other, "2").unwrap();
            predecessor.pid_file = Some(File::create(&path).unwrap());
            assert_eq!(predecessor.take_pid_file(named).is_some(), taken);
        }
        assert!(predecessor.take_pid_file(&dir.path().join("missing")).is_none());
    }

    #[test]
    fn only_listeners_are_listeners() {
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let (taken, _, stream) = listener(bound.into()).unwrap();
        assert_eq!((taken, stream), (address, true));
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!listener(udp.into()).unwrap().2, "for datagrams");
        let connecting = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let unix = UnixListener::bind(tempfile::tempdir().unwrap().path().join("sock")).unwrap();
        for stranger in [connecting.into(), unix.into(), OwnedFd::from(File::open("/dev/null").unwrap())] {
            assert!(listener(stranger).is_err());
        }
    }
}
