//! A running program that is replaced by newer ones, and what its clients see meanwhile.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use socket2::SockRef;
use tempfile::TempDir;

use super::deadline::{LONG, eventually};
use super::process::Process;
use super::spliced::{Launcher, Spliced};
use super::stats::Stats;

/// A program at a path where others can be put in its place.
#[derive(Debug)]
pub(crate) struct Installed {
    directory: TempDir,
}

impl Installed {
    /// The program under test.
    pub(crate) fn new() -> Self {
        let installed = Self { directory: TempDir::with_prefix("spliced-installed-").expect("a temporary directory") };
        installed.install_real();
        installed
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("spliced")
    }

    /// Puts the program under test there, as a link: a file just written cannot be run while a child that was forked
    /// meanwhile holds it open.
    pub(crate) fn install_real(&self) {
        self.remove();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_spliced"), self.path()).expect("our own directory");
    }

    /// Puts a shell script there. Another process writes it, for the same reason.
    pub(crate) fn install_script(&self, text: &str, mode: u32) {
        self.remove();
        let status = Command::new("sh").args(["-c", "printf '%s' \"$1\" > \"$0\""]).arg(self.path()).arg(text).status();
        assert!(status.expect("sh").success(), "write {}", self.path().display());
        fs::set_permissions(self.path(), fs::Permissions::from_mode(mode)).expect("our own file");
    }

    /// Leaves nothing there.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(self.path());
    }

    /// Starts it, in a process group that ends with the test.
    pub(crate) fn start(&self, launcher: Launcher<'_>) -> Upgraded {
        // Landlock lets no script run, as which the tests write programs that fail.
        let launcher = launcher.option("--sandbox", "off");
        let spliced = launcher.program(&self.path()).group().start();
        let pids = vec![spliced.process().0];
        Upgraded { spliced, pids }
    }
}

/// The process that was started and those that have taken over since.
#[derive(Debug)]
pub(crate) struct Upgraded {
    /// The first.
    pub(crate) spliced: Spliced,
    pids: Vec<u32>,
}

impl Upgraded {
    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        *self.pids.last().expect("the first is always there")
    }

    /// Runs `spliced upgrade`.
    pub(crate) fn ask(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
        command.arg("upgrade").arg("--control").arg(self.spliced.control()).stdin(Stdio::null());
        command.output().expect("spliced upgrade")
    }

    /// Upgrades, and notes who serves then.
    pub(crate) fn upgrade(&mut self) -> u32 {
        let output = self.ask();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}\n{}", self.spliced.text());
        let pid = text.strip_prefix("upgraded: process ").and_then(|rest| rest.split(',').next()).map(str::parse);
        let Some(Ok(pid)) = pid else { panic!("the answer is {text:?}") };
        assert!(!self.pids.contains(&pid), "{pid} is a new process");
        self.pids.push(pid);
        pid
    }

    /// Notes which process has taken over without being asked for by [`Self::upgrade`].
    pub(crate) fn replaced(&mut self) -> u32 {
        let before = self.pid();
        let pid = eventually("another process answers", LONG, || {
            let stats = Stats::ask(self.spliced.control()).map_err(|e| e.to_string())?;
            let pid = u32::try_from(stats.number("/pid")).expect("a process number");
            if pid == before { Err("the same process answers".to_owned()) } else { Ok(pid) }
        });
        self.pids.push(pid);
        pid
    }

    /// Sends a signal to one of the processes.
    pub(crate) fn signal(&self, pid: u32, signal: Signal) {
        kill(to_pid(pid), signal).expect("a process of this test");
    }

    /// Waits until a process has ended and returns its exit code. All that were started before it must have ended.
    pub(crate) fn exit_code(&mut self, pid: u32, within: Duration) -> Option<i32> {
        if pid == self.pids[0] {
            return self.spliced.wait_for_exit(within).code();
        }
        eventually("the process ends", within, || match waitpid(to_pid(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(code)),
            Ok(WaitStatus::Signaled(..)) => Ok(None),
            Ok(status) => Err(format!("{status:?}")),
            Err(Errno::ECHILD) => Err("it is the child of another still".to_owned()),
            Err(errno) => panic!("waitpid: {errno}"),
        })
    }

    /// Waits until every process but the one that serves has ended, each with exit code 0.
    pub(crate) fn only_the_last_is_left(&mut self) {
        let (_, former) = self.pids.split_last().expect("the first is always there");
        for pid in Vec::from(former) {
            if Path::new(&format!("/proc/{pid}")).exists() {
                assert_eq!(self.exit_code(pid, LONG), Some(0), "process {pid}: {}", self.spliced.text());
            }
        }
    }

    /// The children a process has, zombies included.
    pub(crate) fn children(&self, pid: u32) -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the process runs");
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The counters of the process that serves.
    pub(crate) fn stats(&self) -> Stats {
        self.spliced.stats()
    }

    /// The end of a test: nothing is left behind, and a clean exit when asked.
    pub(crate) fn finish(mut self) {
        self.only_the_last_is_left();
        self.spliced.back_at_start();
        let last = self.pid();
        assert_eq!(self.children(last), Vec::<String>::new(), "children of {last}");
        self.signal(last, Signal::SIGTERM);
        assert_eq!(self.exit_code(last, LONG), Some(0), "exit code after SIGTERM: {}", self.spliced.text());
        assert!(self.spliced.logged("panicked").is_empty(), "a panic was logged");
        assert!(!self.spliced.control().exists(), "the control socket's file is left behind");
    }

    /// The process that serves.
    pub(crate) fn process(&self) -> Process {
        Process(self.pid())
    }
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process number"))
}

/// One connection that sends a byte and wants it back, then the end: what any client may count on. Closed with a reset
/// afterwards, so that thousands of them leave no port behind in TIME_WAIT.
pub(crate) fn one_connection(to: SocketAddr, byte: u8) -> Result<(), String> {
    let failed = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    let mut stream = TcpStream::connect_timeout(&to, LONG).map_err(failed("connect"))?;
    stream.set_read_timeout(Some(LONG)).map_err(failed("set a deadline"))?;
    stream.write_all(&[byte]).map_err(failed("write"))?;
    let mut back = [0];
    match stream.read(&mut back) {
        Ok(1) if back == [byte] => {}
        Ok(0) => return Err("an empty connection: FIN before the byte came back".to_owned()),
        Ok(_) => return Err(format!("byte {} came back as {}", byte, back[0])),
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Err("nothing came back".to_owned()),
        Err(e) => return Err(format!("read: {e}")),
    }
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(failed("SO_LINGER"))
}

/// Clients that connect one after the other without a pause.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    /// Connections that were served.
    pub(crate) served: AtomicU64,
    /// Set to end it early.
    pub(crate) enough: AtomicBool,
}

impl Storm {
    /// One client's loop: up to `most` connections, and the first failure.
    pub(crate) fn client(&self, to: SocketAddr, most: u64) -> Result<(), String> {
        for n in 0..most {
            if self.enough.load(Ordering::Relaxed) {
                return Ok(());
            }
            one_connection(to, n as u8).map_err(|why| format!("connection {n}: {why}"))?;
            self.served.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
