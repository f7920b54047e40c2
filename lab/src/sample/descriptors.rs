//! Open descriptors of processes by what they are.

use std::collections::BTreeSet;
use std::fs;

use super::process::Tree;
use crate::results::Samples;

/// Descriptors of all processes of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// All.
    pub open: u64,
    /// Sockets among them.
    pub sockets: u64,
    /// Pipes: both ends of one, in whatever process, count once.
    pub pipes: u64,
}

impl Descriptors {
    /// Of a tree, now. A process whose table may not be read counts as having none.
    #[must_use]
    pub fn of(tree: &Tree) -> Self {
        Self::count(tree.pids().into_iter().flat_map(links))
    }

    fn count(links: impl IntoIterator<Item = String>) -> Self {
        let mut pipes = BTreeSet::new();
        let mut counted = Self::default();
        for link in links {
            counted.open += 1;
            if link.starts_with("socket:") {
                counted.sockets += 1;
            } else if link.starts_with("pipe:") {
                pipes.insert(link);
            }
        }
        counted.pipes = pipes.len() as u64;
        counted
    }

    /// Adds `descriptors`, `sockets` and `pipes`.
    pub fn samples(&self, samples: &mut Samples) {
        for (name, n) in [("descriptors", self.open), ("sockets", self.sockets), ("pipes", self.pipes)] {
            samples.insert(name.to_owned(), n as f64);
        }
    }
}

/// What the descriptors of a process lead to, such as `socket:[123]`.
pub(crate) fn links(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let link = |entry: fs::DirEntry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned());
    entries.flatten().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_pipe_counts_once_with_both_ends() {
        let links = ["pipe:[1]", "pipe:[1]", "pipe:[2]", "socket:[3]", "/dev/null", "anon_inode:[eventpoll]"];
        let counted = Descriptors::count(links.map(str::to_owned));
        assert_eq!(counted, Descriptors { open: 6, sockets: 1, pipes: 2 });
    }

    #[test]
    fn the_pipe_of_a_child_leads_to_the_same_as_ours() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::piped()).spawn().unwrap();
        let ours = fs::read_link(format!("/proc/self/fd/{}", child.stdin.as_ref().unwrap().as_raw_fd())).unwrap();
        assert!(links(child.id()).contains(&ours.to_string_lossy().into_owned()));
        assert!(Descriptors::of(&Tree::new([child.id()])).pipes >= 1);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn sockets_are_told_apart() {
        let here = Tree::new([std::process::id()]);
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let counted = Descriptors::of(&here);
        assert!(counted.sockets >= 1 && counted.open > counted.sockets, "{counted:?}");
        assert_eq!(Descriptors::of(&Tree::new([u32::MAX - 1])), Descriptors::default());
    }
}
