//! Out of descriptors. Alone in its program, because the limit is the whole process's.
#![cfg(target_os = "linux")]

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pipes::{Limits, NoPipe, Pipe, PipeBudget, min_pipe_size};

/// Descriptors open now; the one that reads the directory is among them every time.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

#[test]
fn no_descriptor_is_said_costs_none_and_is_got_over() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let limits = Limits { descriptors: 8000, ..Limits::read() };
    let mut pool = PipeBudget::from_limits(&limits, Some(min_pipe_size()), 1).pool();
    let before = open_descriptors();
    setrlimit(Resource::RLIMIT_NOFILE, before as u64 + 10, hard).unwrap();

    let mut held = Vec::new();
    let refused = loop {
        match pool.get() {
            Ok(pipe) => held.push(pipe),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, NoPipe::Descriptors(Errno::EMFILE));
    assert_eq!(Pipe::new(min_pipe_size()).unwrap_err(), refused);
    assert!(refused.to_string().contains("ulimit -n"), "{refused}");
    assert!((4..=6).contains(&held.len()), "{} pipes with 10 descriptors", held.len());
    assert_eq!(pool.in_use(), held.len());
    for _ in 0..5000 {
        assert_eq!(pool.get().unwrap_err(), refused);
    }
    assert_eq!(pool.in_use(), held.len());

    // They come back: the pool asks the kernel again within a bounded number of calls.
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let open = open_descriptors();
    let calls = (1..=2000).find_map(|call| pool.get().ok().map(|pipe| (call, pipe)));
    let (call, pipe) = calls.expect("no pipe within 2000 calls after descriptors came back");
    assert!(call <= 1025, "took {call} calls");
    assert_eq!(open_descriptors(), open + 2, "refusals left nothing open");
    held.push(pipe);
    held.push(pool.get().expect("and the next at once"));

    for pipe in held.drain(..) {
        pool.put(pipe);
    }
    assert_eq!(pool.clear(), pool_was(open, before));
    assert_eq!((pool.in_use(), pool.pooled()), (0, 0));
    assert_eq!(open_descriptors(), before);
}

/// Pipes pooled at the end: those held at the limit, and two more.
fn pool_was(open: usize, before: usize) -> usize {
    (open - before) / 2 + 2
}
