//! Names are resolved by threads of their own; workers are told of changes.
//!
//! A name that cannot be resolved takes seconds to say so: each name has its own thread, up to a bound, so that it
//! holds up no other.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use crate::plan::{Host, Plan};
use crate::sandbox::{self, Role};

/// How often a name that has an address is looked up again.
const REFRESH: Duration = Duration::from_secs(30);
/// How often while some name has none.
const RETRY: Duration = Duration::from_secs(2);

/// Threads at most; names beyond share them.
const MOST_THREADS: usize = 32;
/// Bytes of a thread's stack; getaddrinfo(3) keeps its buffers there.
const STACK: usize = 256 * 1024;

/// Every name a target of the plan has.
#[must_use]
pub fn names(plan: &Plan) -> BTreeSet<String> {
    let targets = plan.forwards.iter().flat_map(|forward| &forward.targets);
    let name = |host: &Host| if let Host::Name(name) = host { Some(name.clone()) } else { None };
    targets.filter_map(|target| name(&target.host)).collect()
}

/// The resolver's threads. They end when this value is dropped, each after the look-up it is in.
#[derive(Debug)]
pub struct Resolver {
    _stop: Vec<Sender<()>>,
}

impl Resolver {
    /// Starts the threads; `tell` is called with a name and its addresses whenever these change.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(names: BTreeSet<String>, tell: impl Fn(&str, &[IpAddr]) + Clone + Send + 'static) -> io::Result<Self> {
        let mut shares: Vec<Vec<String>> = vec![Vec::new(); names.len().min(MOST_THREADS)];
        let count = shares.len();
        for (i, name) in names.into_iter().enumerate() {
            shares[i % count].push(name);
        }
        let start = |names| {
            let (stop, stopped) = channel();
            let tell = tell.clone();
            let thread = std::thread::Builder::new().name("resolver".into()).stack_size(STACK);
            thread
                .spawn(move || {
                    sandbox::enter(Role::Resolver);
                    run(names, &stopped, tell);
                })
                .map(|_| stop)
        };
        Ok(Self { _stop: shares.into_iter().map(start).collect::<io::Result<_>>()? })
    }
}

fn run(names: Vec<String>, stopped: &Receiver<()>, tell: impl Fn(&str, &[IpAddr])) {
    let mut known: HashMap<&str, Vec<IpAddr>> = HashMap::new();
    let mut failing: HashMap<&str, bool> = HashMap::new();
    loop {
        for name in &names {
            match look_up(name) {
                Ok(addresses) => {
                    if failing.insert(name, false) == Some(true) {
                        log::info!("{name} has an address again");
                    }
                    if known.get(name.as_str()) != Some(&addresses) {
                        log::info!("{name} is {addresses:?}");
                        tell(name, &addresses);
                        known.insert(name, addresses);
                    }
                }
                Err(e) => {
                    // The last good answer stays in use; the first failure in a row is worth a line.
                    if failing.insert(name, true) != Some(true) {
                        let kept =
                            if known.contains_key(name.as_str()) { "; its last addresses stay in use" } else { "" };
                        log::warn!("cannot resolve {name}: {e}{kept}; check the name and the resolver of this host");
                    }
                }
            }
        }
        let pause = if failing.values().any(|f| *f) { RETRY } else { REFRESH };
        if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// The addresses of a name, sorted, so that an answer in another order is no change.
fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = (name, 0).to_socket_addrs()?.map(|a| a.ip().to_canonical()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the answer holds no address"));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localhost_is_told_once_and_the_thread_ends() {
        let (tx, rx) = channel();
        let names = BTreeSet::from(["localhost".to_string()]);
        let resolver = Resolver::start(names, move |name, addresses| {
            let _ = tx.send((name.to_owned(), addresses.to_vec()));
        })
        .unwrap();
        let (name, addresses) = rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(name, "localhost");
        assert!(addresses.iter().all(IpAddr::is_loopback));
        drop(resolver);
        assert!(rx.recv_timeout(Duration::from_secs(10)).is_err(), "the sender is dropped with the thread");
    }
}
