//! Huge pages, clock rates and stolen time.

use std::collections::BTreeMap;
use std::fs;

use super::Finding;
use super::system::System;

/// Share of CPU time a hypervisor may have taken before it is worth a word, in percent.
const STEAL: f64 = 2.0;

pub(super) fn findings(system: &System) -> Vec<Finding> {
    vec![huge_pages(system), governor(system), steal(system)]
}

/// Sessions live in a slab that is mapped sparsely: whole huge pages would be taken for a few of them.
fn huge_pages(system: &System) -> Finding {
    const CHECK: &str = "huge pages";
    const FILE: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    let Some(text) = system.text(FILE) else { return Finding::ok(CHECK, "this kernel has none that are transparent") };
    let chosen =
        text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("?").escape_debug().to_string();
    let found = format!("transparent ones: {chosen}");
    if chosen == "always" {
        let found = format!("{found}: memory grows in steps of 2 MiB, and the kernel stops to make them");
        return Finding::warn(CHECK, found, format!("echo madvise > /{FILE}"));
    }
    Finding::ok(CHECK, found)
}

fn governor(system: &System) -> Finding {
    const CHECK: &str = "cpu governor";
    let mut governors: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(system.path("sys/devices/system/cpu")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(governor) = system.text(&format!("sys/devices/system/cpu/{name}/cpufreq/scaling_governor")) {
            *governors.entry(governor.escape_debug().to_string()).or_default() += 1;
        }
    }
    if governors.is_empty() {
        return Finding::ok(CHECK, "none: the clock is not the system's to set");
    }
    let listed: Vec<String> = governors.iter().map(|(governor, cpus)| format!("{governor} on {cpus} CPUs")).collect();
    let found = listed.join(", ");
    if governors.keys().any(|governor| governor == "powersave" || governor == "conservative") {
        return Finding::warn(
            CHECK,
            format!("{found}: slow to answer after a pause"),
            "cpupower frequency-set -g performance",
        );
    }
    Finding::ok(CHECK, found)
}

/// Time the hypervisor gave to others, since the start of the system.
fn steal(system: &System) -> Finding {
    const CHECK: &str = "cpu steal";
    let text = system.text("proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    // user nice system idle iowait irq softirq steal; guest time is in user already (proc(5)).
    let times: Vec<f64> =
        line.unwrap_or_default().split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
    let &[_, _, _, _, _, _, _, steal] = &times[..] else {
        return Finding::warn(CHECK, "/proc/stat cannot be read", "mount /proc");
    };
    let all: f64 = times.iter().sum();
    let percent = if all > 0.0 { steal / all * 100.0 } else { 0.0 };
    let found = format!("{percent:.1} % of CPU time since the start of the system");
    if percent > STEAL {
        let found = format!("{found}: other guests take it, and latency with it");
        return Finding::warn(CHECK, found, "move to a host with CPUs of its own");
    }
    Finding::ok(CHECK, found)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::system::tests::of;
    use super::*;

    #[test]
    fn each_is_read_and_judged() {
        let judge = |pages: &str, governor: &str, stat: &str| {
            let (_directory, system) = of(&[
                ("sys/kernel/mm/transparent_hugepage/enabled", pages),
                ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
                ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", governor),
                ("proc/stat", stat),
            ]);
            findings(&system)
        };
        let good = judge("always [madvise] never\n", "schedutil\n", "cpu  10 0 10 79 0 0 0 1 0 0\ncpu0 1 2\n");
        assert!(good.iter().all(|finding| finding.status == Status::Ok), "{good:#?}");
        assert_eq!(good[1].found, "performance on 1 CPUs, schedutil on 1 CPUs");
        assert!(good[2].found.starts_with("1.0 %"), "{}", good[2].found);
        let bad = judge("[always] madvise never\n", "powersave\n", "cpu  10 0 10 70 0 0 0 10 0 0\n");
        assert!(bad.iter().all(|finding| finding.status == Status::Warn), "{bad:#?}");
        assert!(bad[2].found.starts_with("10.0 %"), "{}", bad[2].found);
    }

    #[test]
    fn a_machine_without_them_is_fine() {
        let (_directory, system) = of(&[("proc/stat", "cpu  0 0 0 0 0 0 0 0\n")]);
        assert!(findings(&system).iter().all(|finding| finding.status == Status::Ok));
        let (_directory, system) = of(&[]);
        assert_eq!(findings(&system)[2].status, Status::Warn);
    }
}
