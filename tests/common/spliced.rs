//! The program under test: started with options or a file, watched from the outside, ended by its process number.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tempfile::TempDir;

use super::cannot_run;
use super::deadline::{LONG, eventually};
use super::netns::Netns;
use super::process::{CLOSE_WAIT, Descriptors, Process};
use super::stats::Stats;

/// A user without rights that no other test uses: some limits are counted per user.
pub(crate) fn ordinary_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    100_000 + std::process::id() % 50_000 * 64 + NEXT.fetch_add(1, Ordering::Relaxed)
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

/// A running process. Dropping it kills it and, in a failing test, shows what it wrote.
#[derive(Debug)]
pub(crate) struct Spliced {
    child: Child,
    control: PathBuf,
    directory: TempDir,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    start: Option<Rest>,
    group: bool,
}

/// What a process holds when it has nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rest {
    descriptors_without_pool: usize,
    pipe_ends_without_pool: usize,
    sockets: usize,
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

impl Spliced {
    fn bare(mut child: Child, control: PathBuf, directory: TempDir) -> Self {
        let (lines, reader) = collect(&mut child);
        Self { child, control, directory, lines, reader: Some(reader), start: None, group: false }
    }

    /// The process.
    pub(crate) fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Where it answers.
    pub(crate) fn control(&self) -> &Path {
        &self.control
    }

    /// Its counters now.
    pub(crate) fn stats(&self) -> Stats {
        eventually("the control socket answers", LONG, || Stats::ask(&self.control).map_err(|e| e.to_string()))
    }

    /// Waits until its counters are as `condition` wants them.
    pub(crate) fn stats_until(&self, what: &str, condition: impl Fn(&Stats) -> bool) -> Stats {
        eventually(what, LONG, || {
            let stats = self.stats();
            if condition(&stats) { Ok(stats) } else { Err(format!("the counters are {}", stats.0)) }
        })
    }

    /// Waits until exactly that many sessions have ended for a reason.
    pub(crate) fn ended(&self, reason: &str, count: u64) {
        self.stats_until(&format!("{count} ended with {reason}"), |stats| stats.ends(reason) == count);
    }

    /// Lines of standard error that contain a text.
    pub(crate) fn logged(&self, text: &str) -> Vec<String> {
        let lines = self.lines.lock().expect("no panic while held");
        lines.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Standard error so far.
    pub(crate) fn text(&self) -> String {
        self.lines.lock().expect("no panic while held").join("\n")
    }

    /// The trace of a start with [`Launcher::inject`].
    pub(crate) fn trace(&self) -> String {
        fs::read_to_string(self.directory.path().join("strace")).unwrap_or_default()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process number");
        kill(Pid::from_raw(pid), signal).expect("our own child, not waited for yet");
    }

    /// True while it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }

    /// Waits for its end, though another process may still write to its standard error.
    pub(crate) fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually("spliced ends", within, || {
            child.try_wait().expect("our own child").ok_or_else(|| "it runs".to_owned())
        })
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let status = self.wait_for_exit(within);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of standard error does not panic");
        }
        status
    }

    /// The file it was started with.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("spliced.yaml")
    }

    /// Puts another text in the place of its file at once; the control socket is added to it.
    pub(crate) fn replace_config(&self, text: &str) {
        let new = self.directory.path().join("new.yaml");
        let text = format!("{text}\ncontrol: {}\n", self.control.display());
        fs::write(&new, text).expect("the temporary directory takes a file");
        fs::rename(new, self.config()).expect("a file takes the place of another");
    }

    /// `spliced reload`: its exit code and what it wrote.
    pub(crate) fn reload(&self) -> (Option<i32>, String) {
        self.ask("reload", &[])
    }

    /// Replaces the file and reloads it, which must take effect; what was changed.
    pub(crate) fn reload_with(&self, text: &str) -> String {
        self.replace_config(text);
        let (code, said) = self.reload();
        assert_eq!(code, Some(0), "reload of {text}: {said}");
        said
    }

    /// A command about this instance, with its control socket.
    pub(crate) fn ask(&self, command: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let mut ask = Command::new(env!("CARGO_BIN_EXE_spliced"));
        ask.arg(command).args(arguments).arg("--control").arg(&self.control);
        let output = ask.stdin(Stdio::null()).output().expect("the program runs");
        (
            output.status.code(),
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat(),
        )
    }

    /// What it holds now is what it is to hold at the end: for tests that change what it listens on.
    pub(crate) fn note_rest(&mut self) {
        self.start = Some(eventually("it is at rest", LONG, || self.rest()));
    }

    /// Ends of pipes beyond those it was started with.
    pub(crate) fn pipe_ends(&self) -> usize {
        let start = self.start.as_ref().expect("it was started");
        self.process().descriptors().pipe_ends - start.pipe_ends_without_pool
    }

    /// Whether the process behind the control socket holds what the first one held at its start.
    pub(crate) fn holds_what_the_first_did(&self) -> Result<(), String> {
        let start = self.start.as_ref().expect("it was started");
        let rest = self.rest()?;
        if rest == *start { Ok(()) } else { Err(format!("{rest:?} is held, at the start it was {start:?}")) }
    }

    /// What it holds beside pooled pipes, and that its own counts agree with the kernel's.
    fn rest(&self) -> Result<Rest, String> {
        let stats = Stats::ask(&self.control).map_err(|e| e.to_string())?;
        // Not the process we started, once another has taken over.
        let process = Process(u32::try_from(stats.number("/pid")).expect("a process number"));
        let Descriptors { all, pipe_ends, sockets } = process.descriptors();
        let states = process.tcp_states();
        let counted = usize::try_from(2 * (stats.pipes_pooled() + stats.pipes_in_use())).expect("a small number");
        let ended: u64 = stats.0["total"]["ends"]
            .as_object()
            .ok_or("no ends in the counters")?
            .values()
            .map(|count| count.as_u64().unwrap_or(0))
            .sum();
        let at_rest = stats.open() == 0
            && stats.pipes_in_use() == 0
            && counted <= pipe_ends
            && !states.contains_key(&CLOSE_WAIT)
            && ended == stats.number("/total/sessions_accepted")
            && stats.0["workers"]
                .as_array()
                .is_some_and(|w| !w.is_empty() && w.iter().all(|w| w["state"] == "running"));
        if !at_rest {
            return Err(format!("{all} descriptors, {pipe_ends} ends of pipes, TCP states {states:?}, {}", stats.0));
        }
        Ok(Rest {
            descriptors_without_pool: all - counted,
            pipe_ends_without_pool: pipe_ends - counted,
            sockets: sockets.len(),
        })
    }

    /// Waits until descriptors, pipes, sessions and sockets are back at what they were at the start.
    pub(crate) fn back_at_start(&self) {
        eventually("everything is given back", LONG, || self.holds_what_the_first_did());
    }

    /// The end of every test: everything given back, and a clean exit when asked.
    pub(crate) fn finish(mut self) {
        self.back_at_start();
        self.signal(Signal::SIGTERM);
        let status = self.wait(LONG);
        assert_eq!(status.code(), Some(0), "exit code after SIGTERM with nothing open");
        assert!(self.logged("panicked").is_empty(), "a panic was logged");
    }
}

impl Drop for Spliced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.group {
            end_group(Pid::from_raw(i32::try_from(self.child.id()).expect("a process number")));
        }
        if thread::panicking() {
            let lines = self.lines.lock().map_or_else(|held| held.into_inner().clone(), |lines| lines.clone());
            // The start says how it was set up, the end what went wrong; a thousand sessions in between do not help.
            let shown = lines.iter().enumerate().filter(|(at, _)| *at < 8 || at + 20 >= lines.len());
            let shown: Vec<_> = shown.map(|(_, line)| line.as_str()).collect();
            eprintln!("--- standard error of spliced ({}) ---\n{}\n---", self.child.id(), shown.join("\n"));
        }
    }
}

/// Ends every process of a group that is left and waits for those that are our children by now.
fn end_group(group: Pid) {
    let all = Pid::from_raw(-group.as_raw());
    if killpg(group, Signal::SIGKILL).is_ok() {
        while waitpid(all, None).is_ok() {}
    }
}

/// Reads standard error on a thread until it closes.
fn collect(child: &mut Child) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let reader = thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("no panic while held").push(line);
            }
        }
    });
    (lines, reader)
}
