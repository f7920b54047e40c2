//! Kernel, pipes and descriptors.

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::utsname::uname;

use super::Finding;
use super::system::System;
use crate::sys;
use crate::sys::pipes::PipeBudget;

/// The oldest kernel with SO_REUSEPORT, which every worker's listener needs (socket(7)).
const OLDEST: (u32, u32) = (3, 9);
/// IP_BIND_ADDRESS_NO_PORT (ip(7)) and the page limits of pipes (pipe(7)) are there from here on.
const COMPLETE: (u32, u32) = (4, 5);
/// Pipes of 64 KiB an ordinary user may have before bursts are copied for want of one.
const ENOUGH_PIPES: u64 = 1024;
/// Capability numbers of `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

pub(super) fn kernel(_system: &System) -> Finding {
    const CHECK: &str = "kernel";
    let Ok(names) = uname() else { return Finding::warn(CHECK, "uname(2) does not answer", "none") };
    let (name, release) = (names.sysname().to_string_lossy(), names.release().to_string_lossy());
    judge_kernel(CHECK, &name, &release, &names.machine().to_string_lossy())
}

fn judge_kernel(check: &'static str, name: &str, release: &str, machine: &str) -> Finding {
    let found = format!("{name} {release} {machine}");
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    match () {
        () if name != "Linux" => {
            Finding::warn(check, format!("{found}: no splice(2), every session copies"), "use Linux")
        }
        () if version < OLDEST => Finding::fail(check, format!("{found}: no SO_REUSEPORT"), "use Linux 4.5 or later"),
        () if version < COMPLETE => Finding::warn(
            check,
            format!("{found}: IP_BIND_ADDRESS_NO_PORT or pipe limits missing"),
            "use Linux 4.5 or later",
        ),
        () => Finding::ok(check, found),
    }
}

/// The settings, the capabilities that lift them, and what spliced makes of both.
pub(super) fn pipes(system: &System) -> Vec<Finding> {
    if !sys::HAS_SPLICE {
        return Vec::new();
    }
    // The budget is worked out after the limit was raised, as at the start of a forward.
    let _ = sys::raise_descriptor_limit();
    let workers = sys::allowed_cpus().len().max(1);
    let budget = PipeBudget::detect(None, workers);
    let mut findings = vec![size(system), pages(system)];
    let text = budget.to_string();
    findings.push(if text.starts_with("no pipes") {
        Finding::fail("pipe budget", text, "sysctl -w fs.pipe-max-size=1048576; ulimit -n 65536")
    } else {
        Finding::ok("pipe budget", text)
    });
    findings
}

/// Whether a limit on pipes is lifted by a capability in the initial user namespace.
fn lifted(system: &System, capabilities: &[u32]) -> bool {
    let Some(status) = system.text("proc/self/status") else { return false };
    let initial =
        std::fs::read_link(system.path("proc/self/ns/user")).is_ok_and(|name| name.as_os_str() == "user:[4026531837]");
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    initial && capabilities.iter().any(|capability| held & (1 << capability) != 0)
}

fn size(system: &System) -> Finding {
    const CHECK: &str = "pipe size";
    const NAME: &str = "fs.pipe-max-size";
    const MIB: u64 = 1 << 20;
    let Some(size) = system.sysctl(NAME).and_then(|numbers| numbers.first().copied()) else {
        return Finding::warn(CHECK, format!("{NAME} cannot be read"), "mount /proc");
    };
    let found = format!("{NAME} is {size}");
    match size {
        _ if lifted(system, &[CAP_SYS_RESOURCE]) => Finding::ok(CHECK, format!("{found}, lifted by CAP_SYS_RESOURCE")),
        MIB.. => Finding::ok(CHECK, found),
        65536.. => Finding::warn(CHECK, format!("{found}: smaller pipes mean more system calls"), raise(NAME, MIB)),
        _ => Finding::fail(CHECK, format!("{found}: a pipe needs 65536, every session copies"), raise(NAME, MIB)),
    }
}

fn pages(system: &System) -> Finding {
    const CHECK: &str = "pipe pages";
    let [soft, hard] = ["fs.pipe-user-pages-soft", "fs.pipe-user-pages-hard"]
        .map(|name| (name, system.sysctl(name).and_then(|numbers| numbers.first().copied())));
    let (Some(soft_pages), Some(hard_pages)) = (soft.1, hard.1) else {
        return Finding::warn(CHECK, "fs.pipe-user-pages-soft and -hard cannot be read", "mount /proc");
    };
    let found = format!("fs.pipe-user-pages-soft is {soft_pages}, -hard is {hard_pages} (0 is no limit)");
    if lifted(system, &[CAP_SYS_ADMIN, CAP_SYS_RESOURCE]) {
        return Finding::ok(CHECK, format!("{found}, lifted by a capability of this user"));
    }
    let tightest = [soft, hard].into_iter().filter_map(|(name, pages)| Some((name, pages.filter(|n| *n > 0)?)));
    match tightest.min_by_key(|(_, pages)| *pages) {
        // spliced takes three quarters of the user's pages, and the smallest pipe has 16.
        Some((name, limit)) if limit / 4 * 3 / 16 < ENOUGH_PIPES => {
            let pipes = limit / 4 * 3 / 16;
            let found =
                format!("{found}: {pipes} directions of this user can be in a pipe at once, the next ones copy");
            Finding::warn(CHECK, found, raise(name, 262_144))
        }
        _ => Finding::ok(CHECK, found),
    }
}

pub(super) fn descriptors(_system: &System) -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => judge_descriptors(soft, hard),
        Err(errno) => Finding::warn("descriptors", format!("getrlimit(2): {errno}"), "none"),
    }
}

fn judge_descriptors(soft: u64, hard: u64) -> Finding {
    const CHECK: &str = "descriptors";
    // Two a session, and a quarter of all is kept for pipes (two each).
    let sessions = hard / 4 * 3 / 2;
    let found = if hard == libc::RLIM_INFINITY {
        "no limit".to_owned()
    } else {
        format!("{soft}, raised to {hard} at start: about {sessions} sessions beside a full set of pipes")
    };
    let mend = "ulimit -Hn 1048576, or LimitNOFILE=1048576 in the unit";
    match hard {
        0..=63 => Finding::fail(CHECK, format!("{found}; a forward needs 64 to start"), mend),
        64..=16383 => Finding::warn(CHECK, found, mend),
        _ => Finding::ok(CHECK, found),
    }
}

/// A setting's command.
pub(super) fn raise(name: &str, value: impl std::fmt::Display) -> String {
    format!("sysctl -w {name}={value}")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::system::tests::of;
    use super::*;

    #[test]
    fn kernels_are_judged_by_what_they_lack() {
        let status = |name, release| judge_kernel("kernel", name, release, "x86_64").status;
        assert_eq!(status("Linux", "6.18.44-fc"), Status::Ok);
        assert_eq!(status("Linux", "4.5"), Status::Ok);
        assert_eq!(status("Linux", "4.4.0-rc1"), Status::Warn);
        assert_eq!(status("Linux", "3.2.0"), Status::Fail);
        assert_eq!(status("FreeBSD", "14.1-RELEASE"), Status::Warn);
    }

    #[test]
    fn pipe_settings_are_judged_with_the_capabilities() {
        let judge = |soft: &str, hard: &str, size: &str, capabilities: &str| {
            let (directory, system) = of(&[
                ("proc/sys/fs/pipe-user-pages-soft", soft),
                ("proc/sys/fs/pipe-user-pages-hard", hard),
                ("proc/sys/fs/pipe-max-size", size),
                ("proc/self/status", &format!("Name:\tx\nCapEff:\t{capabilities}\n")),
            ]);
            let link = directory.path().join("proc/self/ns/user");
            std::fs::create_dir(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("user:[4026531837]", link).unwrap();
            (super::size(&system), super::pages(&system))
        };
        let statuses = |(size, pages): (Finding, Finding)| (size.status, pages.status);
        assert_eq!(statuses(judge("16384", "0", "1048576", "0")), (Status::Ok, Status::Warn));
        assert_eq!(statuses(judge("16384", "0", "4096", "1ffffffffff")), (Status::Ok, Status::Ok));
        assert_eq!(statuses(judge("262144", "0", "65536", "0")), (Status::Warn, Status::Ok));
        assert_eq!(statuses(judge("0", "0", "4096", "0")), (Status::Fail, Status::Ok));
        let (_, pages) = judge("0", "1024", "1048576", "0");
        assert_eq!(pages.mend.unwrap(), "sysctl -w fs.pipe-user-pages-hard=262144");
        assert!(pages.found.contains(": 48 directions"), "{}", pages.found);
    }

    #[test]
    fn descriptors_are_judged_by_the_hard_limit() {
        assert_eq!(judge_descriptors(20, 63).status, Status::Fail);
        assert_eq!(judge_descriptors(1024, 4096).status, Status::Warn);
        assert_eq!(judge_descriptors(1024, 1 << 20).status, Status::Ok);
        assert_eq!(judge_descriptors(1024, libc::RLIM_INFINITY).found, "no limit");
    }
}
