//! What the kernel allows this process in pipes, read once at start.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::pipe::page_size;

/// `CAP_SYS_ADMIN` of `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
/// `CAP_SYS_RESOURCE`, likewise.
const CAP_SYS_RESOURCE: u32 = 24;
/// Name of the initial user namespace; its inode number is fixed (`PROC_USER_INIT_INO`).
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// The kernel's own defaults (`fs/pipe.c`), used where a setting cannot be read.
const DEFAULT_USER_PAGES_SOFT: u64 = 16384;
const DEFAULT_MAX_SIZE: u64 = 1 << 20;
/// POSIX's least; what is assumed when even getrlimit(2) fails.
const DEFAULT_DESCRIPTORS: u64 = 1024;

/// The limits that decide how many pipes there may be, as plain values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages all pipes of this user may have (`fs.pipe-user-pages-soft` and `-hard`, the lower one); `None` without
    /// such a limit, or with `CAP_SYS_RESOURCE` or `CAP_SYS_ADMIN`, either of which lifts it.
    pub user_pages: Option<u64>,
    /// Bytes of the largest pipe (`fs.pipe-max-size`); `None` with `CAP_SYS_RESOURCE`, which alone lifts it.
    pub max_size: Option<u64>,
    /// Descriptors this process may have open (`RLIMIT_NOFILE`, soft).
    pub descriptors: u64,
    /// Bytes of physical memory; `None` if unknown.
    pub memory: Option<u64>,
    /// Bytes of one page.
    pub page_size: usize,
}

impl Limits {
    /// Reads the limits of this process. What cannot be read is taken to be the kernel's default, and a capability
    /// that cannot be proven is taken to be absent.
    #[must_use]
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        let namespace = fs::read_link("/proc/self/ns/user").ok();
        let capabilities = if capable_here(namespace.as_deref()) {
            text("/proc/self/status").as_deref().and_then(effective_capabilities).unwrap_or(0)
        } else {
            0
        };
        Self::from_settings(
            capabilities,
            text("/proc/sys/fs/pipe-user-pages-soft").as_deref(),
            text("/proc/sys/fs/pipe-user-pages-hard").as_deref(),
            text("/proc/sys/fs/pipe-max-size").as_deref(),
        )
    }

    /// Limits from the text of the three settings; descriptors, memory and page size are this process's.
    fn from_settings(capabilities: u64, soft: Option<&str>, hard: Option<&str>, max_size: Option<&str>) -> Self {
        let has = |capability: u32| capabilities & (1 << capability) != 0;
        let page_size = page_size();
        Self {
            user_pages: if has(CAP_SYS_ADMIN) || has(CAP_SYS_RESOURCE) { None } else { user_pages(soft, hard) },
            max_size: if has(CAP_SYS_RESOURCE) { None } else { Some(setting(max_size).unwrap_or(DEFAULT_MAX_SIZE)) },
            descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(DEFAULT_DESCRIPTORS, |(soft, _)| soft),
            memory: memory(page_size),
            page_size,
        }
    }
}

/// Whether capabilities count for pipes: `capable()` asks the initial user namespace, so root of a container with a
/// namespace of its own is an ordinary user here. A kernel without user namespaces has no such link.
fn capable_here(namespace: Option<&Path>) -> bool {
    namespace.is_none_or(|name| name == Path::new(INITIAL_USER_NAMESPACE))
}

/// The effective set out of the text of `/proc/self/status`.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// One number out of the text of a file below `/proc/sys`; `None` when missing or not a number.
fn setting(text: Option<&str>) -> Option<u64> {
    text?.trim().parse().ok()
}

/// The lower of both page limits; 0 means that there is none.
fn user_pages(soft: Option<&str>, hard: Option<&str>) -> Option<u64> {
    let soft = setting(soft).unwrap_or(DEFAULT_USER_PAGES_SOFT);
    let hard = setting(hard).unwrap_or(0);
    [soft, hard].into_iter().filter(|pages| *pages != 0).min()
}

fn memory(page_size: usize) -> Option<u64> {
    let pages = sysconf(SysconfVar::_PHYS_PAGES).ok().flatten()?;
    u64::try_from(pages).ok().filter(|pages| *pages > 0)?.checked_mul(page_size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_found_in_the_status_file() {
        let status =
            "Name:\tspliced\nCapPrm:\t0000000000000001\nCapEff:\t000001fffeffffff\nCapBnd:\tffffffffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_feff_ffff));
        assert_eq!(effective_capabilities("CapEff:\t0\n"), Some(0));
        for odd in ["", "CapPrm:\t1\n", "CapEff:", "CapEff:\tx\n", "CapEff:\t-1\n", "CapEff:\t11112222333344445\n"] {
            assert_eq!(effective_capabilities(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_setting_is_a_number_or_nothing() {
        assert_eq!(setting(Some("16384\n")), Some(16384));
        assert_eq!(setting(Some(" 0 ")), Some(0));
        assert_eq!(setting(Some("18446744073709551615")), Some(u64::MAX));
        for odd in [None, Some(""), Some("\n"), Some("-1"), Some("1 2"), Some("0x10"), Some("18446744073709551616")] {
            assert_eq!(setting(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn zero_is_no_limit_and_a_missing_file_is_the_kernels_default() {
        assert_eq!(user_pages(Some("100\n"), Some("0\n")), Some(100));
        assert_eq!(user_pages(Some("100\n"), Some("50\n")), Some(50));
        assert_eq!(user_pages(Some("50\n"), Some("100\n")), Some(50));
        assert_eq!(user_pages(Some("0\n"), Some("100\n")), Some(100));
        assert_eq!(user_pages(Some("0\n"), Some("0\n")), None);
        assert_eq!(user_pages(None, None), Some(DEFAULT_USER_PAGES_SOFT));
        assert_eq!(user_pages(Some("many"), Some("few")), Some(DEFAULT_USER_PAGES_SOFT));
    }

    #[test]
    fn each_capability_lifts_its_own_limits() {
        let limits = |set: &[u32]| {
            let set = set.iter().fold(0, |bits, capability| bits | 1 << capability);
            let limits = Limits::from_settings(set, Some("1000\n"), Some("0\n"), Some("65536\n"));
            (limits.user_pages, limits.max_size)
        };
        assert_eq!(limits(&[]), (Some(1000), Some(65536)));
        assert_eq!(limits(&[0, 12, 23]), (Some(1000), Some(65536)));
        assert_eq!(limits(&[CAP_SYS_ADMIN]), (None, Some(65536)));
        assert_eq!(limits(&[CAP_SYS_RESOURCE]), (None, None));
        assert_eq!(Limits::from_settings(0, None, None, None).max_size, Some(DEFAULT_MAX_SIZE));
    }

    #[test]
    fn capabilities_of_another_user_namespace_do_not_count() {
        assert!(capable_here(Some(Path::new(INITIAL_USER_NAMESPACE))));
        assert!(capable_here(None));
        assert!(!capable_here(Some(Path::new("user:[4026532281]"))));
        assert!(!capable_here(Some(Path::new(""))));
    }

    #[test]
    fn this_machine_has_limits() {
        let limits = Limits::read();
        assert!(limits.page_size >= 4096 && limits.page_size.is_power_of_two());
        assert!(limits.descriptors > 0);
        assert!(limits.memory.is_some_and(|bytes| bytes > 1 << 20));
    }
}
