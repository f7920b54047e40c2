//! Memory of processes, and of the kernel on their behalf.

use std::fs;

use super::process::Tree;
use crate::results::Samples;

/// Memory of user space in bytes, all processes of a tree together; see `smaps_rollup` in proc_pid_smaps(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserMemory {
    /// Pages mapped; what processes share counts for each of them.
    pub rss: u64,
    /// Pages mapped; what processes share counts once.
    pub pss: u64,
    /// Pages written to that nobody shares: what ending the processes would give back.
    pub private_dirty: u64,
}

impl UserMemory {
    /// Of a tree, now.
    #[must_use]
    pub fn of(tree: &Tree) -> Self {
        let rollup = |pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
        tree.pids().into_iter().filter_map(rollup).map(|text| Self::parse(&text)).fold(Self::default(), |a, b| Self {
            rss: a.rss + b.rss,
            pss: a.pss + b.pss,
            private_dirty: a.private_dirty + b.private_dirty,
        })
    }

    fn parse(rollup: &str) -> Self {
        let bytes = |name| kib(rollup, name).unwrap_or(0);
        Self { rss: bytes("Rss"), pss: bytes("Pss"), private_dirty: bytes("Private_Dirty") }
    }

    /// Adds `rss_bytes`, `pss_bytes` and `private_dirty_bytes`.
    pub fn samples(&self, samples: &mut Samples) {
        for (name, bytes) in
            [("rss_bytes", self.rss), ("pss_bytes", self.pss), ("private_dirty_bytes", self.private_dirty)]
        {
            samples.insert(name.to_owned(), bytes as f64);
        }
    }
}

/// Memory of the kernel in bytes. The whole machine's: only differences mean something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelMemory {
    /// Objects such as sockets, files and poll entries (`Slab` of `/proc/meminfo`).
    pub slab: u64,
    /// Stacks of threads.
    pub stacks: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Data in the buffers of TCP sockets (`mem` of `/proc/net/sockstat`, which counts all namespaces).
    pub tcp: u64,
}

impl KernelMemory {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/meminfo"), &text("/proc/net/sockstat"), page())
    }

    fn parse(meminfo: &str, sockstat: &str, page: u64) -> Self {
        let bytes = |name| kib(meminfo, name).unwrap_or(0);
        Self {
            slab: bytes("Slab"),
            stacks: bytes("KernelStack"),
            page_tables: bytes("PageTables"),
            tcp: tcp_pages(sockstat) * page,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.slab + self.stacks + self.page_tables + self.tcp
    }
}

/// Tells the process inside the host's net.ipv4.tcp_mem.
pub const TCP_MEMORY: &str = "SPLICED_LAB_TCP_MEM";

/// The host's net.ipv4.tcp_mem, which cannot be seen from other network namespaces; empty where it is hidden.
#[must_use]
pub fn tcp_memory_of_host() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default()
}

/// Bytes that the buffers of all TCP sockets together may hold: the last of three numbers of pages.
pub(crate) fn tcp_most() -> Option<u64> {
    let text = std::env::var(TCP_MEMORY).unwrap_or_else(|_| tcp_memory_of_host());
    text.split_whitespace().nth(2)?.parse::<u64>().ok()?.checked_mul(page())
}

/// Bytes of memory that can still be used.
pub(crate) fn available() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// Bytes of memory there are.
pub(crate) fn memory_of_host() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// Bytes of a page.
fn page() -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

/// Pages of data of all TCP sockets, from `TCP: inuse 5 orphan 0 tw 2 alloc 9 mem 3`: names and numbers in turn.
fn tcp_pages(sockstat: &str) -> u64 {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    words.chunks_exact(2).find(|pair| pair[0] == "mem").and_then(|pair| pair[1].parse().ok()).unwrap_or(0)
}

/// The value of a line `Name:   123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollups_are_read() {
        let rollup = "\
5582f08c6000-7ffe3b7f8000 ---p 00000000 00:00 0                          [rollup]
Rss:                1984 kB
Pss:                 418 kB
Pss_Dirty:           128 kB
Shared_Clean:       1700 kB
Private_Clean:       156 kB
Private_Dirty:       128 kB
";
        let memory = UserMemory::parse(rollup);
        assert_eq!(memory, UserMemory { rss: 1984 << 10, pss: 418 << 10, private_dirty: 128 << 10 });
        assert_eq!(UserMemory::parse("nothing"), UserMemory::default());
        let mut samples = Samples::new();
        memory.samples(&mut samples);
        assert_eq!(samples["rss_bytes"], 2_031_616.0);
    }

    #[test]
    fn kernel_memory_is_slab_stacks_tables_and_socket_pages() {
        let meminfo = "MemTotal: 8000000 kB\nSlab:              81232 kB\nSReclaimable: 1 kB\nKernelStack:        2304 kB\nPageTables:         4040 kB\n";
        let sockstat = "sockets: used 102\nTCP: inuse 5 orphan 1 tw 2 alloc 9 mem 3\nUDP: inuse 2 mem 700\n";
        let memory = KernelMemory::parse(meminfo, sockstat, 4096);
        assert_eq!((memory.slab, memory.tcp), (81_232 << 10, 3 * 4096));
        assert_eq!(memory.total(), ((81_232 + 2304 + 4040) << 10) + 3 * 4096);
        assert_eq!(tcp_pages("TCP: inuse"), 0);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = UserMemory::of(&Tree::new([std::process::id()]));
        assert!(memory.rss > 100_000 && memory.private_dirty > 0 && memory.rss >= memory.private_dirty, "{memory:?}");
        assert!(KernelMemory::now().slab > 1 << 20);
    }
}
