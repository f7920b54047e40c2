//! Capabilities: what stays, and giving up the rest. They belong to threads, not to processes (capabilities(7)).

use std::fs;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

use crate::plan::Plan;

const LOW_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// The kernel's own default (`inet_init_net` in net/ipv4/af_inet.c).
const DEFAULT_LOW_PORTS: u16 = 1024;

/// What stays of the capabilities this thread holds.
///
/// `CAP_SYS_RESOURCE` lifts `fs.pipe-user-pages-soft` and `fs.pipe-max-size`, but also disk quotas and most resource
/// limits, so it stays only when asked for; an ordinary user's pipes are enough for full speed.
pub(super) fn kept(plan: &Plan) -> CapsHashSet {
    let keep = plan.privileges.keep;
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let wanted = [
        (Capability::CAP_NET_BIND_SERVICE, keep.bind.unwrap_or_else(|| has_low_port(plan, low_ports()))),
        (Capability::CAP_NET_ADMIN, keep.net.unwrap_or_else(|| plan.forwards.iter().any(|f| f.egress.is_privileged()))),
        (Capability::CAP_SYS_RESOURCE, keep.pipes),
    ];
    wanted.into_iter().filter(|(capability, wanted)| *wanted && held.contains(capability)).map(|(c, _)| c).collect()
}

/// The first port that needs no capability.
fn low_ports() -> u16 {
    let text = fs::read_to_string(LOW_PORTS).unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT_LOW_PORTS)
}

fn has_low_port(plan: &Plan, free_from: u16) -> bool {
    let listeners = plan.forwards.iter().flat_map(|forward| forward.listen.iter().chain(&forward.udp.listen));
    let listeners = listeners.map(|listen| listen.ports.first);
    listeners.chain(plan.metrics.map(|address| address.port())).any(|port| port < free_from)
}

/// Takes all but `kept` out of the bounding set, for this thread and all it starts. Without `CAP_SETPCAP` that is not
/// possible, and with `no_new_privs` it makes no difference either.
pub(super) fn bound(kept: &CapsHashSet) {
    for capability in caps::runtime::thread_all_supported() {
        if !kept.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
}

/// Whether capabilities shall outlive the change of the user.
pub(super) fn survive_change_of_user(survive: bool) -> Result<(), String> {
    prctl::set_keepcaps(survive).map_err(|errno| format!("prctl(PR_SET_KEEPCAPS): {errno}"))
}

/// Leaves this thread exactly `kept`; a program it runs has the same. The process number 0 stands for the thread.
pub(super) fn limit_to(kept: &CapsHashSet) -> Result<(), String> {
    let is_so = |set| caps::read(None, set).is_ok_and(|held| held == *kept);
    if [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient].into_iter().all(is_so) {
        return Ok(()); // Without a call that an outer filter may not know.
    }
    let step = |result: Result<(), caps::errors::CapsError>| result.map_err(|error| error.to_string());
    // No set may hold what the next wider one does not: capset(2).
    if caps::runtime::ambient_set_supported().is_ok() {
        step(caps::clear(None, CapSet::Ambient))?;
    }
    step(caps::set(None, CapSet::Effective, kept))?;
    step(caps::set(None, CapSet::Permitted, kept))?;
    step(caps::set(None, CapSet::Inheritable, kept))?;
    // Ambient is what an executable without capabilities of its own keeps: that of a newer version.
    kept.iter().try_for_each(|capability| step(caps::raise(None, CapSet::Ambient, *capability)))
}

/// What this thread may still do, for people: `none`, or names.
pub(super) fn describe() -> String {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<String> = held.iter().map(|c| c.to_string().trim_start_matches("CAP_").to_lowercase()).collect();
    names.sort_unstable();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Lookup, Overrides, parse};

    #[test]
    fn low_ports_are_those_of_listeners_and_metrics() {
        let plan = |text: &str| parse("FILE", text, &Overrides::default(), &Lookup::fixed()).unwrap();
        let high = plan("forwards: [{listen: \"127.0.0.1:1024-1030\", to: \"10.0.0.1:80\"}]");
        assert!(!has_low_port(&high, 1024));
        assert!(has_low_port(&high, 1025), "the host says which ports are low");
        assert!(has_low_port(&plan("forwards: [{listen: \"127.0.0.1:1000-1030\", to: \"10.0.0.1:80\"}]"), 1024));
        let metrics = plan("metrics: 127.0.0.1:99\nforwards: [{listen: \"127.0.0.1:9000\", to: \"10.0.0.1:80\"}]");
        assert!(has_low_port(&metrics, 1024));
    }

    #[test]
    fn a_thread_gives_up_what_it_is_not_left_and_no_other_does() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        std::thread::spawn(|| {
            limit_to(&CapsHashSet::new()).unwrap();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient] {
                assert!(caps::read(None, set).unwrap().is_empty(), "{set:?}");
            }
            assert_eq!(describe(), "none");
        })
        .join()
        .unwrap();
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before);
    }
}
