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
    /// The program under test, where everybody may execute it.
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("spliced-installed-").expect("a temporary directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("our own directory");
        let installed = Self { directory };
        installed.install_real();
        installed
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("spliced")
    }

    /// Puts the program under test there.
    pub(crate) fn install_real(&self) {
        install(env!("CARGO_BIN_EXE_spliced").as_ref(), &self.path());
    }

    /// Puts a copy of another program there.
    pub(crate) fn install_copy(&self, of: &str, mode: u32) {
        self.written_by("cat \"$1\" > \"$0\"", &[of], mode);
    }

    /// Puts the first bytes of the program under test there.
    pub(crate) fn install_part(&self, bytes: u64) {
        let arguments = [env!("CARGO_BIN_EXE_spliced"), &bytes.to_string()];
        self.written_by("head -c \"$2\" \"$1\" > \"$0\"", &arguments, 0o755);
    }

    /// Puts a shell script there.
    pub(crate) fn install_script(&self, text: &str, mode: u32) {
        self.written_by("printf '%s' \"$1\" > \"$0\"", &[text], mode);
    }

    /// Another process writes it: a file just written cannot be run while a child that was forked meanwhile holds it open.
    fn written_by(&self, script: &str, arguments: &[&str], mode: u32) {
        self.remove();
        let status = Command::new("sh").args(["-c", script]).arg(self.path()).args(arguments).status();
        assert!(status.expect("sh").success(), "write {}", self.path().display());
        fs::set_permissions(self.path(), fs::Permissions::from_mode(mode)).expect("our own file");
    }

    /// Leaves nothing there.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(self.path());
    }

    /// Starts it, in a process group that ends with the test.
    pub(crate) fn start(&self, launcher: Launcher<'_>) -> Upgraded {
        Upgraded::start(launcher.program(&self.path()))
    }
}

/// Puts a program in a place at once, also while another runs there. A hard link where that is possible: nothing is
/// written that could be busy.
pub(crate) fn install(program: &Path, place: &Path) {
    let new = place.with_extension("new");
    let _ = fs::remove_file(&new);
    if fs::hard_link(program, &new).is_err() {
        let status = Command::new("cp").arg(program).arg(&new).status().expect("cp");
        assert!(status.success(), "copy {}: {status}", program.display());
    }
    fs::rename(&new, place).expect("our own directory");
}

/// The process that was started and those that have taken over since.
#[derive(Debug)]
pub(crate) struct Upgraded {
    /// The first.
    pub(crate) spliced: Spliced,
    serves: u32,
    /// Those before it that have not been waited for; their numbers are free for others afterwards.
    former: Vec<u32>,
    /// The one that serves has been waited for.
    ended: bool,
}

impl Upgraded {
    /// Starts the launcher's program, in a process group that ends with the test.
    pub(crate) fn start(launcher: Launcher<'_>) -> Self {
        Self::of(launcher.group().start())
    }

    /// One that was started in a group.
    pub(crate) fn of(spliced: Spliced) -> Self {
        let serves = spliced.process().0;
        Self { spliced, serves, former: Vec::new(), ended: false }
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.serves
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
        self.follow(pid);
        pid
    }

    /// Asks for an upgrade that fails, with all of these words in the reason and in the log; nothing has changed.
    pub(crate) fn fails(&self, name: &str, expected: &[&str]) {
        let output = self.ask();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {text}");
        for part in expected {
            assert!(text.contains(part), "{name}: {part:?} is missing in {text}");
            eventually("the log says the same", LONG, || {
                let logged = self.spliced.logged("no upgrade: ");
                let says = logged.last().is_some_and(|line| line.contains(part));
                if says { Ok(()) } else { Err(format!("{name}: {part:?} in {logged:?}")) }
            });
        }
        assert_eq!(self.stats().number("/pid"), u64::from(self.pid()), "{name}: the same process answers");
        assert_eq!(self.children(self.pid()), Vec::<String>::new(), "{name}: no child, no zombie");
    }

    fn follow(&mut self, pid: u32) {
        assert!(pid != self.serves && !self.former.contains(&pid), "{pid} is a new process");
        let before = std::mem::replace(&mut self.serves, pid);
        if !std::mem::take(&mut self.ended) {
            self.former.push(before);
        }
    }

    /// Notes which process has taken over without being asked for by [`Self::upgrade`].
    pub(crate) fn replaced(&mut self) -> u32 {
        let before = self.pid();
        let pid = eventually("another process answers", LONG, || {
            let stats = Stats::ask(self.spliced.control()).map_err(|e| e.to_string())?;
            let pid = u32::try_from(stats.number("/pid")).expect("a process number");
            if pid == before { Err("the same process answers".to_owned()) } else { Ok(pid) }
        });
        self.follow(pid);
        pid
    }

    /// Sends a signal to one of the processes.
    pub(crate) fn signal(&self, pid: u32, signal: Signal) {
        kill(to_pid(pid), signal).expect("a process of this test");
    }

    /// Waits until a process has ended and returns its exit code, `None` after a signal.
    pub(crate) fn exit_code(&mut self, pid: u32, within: Duration) -> Option<i32> {
        self.former.retain(|former| *former != pid);
        self.ended |= pid == self.serves;
        if pid == self.spliced.process().0 {
            return self.spliced.wait_for_exit(within).code();
        }
        eventually("the process ends", within, || match waitpid(to_pid(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(code)),
            Ok(WaitStatus::Signaled(..)) => Ok(None),
            Ok(status) => Err(format!("{status:?}")),
            // Its parent lives, waits for it and says how it ended.
            Err(Errno::ECHILD) => {
                let said = self.spliced.logged(&format!("process {pid}, which took over from this one, "));
                let last = said.last().ok_or("it is the child of another, who says nothing yet")?;
                Ok(last.contains("has ended too").then_some(0))
            }
            Err(errno) => panic!("waitpid: {errno}"),
        })
    }

    /// Waits until every process but the one that serves has ended, each with exit code 0.
    pub(crate) fn only_the_last_is_left(&mut self) {
        for pid in std::mem::take(&mut self.former) {
            assert_eq!(self.exit_code(pid, LONG), Some(0), "process {pid}: {}", self.spliced.text());
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

    /// Nothing was missing, in any of the processes.
    pub(crate) fn complete(&self) {
        let missing = self.spliced.logged(" missing: ");
        assert!(missing.is_empty(), "{missing:?}");
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

/// Ends a storm when it is dropped.
#[derive(Debug)]
pub(crate) struct EndOfStorm<'a>(&'a AtomicBool);

impl Drop for EndOfStorm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Storm {
    /// Ends it when the guard is dropped, also by a step that fails: otherwise its clients would keep a failing test
    /// from its end.
    pub(crate) fn ends_with_this(&self) -> EndOfStorm<'_> {
        EndOfStorm(&self.enough)
    }

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
