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
