//! Sockets in other network namespaces.
//!
//! A socket belongs for good to the namespace of the thread that makes it, whoever uses it later, and to make one takes
//! no right: entering a namespace does (`CAP_SYS_ADMIN`, setns(2)). So each namespace has one small thread that enters
//! it at the start, before rights are given up, and makes sockets there on demand. For connections to targets it keeps
//! a few ready, so that a worker does not wait for it.
//!
//! The thread, and with it the namespace, stays until the process ends: a later plan may ask for it again.

#[cfg(target_os = "linux")]
#[path = "netns/maker.rs"]
mod maker;
#[cfg(not(target_os = "linux"))]
#[path = "netns/none.rs"]
mod maker;

use std::io;

use socket2::Socket;

use crate::address::Address;
use crate::plan::{Forward, Plan};
use crate::sys;

#[cfg(target_os = "linux")]
pub(crate) use self::maker::each;
pub(crate) use self::maker::{run, threads};

/// Enters the namespaces of the plan's targets and has sockets made ready there.
///
/// # Errors
/// A namespace that is not there or may not be entered, named with its forward and what can be done.
pub(crate) fn open_targets(plan: &Plan) -> io::Result<()> {
    plan.forwards.iter().try_for_each(|forward| {
        let Some(name) = &forward.egress.netns else { return Ok(()) };
        maker::stock(name).map_err(|e| {
            io::Error::new(e.kind(), format!("forward {:?} cannot connect by to_netns: {e}", forward.name))
        })
    })
}

/// A stream socket for a connection to a target, in the namespace of that name or, without one, in our own.
///
/// # Errors
/// What socket(2) reports; ETIMEDOUT where the namespace's thread did not answer in time.
pub(crate) fn stream(name: Option<&str>, address: Address, mptcp: bool) -> io::Result<Socket> {
    match (name, address) {
        (Some(name), Address::Ip(ip)) if !mptcp => maker::take(name, ip.is_ipv6()),
        (Some(name), _) => maker::run(name, move || sys::stream(address, mptcp)),
        (None, _) => sys::stream(address, mptcp),
    }
}

/// Runs a step in the network namespace the forward listens in.
pub(crate) fn listening<T: Send + 'static>(
    forward: &Forward,
    step: impl FnOnce(&Forward) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(name) = &forward.listen_options.netns else { return step(forward) };
    let forward = forward.clone();
    run(name, move || step(&forward))
}
