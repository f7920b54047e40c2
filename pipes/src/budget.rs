//! How many pipes there may be, and of which size.

use std::fmt;

use crate::limits::Limits;
use crate::pipe::{MAX_FILL, MIN_SLOTS};
use crate::pool::{PipePool, Share};

/// The size asked for when nobody named one, in bytes.
const DEFAULT_SIZE: usize = 1 << 20;
/// The part of the descriptors that may be pipes' is one in this many; sockets need the rest.
const DESCRIPTOR_PART: u64 = 4;
/// Descriptors of one pipe.
const DESCRIPTORS_PER_PIPE: u64 = 2;
/// Where the kernel sets no limit on pages, pipes may have this part of the physical memory.
const MEMORY_PART: u64 = 8;

/// How many pipes the workers of this process may have and how large they are at best. Worked out once, at start, after
/// `RLIMIT_NOFILE` was raised as far as it will be.
///
/// The budget counts pages, as `fs.pipe-user-pages-soft` does. Large pipes are the cheapest per byte, but 1 MiB takes
/// 256 pages, and only 64 such pipes fit the kernel's default of 16384 pages per user. A pool therefore hands out
/// pipes of full size while its share is lightly used and smaller ones, down to 64 KiB, as it fills: see [`PipePool`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeBudget {
    share: Share,
    reason: String,
}

impl PipeBudget {
    /// Works out the budget of this process from its capabilities, settings and descriptors. `wanted` is the size of
    /// one pipe in bytes, 1 MiB when `None`.
    #[must_use]
    pub fn detect(wanted: Option<usize>, workers: usize) -> Self {
        Self::from_limits(&Limits::read(), wanted, workers)
    }

    /// The same from given limits, without looking at the system.
    ///
    /// - An ordinary user's pages are shared by all processes of that user, so at most three quarters are taken.
    /// - Where no such limit holds, pipes take at most an eighth of the memory.
    /// - Pipes take at most a quarter of the descriptors, two each.
    /// - All is divided evenly among `workers`; 0 counts as 1.
    #[must_use]
    pub fn from_limits(limits: &Limits, wanted: Option<usize>, workers: usize) -> Self {
        let workers = workers.max(1) as u64;
        let page = limits.page_size.max(1);
        let floor = MIN_SLOTS * page;
        let (pages, pages_reason) = pages(limits);
        let pages_share = pages / workers;
        let by_pages = pages_share / MIN_SLOTS as u64;
        let by_descriptors = limits.descriptors / DESCRIPTOR_PART / DESCRIPTORS_PER_PIPE / workers;
        let wanted = wanted.unwrap_or(DEFAULT_SIZE).clamp(floor, MAX_FILL);
        let wanted = wanted.checked_next_power_of_two().unwrap_or(MAX_FILL);
        let allowed = limits.max_size.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));

        let limit = if allowed < floor { 0 } else { by_pages.min(by_descriptors) };
        let mut share = Share {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            pages: usize::try_from(pages_share).unwrap_or(usize::MAX),
            full: previous_power_of_two(wanted.min(allowed)).max(floor),
            floor,
            page,
        };
        share.full = share.size_at(0);

        let decided = if allowed < floor {
            format!("fs.pipe-max-size is {allowed} bytes and a pipe needs {floor}")
        } else if by_descriptors <= by_pages {
            let descriptors = limits.descriptors;
            format!("a quarter of the {descriptors} descriptors of this process, 2 a pipe; raise ulimit -n for more")
        } else {
            pages_reason
        };
        let size = if wanted > allowed && share.full == previous_power_of_two(allowed) {
            format!(" (fs.pipe-max-size is {allowed} bytes)")
        } else {
            String::new()
        };
        let reason = if share.limit == 0 {
            format!("no pipes, everything is copied: {decided}")
        } else {
            let range = if share.full == floor {
                Size(floor).to_string()
            } else {
                format!("{} to {}", Size(share.full), Size(floor))
            };
            format!("up to {} pipes a worker (of {workers}), {range} each{size}: {decided}", share.limit)
        };
        Self { share, reason }
    }

    /// Bytes of one pipe at best: of the first one a pool makes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.share.full
    }

    /// How many pipes a worker may have at once: as many 64 KiB ones as fit its share, or what the descriptors allow.
    #[must_use]
    pub fn per_worker(&self) -> usize {
        self.share.limit
    }

    /// One sentence for people: how many pipes of which size, and which limit decided, with its numbers.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn share(&self) -> Share {
        self.share
    }

    /// A worker's share. Call it once for each of the workers the budget was made for.
    #[must_use]
    pub fn pool(&self) -> PipePool {
        PipePool::new(self.share)
    }
}

impl fmt::Display for PipeBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Pages all workers together may have, and the words for it.
fn pages(limits: &Limits) -> (u64, String) {
    if let Some(user) = limits.user_pages {
        return (
            user / 4 * 3 + user % 4 * 3 / 4,
            format!("three quarters of the {user} pages of fs.pipe-user-pages-soft or -hard; raise it for more"),
        );
    }
    match limits.memory {
        Some(memory) => (
            memory / MEMORY_PART / limits.page_size.max(1) as u64,
            format!("an eighth of {} MiB of memory", memory >> 20),
        ),
        None => (u64::MAX, "no limit on pages".to_owned()),
    }
}

fn previous_power_of_two(n: usize) -> usize {
    if n == 0 { 0 } else { 1 << n.ilog2() }
}

/// Bytes with the largest unit that divides them.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n > 0 && n % (1 << 20) == 0 => write!(f, "{} MiB", n >> 20),
            n if n > 0 && n % (1 << 10) == 0 => write!(f, "{} KiB", n >> 10),
            n => write!(f, "{n} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;

    /// The kernel's own settings for an ordinary user.
    const ORDINARY: Limits = Limits {
        user_pages: Some(16384),
        max_size: Some(1 << 20),
        descriptors: 20_000,
        memory: Some(8 << 30),
        page_size: 4096,
    };
    const ROOT: Limits = Limits { user_pages: None, max_size: None, ..ORDINARY };

    fn budget(limits: Limits, wanted: Option<usize>, workers: usize) -> PipeBudget {
        PipeBudget::from_limits(&limits, wanted, workers)
    }

    #[test]
    fn an_ordinary_user_gets_three_quarters_of_the_pages() {
        let two = budget(ORDINARY, None, 2);
        assert_eq!((two.size(), two.per_worker()), (MIB, 16384 * 3 / 4 / 16 / 2));
        assert!(two.reason().contains("16384 pages of fs.pipe-user-pages-soft"), "{two}");
        assert_eq!(two.to_string(), two.reason());
        assert_eq!(budget(ORDINARY, None, 1).per_worker(), 768);
        assert_eq!(budget(ORDINARY, None, 0), budget(ORDINARY, None, 1), "no worker counts as one");
    }

    #[test]
    fn where_pages_are_free_descriptors_decide() {
        let root = budget(ROOT, None, 2);
        assert_eq!((root.size(), root.per_worker()), (MIB, 20_000 / 4 / 2 / 2));
        assert!(root.reason().contains("20000 descriptors"), "{root}");
        let few = budget(Limits { descriptors: 256, ..ORDINARY }, None, 2);
        assert_eq!(few.per_worker(), 16);
        assert!(few.reason().contains("256 descriptors"), "{few}");
    }

    #[test]
    fn memory_bounds_who_has_no_other_limit() {
        let small = Limits { memory: Some(256 << 20), descriptors: 1 << 20, ..ROOT };
        let budget = budget(small, None, 1);
        assert_eq!(budget.per_worker(), 32 * MIB / (64 * KIB));
        assert!(budget.reason().contains("an eighth of 256 MiB"), "{budget}");
    }

    #[test]
    fn many_workers_get_smaller_pipes_and_at_last_none() {
        assert_eq!(budget(ORDINARY, None, 16).size(), 512 * KIB);
        let none = budget(ORDINARY, None, 1000);
        assert_eq!(none.per_worker(), 0);
        assert!(none.reason().starts_with("no pipes"), "{none}");
        assert!(none.pool().get().is_err());
    }

    #[test]
    fn the_largest_size_is_the_kernels_the_users_and_never_below_64_kib() {
        assert_eq!(budget(ORDINARY, Some(4 * MIB), 1).size(), MIB);
        assert!(budget(ORDINARY, Some(4 * MIB), 1).reason().contains("fs.pipe-max-size is 1048576"));
        assert_eq!(budget(ROOT, Some(4 * MIB), 1).size(), 4 * MIB);
        assert_eq!(budget(ORDINARY, Some(200_000), 1).size(), 256 * KIB, "the kernel rounds up");
        assert_eq!(budget(ORDINARY, Some(1), 1).size(), 64 * KIB);
        assert_eq!(budget(ORDINARY, Some(0), 1).size(), 64 * KIB);
        assert_eq!(budget(Limits { max_size: Some(100_000), ..ORDINARY }, None, 1).size(), 64 * KIB);
        let tiny = budget(Limits { max_size: Some(4096), ..ORDINARY }, None, 1);
        assert_eq!(tiny.per_worker(), 0);
        assert!(tiny.reason().contains("fs.pipe-max-size is 4096"), "{tiny}");
    }

    #[test]
    fn large_pages_have_large_smallest_pipes() {
        let budget = budget(Limits { page_size: 65536, ..ORDINARY }, None, 1);
        assert_eq!(budget.size(), MIB, "16 slots of 64 KiB");
        assert_eq!(budget.per_worker(), 768);
    }

    #[test]
    fn no_limit_at_all_and_absurd_limits_do_not_overflow() {
        let endless = Limits { descriptors: u64::MAX, memory: None, ..ROOT };
        let all = budget(endless, Some(usize::MAX), 1);
        assert_eq!(all.size(), MAX_FILL);
        assert!(all.per_worker() > 1 << 40);
        let nothing =
            Limits { user_pages: Some(0), max_size: Some(0), descriptors: 0, memory: Some(0), page_size: 4096 };
        assert_eq!(budget(nothing, None, usize::MAX).per_worker(), 0);
        let pages = Limits { user_pages: Some(u64::MAX), max_size: Some(u64::MAX), ..endless };
        assert!(budget(pages, None, 3).per_worker() > 1 << 40);
    }
}
