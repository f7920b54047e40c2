//! Offloads of the network devices in use.
//!
//! Asked of ethtool(8): the kernel tells them only through an ioctl or netlink, and nothing below `/sys`.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::Finding;
use super::system::System;

const CHECK: &str = "offloads";
/// What a stream of bytes needs of a device: each as ethtool calls it, long and short.
const WANTED: [(&str, &str); 4] = [
    ("tcp-segmentation-offload", "tso"),
    ("generic-segmentation-offload", "gso"),
    ("generic-receive-offload", "gro"),
    ("scatter-gather", "sg"),
];

/// One finding per device that is up and has an address; loopback and its like are left out.
pub(super) fn offloads(_system: &System) -> Vec<Finding> {
    let devices = devices();
    if devices.is_empty() {
        return vec![Finding::ok(CHECK, "no device but loopback is up")];
    }
    devices.iter().map(|device| offloads_of(device)).collect()
}

fn devices() -> BTreeSet<String> {
    let Ok(addresses) = getifaddrs() else { return BTreeSet::new() };
    let in_use = addresses.filter(|entry| {
        let internet =
            entry.address.as_ref().is_some_and(|a| a.as_sockaddr_in().is_some() || a.as_sockaddr_in6().is_some());
        internet && entry.flags.contains(InterfaceFlags::IFF_UP) && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    in_use.map(|entry| entry.interface_name).collect()
}

fn offloads_of(device: &str) -> Finding {
    // Installed where ordinary users have no path to.
    let tools = ["ethtool", "/usr/sbin/ethtool", "/sbin/ethtool"];
    for tool in tools {
        match Command::new(tool).args(["-k", device]).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return judge(device, &String::from_utf8_lossy(&output.stdout)),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().escape_debug().to_string();
                return Finding::warn(CHECK, format!("{device}: not known, ethtool says: {why}"), "none");
            }
            Err(_) => {}
        }
    }
    let found = format!("{device}: not known, ethtool is not installed");
    Finding::warn(CHECK, found, format!("apt-get install ethtool; ethtool -k {device}"))
}

/// Judges the text of `ethtool -k`.
fn judge(device: &str, text: &str) -> Finding {
    let state = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let (mut off, mut fixed, mut on) = (Vec::new(), Vec::new(), Vec::new());
    for (name, short) in WANTED {
        match state(name) {
            Some(state) if state.starts_with("on") => on.push(short),
            Some(state) if state.contains("[fixed]") => fixed.push(short),
            Some(_) => off.push(short),
            None => {}
        }
    }
    if on.is_empty() && off.is_empty() && fixed.is_empty() {
        return Finding::warn(CHECK, format!("{device}: not known, ethtool's answer is not understood"), "none");
    }
    let listed = |what: &str, names: &[&str]| {
        if names.is_empty() { String::new() } else { format!(", {what} {}", names.join(" ")) }
    };
    let lists = [listed("on", &on), listed("off", &off), listed("the device has no", &fixed)].concat();
    let found = format!("{device}:{}", lists.trim_start_matches(','));
    if off.is_empty() {
        // What the device cannot do is no setting of anybody.
        return Finding::ok(CHECK, found);
    }
    let switches: Vec<String> = off.iter().map(|short| format!("{short} on")).collect();
    let found = format!("{found}: packets are as small as the link's, each costs");
    Finding::warn(CHECK, found, format!("ethtool -K {device} {}", switches.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn what_is_off_is_mended_and_what_is_fixed_is_not() {
        let text = "Features for eth0:\nscatter-gather: on\n\ttx-scatter-gather: on\ntcp-segmentation-offload: off\n\
                    \ttx-tcp-segmentation: off\ngeneric-segmentation-offload: off [requested on]\n\
                    generic-receive-offload: off [fixed]\nlarge-receive-offload: off [fixed]\n";
        let finding = judge("eth0", text);
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.found.starts_with("eth0: on sg, off tso gso, the device has no gro"), "{}", finding.found);
        assert_eq!(finding.mend.as_deref(), Some("ethtool -K eth0 tso on gso on"));
        assert_eq!(judge("eth0", &text.replace(": off", ": on")).status, Status::Ok);
        assert!(judge("eth0", "").found.contains("not understood"));
    }
}
