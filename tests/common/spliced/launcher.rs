//! How the program under test is started: with what, as whom, inside of what.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::prctl::set_child_subreaper;
use tempfile::TempDir;

use super::super::cannot_run;
use super::super::deadline::{LONG, eventually};
use super::super::netns::Netns;
use super::Spliced;

/// A user without rights that no other test uses: some limits are counted per user.
pub(crate) fn ordinary_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    100_000 + std::process::id() % 50_000 * 256 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A copy of a program in a directory that is given to a user. Another process makes it: a file that is open for
/// writing here, or in a child that another test has just forked, cannot be run.
pub(crate) fn copy_for(uid: u32, program: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join("copy");
    let status = Command::new("cp").arg(program).arg(&copy).status().expect("cp");
    assert!(status.success(), "copy {}: {status}", program.display());
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("our own file");
    std::os::unix::fs::chown(directory, Some(uid), Some(uid)).expect("root gives its directory away");
    copy
}

/// Whether strace may follow a process here; says why when not.
pub(crate) fn can_inject() -> bool {
    let trial = ["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=splice", "true"];
    match Command::new("strace").args(trial).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            cannot_run(&format!("strace cannot follow a process here: {text}"));
            false
        }
        Err(e) => {
            cannot_run(&format!("strace is needed to make system calls fail: {e}"));
            false
        }
    }
}

/// Everything about a start.
#[derive(Debug)]
pub(crate) struct Launcher<'a> {
    binary: PathBuf,
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
    config: Option<String>,
    directory: TempDir,
    user: Option<u32>,
    namespace: Option<&'a Netns>,
    variables: Vec<(OsString, OsString)>,
    stdin: Option<OwnedFd>,
    group: bool,
    own_control: bool,
}

/// A run that ended by itself.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code.
    pub(crate) code: Option<i32>,
    /// Standard error.
    pub(crate) text: String,
}

impl<'a> Launcher<'a> {
    /// `spliced forward LISTEN TARGET`.
    pub(crate) fn forward(listen: SocketAddr, target: SocketAddr) -> Self {
        Self::with_arguments(["forward", &listen.to_string(), &target.to_string()])
    }

    /// `spliced run --config FILE` with that text in the file; the control socket is added to it at a start.
    pub(crate) fn config(text: &str) -> Self {
        let mut launcher = Self::with_arguments(["run", "--config"]);
        launcher.arguments.push(launcher.directory.path().join("spliced.yaml").into());
        launcher.config = Some(text.to_owned());
        launcher
    }

    /// Any command.
    pub(crate) fn with_arguments<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            binary: env!("CARGO_BIN_EXE_spliced").into(),
            wrapper: Vec::new(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            config: None,
            directory: TempDir::with_prefix("spliced-test-").expect("a temporary directory"),
            user: None,
            namespace: None,
            variables: Vec::new(),
            stdin: None,
            group: false,
            own_control: false,
        }
    }

    /// `spliced run --config FILE` with a file of the test's own, which names the control socket.
    pub(crate) fn file(path: &Path) -> Self {
        let words = ["run".as_ref(), "--config".as_ref(), path.as_os_str()];
        Self { own_control: true, ..Self::with_arguments(words) }
    }

    /// Adds an option and its value.
    pub(crate) fn option(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arguments.push(name.into());
        self.arguments.push(value.as_ref().to_owned());
        self
    }

    /// Runs the program at another path.
    pub(crate) fn program(mut self, path: &Path) -> Self {
        self.binary = path.to_owned();
        self
    }

    /// Adds a variable to its environment.
    pub(crate) fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Gives it that as standard input.
    pub(crate) fn standard_input(mut self, descriptor: OwnedFd) -> Self {
        self.stdin = Some(descriptor);
        self
    }

    /// In a process group of its own, which ends with the test, whoever has taken over from whom.
    pub(crate) fn group(mut self) -> Self {
        self.group = true;
        self
    }

    /// Starts it through another program, which must replace itself by it, so that the process number stays.
    pub(crate) fn through<A: Into<OsString>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.wrapper.extend(wrapper.into_iter().map(Into::into));
        self
    }

    /// With at most that many descriptors, soft and hard.
    pub(crate) fn descriptors(self, limit: u64) -> Self {
        self.through(["sh", "-c", &format!("ulimit -n {limit} && exec \"$0\" \"$@\"")])
    }

    /// With system calls that fail as strace's `inject=` says, each thread counting its own calls. The trace is
    /// beside the control socket as `strace`.
    pub(crate) fn inject(self, faults: &[&str]) -> Self {
        let trace = self.directory.path().join("strace");
        let calls: Vec<&str> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        let mut wrapper: Vec<OsString> = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o"].map(Into::into).into();
        wrapper.push(trace.into());
        wrapper.extend(["-e".into(), format!("trace={}", calls.join(",")).into()]);
        for fault in faults {
            wrapper.extend(["-e".into(), format!("inject={fault}").into()]);
        }
        self.through(wrapper)
    }

    /// As another user, from a place that user can read.
    pub(crate) fn user(mut self, uid: u32) -> Self {
        let directory = self.directory.path();
        self.binary = copy_for(uid, &self.binary, directory);
        self.user = Some(uid);
        self
    }

    /// With its files in a place of another user, whom it is to become.
    pub(crate) fn place_of(self, uid: u32) -> Self {
        std::os::unix::fs::chown(self.directory.path(), Some(uid), Some(uid)).expect("root gives its directory away");
        self
    }

    /// The directory of its configuration and its control socket.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Inside a network namespace.
    pub(crate) fn inside(mut self, namespace: &'a Netns) -> Self {
        self.namespace = Some(namespace);
        self
    }

    fn spawn(&self, control: Option<&Path>) -> Child {
        let mut words = self.wrapper.iter().cloned().chain([self.binary.clone().into()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).args(&self.arguments);
        match (&self.config, control) {
            (Some(text), control) => {
                let control = control.map_or(String::new(), |path| format!("\ncontrol: {}\n", path.display()));
                let file = self.directory.path().join("spliced.yaml");
                fs::write(file, format!("{text}{control}")).expect("the temporary directory takes a file");
            }
            (None, Some(control)) if !self.own_control => _ = command.arg("--control").arg(control),
            (None, Some(_)) => {}
            (None, None) => {}
        }
        let copy = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor"));
        command.envs(self.variables.iter().cloned());
        if self.group {
            // Whoever loses its parent becomes ours: so it can be waited for, and a zombie shows.
            set_child_subreaper(true).expect("Linux");
            command.process_group(0);
        }
        command
            .env_remove("RUST_LOG")
            .stdin(self.stdin.as_ref().map_or_else(Stdio::null, copy))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        let child = match self.namespace {
            Some(namespace) => namespace.enter(|| command.spawn()),
            None => command.spawn(),
        };
        child.unwrap_or_else(|e| panic!("start {command:?}: {e}"))
    }

    /// Starts it, waits until it says that it is ready and notes what it holds then.
    pub(crate) fn start(self) -> Spliced {
        let control = self.directory.path().join("control.sock");
        self.start_at(&control)
    }

    /// As [`Self::start`], with the control socket at a place of the test's own.
    pub(crate) fn start_at(self, control: &Path) -> Spliced {
        let mut spliced = self.start_and_wait(control);
        let start = eventually("the control socket answers", LONG, || spliced.rest());
        spliced.start = Some(start);
        spliced
    }

    /// As [`Self::start`], where faults keep the control socket from answering.
    pub(crate) fn start_without_control(self) -> Spliced {
        let control = self.directory.path().join("control.sock");
        self.start_and_wait(&control)
    }

    fn start_and_wait(self, control: &Path) -> Spliced {
        self.try_start_at(control).unwrap_or_else(|why| panic!("it ended at the start: {why}"))
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ended instead; what it wrote.
    pub(crate) fn try_start_at(self, control: &Path) -> Result<Spliced, String> {
        let child = self.spawn(Some(control));
        let mut spliced = Spliced::bare(child, control.to_owned(), self.directory);
        spliced.group = self.group;
        eventually("spliced becomes ready", LONG, || {
            if !spliced.logged("ready: ").is_empty() {
                return Ok(Ok(()));
            }
            if spliced.runs() { Err("no line says ready".to_owned()) } else { Ok(Err(())) }
        })
        .map_err(|()| {
            spliced.wait(LONG);
            spliced.text()
        })?;
        Ok(spliced)
    }

    /// Starts it and waits until it ends by itself.
    pub(crate) fn outcome(self) -> Outcome {
        let child = self.spawn(None);
        let control = self.directory.path().join("none");
        let mut ending = Spliced::bare(child, control, self.directory);
        let status = ending.wait(LONG);
        Outcome { code: status.code(), text: ending.text() }
    }
}
