//! Where checks read from: the files of the running system, or of a made-up one in tests.

use std::fs;
use std::path::PathBuf;

/// A root below which `/proc` and `/sys` are.
#[derive(Debug)]
pub(super) struct System {
    root: PathBuf,
}

impl System {
    /// The running one.
    pub(super) fn this() -> Self {
        Self { root: "/".into() }
    }

    /// The path of a file such as `proc/stat`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The text of a file such as `proc/stat`, without white space around it; `None` when it cannot be read.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(name)).ok()?;
        Some(text.trim().to_owned())
    }

    /// All numbers in a file, as long as there is nothing else in it.
    pub(super) fn numbers(&self, name: &str) -> Option<Vec<u64>> {
        self.text(name)?.split_whitespace().map(|word| word.parse().ok()).collect()
    }

    /// A setting by its name in sysctl, such as `net.core.somaxconn`.
    pub(super) fn sysctl(&self, name: &str) -> Option<Vec<u64>> {
        self.numbers(&format!("proc/sys/{}", name.replace('.', "/")))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A system of these files, which goes with its directory.
    pub(in crate::probe) fn of(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let system = System { root: directory.path().to_owned() };
        (directory, system)
    }

    #[test]
    fn settings_are_numbers_or_nothing() {
        let (_directory, system) =
            of(&[("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456\n"), ("proc/sys/net/core/somaxconn", "many\n")]);
        assert_eq!(system.sysctl("net.ipv4.tcp_rmem"), Some(vec![4096, 131_072, 6_291_456]));
        assert_eq!(system.sysctl("net.core.somaxconn"), None);
        assert_eq!(system.sysctl("net.core.missing"), None);
    }
}
