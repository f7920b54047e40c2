//! System calls of one thread of a running process made to fail or to wait, by `strace --inject`.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::cannot_run;
use super::deadline::{LONG, eventually};
use super::process::Process;

/// What strace writes behind a call it has meddled with.
const INJECTED: [&str; 2] = ["(INJECTED", "(DELAYED"];

/// A running strace. Dropping it lets the thread go.
#[derive(Debug)]
pub(crate) struct Injection {
    strace: Child,
    directory: TempDir,
    thread: u32,
    /// As a trace shows a call of the first fault.
    call: String,
}

/// Whether strace may attach to a process here that is not its own child; says why when not.
pub(crate) fn can_attach() -> bool {
    let mut victim = match Command::new("sleep").arg("60").spawn() {
        Ok(victim) => victim,
        Err(e) => {
            cannot_run(&format!("sleep(1) is needed to see whether strace may attach: {e}"));
            return false;
        }
    };
    let attached = Injection::attach(victim.id(), &["getppid:error=EPERM"]);
    let _ = victim.kill();
    let _ = victim.wait();
    match attached {
        Ok(_) => true,
        Err(why) => {
            cannot_run(&format!("strace cannot attach here (kernel.yama.ptrace_scope, CAP_SYS_PTRACE): {why}"));
            false
        }
    }
}

impl Injection {
    /// Attaches to one thread; from its return on every fault is in force. Each is as strace's `inject=` takes it, and
    /// counts calls from here.
    ///
    /// # Errors
    /// What strace said.
    pub(crate) fn attach(thread: u32, faults: &[impl AsRef<str>]) -> Result<Self, String> {
        Self::attach_to(thread, &[], faults)
    }

    /// The same for every thread of a process, also those that begin later; each counts its own calls.
    ///
    /// # Errors
    /// What strace said.
    pub(crate) fn attach_all(process: u32, faults: &[impl AsRef<str>]) -> Result<Self, String> {
        Self::attach_to(process, &["-f"], faults)
    }

    fn attach_to(thread: u32, options: &[&str], faults: &[impl AsRef<str>]) -> Result<Self, String> {
        let directory = TempDir::with_prefix("spliced-strace-").expect("a temporary directory");
        let faults: Vec<&str> = faults.iter().map(AsRef::as_ref).collect();
        let calls: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        let mut command = Command::new("strace");
        command.args(options).args(["-qq", "-o"]).arg(directory.path().join("trace"));
        command.arg("-e").arg(format!("trace={}", calls.join(",")));
        for fault in &faults {
            command.arg("-e").arg(format!("inject={fault}"));
        }
        command.args(["-p", &thread.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let strace = command.spawn().map_err(|e| format!("strace is needed to make system calls fail: {e}"))?;
        let call = calls.first().map(|call| format!("{call}(")).unwrap_or_default();
        let mut injection = Self { strace, directory, thread, call };
        let ended = eventually("strace attaches or gives up", LONG, || {
            if injection.tracer() == Some(injection.strace.id()) {
                return Ok(false);
            }
            match injection.strace.try_wait().expect("our own child") {
                Some(_) => Ok(true),
                None => Err(format!("the tracer of {thread} is {:?}", injection.tracer())),
            }
        });
        if ended {
            let mut text = String::new();
            let _ = injection.strace.stderr.take().map(|mut stderr| stderr.read_to_string(&mut text));
            return Err(text.trim().replace('\n', "; "));
        }
        Ok(injection)
    }

    /// Who traces the thread, as the kernel says.
    fn tracer(&self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?;
        status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok().filter(|pid| *pid != 0)
    }

    fn trace_file(&self) -> PathBuf {
        self.directory.path().join("trace")
    }

    fn length(&self) -> u64 {
        fs::metadata(self.trace_file()).map_or(0, |file| file.len())
    }

    /// How often the call of the first fault has failed or waited so far.
    pub(crate) fn met(&self) -> usize {
        let trace = fs::read_to_string(self.trace_file()).unwrap_or_default();
        trace
            .lines()
            .filter(|line| line.starts_with(&self.call) && INJECTED.iter().any(|mark| line.contains(mark)))
            .count()
    }

    /// Ends it once the thread rests: strace that goes away within a call it has taken over leaves ENOSYS behind, which
    /// no plan asked for. Returns how often the call of the
    /// first fault has failed or waited.
    pub(crate) fn detach(mut self) -> usize {
        let (mut seen, mut still) = (self.length(), 0);
        eventually("the thread rests", LONG, || {
            let now = self.length();
            still = if now == seen { still + 1 } else { 0 };
            seen = now;
            if still >= 10 { Ok(()) } else { Err(format!("its trace grows: {now} bytes")) }
        });
        self.stop();
        self.met()
    }

    fn stop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            let pid = i32::try_from(self.strace.id()).expect("a process number");
            // strace lets its threads go before it obeys.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            for _ in 0..2000 {
                if !matches!(self.strace.try_wait(), Ok(None)) {
                    return;
                }
                thread::park_timeout(Duration::from_millis(5));
            }
            let _ = self.strace.kill();
        }
        let _ = self.strace.wait();
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Process {
    /// The thread with that name.
    pub(crate) fn thread_named(self, name: &str) -> u32 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0)).expect("the process runs");
        let is_it = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let found = threads.flatten().map(|entry| entry.path()).find(is_it);
        let number = found.and_then(|path| path.file_name()?.to_str()?.parse().ok());
        number.unwrap_or_else(|| panic!("process {} has no thread {name:?}", self.0))
    }
}
