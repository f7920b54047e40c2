use std::collections::HashSet;
use std::io::Write;
use std::os::unix::net::UnixStream;

use super::*;
use crate::limits::Limits;
use crate::pipe::min_pipe_size;

/// A share of `pages` small pipes' worth of pages.
fn share(limit: usize, small: usize, full: usize) -> Share {
    let floor = min_pipe_size();
    Share { limit, pages: small * 16, full: full * floor, floor, page: floor / 16 }
}

fn fill(pipe: &mut Pipe) {
    let (mut near, far) = UnixStream::pair().unwrap();
    near.write_all(b"of another connection").unwrap();
    assert_eq!(pipe.fill_from(&far, 100).unwrap(), 21);
}

#[test]
fn a_pipe_moves_to_another_pool_with_its_bytes() {
    let (mut from, mut to) = (PipePool::new(share(1, 100, 1)), PipePool::new(share(1, 100, 1)));
    let mut moved = from.get().unwrap();
    fill(&mut moved);
    let own = to.get().unwrap();
    from.release(&moved);
    to.adopt(&moved);
    assert_eq!((from.in_use(), to.in_use()), (0, 2), "beyond the limit, but counted");
    to.put(own);
    assert_eq!(moved.pending(), 21);
    to.put(moved);
    assert_eq!((to.in_use(), to.pooled()), (0, 1), "the one with bytes was closed");
    from.get().expect("its place is free again");
}

#[test]
fn the_last_pipe_put_back_is_the_first_handed_out() {
    let mut pool = PipePool::new(share(4, 100, 1));
    let pipes: Vec<Pipe> = (0..3).map(|_| pool.get().unwrap()).collect();
    let ids: Vec<u64> = pipes.iter().map(Pipe::id).collect();
    pipes.into_iter().for_each(|pipe| pool.put(pipe));
    assert_eq!((pool.in_use(), pool.pooled()), (0, 3));
    let again: Vec<u64> = (0..3).map(|_| pool.get().unwrap().id()).collect();
    assert_eq!(again, ids.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn another_share_leaves_pipes_in_use_and_allows_no_more_than_it_says() {
    let mut pool = PipePool::new(share(4, 100, 1));
    let held: Vec<Pipe> = (0..3).map(|_| pool.get().unwrap()).collect();
    let limits = Limits { descriptors: 16, ..Limits::read() };
    let budget = PipeBudget::from_limits(&limits, None, 1);
    assert_eq!(budget.per_worker(), 2);
    pool.share_anew(&budget);
    assert_eq!((pool.limit(), pool.in_use()), (2, 3));
    assert_eq!(pool.get().unwrap_err(), NoPipe::Budget);
    held.into_iter().for_each(|pipe| pool.put(pipe));
    assert!(pool.pooled() <= 2, "{}", pool.pooled());
    let again = [pool.get().unwrap(), pool.get().unwrap()];
    assert_eq!(pool.get().unwrap_err(), NoPipe::Budget);
    again.into_iter().for_each(|pipe| pool.put(pipe));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_dirty_pipe_is_never_handed_out_again() {
    let mut pool = PipePool::new(share(8, 100, 1));
    let mut dirty = HashSet::new();
    for round in 0..50 {
        let mut pipe = pool.get().unwrap();
        assert!(!dirty.contains(&pipe.id()), "round {round}");
        if round % 3 != 0 {
            fill(&mut pipe);
            dirty.insert(pipe.id());
        }
        pool.put(pipe);
    }
    assert_eq!(dirty.len(), 33);
    assert_eq!(pool.used_pages, 16 * pool.pooled());
}

#[test]
fn the_limit_holds_and_few_are_kept() {
    let mut pool = PipePool::new(share(3, 100, 1));
    let pipes: Vec<Pipe> = (0..3).map(|_| pool.get().unwrap()).collect();
    assert_eq!(pool.get().unwrap_err(), NoPipe::Budget);
    pipes.into_iter().for_each(|pipe| pool.put(pipe));
    assert!(pool.get().is_ok());

    let mut pool = PipePool::new(share(KEEP + 10, 1000, 1));
    let pipes: Vec<Pipe> = (0..KEEP + 10).map(|_| pool.get().unwrap()).collect();
    pipes.into_iter().for_each(|pipe| pool.put(pipe));
    assert_eq!((pool.in_use(), pool.pooled()), (0, KEEP));
    assert_eq!(pool.used_pages, 16 * KEEP);
    assert_eq!(pool.clear(), KEEP);
    assert_eq!((pool.pooled(), pool.used_pages), (0, 0));
}

#[test]
fn pipes_shrink_as_the_share_fills_and_more_than_half_is_for_small_ones() {
    let mut pool = PipePool::new(share(1000, 64, 16));
    let held: Vec<Pipe> = std::iter::from_fn(|| pool.get().ok()).collect();
    let sizes: Vec<usize> = held.iter().map(|pipe| pipe.size() / min_pipe_size()).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    assert_eq!(sizes[0], 16);
    let large: usize = sizes.iter().filter(|size| **size > 1).sum();
    assert!(large <= 32, "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 64, "the whole share is handed out: {sizes:?}");
    assert_eq!(pool.used_pages, 64 * 16);
}

/// Large pipes that come back while the share is crowded make room for small ones, and the other way round.
#[test]
fn the_number_of_pipes_follows_the_load() {
    let mut pool = PipePool::new(share(1000, 64, 16));
    let mut held: Vec<Pipe> = std::iter::from_fn(|| pool.get().ok()).collect();
    for _ in 0..200 {
        pool.put(held.remove(0));
        held.extend(std::iter::from_fn(|| pool.get().ok()));
    }
    let small = held.iter().filter(|pipe| pipe.size() == min_pipe_size()).count();
    assert!(held.len() > 40 && small > 30, "{} pipes, {small} of them small", held.len());

    held.drain(..).for_each(|pipe| pool.put(pipe));
    pool.idle.truncate(1);
    pool.used_pages = pool.idle.iter().map(|pipe| pool.pages_of(pipe)).sum();
    assert_eq!(pool.get().unwrap().size(), 16 * min_pipe_size(), "alone again, it is large again");
}

#[test]
fn a_lowered_size_is_tried_again_after_a_run_of_successes() {
    let mut pool = PipePool::new(share(100, 1000, 16));
    pool.learn(16 * min_pipe_size(), min_pipe_size());
    assert_eq!(pool.size(), 8 * min_pipe_size());
    for _ in 0..GROW_AFTER {
        assert_eq!(pool.size(), 8 * min_pipe_size());
        let pipe = pool.get().unwrap();
        pool.put(pipe);
    }
    assert_eq!(pool.size(), 16 * min_pipe_size());
}

#[test]
fn a_refusal_answers_a_bounded_number_of_calls() {
    let mut pool = PipePool::new(share(100, 1000, 1));
    for round in [SKIP.0, 2 * SKIP.0, 4 * SKIP.0] {
        pool.refused(NoPipe::Budget, min_pipe_size());
        assert_eq!(pool.refusal.unwrap().left, round);
    }
    for _ in 0..4 * SKIP.0 {
        assert_eq!(pool.get().unwrap_err(), NoPipe::Budget);
    }
    assert!(pool.get().is_ok());
    assert!(pool.refusal.is_none(), "a success forgets it");
    for _ in 0..40 {
        pool.refused(NoPipe::Budget, min_pipe_size());
    }
    assert_eq!(pool.refusal.unwrap().left, SKIP.1);
}

#[test]
fn trimming_closes_what_was_not_needed_and_keeps_the_warm_ones() {
    let mut pool = PipePool::new(share(8, 8, min_pipe_size()));
    let pipes: Vec<Pipe> = (0..4).map(|_| pool.get().unwrap()).collect();
    pipes.into_iter().for_each(|pipe| pool.put(pipe));
    assert_eq!(pool.trim(), 0, "all four were needed since the start");
    let pipe = pool.get().unwrap();
    pool.put(pipe);
    assert_eq!((pool.trim(), pool.pooled()), (3, 1));
    assert_eq!((pool.trim(), pool.pooled()), (1, 0), "an idle pool ends up empty");
    assert_eq!(pool.used_pages, 0);
}
