//! Opening sockets in another network namespace: a socket belongs to the one of the thread that makes it, for good.

use std::io;

use crate::plan::Forward;

/// Runs a step in the network namespace the forward listens in, on a thread of its own where that is another one.
#[cfg(target_os = "linux")]
pub(super) fn inside<T: Send>(forward: &Forward, step: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let Some(name) = &forward.listen_options.netns else { return step() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            let result = enter(name).and_then(|()| step());
            (result, nix::unistd::gettid())
        })?;
        let joined = thread.join();
        let (result, thread) = joined.map_err(|_| io::Error::other("the thread in the network namespace panicked"))?;
        await_end(thread);
        result
    })
}

/// A thread that has been joined is on its way out of the kernel, and whoever counts threads may still see it.
#[cfg(target_os = "linux")]
fn await_end(thread: nix::unistd::Pid) {
    let place = format!("/proc/self/task/{thread}");
    let until = std::time::Instant::now() + std::time::Duration::from_millis(100);
    while std::path::Path::new(&place).exists() && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
fn enter(name: &str) -> io::Result<()> {
    let path = if name.starts_with('/') { name.into() } else { std::path::Path::new("/run/netns").join(name) };
    let failed = |what: &str, e: io::Error, advice: &str| {
        io::Error::new(e.kind(), format!("network namespace {name}: {what}: {e}: {advice}"))
    };
    let again = "a running process has given up what it takes: restart it to listen in another namespace";
    let file = std::fs::File::open(&path).map_err(|e| {
        let advice = if e.kind() == io::ErrorKind::PermissionDenied { again } else { "`ip netns list` names them" };
        failed(&format!("open {}", path.display()), e, advice)
    })?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|errno| {
        let advice = match errno {
            nix::Error::EINVAL => "this is no network namespace",
            nix::Error::ENOSYS => again,
            _ => "it takes CAP_SYS_ADMIN: start it as root (it gives that up once the listeners are bound)",
        };
        failed("setns", errno.into(), advice)
    })
}

/// Elsewhere there are none.
#[cfg(not(target_os = "linux"))]
pub(super) fn inside<T>(forward: &Forward, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match &forward.listen_options.netns {
        None => step(),
        Some(name) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("network namespace {name}: there are none on this system"),
        )),
    }
}
