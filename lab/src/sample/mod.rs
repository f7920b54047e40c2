//! What a forwarder and the machine spend.
//!
//! [`process`] says which processes a forwarder is, [`cpu`] what they used, [`memory`] and [`descriptors`] what they
//! hold, [`listening`] where they can be reached; [`network`] has the kernel's TCP counters, [`syscalls`] and [`counters`] come from strace and perf. A
//! [`Meter`] takes together what every measurement needs.

pub mod counters;
pub mod cpu;
pub mod descriptors;
pub mod listening;
pub mod memory;
pub mod network;
pub mod process;
pub mod syscalls;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Instant;

pub use self::cpu::{Accounting, CpuTimes};
pub use self::listening::listens;
pub use self::process::Tree;

use self::cpu::{CpuMeter, CpuReading};
use self::network::TcpCounters;
use crate::place::{Place, Wiring};
use crate::results::Samples;

/// Share of the machine's CPUs from which on what others use spoils a measurement.
pub(crate) const DISTURBED: f64 = 0.05;

/// Measures one window of a forwarder: CPU time of it and of the machine, context switches, TCP's troubles.
#[derive(Debug)]
pub struct Meter {
    begun: Instant,
    cpu: CpuMeter,
    machine: CpuReading,
    others_ns: Option<u64>,
    tree: Tree,
    switches: Switches,
    /// It has children that nobody waits for.
    forks: bool,
    places: Vec<Place>,
    tcp: TcpCounters,
}

/// What was used in a window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Used {
    /// Length of the window.
    pub seconds: f64,
    /// CPU time of the forwarder.
    pub forwarder: CpuTimes,
    /// CPU time of everything that ran on the machine, load included.
    pub machine: CpuTimes,
    /// Share of the machine's CPUs, 0 to 1, that programs outside of the lab used; `None` where they cannot be seen.
    pub others_share: Option<f64>,
    /// Context switches of the forwarder's threads; `None` when some of its threads or processes ended in the window:
    /// the kernel keeps no account of theirs that others can read, and the sum without them would mislead.
    pub context_switches: Option<u64>,
    /// TCP counters of client, forwarder and server together.
    pub tcp: TcpCounters,
}

impl Meter {
    /// Begins a window. An empty tree (nothing in user space forwards) uses nothing.
    ///
    /// # Errors
    /// When the TCP counters of a place cannot be read.
    pub fn start(tree: &Tree, accounting: Accounting, wiring: &Wiring) -> io::Result<Self> {
        let mut places = vec![wiring.client.clone(), wiring.forwarder.clone(), wiring.server.clone()];
        places.dedup();
        // Reading these starts programs, so it stands outside of the window.
        let tcp = TcpCounters::of(&places)?;
        let others_ns = cpu::used_by_others();
        let machine = CpuReading::of_machine();
        let (switches, cpu) = (Switches::of(tree), CpuMeter::start(tree, accounting));
        let (forks, tree) = (accounting == Accounting::Watched, tree.clone());
        Ok(Self { begun: Instant::now(), cpu, machine, others_ns, tree, switches, forks, places, tcp })
    }

    /// Ends the window.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn finish(self) -> io::Result<Used> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let forwarder = self.cpu.finish();
        let switches = Switches::of(&self.tree);
        // Children nobody waits for leave no trace of having been there.
        let context_switches = switches.since(&self.switches).filter(|_| !self.forks);
        let machine = CpuReading::of_machine().since(&self.machine);
        let cpus = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        let others_share = self
            .others_ns
            .zip(cpu::used_by_others())
            .map(|(before, now)| now.saturating_sub(before) as f64 / 1e9 / self.begun.elapsed().as_secs_f64() / cpus);
        let tcp = TcpCounters::of(&self.places)?.since(&self.tcp);
        Ok(Used { seconds, forwarder, machine, others_share, context_switches, tcp })
    }
}

impl Used {
    /// Adds what the window cost as such: `seconds`, `forwarder_user_seconds`, `forwarder_system_seconds`,
    /// `machine_cpu_seconds`, `retransmits` …
    pub fn samples(&self, samples: &mut Samples) {
        let mut add = |name: &str, value: f64| samples.insert(name.to_owned(), value);
        add("seconds", self.seconds);
        add("forwarder_user_seconds", self.forwarder.user_ns as f64 / 1e9);
        add("forwarder_system_seconds", self.forwarder.system_ns as f64 / 1e9);
        add("machine_cpu_seconds", self.machine.seconds());
        if let Some(share) = self.others_share {
            add("others_cpu_share", share);
        }
        self.tcp.samples(samples);
    }

    /// What to say when the machine was not the lab's own. Who else runs slows every arm, and not each by the same:
    /// medians do not mend that.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let share = self.others_share.filter(|share| *share >= DISTURBED)?;
        let percent = share * 100.0;
        Some(format!(
            "other programs used {percent:.0} % of this machine's CPUs meanwhile: this is no basis for a comparison, \
             measure again when it is quiet"
        ))
    }

    /// Adds `forwarder_cpu_seconds_per_gb`, `machine_cpu_seconds_per_gb` and `context_switches_per_gb` for so many
    /// bytes passed on; a GB is 10⁹ bytes.
    pub fn per_gb(&self, bytes: u64, samples: &mut Samples) {
        let gb = bytes as f64 / 1e9;
        for (name, value) in [
            ("forwarder_cpu_seconds_per_gb", Some(self.forwarder.seconds())),
            ("machine_cpu_seconds_per_gb", Some(self.machine.seconds())),
            ("context_switches_per_gb", self.context_switches.map(|n| n as f64)),
        ] {
            if let Some(value) = value.filter(|_| bytes > 0) {
                samples.insert(name.to_owned(), value / gb);
            }
        }
    }

    /// Adds `cpu_us_per_WHAT` and `machine_cpu_us_per_WHAT` for so many of them, such as `exchange`.
    pub fn per(&self, what: &str, n: u64, samples: &mut Samples) {
        if n > 0 {
            samples.insert(format!("cpu_us_per_{what}"), self.forwarder.seconds() * 1e6 / n as f64);
            samples.insert(format!("machine_cpu_us_per_{what}"), self.machine.seconds() * 1e6 / n as f64);
        }
    }
}

/// Context switches by thread, and what tells that children have ended.
#[derive(Debug)]
struct Switches {
    threads: HashMap<u32, u64>,
    /// By process: page faults of its children that ended.
    waited_faults: HashMap<u32, u64>,
}

impl Switches {
    fn of(tree: &Tree) -> Self {
        let members = tree.members();
        let living = members.iter().filter(|stat| !stat.zombie);
        let read = |thread| Some((thread, parse_switches(&fs::read_to_string(format!("/proc/{thread}/status")).ok()?)));
        Self {
            threads: living.flat_map(|stat| process::threads(stat.pid)).filter_map(read).collect(),
            waited_faults: members.iter().map(|stat| (stat.pid, stat.waited_faults)).collect(),
        }
    }

    /// Of all threads; `None` when some that were there have gone, or children have come and gone.
    fn since(&self, earlier: &Self) -> Option<u64> {
        let all_there = earlier.threads.keys().all(|thread| self.threads.contains_key(thread));
        let childless = |(pid, faults): (&u32, &u64)| *faults <= *earlier.waited_faults.get(pid).unwrap_or(&0);
        if !all_there || !self.waited_faults.iter().all(childless) {
            return None;
        }
        let of = |(thread, n): (&u32, &u64)| n.saturating_sub(*earlier.threads.get(thread).unwrap_or(&0));
        Some(self.threads.iter().map(of).sum())
    }
}

/// Both kinds together, see proc_pid_status(5).
fn parse_switches(status: &str) -> u64 {
    let number = |line: &str| line.split_once("_ctxt_switches:")?.1.trim().parse::<u64>().ok();
    status.lines().filter_map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_of_both_kinds_are_added() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(parse_switches(status), 157);
        let switches = |threads: &[(u32, u64)], waited_faults: u64| Switches {
            threads: threads.iter().copied().collect(),
            waited_faults: [(1, waited_faults)].into(),
        };
        let earlier = switches(&[(1, 100), (2, 5)], 7);
        assert_eq!(switches(&[(1, 157), (2, 5), (3, 4)], 7).since(&earlier), Some(61));
        assert_eq!(switches(&[(1, 157), (3, 4)], 7).since(&earlier), None, "a thread has ended");
        assert_eq!(switches(&[(1, 157), (2, 5)], 8).since(&earlier), None, "a child has ended");
    }

    #[test]
    fn children_that_ended_keep_context_switches_from_being_told() {
        let mut parent = std::process::Command::new("sh")
            .args(["-c", "read a; sh -c true; echo; read a"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let tree = Tree::new([parent.id()]);
        let (mut stdin, mut stdout) = (parent.stdin.take().unwrap(), parent.stdout.take().unwrap());
        let before = Switches::of(&tree);
        assert!(before.since(&before).is_some());
        std::io::Write::write_all(&mut stdin, b"\n").unwrap();
        std::io::Read::read_exact(&mut stdout, &mut [0]).unwrap();
        assert_eq!(Switches::of(&tree).since(&before), None);
        drop(stdin);
        parent.wait().unwrap();
    }

    #[test]
    fn a_machine_that_others_use_is_told() {
        let used = |others_share| Used { others_share, ..Used::default() };
        assert!(used(Some(0.4)).note().unwrap().contains("40 %"));
        assert_eq!(used(Some(0.01)).note(), None);
        assert_eq!(used(None).note(), None, "what cannot be seen is not claimed");
    }

    #[test]
    fn costs_are_given_by_the_gigabyte_and_by_the_piece() {
        let times = |total_ns| CpuTimes { user_ns: 0, system_ns: total_ns, total_ns };
        let used = Used {
            forwarder: times(500_000_000),
            machine: times(2_000_000_000),
            context_switches: Some(3000),
            ..Used::default()
        };
        let mut samples = Samples::new();
        used.per_gb(2_000_000_000, &mut samples);
        used.per("exchange", 10_000, &mut samples);
        assert_eq!(samples["forwarder_cpu_seconds_per_gb"], 0.25);
        assert_eq!(samples["machine_cpu_seconds_per_gb"], 1.0);
        assert_eq!(samples["context_switches_per_gb"], 1500.0);
        assert_eq!(samples["cpu_us_per_exchange"], 50.0);
        let mut none = Samples::new();
        used.per_gb(0, &mut none);
        used.per("exchange", 0, &mut none);
        assert_eq!(none, Samples::new());
    }
}
