//! Processes that left the group they were started in: found by the network namespace they are in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How long they may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Kills every process in the network namespace `file` stands for, and waits until they are gone. Only for the first
/// process of a process namespace of its own, which sees and inherits no others; never this process.
pub fn end_all(file: &Path) {
    let begun = Instant::now();
    let mut ended: Vec<Pid> = Vec::new();
    loop {
        let found = inside(file);
        for pid in &found {
            // Fails only for one that has just gone.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        ended.extend(found.iter().filter(|pid| !ended.contains(pid)).copied().collect::<Vec<_>>());
        // Gone means waited for: the first thread of a process may have ended while another still holds its sockets.
        ended.retain(|pid| {
            // An error is one with another parent; when that ends, or has ended, this becomes ours.
            let _ = waitpid(*pid, Some(WaitPidFlag::WNOHANG));
            kill(*pid, None).is_ok()
        });
        if (found.is_empty() && ended.is_empty()) || begun.elapsed() > PATIENCE {
            return;
        }
        thread::sleep(INTERVAL);
    }
}

/// The processes in it. Those that have ended are in none.
fn inside(file: &Path) -> Vec<Pid> {
    let Ok(wanted) = fs::metadata(file).map(|found| (found.dev(), found.ino())) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_in = |pid: &i32| {
        let space = fs::metadata(format!("/proc/{pid}/ns/net"));
        space.is_ok_and(|space| (space.dev(), space.ino()) == wanted)
    };
    pids.filter(is_in).map(Pid::from_raw).filter(|pid| *pid != Pid::this()).collect()
}
