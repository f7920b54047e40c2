//! Which processes a forwarder is: its first ones, their descendants, and what shares their process group.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// The part of `/proc/PID/stat` that is used here; see proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// It has ended, and its parent has not asked how: only its times are left.
    pub zombie: bool,
    /// Page faults of children that ended and were waited for: grows with every such child.
    pub waited_faults: u64,
    /// User time of all its threads, finished ones included, in clock ticks.
    pub user_ticks: u64,
    /// The same in the kernel.
    pub system_ticks: u64,
    /// User time of children that ended and were waited for, in clock ticks.
    pub waited_user_ticks: u64,
    /// The same in the kernel.
    pub waited_system_ticks: u64,
    /// When it began, in clock ticks since boot: tells apart two processes that had the same id.
    pub started_ticks: u64,
}

impl Stat {
    /// Reads one; `None` when the process has gone.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The program's name stands in parentheses and may itself hold spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let pid = text.split(' ').next()?.parse().ok()?;
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
        // The first of these is field 3, the state.
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self {
            pid,
            parent: u32::try_from(number(4)?).ok()?,
            group: u32::try_from(number(5)?).ok()?,
            zombie: *fields.first()? == "Z",
            waited_faults: number(11)?,
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            waited_user_ticks: number(16)?,
            waited_system_ticks: number(17)?,
            started_ticks: number(22)?,
        })
    }

    /// Every process that can be seen.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::all_in(Path::new("/proc"))
    }

    /// Every process of a `/proc`.
    #[must_use]
    pub fn all_in(proc: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        // A process that ends while the directory is read is no loss: its parent has its time by then.
        pids.filter_map(|pid| Self::parse(&fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?)).collect()
    }
}

/// The processes of one forwarder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// What the lab started; each leads a process group.
    pub roots: Vec<u32>,
}

impl Tree {
    /// The tree below these processes.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = u32>) -> Self {
        Self { roots: roots.into_iter().collect() }
    }

    /// Its processes now: descendants, and members of the roots' groups whose parents have left them.
    #[must_use]
    pub fn members(&self) -> Vec<Stat> {
        self.select(Stat::all())
    }

    /// The ids of those [`Self::members`] that have not ended.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.members().iter().filter(|stat| !stat.zombie).map(|stat| stat.pid).collect()
    }

    fn select(&self, all: Vec<Stat>) -> Vec<Stat> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for stat in &all {
            children.entry(stat.parent).or_default().push(stat.pid);
        }
        let mut found: HashSet<u32> = HashSet::new();
        let ours = |stat: &&Stat| self.roots.contains(&stat.pid) || self.roots.contains(&stat.group);
        let mut todo: Vec<u32> = all.iter().filter(ours).map(|stat| stat.pid).collect();
        while let Some(pid) = todo.pop() {
            if found.insert(pid) {
                todo.extend(children.get(&pid).into_iter().flatten());
            }
        }
        all.into_iter().filter(|stat| found.contains(&stat.pid)).collect()
    }
}

/// Threads of a process now.
pub(super) fn threads(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "4711 (a )( b) S 17 4711 4711 0 -1 4194560 1032 55 0 0 12 34 5 6 20 0 3 0 998877 1 2 3";

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse(LINE).unwrap();
        assert_eq!((stat.pid, stat.parent, stat.group, stat.started_ticks), (4711, 17, 4711, 998_877));
        assert_eq!((stat.user_ticks, stat.system_ticks), (12, 34));
        assert!(!stat.zombie && Stat::parse(&LINE.replace(" S ", " Z ")).unwrap().zombie);
        assert_eq!((stat.waited_user_ticks, stat.waited_system_ticks, stat.waited_faults), (5, 6, 55));
        for bad in ["", "12", "12 (x", "12 (x) S 1", "x (y) S 1 2 3"] {
            assert_eq!(Stat::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_tree_has_descendants_and_what_stayed_in_the_group() {
        let process = |pid, parent, group| Stat { pid, parent, group, ..Stat::parse(LINE).unwrap() };
        let all = vec![
            process(1, 0, 1),
            process(10, 5, 10),
            process(11, 10, 10),
            process(12, 11, 12),
            // Left behind by a double fork.
            process(13, 1, 10),
            process(20, 5, 20),
        ];
        let mut pids: Vec<u32> = Tree::new([10]).select(all).iter().map(|stat| stat.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [10, 11, 12, 13]);
    }

    #[test]
    fn this_process_is_found_and_a_missing_one_is_not() {
        let here = std::process::id();
        assert_eq!(Stat::of(here).unwrap().pid, here);
        assert!(Tree::new([here]).pids().contains(&here));
        assert!(threads(here).contains(&here));
        assert_eq!(Stat::of(u32::MAX), None);
    }
}
