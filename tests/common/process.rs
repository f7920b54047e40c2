//! What the kernel says of another process.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// State CLOSE_WAIT in `/proc/net/tcp`: the peer has closed and the program has not.
pub(crate) const CLOSE_WAIT: u8 = 8;

/// Lets this process have as many descriptors as it may, for all of its tests and what they start; how many that is.
pub(crate) fn all_descriptors() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    hard
}

/// A process by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process(pub(crate) u32);

/// Open descriptors of a process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// All of them.
    pub(crate) all: usize,
    /// Ends of pipes, standard streams not included.
    pub(crate) pipe_ends: usize,
    /// Inodes of sockets.
    pub(crate) sockets: HashSet<u64>,
}

/// What the kernel says of one thread in its `status` file.
#[derive(Debug, Clone)]
pub(crate) struct Thread {
    /// Its name, such as `worker-0`; `main` for the one the process began with.
    pub(crate) name: String,
    fields: BTreeMap<String, String>,
}

impl Thread {
    /// A field, such as `Uid`; several values have one blank between them.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).unwrap_or_else(|| panic!("no {name} in the status of {}", self.name))
    }

    /// The capabilities of a set, such as `CapEff`, as bits.
    pub(crate) fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).expect("a set in hexadecimal")
    }
}

/// Filters of system calls that this process runs under, and so every program it starts: 0 unless a service manager or a
/// container has put some around it.
pub(crate) fn filters_around_us() -> u32 {
    Process(std::process::id()).threads()[0].field("Seccomp_filters").parse().expect("a number")
}

impl Process {
    /// Its threads now.
    pub(crate) fn threads(self) -> Vec<Thread> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.0)) else { return Vec::new() };
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
        let fields = |text: String| -> BTreeMap<String, String> {
            let pair =
                |(name, value): (&str, &str)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "));
            text.lines().filter_map(|line| line.split_once(':')).map(pair).collect()
        };
        let thread = |fields: BTreeMap<String, String>| {
            let name = if fields["Pid"] == fields["Tgid"] { "main".to_owned() } else { fields["Name"].clone() };
            Thread { name, fields }
        };
        tasks.flatten().filter_map(status).map(fields).map(thread).collect()
    }

    /// Its open descriptors now.
    pub(crate) fn descriptors(self) -> Descriptors {
        let mut found = Descriptors::default();
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.0)) else { return found };
        for entry in entries.flatten() {
            // One that was closed between listing and reading is not open.
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let link = link.to_string_lossy().into_owned();
            found.all += 1;
            let standard = matches!(entry.file_name().to_str(), Some("0" | "1" | "2"));
            if link.starts_with("pipe:") && !standard {
                found.pipe_ends += 1;
            }
            if let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
                found.sockets.insert(inode.parse().expect("an inode number"));
            }
        }
        found
    }

    /// Its TCP sockets by state, as numbered in `include/net/tcp_states.h`.
    pub(crate) fn tcp_states(self) -> BTreeMap<u8, usize> {
        let own = self.descriptors().sockets;
        let mut states = BTreeMap::new();
        for table in ["tcp", "tcp6"] {
            let text = fs::read_to_string(format!("/proc/{}/net/{table}", self.0)).unwrap_or_default();
            for line in text.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (Some(state), Some(inode)) = (fields.get(3), fields.get(9)) else { continue };
                if inode.parse().is_ok_and(|inode: u64| own.contains(&inode)) {
                    let state = u8::from_str_radix(state, 16).expect("a state in hexadecimal");
                    *states.entry(state).or_default() += 1;
                }
            }
        }
        states
    }

    /// CPU time of all its threads so far, to the nanosecond; threads that have ended do not count.
    pub(crate) fn cpu(self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).expect("the process runs");
        let spent = threads.flatten().filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        let spent: u64 = spent.sum();
        assert!(spent > 0, "the kernel counts no run time in /proc/PID/task/TID/schedstat");
        Duration::from_nanos(spent)
    }

    /// Memory of its own that is resident, in bytes: neither files nor shared.
    pub(crate) fn anonymous_memory(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel counts RssAnon");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
        kib * 1024
    }
}
