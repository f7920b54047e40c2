//! The steps of the confinement on Linux, and what is remembered of them.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use caps::{Capability, CapsHashSet};
use landlock::RulesetCreated;
use log::{info, warn};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::prctl;
use nix::unistd::{AccessFlags, access, fchown, fchownat, geteuid};

use super::files::{self, Rules};
use super::filter::Filters;
use super::handover::{self, Marks};
use super::user::{self, Identity};
use super::{Part, Role, State, capabilities};
use crate::netns;
use crate::plan::{Confinement, Plan, RunAs};
use crate::upgrade::Program;

/// What [`prepare`] has found out and [`confine`] does.
static PREPARED: Mutex<Option<Prepared>> = Mutex::new(None);
/// Who is to own the files that are made before the change of the user.
static OWNER: OnceLock<Identity> = OnceLock::new();
/// What is in force.
static CONFINED: OnceLock<Confined> = OnceLock::new();

#[derive(Debug)]
struct Prepared {
    sandbox: Confinement,
    identity: Option<Identity>,
    kept: CapsHashSet,
    rules: Rules,
    config: Option<PathBuf>,
    log: Option<PathBuf>,
    /// Workers may connect to unix sockets.
    unix_targets: bool,
    /// Lists of networks.
    lists: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Confined {
    parts: Vec<Part>,
    /// Capabilities of the main thread; `None` where they were left as they are.
    kept: Option<CapsHashSet>,
    filters: Option<Filters>,
    marks: Marks,
    /// Directories programs may be started from; `None` where nothing keeps them from being elsewhere.
    programs: Option<Vec<PathBuf>>,
}

/// Looks up what [`confine`] will need, while everything can still be read. `config` is the file a reload reads.
///
/// # Errors
/// `user` names nobody on this host.
pub fn prepare(plan: &Plan, config: Option<&Path>) -> io::Result<()> {
    let privileges = &plan.privileges;
    let identity = privileges.user.as_ref().map(user::find).transpose()?;
    if let Some(identity) = identity {
        let _ = OWNER.set(identity);
    }
    let config = config.filter(|path| *path != Path::new("-"));
    let prepared = Prepared {
        sandbox: privileges.sandbox,
        identity,
        kept: capabilities::kept(plan),
        rules: Rules::of(plan, config),
        config: config.map(Path::to_owned),
        log: plan.log.file.clone(),
        // A reload may bring the first unix socket; strict knows only what there was at the start.
        unix_targets: privileges.sandbox != Confinement::Strict || plan.has_unix_target(),
        lists: plan.forwards.iter().flat_map(|f| f.access.files.iter()).map(|file| file.path.clone()).collect(),
    };
    *PREPARED.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
    Ok(())
}

/// Gives up what is not needed from here on, and says in the log what that is. To be called on the main thread, with
/// every listener bound and no other thread started; does nothing unless [`prepare`] came before.
///
/// # Errors
/// The process may not become `user`; or, with `strict`, a part cannot be had. Without `strict` such a part is logged.
pub fn confine() -> io::Result<()> {
    let Some(prepared) = PREPARED.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
    let sandboxed = prepared.sandbox != Confinement::Off;
    // Those in other network namespaces are told below.
    let others = other_threads().saturating_sub(netns::threads());
    let inherited = Marks::inherited();
    let mut marks = Marks::default();
    // Directories are opened before the change of the user, who may not see them all.
    let domain = handover::of_rules(&prepared.rules);
    let ruleset = (sandboxed && inherited.domain.as_ref() != Some(&domain)).then(|| prepared.rules.open());

    let mut parts = Vec::new();
    if others > 0 && (sandboxed || prepared.identity.is_some()) {
        parts.push(Part::missing("threads", format!("{others} others run already, and they keep what they have")));
    }
    let spares = spares(ruleset.as_ref());
    if prepared.identity.is_some() {
        // Of a thread, as all of this: setresuid(2) would take what a listener on a low port needs.
        netns::each(|| capabilities::survive_change_of_user(true).map_err(io::Error::other))?;
    }
    change_user(&prepared, &mut parts)?;
    if sandboxed {
        parts.push(match prctl::set_no_new_privs() {
            Ok(()) => Part::on("no_new_privs", "set"),
            Err(errno) => Part::missing("no_new_privs", format!("prctl(PR_SET_NO_NEW_PRIVS): {errno}")),
        });
    }
    let filters = if sandboxed {
        parts.push(landlock(ruleset, prepared.sandbox == Confinement::Strict, || marks.domain = Some(domain)));
        let (part, filters) = seccomp(&inherited, prepared.unix_targets);
        parts.push(part);
        filters
    } else {
        None
    };
    if let Err(why) = confine_others(&prepared, &inherited, filters.as_ref(), spares) {
        parts.push(Part::missing("threads", format!("one in another network namespace keeps what it has: {why}")));
    }
    marks.filter = filters.as_ref().map(|filters| handover::of_filter(&filters.control));
    say(&parts, prepared.sandbox)?;
    if prepared.identity.is_none() && geteuid().is_root() {
        warn!("running as root: with user: NAME (--user NAME) it becomes that user once its listeners are bound");
    }
    check_reach(&prepared);
    let programs = marks.domain.as_ref().map(|_| files::executables());
    let kept = (sandboxed || prepared.identity.is_some()).then_some(prepared.kept);
    let _ = CONFINED.set(Confined { parts, kept, filters, marks, programs });
    Ok(())
}

/// Copies of the ruleset for the threads in other network namespaces; none where the domain is inherited.
fn spares(ruleset: Option<&Result<RulesetCreated, String>>) -> Vec<RulesetCreated> {
    let Some(Ok(ruleset)) = ruleset else { return Vec::new() };
    (0..netns::threads()).filter_map(|_| ruleset.try_clone().ok()).collect()
}

/// Takes from the threads that were started in other network namespaces what the main thread has given up: they bind
/// listeners and make sockets.
fn confine_others(
    prepared: &Prepared,
    inherited: &Marks,
    filters: Option<&Filters>,
    spares: Vec<RulesetCreated>,
) -> io::Result<()> {
    let sandboxed = prepared.sandbox != Confinement::Off;
    if netns::threads() == 0 || (!sandboxed && prepared.identity.is_none()) {
        return Ok(());
    }
    let strict = prepared.sandbox == Confinement::Strict;
    let needed = [Capability::CAP_NET_BIND_SERVICE];
    let kept: CapsHashSet = prepared.kept.iter().filter(|held| needed.contains(held)).copied().collect();
    let filter = filters.map(|filters| filters.control.clone());
    let filter = filter.filter(|filter| inherited.filter.as_ref() != Some(&handover::of_filter(filter)));
    let spares = Arc::new(Mutex::new(spares));
    netns::each(move || {
        capabilities::bound(&kept);
        capabilities::limit_to(&kept).map_err(io::Error::other)?;
        capabilities::survive_change_of_user(false).map_err(io::Error::other)?;
        if !sandboxed {
            return Ok(());
        }
        prctl::set_no_new_privs()?;
        let spare = spares.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or(Ok(String::new()), |spare| files::restrict(spare, strict)).map_err(io::Error::other)?;
        filter.as_ref().map_or(Ok(()), |filter| seccompiler::apply_filter(filter)).map_err(io::Error::other)
    })
}

/// Takes from the calling thread what its role does not need. Does nothing where [`confine`] was not called.
pub fn enter(role: Role) {
    let Some(confined) = CONFINED.get() else { return };
    if let Some(kept) = &confined.kept {
        // Workers open pipes and make connections, checks make connections; none but the main thread binds listeners.
        let needed: &[Capability] = match role {
            Role::Worker => &[Capability::CAP_SYS_RESOURCE, Capability::CAP_NET_ADMIN],
            Role::Check => &[Capability::CAP_NET_ADMIN],
            Role::Log | Role::Resolver => &[],
        };
        if let Err(why) = capabilities::limit_to(&kept.iter().filter(|held| needed.contains(held)).copied().collect()) {
            warn!("sandbox: this {role:?} thread keeps its capabilities: {why}");
        }
    }
    if let Some(filters) = &confined.filters
        && let Err(error) = seccompiler::apply_filter(filters.of(role))
    {
        warn!("sandbox: this {role:?} thread has the main thread's system calls: {error}");
    }
}

/// What is in force in this process, part by part; empty before [`confine`].
#[must_use]
pub fn report() -> Vec<Part> {
    CONFINED.get().map_or_else(Vec::new, |confined| confined.parts.clone())
}

/// What this host could confine, tried on a thread that ends with it.
#[must_use]
pub fn support() -> Vec<Part> {
    let tried = std::thread::Builder::new().name("sandbox-trial".into()).spawn(|| {
        let no_new_privs = match prctl::set_no_new_privs() {
            Ok(()) => Part::on("no_new_privs", "can be set"),
            Err(errno) => Part::missing("no_new_privs", errno.to_string()),
        };
        let ruleset = Rules::default().open();
        let landlock = landlock(Some(ruleset), false, || ());
        vec![no_new_privs, landlock, seccomp(&Marks::default(), true).0]
    });
    let mut parts = vec![Part::on("user", user::describe()), Part::on("capabilities", capabilities::describe())];
    match tried.map(std::thread::JoinHandle::join) {
        Ok(Ok(tried)) => parts.extend(tried),
        Ok(Err(_)) => parts.push(Part::missing("seccomp", "the thread that tried it panicked")),
        Err(error) => parts.push(Part::missing("seccomp", format!("no thread to try it on: {error}"))),
    }
    parts
}

/// The environment variable a newer executable must be started with, so that it does not confine itself once more in
/// the same way.
#[must_use]
pub fn environment() -> Option<(&'static str, String)> {
    CONFINED.get().map(|confined| (handover::NAME, confined.marks.text()))
}

/// Why a program that is there may not be started, in words that follow what execve(2) reports.
#[must_use]
pub fn why_not_started() -> String {
    let mut why = format!("user {} must be allowed to execute it, on a file system that allows that", user::describe());
    if let Some(directories) = CONFINED.get().and_then(|confined| confined.programs.as_ref()) {
        let shown: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
        why += &format!("; and the sandbox allows programs in {} only, so no script with its shell", shown.join(", "));
    }
    why
}

/// Gives a file this process has made to the user it will become, who opens it again after a rotation.
///
/// # Errors
/// What fchown(2) reports.
pub fn give(file: &File) -> io::Result<()> {
    let Some(owner) = OWNER.get() else { return Ok(()) };
    let found = file.metadata()?;
    // Anything but a file we made is not ours to give.
    if !found.is_file() || found.uid() != geteuid().as_raw() || found.uid() == owner.uid.as_raw() {
        return Ok(());
    }
    Ok(fchown(file, Some(owner.uid), Some(owner.gid))?)
}

/// The same for a unix socket by its name.
///
/// # Errors
/// What open(2) or fchownat(2) reports.
pub fn give_path(path: &Path) -> io::Result<()> {
    let Some(owner) = OWNER.get() else { return Ok(()) };
    // By descriptor, so that nobody slips another file under the name in between.
    let file = File::from(files::handle(path, OFlag::O_NOFOLLOW)?);
    let found = file.metadata()?;
    if !found.file_type().is_socket() || found.uid() != geteuid().as_raw() || found.uid() == owner.uid.as_raw() {
        return Ok(());
    }
    Ok(fchownat(&file, "", Some(owner.uid), Some(owner.gid), AtFlags::AT_EMPTY_PATH)?)
}

/// The same for a listening socket: those of an address share it with further ones of the same user alone
/// (`inet_csk_bind_conflict` in net/ipv4/inet_connection_sock.c), which a reload with more workers opens.
///
/// # Errors
/// What fchown(2) reports.
pub fn give_socket(socket: &impl AsFd) -> io::Result<()> {
    let (Some(owner), true) = (OWNER.get(), geteuid().is_root()) else { return Ok(()) };
    Ok(fchown(socket, Some(owner.uid), Some(owner.gid))?)
}

/// The user who may own what this process finds in the place of its files: itself, root, or the one it will become.
pub(crate) fn may_own(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw() || OWNER.get().is_some_and(|owner| owner.uid.as_raw() == uid)
}

/// User and group by number, as this host knows them.
///
/// # Errors
/// A name this host does not know, or a number of a user without an entry and without a group.
pub fn find_user(run_as: &RunAs) -> io::Result<(u32, u32)> {
    user::find(run_as).map(|found| (found.uid.as_raw(), found.gid.as_raw()))
}

/// Threads beside this one. Capabilities, `no_new_privs`, filters and domains are of a thread: one that was started
/// before, such as by a library loaded into the process, would keep what this one gives up (credentials(7)).
fn other_threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, |threads| threads.count().saturating_sub(1))
}

fn change_user(prepared: &Prepared, parts: &mut Vec<Part>) -> io::Result<()> {
    let kept = &prepared.kept;
    if prepared.identity.is_none() && prepared.sandbox == Confinement::Off {
        return Ok(());
    }
    capabilities::bound(kept);
    let change = || -> io::Result<Result<(), String>> {
        let Some(identity) = prepared.identity else { return Ok(capabilities::limit_to(kept)) };
        let survive = capabilities::survive_change_of_user(true);
        user::become_user(identity)?;
        Ok(survive
            .and_then(|()| capabilities::limit_to(kept))
            .and_then(|()| capabilities::survive_change_of_user(false)))
    };
    let limited = change()?;
    parts.push(Part::on("user", user::describe()));
    parts.push(match limited {
        Ok(()) => Part::on("capabilities", capabilities::describe()),
        Err(why) => Part::missing("capabilities", format!("{why}; it keeps {}", capabilities::describe())),
    });
    Ok(())
}

/// `None` for the ruleset where the same domain is inherited.
fn landlock(ruleset: Option<Result<RulesetCreated, String>>, ports: bool, in_force: impl FnOnce()) -> Part {
    let result = match ruleset {
        None => Ok("as inherited".to_owned()),
        Some(ruleset) => ruleset.and_then(|ruleset| files::restrict(ruleset, ports)),
    };
    match result {
        Ok(detail) => {
            in_force();
            Part::on("landlock", detail)
        }
        Err(why) => Part::missing("landlock", why),
    }
}

fn seccomp(inherited: &Marks, unix_targets: bool) -> (Part, Option<Filters>) {
    let filters = match Filters::compile(unix_targets) {
        Ok(filters) => filters,
        Err(why) => return (Part::missing("seccomp", format!("no filter for this processor: {why}")), None),
    };
    if inherited.filter.as_ref() == Some(&handover::of_filter(&filters.control)) {
        return (Part::on("seccomp", "one filter a thread, the main thread's inherited"), Some(filters));
    }
    match seccompiler::apply_filter(&filters.control) {
        Ok(()) => (Part::on("seccomp", "one filter a thread"), Some(filters)),
        Err(error) => (Part::missing("seccomp", format!("{error}; this kernel or container refuses filters")), None),
    }
}

/// One line of what is in force, one for each part that is missing.
fn say(parts: &[Part], sandbox: Confinement) -> io::Result<()> {
    let (missing, there): (Vec<&Part>, Vec<&Part>) =
        parts.iter().partition(|part| matches!(part.state, State::Missing(_)));
    let join = |parts: &[&Part]| parts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if sandbox == Confinement::Strict && !missing.is_empty() {
        let text = format!("sandbox strict: {}; mend that, or use sandbox auto, which does without", join(&missing));
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    match (sandbox, there.is_empty()) {
        (Confinement::Off, true) => info!("sandbox: off"),
        (Confinement::Off, false) => info!("sandbox: off; {}", join(&there)),
        _ => info!("sandbox: {}", join(&there)),
    }
    for part in missing {
        warn!("sandbox: {part}. The rest is in force, and forwarding goes on");
    }
    Ok(())
}

/// Tries, as confined as the process now is, what a reload and a rotation will need.
fn check_reach(prepared: &Prepared) {
    let denied = |result: io::Result<File>| result.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied);
    let who = user::describe;
    // The start may have read a FIFO, which nobody writes to any more: opening it would wait for that.
    let at_once = |path: &PathBuf| OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    for path in prepared.config.iter().chain(&prepared.lists).filter(|path| denied(at_once(path))) {
        warn!(
            "user {} cannot read {}: a reload will fail, and so will an upgrade; let it read the file and its directories",
            who(),
            path.display()
        );
    }
    if let Some(path) = &prepared.log
        && fs::metadata(path).is_ok_and(|found| found.is_file())
        && denied(OpenOptions::new().append(true).open(path))
    {
        warn!("user {} cannot write {}: it cannot be reopened; give the file to that user", who(), path.display());
    }
    if let Ok(program) = Program::of_this_process()
        && access(program.path(), AccessFlags::X_OK) == Err(Errno::EACCES)
    {
        let path = program.path().display();
        warn!(
            "user {} cannot execute {path}: an upgrade will fail; let it execute the file and enter its directories",
            who()
        );
    }
}

#[cfg(test)]
mod tests;
