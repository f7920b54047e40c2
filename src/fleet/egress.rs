//! Whether connections to the targets can be made the way a plan wants them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netns;
use crate::plan::{Forward, Host, Plan};
use crate::sys;

/// Tries the socket options of every forward, with the rights the process has now, which are those of the workers.
///
/// # Errors
/// One that is not permitted, with what can be done.
pub(super) fn probe(plan: &Plan) -> io::Result<()> {
    plan.forwards.iter().filter(|forward| forward.egress.is_marked()).try_for_each(probe_forward)
}

fn probe_forward(forward: &Forward) -> io::Result<()> {
    for is_v6 in families(forward) {
        let any = if is_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let name = forward.egress.netns.as_deref();
        let Ok(socket) = netns::stream(name, SocketAddr::new(any, 0).into(), false) else { continue };
        match sys::set_egress(&socket, &forward.egress, is_v6) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {
                let device = forward.egress.device.as_deref().unwrap_or_default();
                log::warn!(
                    "forward {:?}: there is no device {device:?} yet; until there is, its connections fail; `ip link` lists them",
                    forward.name
                );
            }
            Err(e) => return Err(explain(forward, &e)),
        }
    }
    Ok(())
}

/// Families its connections may have.
fn families(forward: &Forward) -> Vec<bool> {
    let of = |host: &Host| match host {
        Host::Ip(ip) => Some(ip.is_ipv6()),
        Host::Name(_) | Host::Service(_) => Some(false),
        Host::Unix(_) => None,
    };
    let mut families: Vec<bool> = forward.targets.iter().filter_map(|target| of(&target.host)).collect();
    families.sort_unstable();
    families.dedup();
    families
}

fn explain(forward: &Forward, error: &io::Error) -> io::Error {
    let egress = &forward.egress;
    let wanted = [
        (egress.transparent, "transparent (IP_TRANSPARENT)"),
        (egress.mark.is_some(), "mark (SO_MARK)"),
        (egress.device.is_some(), "bind_device (SO_BINDTODEVICE)"),
    ];
    let wanted: Vec<&str> = wanted.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    let advice = if error.kind() == io::ErrorKind::PermissionDenied {
        "it needs CAP_NET_ADMIN: start it as root or with AmbientCapabilities=CAP_NET_ADMIN in its unit, and without a \
         keep_capabilities that leaves net_admin out; for a reload the process must have kept it since its start \
         (keep_capabilities: auto,net_admin)"
    } else {
        "the kernel does not offer it here"
    };
    let text = format!("forward {:?} cannot have {}: {error}; {advice}", forward.name, wanted.join(", "));
    io::Error::new(error.kind(), text)
}
