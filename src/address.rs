//! Where a socket is bound or connected to: an IP address with a port, or the name of a unix socket.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use socket2::SockAddr;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A unix socket by its name.
    Unix(UnixName),
    /// Who has connected to a unix socket: such a client has no address.
    Caller(Caller),
}

/// Where somebody listens, without the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// An IP address.
    Ip(IpAddr),
    /// A unix socket, whose name is all there is.
    Unix(UnixName),
}

/// The name of a unix socket: `/path`, or `@name` in the abstract namespace (unix(7)).
///
/// A name is kept for as long as the process lives, once however often it is used, so that it can be copied like an
/// address and no session counts references to it. Only names of configurations and of inherited sockets are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixName(&'static str);

/// Whom the kernel saw connect to a unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Process, 0 where the system does not tell or it is in another PID namespace.
    pub pid: u32,
}

/// Bytes of a name: `sun_path` has 108 on Linux, one of them ends it.
const MOST_BYTES: usize = 107;

/// Every name there has been.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

impl UnixName {
    /// Checks a name as it stands behind `unix:`.
    ///
    /// # Errors
    /// What is wrong with it, in words that follow "found …".
    pub fn new(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix('@');
        if name.is_none() && !text.starts_with('/') {
            return Err("neither an absolute path nor @ with a name".to_owned());
        }
        if name == Some("") || text.ends_with('/') {
            return Err("a unix socket without a name".to_owned());
        }
        if text.chars().any(char::is_control) {
            return Err("a control character in the name of a unix socket".to_owned());
        }
        if text.len() > MOST_BYTES {
            return Err(format!("the name of a unix socket of {} bytes, and {MOST_BYTES} is the most", text.len()));
        }
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(text) {
            return Ok(Self(known));
        }
        let name: &'static str = Box::leak(text.into());
        names.insert(name);
        Ok(Self(name))
    }

    /// The file of the socket; `None` for an abstract name, which has none.
    #[must_use]
    pub fn path(self) -> Option<&'static Path> {
        self.0.starts_with('/').then(|| Path::new(self.0))
    }

    /// Where its file is or would be, without the links on the way there; `None` for a name in the abstract namespace.
    #[must_use]
    pub fn real_path(self) -> Option<PathBuf> {
        let path = self.path()?;
        let in_directory = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
        Some(path.canonicalize().ok().or_else(in_directory).unwrap_or_else(|| path.to_owned()))
    }

    fn to_sock_addr(self) -> io::Result<SockAddr> {
        match self.0.strip_prefix('@') {
            Some(name) => SockAddr::unix(format!("\0{name}")),
            None => SockAddr::unix(self.0),
        }
    }
}

impl Place {
    /// With a port, which a unix socket leaves out.
    #[must_use]
    pub fn with_port(self, port: u16) -> Address {
        match self {
            Self::Ip(ip) => SocketAddr::new(ip, port).into(),
            Self::Unix(name) => Address::Unix(name),
        }
    }
}

impl Address {
    /// The local address of a socket, or the address of a peer; `None` for a unix socket without a name that can be
    /// written down, and for other families.
    #[must_use]
    pub fn of(address: &SockAddr) -> Option<Self> {
        if let Some(address) = address.as_socket() {
            return Some(Self::Ip(address));
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let text = match address.as_abstract_namespace() {
            Some(name) => format!("@{}", std::str::from_utf8(name).ok()?),
            None => address.as_pathname()?.to_str()?.to_owned(),
        };
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let text = address.as_pathname()?.to_str()?.to_owned();
        UnixName::new(&text).ok().map(Self::Unix)
    }

    /// The IP address; `None` for a unix socket.
    #[must_use]
    pub fn ip(self) -> Option<IpAddr> {
        self.socket().map(|address| address.ip())
    }

    /// IP address and port; `None` for a unix socket.
    #[must_use]
    pub fn socket(self) -> Option<SocketAddr> {
        if let Self::Ip(address) = self { Some(address) } else { None }
    }

    /// Whether it belongs to a unix socket.
    #[must_use]
    pub fn is_unix(self) -> bool {
        !matches!(self, Self::Ip(_))
    }

    /// The file of a unix socket that has one.
    #[must_use]
    pub fn path(self) -> Option<&'static Path> {
        if let Self::Unix(name) = self { name.path() } else { None }
    }

    /// What bind(2) and connect(2) take.
    ///
    /// # Errors
    /// A name the system cannot take; the client of a unix socket, who has no name.
    pub fn to_sock_addr(self) -> io::Result<SockAddr> {
        match self {
            Self::Ip(address) => Ok(address.into()),
            Self::Unix(name) => name.to_sock_addr(),
            Self::Caller(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.0)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Unix(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(name) => name.fmt(f),
            Self::Caller(Caller { uid, pid }) => write!(f, "unix:uid={uid},pid={pid}"),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(name) => UnixName::new(name).map(Self::Unix),
            None => text.parse().map(Self::Ip).map_err(|error| format!("{text:?}: {error}")),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_text_and_from_the_kernel() {
        for text in ["unix:/run/a b.sock", "127.0.0.1:80", "[::1]:80"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(Address::of(&address.to_sock_addr().unwrap()), Some(address));
        }
        #[cfg(target_os = "linux")]
        {
            let name: Address = "unix:@a/b".parse().unwrap();
            assert_eq!((Address::of(&name.to_sock_addr().unwrap()), name.path()), (Some(name), None));
        }
        let socket = SockAddr::unix("").unwrap();
        assert_eq!(Address::of(&socket), None, "a client that has bound nothing");
    }

    #[test]
    fn a_name_is_kept_once() {
        let (a, b) = (UnixName::new("/run/once").unwrap(), UnixName::new("/run/once").unwrap());
        assert!(std::ptr::eq(a.0, b.0));
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let long = format!("/{}", "x".repeat(MOST_BYTES));
        for (text, why) in [
            ("", "absolute"),
            ("run/x", "absolute"),
            ("@", "without a name"),
            ("/", "without a name"),
            ("/run/", "without a name"),
            ("/a\nb", "control"),
            ("/a\0", "control"),
            (&long, "108 bytes"),
        ] {
            let message = UnixName::new(text).unwrap_err();
            assert!(message.contains(why), "{text:?}: {message}");
        }
        assert!(UnixName::new(&long[..MOST_BYTES]).is_ok());
    }
}
