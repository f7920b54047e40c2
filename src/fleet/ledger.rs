//! The counters of every forward, whatever becomes of its editions and of the workers that count.
//!
//! A counter has one writer. So each worker has its own set for each book, and a book is closed, that is summed up and
//! given up, when no edition that counts in it is left.

use std::sync::Arc;

use std::time::Instant;

use crate::limits::ForwardLimits;
use crate::plan::{Arm, Forward};
use crate::stats::{ForwardSnapshot, ForwardStats};
use crate::upstream::{Checked, Targets};

/// All counters.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: Vec<Account>,
    /// Books by number; `None` is free.
    books: Vec<Option<Book>>,
    /// What forwards that are gone have counted.
    past: ForwardSnapshot,
    /// Workers that have counters.
    seats: usize,
}

/// A forward by its name.
#[derive(Debug)]
struct Account {
    forward: Arc<Forward>,
    limits: Arc<ForwardLimits>,
    targets: Arc<Targets>,
    /// The book of its present edition; the last one when it was removed.
    book: usize,
    /// No plan has it any more; open sessions go on.
    removed: bool,
    /// What its closed books held.
    past: ForwardSnapshot,
}

/// Counters that belong together: those of editions with the same arms.
#[derive(Debug)]
struct Book {
    name: String,
    arms: Vec<Arm>,
    workers: Vec<Arc<ForwardStats>>,
}

/// A forward with its counters, to be shown.
#[derive(Debug, Clone)]
pub struct ForwardView<'a> {
    /// What is configured, or was last.
    pub forward: &'a Forward,
    /// True when no plan has it any more and sessions of it are left.
    pub removed: bool,
    /// Its targets.
    pub targets: &'a Targets,
    /// Counters of all workers.
    pub stats: Vec<&'a ForwardStats>,
    /// Those of them that count for the present arms.
    pub arms: Vec<&'a ForwardStats>,
    /// What is to be added to them.
    pub past: Option<&'a ForwardSnapshot>,
}

impl Ledger {
    /// Makes room for workers.
    pub(super) fn seat(&mut self, seats: usize) {
        self.seats = self.seats.max(seats);
        for book in self.books.iter_mut().flatten() {
            book.workers.resize_with(self.seats, || Arc::new(ForwardStats::new(book.arms.len())));
        }
    }

    /// Limits, targets and book of a forward's new edition.
    pub(super) fn enter(
        &mut self,
        forward: &Arc<Forward>,
        begun: Instant,
    ) -> (Arc<ForwardLimits>, Arc<Targets>, usize) {
        let Some(at) = self.accounts.iter().position(|account| account.forward.name == forward.name) else {
            let limits = Arc::new(ForwardLimits::new(forward.max_connections, &forward.limits));
            let targets = Arc::new(Targets::new(&forward.name, begun));
            targets.update(forward);
            let book = self.open(forward);
            self.accounts.push(Account {
                forward: Arc::clone(forward),
                limits: Arc::clone(&limits),
                targets: Arc::clone(&targets),
                book,
                removed: false,
                past: ForwardSnapshot::default(),
            });
            return (limits, targets, book);
        };
        let present = self.accounts[at].book;
        let same = self.books[present].as_ref().is_some_and(|book| book.arms == forward.arms);
        let book = if same { present } else { self.open(forward) };
        let account = &mut self.accounts[at];
        account.limits.update(forward.max_connections, &forward.limits);
        account.targets.update(forward);
        (account.forward, account.book, account.removed) = (Arc::clone(forward), book, false);
        (Arc::clone(&account.limits), Arc::clone(&account.targets), book)
    }

    fn open(&mut self, forward: &Forward) -> usize {
        let arms = forward.arms.clone();
        let workers = (0..self.seats).map(|_| Arc::new(ForwardStats::new(arms.len()))).collect();
        let book = Book { name: forward.name.clone(), arms, workers };
        let free = self.books.iter().position(Option::is_none);
        match free {
            Some(number) => self.books[number] = Some(book),
            None => self.books.push(Some(book)),
        }
        free.unwrap_or(self.books.len() - 1)
    }

    /// A worker's counters in a book.
    pub(super) fn stats(&self, book: usize, seat: usize) -> Arc<ForwardStats> {
        let book = self.books[book].as_ref().expect("an edition's book is open");
        Arc::clone(&book.workers[seat])
    }

    /// Puts the accounts in the order of the plan; those it does not have are marked as removed.
    pub(super) fn sort(&mut self, order: &[Arc<Forward>]) {
        let place = |account: &Account| order.iter().position(|forward| forward.name == account.forward.name);
        for account in &mut self.accounts {
            account.removed = place(account).is_none();
        }
        self.accounts.sort_by_cached_key(|account| place(account).unwrap_or(usize::MAX));
    }

    /// Closes books no edition counts in any more; `live` has the books of all editions.
    pub(super) fn close(&mut self, live: &[usize]) {
        for number in 0..self.books.len() {
            if live.contains(&number) {
                continue;
            }
            let Some(book) = self.books[number].take() else { continue };
            let mut sum = ForwardSnapshot::default();
            book.workers.iter().for_each(|stats| sum.add(stats));
            match self.accounts.iter().position(|account| account.forward.name == book.name) {
                Some(at) if self.accounts[at].removed && self.accounts[at].book == number => {
                    self.past.merge(&self.accounts.remove(at).past);
                    self.past.merge(&sum);
                }
                Some(at) => self.accounts[at].past.merge(&sum),
                None => self.past.merge(&sum),
            }
        }
    }

    /// Every forward that is configured or has sessions.
    pub(super) fn views(&self) -> impl Iterator<Item = ForwardView<'_>> {
        self.accounts.iter().map(|account| {
            let own = self.books.iter().flatten().filter(|book| book.name == account.forward.name);
            ForwardView {
                forward: &account.forward,
                removed: account.removed,
                targets: &account.targets,
                stats: own.flat_map(|book| &book.workers).map(|stats| &**stats).collect(),
                arms: self.books[account.book].iter().flat_map(|book| &book.workers).map(|stats| &**stats).collect(),
                past: Some(&account.past),
            }
        })
    }

    /// The forwards whose targets are to be checked.
    pub(super) fn checked(&self) -> Vec<Checked> {
        let of = |account: &Account| {
            let Forward { balancing, sources, egress, .. } = &*account.forward;
            let (targets, on_down) = (Arc::clone(&account.targets), balancing.on_down);
            let (check, sources, egress) = (balancing.check.clone()?, sources.clone(), egress.clone());
            let transport = account.forward.checked_by();
            Some(Checked { targets, check, transport, on_down, sources, egress })
        };
        self.accounts.iter().filter(|account| !account.removed).filter_map(of).collect()
    }

    /// The limits of every forward.
    pub(super) fn limits(&self) -> impl Iterator<Item = &ForwardLimits> {
        self.accounts.iter().map(|account| &*account.limits)
    }

    /// What forwards that are gone have counted.
    pub(super) fn past(&self) -> &ForwardSnapshot {
        &self.past
    }

    /// Sessions open, of one worker or of all.
    pub(super) fn open_sessions(&self, seat: Option<usize>) -> u64 {
        let workers = |book: &Book| match seat {
            Some(seat) => book.workers.get(seat).map_or(0, |stats| stats.open.get()),
            None => book.workers.iter().map(|stats| stats.open.get()).sum(),
        };
        self.books.iter().flatten().map(workers).sum()
    }
}
