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
mod tests;
