//! The thread of one namespace, and the list of them all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, gettid};
use socket2::Socket;

use crate::panics::{self, Helper};
use crate::sys;

/// Sockets of each family that are kept ready: a burst of so many connections waits for nobody.
const READY: usize = 16;
/// How long a worker waits for a socket when none is ready; making one takes microseconds.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long the main thread waits for a listener, or for a namespace to be entered.
const LONG_PATIENCE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The namespaces this process is in, by the name they were asked for.
static MAKERS: RwLock<BTreeMap<String, Arc<Maker>>> = RwLock::new(BTreeMap::new());

#[derive(Debug)]
struct Maker {
    jobs: Sender<Job>,
    /// Sockets that are ready: IPv4, IPv6.
    ready: [Mutex<Vec<Socket>>; 2],
    /// Some forward connects from here.
    stocked: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(name: &str) -> Option<Arc<Maker>> {
    MAKERS.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone)
}

/// Threads in other namespaces.
pub(crate) fn threads() -> usize {
    MAKERS.read().unwrap_or_else(PoisonError::into_inner).len()
}

/// Runs a step on every such thread, for what a thread can give up only itself.
///
/// # Errors
/// The first one of a step, or of a thread that does not answer.
pub(crate) fn each(step: impl Fn() -> io::Result<()> + Clone + Send + 'static) -> io::Result<()> {
    let makers: Vec<Arc<Maker>> =
        MAKERS.read().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
    makers.iter().try_for_each(|maker| maker.run(step.clone(), LONG_PATIENCE))
}

/// Runs a step in the namespace of that name, which is entered where it was not before.
///
/// # Errors
/// The step's; or the namespace cannot be entered, with what can be done.
pub(crate) fn run<T: Send + 'static>(
    name: &str,
    step: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    open(name)?.run(step, LONG_PATIENCE)
}

/// Enters the namespace and keeps sockets ready there from now on.
pub(super) fn stock(name: &str) -> io::Result<()> {
    let maker = open(name)?;
    if !maker.stocked.swap(true, Ordering::AcqRel) {
        let filled = Arc::clone(&maker);
        maker.run(
            move || {
                filled.fill();
                Ok(())
            },
            LONG_PATIENCE,
        )?;
    }
    Ok(())
}

/// A TCP socket of the namespace, from those that are ready where there is one.
pub(super) fn take(name: &str, is_v6: bool) -> io::Result<Socket> {
    // It was entered when the plan was prepared.
    let maker = find(name).ok_or_else(|| io::Error::from_raw_os_error(libc::ENONET))?;
    let ready = lock(&maker.ready[usize::from(is_v6)]).pop();
    let Some(socket) = ready else { return maker.run(move || make(is_v6), PATIENCE) };
    let filled = Arc::clone(&maker);
    let _ = maker.jobs.send(Box::new(move || filled.fill()));
    Ok(socket)
}

fn make(is_v6: bool) -> io::Result<Socket> {
    let any: SocketAddr = if is_v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
    sys::stream(any.into(), false)
}

impl Maker {
    fn run<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> io::Result<T> + Send + 'static,
        patience: Duration,
    ) -> io::Result<T> {
        let (say, answer) = mpsc::sync_channel(1);
        let job = move || {
            // Whoever asked may have given up.
            let _ = say.send(step());
        };
        let gone = || io::Error::other("the thread of the network namespace has failed; the log says why");
        self.jobs.send(Box::new(job)).map_err(|_| gone())?;
        match answer.recv_timeout(patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    /// Makes what is missing; where that cannot be, whoever needs a socket makes it and hears why not.
    fn fill(&self) {
        for (ready, is_v6) in self.ready.iter().zip([false, true]) {
            while lock(ready).len() < READY {
                let Ok(socket) = make(is_v6) else { break };
                lock(ready).push(socket);
            }
        }
    }
}

/// What one thread is asked to do. Nobody else could: the right to enter the namespace may be gone.
struct Jobs(mpsc::Receiver<Job>);

impl Helper for Jobs {
    fn work(&mut self, _: bool) -> Result<(), String> {
        self.0.iter().for_each(|job| job());
        Ok(())
    }

    /// A job that panicked is done with, and who asked for the next one, which may be a worker, is not to wait for it.
    fn pause(&mut self, _: Duration) -> bool {
        true
    }
}

fn open(name: &str) -> io::Result<Arc<Maker>> {
    if let Some(maker) = find(name) {
        return Ok(maker);
    }
    let (jobs, inbox) = mpsc::channel::<Job>();
    let (say, entered) = mpsc::sync_channel(1);
    let place = name.to_owned();
    let thread = thread::Builder::new().name("netns".into()).spawn(move || {
        sys::leave_signals_to_main();
        let result = enter(&place);
        let failed = result.is_err();
        let _ = say.send((result, gettid()));
        if !failed {
            panics::go_on(&mut Jobs(inbox));
        }
    })?;
    let (result, id) = entered
        .recv_timeout(LONG_PATIENCE)
        .map_err(|_| io::Error::other(format!("network namespace {name}: its thread does not answer; try again")))?;
    if let Err(error) = result {
        let _ = thread.join();
        await_end(id);
        return Err(error);
    }
    let maker = Arc::new(Maker { jobs, ready: Default::default(), stocked: AtomicBool::new(false) });
    MAKERS.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::clone(&maker));
    Ok(maker)
}

/// A thread that has been joined is on its way out of the kernel, and whoever counts threads may still see it.
fn await_end(thread: Pid) {
    let place = PathBuf::from(format!("/proc/self/task/{thread}"));
    let until = Instant::now() + Duration::from_millis(100);
    while place.exists() && Instant::now() < until {
        thread::yield_now();
    }
}

fn enter(name: &str) -> io::Result<()> {
    let path = if name.starts_with('/') { name.into() } else { Path::new("/run/netns").join(name) };
    let failed = |what: &str, e: io::Error, advice: &str| {
        io::Error::new(e.kind(), format!("network namespace {name}: {what}: {e}: {advice}"))
    };
    let again = "a running process has given up what it takes, and is only in the namespaces of its start: restart it \
                 for another one";
    let file = File::open(&path).map_err(|e| {
        let advice = if e.kind() == io::ErrorKind::PermissionDenied { again } else { "`ip netns list` names them" };
        failed(&format!("open {}", path.display()), e, advice)
    })?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
        let advice = match errno {
            nix::Error::EINVAL => "this is no network namespace",
            nix::Error::ENOSYS => again,
            _ => {
                "it takes CAP_SYS_ADMIN: start it as root (it gives that up once the listeners are bound; then restart \
                 it for another namespace)"
            }
        };
        failed("setns", errno.into(), advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_panics_fails_alone() {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || panics::go_on(&mut Jobs(inbox)));
        let maker = Maker { jobs, ready: Default::default(), stocked: AtomicBool::new(false) };
        let failed = maker.run(|| -> io::Result<()> { panic!("a job") }, LONG_PATIENCE).unwrap_err();
        assert!(failed.to_string().contains("has failed"), "{failed}");
        assert_eq!(maker.run(|| Ok(7), LONG_PATIENCE).unwrap(), 7);
        drop(maker);
        thread.join().unwrap();
    }
}
