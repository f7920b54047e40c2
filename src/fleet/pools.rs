//! How the pipes of the process are divided: a pool per pipe size in each worker.

use std::collections::BTreeSet;

use crate::plan::Plan;
use crate::sys::pipes::{Limits, PipeBudget};

/// The pools of every worker, by number.
#[derive(Debug, Clone, Default)]
pub(super) struct Pools {
    /// The pipe size each has; a size of the plan, or one sessions of an older plan still use.
    sizes: Vec<Option<usize>>,
    budgets: Vec<PipeBudget>,
    /// Numbers of those the plan uses.
    used: Vec<usize>,
    divided_by: usize,
}

impl Pools {
    /// The pools of another plan, or of another number of workers. `in_use` tells of pools with sessions.
    pub(super) fn change(&mut self, limits: &Limits, plan: &Plan, workers: usize, in_use: impl Fn(usize) -> bool) {
        let sizes: BTreeSet<Option<usize>> = plan.forwards.iter().map(|forward| forward.pipe_size).collect();
        // Every pool takes from the same limits: each size gets its share of them.
        let divided_by = workers * sizes.len();
        let mut used = Vec::new();
        let redo = divided_by != self.divided_by;
        let mut open: Vec<Option<usize>> = Vec::new();
        for size in &sizes {
            match self.sizes.iter().position(|other| other == size) {
                Some(number) => used.push(number),
                None => open.push(*size),
            }
        }
        if redo {
            used.iter().for_each(|n| self.budgets[*n] = PipeBudget::from_limits(limits, self.sizes[*n], divided_by));
        }
        for size in open {
            let budget = PipeBudget::from_limits(limits, size, divided_by);
            match (0..self.sizes.len()).find(|number| !used.contains(number) && !in_use(*number)) {
                Some(number) => {
                    (self.sizes[number], self.budgets[number]) = (size, budget);
                    used.push(number);
                }
                None => {
                    used.push(self.sizes.len());
                    self.sizes.push(size);
                    self.budgets.push(budget);
                }
            }
        }
        (self.used, self.divided_by) = (used, divided_by);
    }

    /// Number of the pool with that pipe size.
    pub(super) fn number(&self, size: Option<usize>) -> usize {
        self.used.iter().copied().find(|number| self.sizes[*number] == size).unwrap_or(0)
    }

    /// A worker's part of each.
    pub(super) fn budgets(&self) -> &[PipeBudget] {
        &self.budgets
    }

    /// How many pipes there may be, for people.
    pub(super) fn describe(&self) -> String {
        let used: Vec<String> = self.used.iter().map(|number| self.budgets[*number].to_string()).collect();
        used.join("; ")
    }
}
