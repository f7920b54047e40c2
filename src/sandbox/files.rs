//! The files a confined process may still touch, as Landlock rules (landlock(7)).
//!
//! Rules name directories where a file may be replaced by another under its name: a rule on a file is one on its inode.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath,
    RestrictSelfError, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::parent;
use crate::plan::{Confinement, Host, Listen, Plan};
use crate::upgrade::Program;

/// The newest set of rights these rules were written for and tested with. Older kernels take the part they know.
const TESTED: ABI = ABI::V5;
/// Domains a process may be in (`LANDLOCK_MAX_NUM_LAYERS` in security/landlock/limits.h); one more is E2BIG.
const MOST_DOMAINS: u32 = 16;

/// Read by the C library and by this program while it runs. What is not there is left out.
const READ: &[&str] = &[
    // Names, services, the local time zone: replaced as a whole by many tools, so the directory it is.
    "/etc",
    "/run/NetworkManager",
    "/run/nscd",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/usr/share/zoneinfo",
    // Modules of the C library that look up names.
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    // Limits, counters of this process, CPUs. Landlock itself hides what else other processes have there.
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/dev/random",
    "/dev/urandom",
];

/// Paths and what may be done below them; TCP ports to bind and to connect to, where they are limited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rules {
    paths: BTreeMap<PathBuf, BitFlags<AccessFs>>,
    ports: Option<BTreeMap<u16, BitFlags<AccessNet>>>,
}

impl Rules {
    /// What a process with this plan, read from this file, still needs once it runs.
    pub(super) fn of(plan: &Plan, config: Option<&Path>) -> Self {
        let mut rules = Self::default();
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        for path in READ {
            rules.add(Path::new(path), read);
        }
        rules.add(Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile);
        // A newer executable in the place of this one, and what the system starts it with.
        let run = AccessFs::ReadFile | AccessFs::Execute;
        for directory in executables() {
            rules.add(&directory, run);
        }
        for library in loaded_libraries() {
            rules.add(parent(&library), run);
        }
        // The configuration, also where its name is a link to it.
        let config = config.filter(|path| *path != Path::new("-"));
        for path in config.into_iter().map(Path::to_owned).chain(config.and_then(|path| fs::canonicalize(path).ok())) {
            rules.add(parent(&path), read);
        }
        // Lists of networks, which a reload reads again.
        let lists = plan.forwards.iter().flat_map(|forward| forward.access.files.iter()).map(|file| &file.path);
        for path in lists.cloned().chain(lists_behind_links(plan)) {
            rules.add(parent(&path), read);
        }
        if let Some(path) = &plan.log.file {
            let append: BitFlags<AccessFs> = AccessFs::WriteFile.into();
            match fs::metadata(path) {
                Ok(found) if !found.is_file() => rules.add(path, append),
                _ => rules.add(parent(path), append | AccessFs::MakeReg),
            }
        }
        if let Some(path) = &plan.pid_file {
            let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
            rules.add(parent(path), write | AccessFs::ReadFile);
        }
        if let Some(path) = &plan.control {
            rules.add(parent(path), AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile);
        }
        // A reload makes sockets, and the end removes them. Connecting to one is no access to a file for Landlock.
        let unix = plan.forwards.iter().flat_map(|forward| &forward.listen).flat_map(Listen::addresses);
        for path in unix.filter_map(|(address, _)| address.path()) {
            rules.add(parent(path), AccessFs::ReadDir | AccessFs::MakeSock | AccessFs::RemoveFile);
        }
        if plan.privileges.sandbox == Confinement::Strict {
            rules.ports = Some(ports(plan));
        }
        rules
    }

    fn add(&mut self, path: &Path, access: impl Into<BitFlags<AccessFs>>) {
        *self.paths.entry(path.to_owned()).or_default() |= access.into();
    }

    /// Opens every path, while that is still possible. One that cannot be opened is not there for anybody.
    pub(super) fn open(&self) -> Result<RulesetCreated, String> {
        let failed = |error: RulesetError| error.to_string();
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        ruleset = ruleset.handle_access(AccessFs::from_all(TESTED)).map_err(failed)?;
        if let Some(ports) = &self.ports {
            // Only `strict` limits them, and strict means it.
            ruleset = ruleset.set_compatibility(CompatLevel::HardRequirement);
            let limited = ports.values().fold(BitFlags::EMPTY, |all, access| all | *access);
            ruleset = ruleset.handle_access(limited).map_err(failed)?;
            ruleset = ruleset.set_compatibility(CompatLevel::BestEffort);
        }
        let mut created = ruleset.create().map_err(failed)?;
        for (path, access) in &self.paths {
            let Ok(opened) = handle(path, OFlag::empty()) else { continue };
            let is_directory = fs::metadata(path).is_ok_and(|found| found.is_dir());
            let access = if is_directory { *access } else { *access & AccessFs::from_file(TESTED) };
            created = created.add_rule(PathBeneath::new(opened, access)).map_err(failed)?;
        }
        for (port, access) in self.ports.iter().flatten() {
            created = created.add_rule(NetPort::new(*port, *access)).map_err(failed)?;
        }
        Ok(created)
    }
}

/// Where names of such lists lead to.
fn lists_behind_links(plan: &Plan) -> impl Iterator<Item = PathBuf> {
    let lists = plan.forwards.iter().flat_map(|forward| forward.access.files.iter());
    lists.filter_map(|file| fs::canonicalize(&file.path).ok())
}

/// A file as a name only, for which it need not be readable (`O_PATH`, open(2)). Not by std, which with musl takes that
/// flag for an access mode and leaves it out.
pub(super) fn handle(path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC | flags, Mode::empty())
}

/// Ports of the plan; 0 is a source address without a port of its own, 53 a long answer of a name server.
fn ports(plan: &Plan) -> BTreeMap<u16, BitFlags<AccessNet>> {
    let mut ports: BTreeMap<u16, BitFlags<AccessNet>> = BTreeMap::new();
    let mut add = |port: u16, access: AccessNet| *ports.entry(port).or_default() |= access;
    add(0, AccessNet::BindTcp);
    add(53, AccessNet::ConnectTcp);
    plan.resolving.servers.iter().for_each(|server| add(server.port(), AccessNet::ConnectTcp));
    if let Some(address) = plan.metrics {
        add(address.port(), AccessNet::BindTcp);
    }
    for forward in &plan.forwards {
        for listen in forward.listen.iter().filter(|listen| listen.ip().is_some()) {
            (listen.ports.first..=listen.ports.last).for_each(|port| add(port, AccessNet::BindTcp));
        }
        if let Some(port) = forward.balancing.check.as_ref().and_then(|check| check.port) {
            add(port, AccessNet::ConnectTcp);
        }
        for target in forward.targets.iter().filter(|target| !matches!(target.host, Host::Unix(_))) {
            (target.ports.first..=target.ports.last).for_each(|port| add(port, AccessNet::ConnectTcp));
        }
    }
    // The ports of a service are known only while running: then no port to connect to is forbidden.
    if plan.forwards.iter().flat_map(|forward| &forward.targets).any(|target| matches!(target.host, Host::Service(_))) {
        ports.values_mut().for_each(|access| *access &= AccessNet::BindTcp);
        ports.retain(|_, access| !access.is_empty());
    }
    ports
}

/// Where a newer executable may be: in the place this one was started at, beside this one, and, where a symbolic link
/// leads from one to the other, as in `bin/spliced → versions/1.2/spliced`, in a directory beside this one's.
pub(super) fn executables() -> Vec<PathBuf> {
    let named = Program::of_this_process().ok().map(|program| program.path().to_owned());
    let own = std::env::current_exe().ok();
    let mut directories: Vec<PathBuf> = named.iter().chain(&own).map(|file| parent(file).to_owned()).collect();
    let is_link = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_symlink());
    if named.is_some_and(|file| is_link(&file) || is_link(parent(&file))) {
        // Not of `/bin/spliced`, where /bin leads to /usr/bin: that would be every program there is.
        let is_narrow = |above: &&Path| ![Path::new("/"), Path::new("/usr")].contains(above);
        directories.extend(own.as_deref().map(parent).and_then(Path::parent).filter(is_narrow).map(Path::to_owned));
    }
    directories.sort_unstable();
    directories.dedup();
    directories
}

/// Shared libraries of this process, the loader among them, wherever this system keeps them.
fn loaded_libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = |line: &str| line.find('/').map(|at| line[at..].to_owned());
    let mut paths: Vec<String> = maps.lines().filter_map(path).filter(|path| path.contains(".so")).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.into_iter().map(PathBuf::from).collect()
}

/// Puts this thread, and all it starts, into the domain; says what that comes to.
pub(super) fn restrict(ruleset: RulesetCreated, with_ports: bool) -> Result<String, String> {
    let status = ruleset.restrict_self().map_err(|error| match error {
        RulesetError::RestrictSelf(RestrictSelfError::RestrictSelfCall { source, .. })
            if source.raw_os_error() == Some(libc::E2BIG) =>
        {
            format!("in {MOST_DOMAINS} domains already, which is the most; those stay in force")
        }
        error => error.to_string(),
    })?;
    let abi = match status.landlock {
        LandlockStatus::NotImplemented => return Err("this kernel is without it (CONFIG_SECURITY_LANDLOCK)".into()),
        LandlockStatus::NotEnabled => return Err("this kernel was started without it (lsm=landlock,…)".into()),
        LandlockStatus::Available { effective_abi, kernel_abi } => kernel_abi.unwrap_or(effective_abi as i32),
    };
    let ports = if with_ports { " and TCP ports" } else { "" };
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(format!("ABI {abi}: files{ports}")),
        RulesetStatus::PartiallyEnforced => Ok(format!("ABI {abi}: files{ports}, as far as this kernel has it")),
        RulesetStatus::NotEnforced => Err(format!("ABI {abi} enforces none of it")),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::config::{Lookup, Overrides, parse};

    fn plan(text: &str) -> Plan {
        parse("FILE", text, &Overrides::default(), &Lookup::fixed()).unwrap()
    }

    #[test]
    fn a_confined_thread_keeps_the_files_of_its_plan_and_loses_the_rest() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = ours.path().join("log");
        let plan = plan(&format!(
            "log_file: {}\nforwards: [{{listen: \"127.0.0.1:9000\", to: \"10.0.0.1:80\"}}]",
            log.display()
        ));
        let ruleset = Rules::of(&plan, None).open().unwrap();
        let other = other.path().join("file");
        fs::write(&other, "precious").unwrap();
        let confined = std::thread::spawn(move || {
            restrict(ruleset, false)?;
            fs::OpenOptions::new().append(true).create(true).open(&log).unwrap();
            assert!(fs::read("/etc/hosts").is_ok() && fs::read("/proc/self/status").is_ok());
            let beside = other.with_extension("new");
            for denied in [fs::read(&other).err(), fs::read(&log).err(), fs::write(&beside, "").err()] {
                assert_eq!(denied.expect("no access").kind(), io::ErrorKind::PermissionDenied);
            }
            Ok::<(), String>(())
        });
        if let Err(why) = confined.join().unwrap() {
            eprintln!("NOT RUN: Landlock: {why}");
        }
    }

    #[test]
    fn strict_knows_the_ports_of_the_plan() {
        let text = "metrics: 127.0.0.1:9464\nforwards:\n- {listen: \"127.0.0.1:9000-9001\", to: \"10.0.0.1:80\", check: \"port=81\"}\n";
        assert_eq!(Rules::of(&plan(text), None).ports, None);
        let strict = Rules::of(&plan(&format!("sandbox: strict\n{text}")), None).ports.unwrap();
        let of = |access: AccessNet| -> Vec<u16> {
            strict.iter().filter(|(_, allowed)| allowed.contains(access)).map(|(port, _)| *port).collect()
        };
        assert_eq!(of(AccessNet::BindTcp), [0, 9000, 9001, 9464]);
        assert_eq!(of(AccessNet::ConnectTcp), [53, 80, 81]);
        let text = "sandbox: strict\nforwards: [{listen: \"127.0.0.1:9000\", to: \"srv:_a._tcp.example\"}]\n";
        let of_service = Rules::of(&self::plan(text), None).ports.unwrap();
        let bind: BitFlags<AccessNet> = AccessNet::BindTcp.into();
        assert_eq!(of_service, [(0, bind), (9000, bind)].into());
    }
}
