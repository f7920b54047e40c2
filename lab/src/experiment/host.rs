//! The machine and the programs, for the results.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::results::Host;
use crate::tools;

/// This machine.
#[must_use]
pub fn host() -> Host {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(key));
        let value = line.and_then(|line| line.split_once([':', '='])).map(|(_, value)| value);
        value.map(|value| value.trim().trim_matches('"').to_owned())
    };
    let cpu_info = read("/proc/cpuinfo");
    let memory = after(&read("/proc/meminfo"), "MemTotal");
    let memory_kib = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    Host {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: ["model name", "Model", "uarch"]
            .iter()
            .find_map(|key| after(&cpu_info, key))
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_kib.unwrap_or(0) << 10,
        os: after(&read("/etc/os-release"), "PRETTY_NAME").unwrap_or_else(|| std::env::consts::OS.to_owned()),
    }
}

/// Versions of spliced and of what makes the load. What other forwarders say of theirs is asked where they run.
#[must_use]
pub fn versions(spliced: &Path, loads: &[tools::Tool]) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let said = tools::output_of(spliced, &["--version"]);
    if let Some(version) = said.and_then(|said| tools::first_line(&said)) {
        versions.insert("spliced".to_owned(), version);
    }
    for tool in loads {
        if let Some(version) = tool.version() {
            versions.insert(tool.program.to_owned(), version);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_all_of_it() {
        let host = super::host();
        assert!(host.cpus > 0 && host.memory_bytes > 1 << 20, "{host:?}");
        assert!(!host.kernel.is_empty() && !host.cpu.is_empty() && !host.os.is_empty(), "{host:?}");
    }
}
