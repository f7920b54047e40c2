//! `fs.pipe-user-pages-soft` as a user whom it holds for. Alone in its program: while it runs that user has no pages.
//!
//! Where the limit does not hold the test starts itself again and becomes another user there. Where it does, it runs as
//! it is, and expects less, because other programs of the user have pipes as well.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the functions they share")]

use std::process::Command;

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use pipes::{Limits, NoPipe, Pipe, PipeBudget, PipePool, min_pipe_size};

/// Set for the process that shall become an ordinary user.
const CHILD: &str = "PIPES_TEST_ORDINARY_USER";
/// What it exits with when it cannot.
const CANNOT: i32 = 77;
const MIB: usize = 1 << 20;

#[test]
fn past_the_page_limit_there_is_no_pipe_rather_than_a_tiny_one() {
    if std::env::var_os(CHILD).is_some() {
        become_ordinary();
        return check(true);
    }
    if Limits::read().user_pages.is_some() {
        return check(false);
    }
    let program = std::env::current_exe().unwrap();
    let name = "past_the_page_limit_there_is_no_pipe_rather_than_a_tiny_one";
    let output = Command::new(program).args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(CANNOT) {
        return skip(&format!("cannot become an ordinary user here: {text}"));
    }
    assert!(output.status.success() && text.contains("1 passed"), "{}: {text}", output.status);
}

/// Nothing may be skipped where `CI` is set.
fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "may not be skipped in CI: {why}");
    eprintln!("skipped: {why}");
}

/// Gives up root for a user of nobody else's, so that only this process's pipes count.
fn become_ordinary() {
    let id = 61_000 + std::process::id() % 1000;
    let changed = setgroups(&[])
        .and_then(|()| setresgid(Gid::from_raw(id), Gid::from_raw(id), Gid::from_raw(id)))
        .and_then(|()| setresuid(Uid::from_raw(id), Uid::from_raw(id), Uid::from_raw(id)));
    if let Err(errno) = changed {
        eprintln!("user {id}: {errno}");
        std::process::exit(CANNOT);
    }
}

fn check(alone: bool) {
    let limits = Limits::read();
    let Some(pages) = limits.user_pages else {
        return skip("fs.pipe-user-pages-soft and -hard are 0, or this user has CAP_SYS_ADMIN or CAP_SYS_RESOURCE");
    };
    let fits = usize::try_from(pages).unwrap() * limits.page_size / MIB;
    if !(2..=200).contains(&fits) || limits.descriptors < 2 * fits as u64 + 200 || limits.max_size < Some(MIB as u64) {
        return skip(&format!("settings are far from the kernel's own: {limits:?}"));
    }
    kernel_refuses(fits, alone);
    budget_stays_below(&limits, alone);
    pool_adapts();
}

/// Takes one small pipe, so that 1 MiB pipes do not fit evenly, then asks for 1 MiB until the kernel gives none.
fn take_all() -> Vec<Pipe> {
    let mut held = vec![Pipe::new(min_pipe_size()).unwrap()];
    loop {
        match Pipe::new(MIB) {
            Ok(pipe) => held.push(pipe),
            Err(refused) => {
                assert_eq!(refused, NoPipe::Budget);
                return held;
            }
        }
    }
}

fn kernel_refuses(fits: usize, alone: bool) {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let held = take_all();
    let large = held.iter().filter(|pipe| pipe.size() == MIB).count();
    assert!(large < fits, "{large} pipes of 1 MiB and a small one where {fits} fit");
    assert!(!alone || large == fits - 1, "only {large} pipes of 1 MiB where {fits} fit");
    assert!(held.iter().all(|pipe| pipe.size() >= min_pipe_size()), "a pipe of two slots was handed out");
    assert_eq!(held.last().unwrap().size(), min_pipe_size(), "where growing is refused a pipe keeps its 16 slots");
    assert_eq!(open(), before + 2 * held.len(), "the refused pipe was closed");
}

/// The budget takes three quarters, so its pools never meet the limit.
fn budget_stays_below(limits: &Limits, alone: bool) {
    let budget = PipeBudget::detect(Some(min_pipe_size()), 2);
    let most = limits.user_pages.unwrap() as usize * 3 / 4 / 16 / 2;
    assert!(budget.per_worker() <= most, "{budget}");
    let mut pools = [budget.pool(), budget.pool()];
    let held: Vec<Pipe> = pools.iter_mut().flat_map(|pool| std::iter::from_fn(|| pool.get().ok())).collect();
    assert!(held.len() <= 2 * budget.per_worker(), "{budget}");
    if alone {
        assert_eq!(held.len(), 2 * budget.per_worker(), "{budget}");
        assert!(Pipe::new(min_pipe_size()).is_ok(), "pages are left for others");
    }
}

/// Other processes took the pages: the pool gets by with less, and grows again after they are gone.
fn pool_adapts() {
    let budget = PipeBudget::detect(None, 1);
    let mut pool = budget.pool();
    assert_eq!(budget.size(), MIB, "{budget}");

    let mut others = take_all();
    assert_eq!(pool.get().unwrap_err(), NoPipe::Budget);
    assert!(pool.size() < MIB, "asks for less after a refusal");
    assert_eq!((pool.in_use(), pool.pooled()), (0, 0));

    // Room for a pipe of the default size, not for a large one.
    let small = others.iter().position(|pipe| pipe.size() == min_pipe_size()).unwrap();
    others.swap_remove(small);
    let pipe = first_of(&mut pool, 2000);
    assert_eq!(pipe.size(), min_pipe_size());
    pool.put(pipe);

    drop(others);
    let grown = (0..1000).any(|_| {
        let pipe = pool.get().unwrap();
        let size = pipe.size();
        pool.put(pipe);
        size == MIB
    });
    assert!(grown, "still {} after 1000 pipes", pool.size());
    assert_eq!(pool.size(), MIB);
}

fn first_of(pool: &mut PipePool, calls: usize) -> Pipe {
    (0..calls).find_map(|_| pool.get().ok()).unwrap_or_else(|| panic!("no pipe within {calls} calls"))
}
