//! The pipes of one worker.

use crate::budget::PipeBudget;
use crate::pipe::{NoPipe, Pipe};

/// Empty pipes kept at most; making and closing one costs 7 to 10 µs, keeping it two descriptors and its pages.
const KEEP: usize = 64;
/// Pipes handed out at the size wanted before a lowered size is doubled again.
const GROW_AFTER: u32 = 64;
/// Calls of [`PipePool::get`] answered without asking the kernel after it gave no pipe: doubles from the first to the
/// second number while it goes on refusing. A direction that copies asks on every burst, so this is soon over.
const SKIP: (u32, u32) = (4, 1024);

/// A worker's part of the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Pipes at once.
    pub(crate) limit: usize,
    /// Pages of all pipes together.
    pub(crate) pages: usize,
    /// Bytes of the largest pipe, a power of two.
    pub(crate) full: usize,
    /// Bytes of the smallest pipe.
    pub(crate) floor: usize,
    /// Bytes of one page.
    pub(crate) page: usize,
}

impl Share {
    /// Size of a new pipe, in bytes, when `used` pages are taken: at most half of what is left of the first half of the
    /// share, so that pipes above the smallest size never take more than that half; the other is for 64 KiB pipes.
    pub(crate) fn size_at(&self, used: usize) -> usize {
        let left = (self.pages / 2).saturating_sub(used) / 2;
        let fits = if left == 0 { 0 } else { self.page.saturating_mul(1 << left.ilog2()) };
        fits.clamp(self.floor, self.full.max(self.floor))
    }
}

/// The pipes of one worker: last in first out, bounded, no lock, no clock.
///
/// The share is counted in pages, like the kernel's own limit. A new pipe has full size while little of the share is in
/// use; its size halves step by step as the first half of the share fills up, and from there on pipes have 64 KiB,
/// until nothing is left and [`PipePool::get`] says [`NoPipe::Budget`]. When more than three quarters of the share are
/// taken, a larger pipe is shrunk as it comes back, to make room for several small ones; a small pipe grows again as it
/// goes out while there is room. So the number of pipes goes towards [`PipePool::limit`] under load that lasts, and
/// back to few, large pipes after it.
///
/// When the kernel gives less than it was asked for, because other processes of the user hold pipes as well, the pool
/// asks for half from then on, and for more again after a run of successes. When it gives nothing, the next few calls
/// are answered without asking.
#[derive(Debug)]
pub struct PipePool {
    idle: Vec<Pipe>,
    /// Fewest pipes that were idle at once since [`PipePool::trim`].
    spare: usize,
    in_use: usize,
    used_pages: usize,
    share: Share,
    /// Bytes the kernel is asked for at most.
    ask: usize,
    /// Pipes handed out at the size wanted since `ask` last changed.
    good: u32,
    refusal: Option<Refusal>,
}

/// The kernel gave no pipe the last time.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    why: NoPipe,
    /// Calls still to be answered with `why`.
    left: u32,
    /// Calls answered that way in this round.
    round: u32,
}

impl PipePool {
    pub(crate) fn new(share: Share) -> Self {
        let keep = share.limit.min(KEEP);
        Self {
            idle: Vec::with_capacity(keep),
            spare: 0,
            in_use: 0,
            used_pages: 0,
            share,
            ask: share.full,
            good: 0,
            refusal: None,
        }
    }

    /// An empty pipe: the one put back last, else a new one.
    ///
    /// Give it back with [`PipePool::put`], also when it still holds bytes: a pipe that is only dropped counts as in
    /// use for ever.
    ///
    /// # Errors
    /// [`NoPipe`]: copy for now, ask again with the next burst.
    pub fn get(&mut self) -> Result<Pipe, NoPipe> {
        if let Some(mut pipe) = self.idle.pop() {
            self.in_use += 1;
            self.spare = self.spare.min(self.idle.len());
            self.grow(&mut pipe);
            return Ok(pipe);
        }
        let left = self.share.pages.saturating_sub(self.used_pages);
        if self.in_use >= self.share.limit || left < self.share.floor / self.share.page {
            return Err(NoPipe::Budget);
        }
        if let Some(refusal) = self.refusal.as_mut().filter(|refusal| refusal.left > 0) {
            refusal.left -= 1;
            return Err(refusal.why);
        }
        let wanted = self.share.size_at(self.used_pages).min(self.ask);
        let pipe = Pipe::new(wanted).inspect_err(|why| self.refused(*why, wanted))?;
        self.refusal = None;
        self.learn(wanted, pipe.size());
        self.in_use += 1;
        self.used_pages += self.pages_of(&pipe);
        Ok(pipe)
    }

    /// Takes a pipe back that came from [`PipePool::get`] of this pool. One that holds bytes is closed, never
    /// pooled: they would reach another connection.
    pub fn put(&mut self, mut pipe: Pipe) {
        debug_assert!(self.in_use > 0, "a pipe came back that this pool never gave");
        self.in_use = self.in_use.saturating_sub(1);
        let pages = self.pages_of(&pipe);
        if !pipe.is_empty() || self.idle.len() >= self.share.limit.min(KEEP) {
            self.used_pages = self.used_pages.saturating_sub(pages);
            return;
        }
        if pipe.size() > self.share.floor && self.used_pages > self.share.pages / 4 * 3 {
            pipe.resize(self.share.floor);
            self.used_pages = self.used_pages.saturating_sub(pages) + self.pages_of(&pipe);
        }
        self.idle.push(pipe);
    }

    /// Has another share from now on, such as when there are more workers. Pipes that are in use stay; while there are
    /// more of them than the new share allows, no other is given.
    pub fn share_anew(&mut self, budget: &PipeBudget) {
        let share = budget.share();
        if share == self.share {
            return;
        }
        self.clear();
        self.share = share;
        self.ask = share.full;
        self.good = 0;
        self.refusal = None;
    }

    /// Stops counting a pipe that came from [`PipePool::get`] of this pool and is handed to another pool together with
    /// the bytes it holds, which must [`adopt`](PipePool::adopt) it.
    pub fn release(&mut self, pipe: &Pipe) {
        debug_assert!(self.in_use > 0, "a pipe leaves that this pool never gave");
        self.in_use = self.in_use.saturating_sub(1);
        self.used_pages = self.used_pages.saturating_sub(self.pages_of(pipe));
    }

    /// Counts a pipe another pool has [released](PipePool::release) as if it came from this one, even beyond the limit:
    /// the bytes in it have no other place to go. Then fewer new ones are handed out until it comes back.
    pub fn adopt(&mut self, pipe: &Pipe) {
        self.in_use += 1;
        self.used_pages += self.pages_of(pipe);
    }

    /// Closes every pooled pipe and says how many: two descriptors each, for whoever has run out of them.
    pub fn clear(&mut self) -> usize {
        self.spare = self.idle.len();
        self.trim()
    }

    /// Closes the pipes nobody has needed since the last call and says how many. Called from time to time, it lets an
    /// idle worker end up without a pipe and leaves a busy one those it needs.
    pub fn trim(&mut self) -> usize {
        let spare = self.spare.min(self.idle.len());
        // From the bottom: the top ones are the warm ones.
        let pages: usize = self.idle.drain(..spare).map(|pipe| pipe.size() / self.share.page).sum();
        self.used_pages = self.used_pages.saturating_sub(pages);
        self.spare = self.idle.len();
        spare
    }

    /// Pipes handed out and not yet put back.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Empty pipes kept for the next burst.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.idle.len()
    }

    /// The most pipes there may be at once, in use and pooled together.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.share.limit
    }

    /// Bytes of the largest pipe it would ask the kernel for: the budget's size, less while the kernel refuses that.
    #[must_use]
    pub fn size(&self) -> usize {
        self.ask
    }

    fn pages_of(&self, pipe: &Pipe) -> usize {
        pipe.size() / self.share.page
    }

    /// Brings a pipe that is about to be handed out again to the size a new one would have, if that is larger.
    fn grow(&mut self, pipe: &mut Pipe) {
        let others = self.used_pages.saturating_sub(self.pages_of(pipe));
        let wanted = self.share.size_at(others).min(self.ask);
        if wanted > pipe.size() {
            pipe.resize(wanted);
            self.used_pages = others + self.pages_of(pipe);
        }
        self.learn(wanted, pipe.size());
    }

    fn refused(&mut self, why: NoPipe, wanted: usize) {
        if why == NoPipe::Budget {
            self.learn(wanted, 0);
        }
        let round = self.refusal.map_or(SKIP.0, |refusal| refusal.round.saturating_mul(2).min(SKIP.1));
        self.refusal = Some(Refusal { why, left: round, round });
    }

    /// Adapts what the kernel is asked for to what it gave.
    fn learn(&mut self, wanted: usize, got: usize) {
        if got < wanted {
            self.ask = (wanted / 2).max(self.share.floor);
            self.good = 0;
        } else if self.ask < self.share.full {
            self.good += 1;
            if self.good >= GROW_AFTER {
                self.ask = self.ask.saturating_mul(2).min(self.share.full);
                self.good = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
}
