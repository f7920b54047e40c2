//! The system-call filters: one for the main thread, and a narrower one for each role.
//!
//! A thread's own filter comes on top of the one it inherits; a call goes through when all of them let it. See
//! [`super::calls`] for what that costs.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Role;
use super::calls::{CONTROL, CONTROL_OLD, LIFE, LIFE_OLD, NAMES, NAMES_OLD, TRAFFIC, TRAFFIC_OLD};

/// Flags of clone(2) that make namespaces (include/uapi/linux/sched.h): a way to capabilities for whoever has none.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The compiled filters of a process.
#[derive(Debug)]
pub(super) struct Filters {
    /// For the main thread, and so for every thread.
    pub(super) control: BpfProgram,
    worker: BpfProgram,
    check: BpfProgram,
    log: BpfProgram,
    resolver: BpfProgram,
}

impl Filters {
    /// Compiles all of them for the processor this runs on.
    ///
    /// # Errors
    /// A processor the compiler does not know.
    pub(super) fn compile() -> Result<Self, String> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
        let compile = |rules: Result<Rules, BackendError>| -> Result<BpfProgram, String> {
            let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
            let filter = rules.and_then(|rules| SeccompFilter::new(rules, missing, SeccompAction::Allow, arch));
            filter.and_then(BpfProgram::try_from).map_err(|error| error.to_string())
        };
        Ok(Self {
            control: compile(control())?,
            worker: compile(worker())?,
            check: compile(check())?,
            log: compile(log())?,
            resolver: compile(resolver())?,
        })
    }

    /// The narrower filter of a role.
    pub(super) fn of(&self, role: Role) -> &BpfProgram {
        match role {
            Role::Worker => &self.worker,
            Role::Check => &self.check,
            Role::Log => &self.log,
            Role::Resolver => &self.resolver,
        }
    }
}

fn allow(lists: &[&[libc::c_long]]) -> Rules {
    lists.iter().copied().flatten().map(|call| (*call, Vec::new())).collect()
}

/// A call is let through when this argument, counted from 0, compares so.
fn when(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    // All arguments looked at are ints; the kernel ignores the upper half of their registers, and so does the filter.
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}

/// The same for one of several values.
fn any_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| when(argument, SeccompCmpOp::Eq, *value)).collect()
}

fn sockets(families: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    let families: Vec<u64> = families.iter().map(|family| u64::from(family.unsigned_abs())).collect();
    any_of(0, &families)
}

/// C libraries do not agree on the type of these numbers.
fn request(number: impl TryInto<u64>) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}

/// Questions to terminals and sockets; never TIOCSTI and the like.
fn ioctls() -> Result<Vec<SeccompRule>, BackendError> {
    let requests = [
        request(libc::FIOCLEX),
        request(libc::FIONBIO),
        request(libc::FIONREAD),
        request(libc::TCGETS),
        request(libc::TIOCGWINSZ),
        request(libc::SIOCGIFINDEX),
        request(libc::SIOCGIFNAME),
    ];
    any_of(1, &requests)
}

/// A batch job of the scheduler, or an ordinary one: nothing that takes the CPU from others.
fn policies() -> Result<Vec<SeccompRule>, BackendError> {
    any_of(1, &[libc::SCHED_OTHER, libc::SCHED_BATCH].map(|policy| u64::from(policy.unsigned_abs())))
}

/// Memory, but none that is code.
fn no_new_code(rules: &mut Rules) -> Result<(), BackendError> {
    let code = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, SeccompCmpOp::MaskedEq(code), 0)?]);
    }
    Ok(())
}

/// Signals to this process alone: what abort(3) does.
fn own_signals(rules: &mut Rules) -> Result<(), BackendError> {
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, u64::from(std::process::id()))?]);
    Ok(())
}

fn control() -> Result<Rules, BackendError> {
    let mut rules = allow(&[LIFE, LIFE_OLD, TRAFFIC, TRAFFIC_OLD, NAMES, NAMES_OLD, CONTROL, CONTROL_OLD]);
    // Nothing here may name this process: the filter outlives it in the one it starts.
    rules.insert(libc::SYS_socket, sockets(&[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK])?);
    rules.insert(libc::SYS_ioctl, ioctls()?);
    rules.insert(libc::SYS_sched_setscheduler, policies()?);
    // clone3(2) keeps its flags in memory, where a filter cannot look; without it the C library uses clone(2).
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(NEW_NAMESPACES), 0)?]);
    Ok(rules)
}

fn worker() -> Result<Rules, BackendError> {
    let mut rules = allow(&[LIFE, LIFE_OLD, TRAFFIC, TRAFFIC_OLD]);
    rules.insert(libc::SYS_socket, sockets(&[libc::AF_INET, libc::AF_INET6])?);
    rules.insert(libc::SYS_prlimit64, vec![when(0, SeccompCmpOp::Eq, 0)?]);
    rules.insert(libc::SYS_sched_setscheduler, policies()?);
    no_new_code(&mut rules)?;
    own_signals(&mut rules)?;
    Ok(rules)
}

fn check() -> Result<Rules, BackendError> {
    let mut rules = allow(&[LIFE, LIFE_OLD, TRAFFIC, TRAFFIC_OLD]);
    for call in [libc::SYS_accept4, libc::SYS_listen, libc::SYS_pipe2, libc::SYS_splice, libc::SYS_tee] {
        rules.remove(&call);
    }
    rules.insert(libc::SYS_socket, sockets(&[libc::AF_INET, libc::AF_INET6])?);
    no_new_code(&mut rules)?;
    own_signals(&mut rules)?;
    Ok(rules)
}

fn log() -> Result<Rules, BackendError> {
    let mut rules = allow(&[LIFE, LIFE_OLD]);
    no_new_code(&mut rules)?;
    own_signals(&mut rules)?;
    Ok(rules)
}

fn resolver() -> Result<Rules, BackendError> {
    let mut rules = allow(&[LIFE, LIFE_OLD, TRAFFIC, TRAFFIC_OLD, NAMES, NAMES_OLD]);
    rules.remove(&libc::SYS_splice);
    rules.remove(&libc::SYS_listen);
    rules.remove(&libc::SYS_accept4);
    rules.insert(libc::SYS_socket, sockets(&[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK])?);
    rules.insert(libc::SYS_ioctl, ioctls()?);
    own_signals(&mut rules)?;
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// Runs a step on a thread confined as the role is.
    fn confined<T: Send + 'static>(role: Option<Role>, step: impl FnOnce() -> T + Send + 'static) -> T {
        let filters = Filters::compile().unwrap();
        let inside = move || {
            seccompiler::apply_filter(&filters.control).unwrap();
            if let Some(role) = role {
                seccompiler::apply_filter(filters.of(role)).unwrap();
            }
            step()
        };
        thread::spawn(inside).join().unwrap()
    }

    fn refused<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
    }

    #[test]
    fn a_worker_opens_sockets_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        confined(Some(Role::Worker), move || {
            TcpStream::connect(address).unwrap();
            assert!(refused(std::fs::File::open("/dev/null")));
            assert!(refused(std::fs::read_dir("/")));
            assert!(refused(std::os::unix::net::UnixStream::pair()));
            let packet = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None);
            assert!(refused(packet), "a family that is not for it");
            assert!(thread::Builder::new().spawn(|| ()).is_err(), "musl has EAGAIN for it");
            assert!(std::process::Command::new("/bin/true").spawn().is_err());
        });
    }

    #[test]
    fn the_log_has_no_sockets() {
        confined(Some(Role::Log), || {
            assert!(refused(TcpListener::bind("127.0.0.1:0")));
            assert!(refused(std::fs::File::open("/dev/null")));
            drop(vec![1; 1 << 22]);
        });
    }

    #[test]
    fn the_resolver_reads_files_and_starts_nothing() {
        confined(Some(Role::Resolver), || {
            use std::net::ToSocketAddrs;
            assert!(("localhost", 1).to_socket_addrs().unwrap().next().is_some());
            assert!(std::process::Command::new("/bin/true").spawn().is_err());
        });
    }

    #[test]
    fn the_main_thread_starts_threads_and_programs_and_makes_no_namespace() {
        confined(None, || {
            assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            let namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
            assert_eq!(namespace, Err(nix::errno::Errno::ENOSYS));
            assert_eq!(nix::unistd::chroot("/"), Err(nix::errno::Errno::ENOSYS));
        });
    }

    #[test]
    fn filters_are_short_enough_to_be_inherited_often() {
        // All filters of a thread together may have 32768 instructions (MAX_INSNS_PER_PATH in kernel/seccomp.c).
        let filters = Filters::compile().unwrap();
        for program in [&filters.control, &filters.worker, &filters.log, &filters.resolver] {
            assert!(program.len() < 1200, "{}", program.len());
        }
    }
}
