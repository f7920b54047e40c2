//! What the two processes say to each other: one JSON object a message, descriptors beside it.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::Estate;
use crate::address::Address;
use crate::sys::channel::{Channel, MAX_DESCRIPTORS};

/// Names the version of the protocol to the new process, and so that it takes over from another.
pub(super) const VARIABLE: &str = "SPLICED_UPGRADE";
/// The version spoken here. One that changes makes an upgrade across it fail before anything has happened.
pub(super) const VERSION: &str = "2";

/// From the running process to the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Bequest {
    /// Who speaks. With it: the real standard input and standard error.
    Hello {
        /// Version of the running program.
        version: String,
        /// Its process id.
        pid: u32,
    },
    /// With it: listeners, and whether a service manager has lent them.
    Listeners { lent: bool },
    /// With it: the control socket, whose file has this device and inode.
    Control { device: u64, inode: u64 },
    /// With it: the listener of the metrics endpoint.
    Metrics,
    /// With it: the locked pid file.
    PidFile,
    /// That was all, and these were all the listeners.
    End { listeners: usize },
    /// Accept from now on; what was passed is yours.
    Go,
}

/// From the new process to the running one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Reply {
    /// Addresses whose listeners it was given and does not keep.
    GivesUp {
        /// At most [`MAX_ADDRESSES`]; more come in further messages.
        addresses: Vec<Address>,
    },
    /// Everything is in place, it waits for [`Bequest::Go`].
    Ready(Ready),
    /// It accepts.
    Begun,
}

/// Addresses in one message: so many fit in any case.
pub(super) const MAX_ADDRESSES: usize = 16;

/// What a new process is and keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The new process.
    pub pid: u32,
    /// Version of its program.
    pub version: String,
    /// It keeps the control socket, and so its file.
    pub control: bool,
    /// It keeps the pid file.
    pub pid_file: bool,
}

impl Ready {
    /// This process, which keeps neither.
    pub(super) fn nothing() -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { pid: std::process::id(), version, control: false, pid_file: false }
    }
}

/// Anything with a descriptor, shared or owned.
pub(super) trait Descriptor: AsFd + Debug {}
impl<T: AsFd + Debug> Descriptor for T {}

/// A message with its descriptors.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) message: Bequest,
    pub(super) descriptors: Vec<Box<dyn Descriptor>>,
}

impl Parcel {
    fn new<D: Descriptor + 'static>(message: Bequest, descriptors: impl IntoIterator<Item = D>) -> Self {
        let boxed = |descriptor| -> Box<dyn Descriptor> { Box::new(descriptor) };
        Self { message, descriptors: descriptors.into_iter().map(boxed).collect() }
    }

    /// Sends it; never waits.
    ///
    /// # Errors
    /// Those of [`Channel::send`].
    pub(super) fn send(&self, channel: &Channel) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        channel.send(&bytes_of(&self.message)?, &descriptors, false)
    }
}

/// Everything a new process is told before it is ready, in order.
///
/// # Errors
/// Standard input or standard error cannot be passed on: there are no descriptors left.
pub(super) fn parcels(estate: Estate) -> io::Result<Vec<Parcel>> {
    let hello = Bequest::Hello { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() };
    let streams = [io::stdin().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?];
    let mut parcels = vec![Parcel::new(hello, streams)];
    let listeners = estate.listeners.len();
    for lent in [true, false] {
        let of_kind = estate.listeners.iter().filter(|(_, is_lent)| *is_lent == lent);
        let sockets: Vec<&Arc<Socket>> = of_kind.map(|(socket, _)| socket).collect();
        let some = |some: &[&Arc<Socket>]| some.iter().map(|socket| Arc::clone(socket)).collect::<Vec<_>>();
        let chunks = sockets.chunks(MAX_DESCRIPTORS);
        parcels.extend(chunks.map(|chunk| Parcel::new(Bequest::Listeners { lent }, some(chunk))));
    }
    if let Some((socket, device, inode)) = estate.control {
        parcels.push(Parcel::new(Bequest::Control { device, inode }, [socket]));
    }
    parcels.extend(estate.metrics.map(|socket| Parcel::new(Bequest::Metrics, [socket])));
    parcels.extend(estate.pid_file.map(|file| Parcel::new(Bequest::PidFile, [file])));
    parcels.push(Parcel::new(Bequest::End { listeners }, None::<OwnedFd>));
    Ok(parcels)
}

/// Sends a message, and waits until there is room for it.
///
/// # Errors
/// Those of [`Channel::send`].
pub(super) fn send(channel: &Channel, message: &impl Serialize) -> io::Result<()> {
    channel.send(&bytes_of(message)?, &[], true)
}

fn bytes_of(message: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec(message).map_err(io::Error::other)
}

/// The next message; `None` when the other side is gone.
///
/// # Errors
/// Those of [`Channel::receive`], and `InvalidData` for what is no message.
pub(super) fn receive<M: DeserializeOwned>(channel: &Channel, wait: bool) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let Some((bytes, descriptors)) = channel.receive(wait)? else { return Ok(None) };
    let message = serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("no message of the protocol: {error}")))?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::channel::MAX_MESSAGE;

    #[test]
    fn an_estate_of_any_size_goes_in_parcels_that_fit() {
        let fd = || io::stderr().as_fd().try_clone_to_owned().unwrap();
        for count in [0, 1, MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1, 3 * MAX_DESCRIPTORS - 1] {
            let listeners = (0..count).map(|n| (Arc::new(fd().into()), n % 3 == 0)).collect();
            let estate = Estate { listeners, control: Some((fd(), 1, 2)), metrics: None, pid_file: Some(fd()) };
            let parcels = parcels(estate).unwrap();
            assert!(parcels.iter().all(|parcel| parcel.descriptors.len() <= MAX_DESCRIPTORS));
            let of = |message: &Bequest| -> usize {
                parcels.iter().filter(|p| p.message == *message).map(|p| p.descriptors.len()).sum()
            };
            let lent = of(&Bequest::Listeners { lent: true });
            assert_eq!(lent, count.div_ceil(3));
            assert_eq!(lent + of(&Bequest::Listeners { lent: false }), count);
            assert_eq!(of(&Bequest::Control { device: 1, inode: 2 }), 1);
            assert_eq!((of(&Bequest::Metrics), of(&Bequest::PidFile)), (0, 1));
            assert_eq!(parcels.last().unwrap().message, Bequest::End { listeners: count });
        }
    }

    #[test]
    fn the_longest_addresses_fit_a_message() {
        let longest: Address = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap();
        // The longest name of a unix socket, of characters that JSON escapes.
        let name = format!("unix:/{}", "\"".repeat(106)).parse().unwrap();
        for longest in [longest, name] {
            let message = Reply::GivesUp { addresses: vec![longest; MAX_ADDRESSES] };
            let (ours, theirs) = Channel::pair().unwrap();
            send(&ours, &message).unwrap();
            let mut bytes = [0; MAX_MESSAGE + 1];
            let (_, n) = rustix::net::recv(&theirs, &mut bytes[..], rustix::net::RecvFlags::TRUNC).unwrap();
            assert_eq!(serde_json::from_slice::<Reply>(&bytes[..n]).unwrap(), message);
        }
    }

    #[test]
    fn words_that_are_no_message_are_an_error() {
        let (ours, theirs) = Channel::pair().unwrap();
        for words in [&b"hello"[..], b"{}", b"{\"message\":\"stop\"}", b"\xff"] {
            rustix::net::send(&theirs, words, rustix::net::SendFlags::empty()).unwrap();
            let error = receive::<Bequest>(&ours, false).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{words:?}");
        }
    }
}
