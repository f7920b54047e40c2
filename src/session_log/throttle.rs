//! Keeps a flood of failing sessions from filling the log: the first lines of a kind in a second are written, the rest
//! are summed up in one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::stats::EndReason;

/// Lines of one forward and reason in a window; the rest is counted.
const LINES: u64 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    Count,
}

/// Counts lines by forward and reason within a window.
#[derive(Debug)]
pub(super) struct Throttle {
    enabled: bool,
    window_end: Option<Instant>,
    seen: BTreeMap<(String, EndReason), u64>,
    suppressed: bool,
}

impl Throttle {
    /// Lets everything through unless `enabled`.
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, window_end: None, seen: BTreeMap::new(), suppressed: false }
    }

    /// Whether a session's line is written. Sessions that ended well always are. Summaries that are due must have
    /// been taken before.
    pub(super) fn admit(&mut self, forward: &str, reason: EndReason, now: Instant) -> Verdict {
        if !self.enabled || reason == EndReason::Done {
            return Verdict::Write;
        }
        self.window_end.get_or_insert(now + WINDOW);
        let seen = self.seen.entry((forward.to_owned(), reason)).or_default();
        *seen += 1;
        if *seen <= LINES {
            return Verdict::Write;
        }
        self.suppressed = true;
        Verdict::Count
    }

    /// When lines that were only counted are to be summed up; `None` while there are none.
    pub(super) fn summary_due(&self) -> Option<Instant> {
        if self.suppressed { self.window_end } else { None }
    }

    /// Forward, reason and number of the lines that were only counted, once the window is over or `at_once`.
    pub(super) fn take_summaries(&mut self, now: Instant, at_once: bool) -> Vec<(String, EndReason, u64)> {
        if !at_once && self.window_end.is_none_or(|end| now < end) {
            return Vec::new();
        }
        self.window_end = None;
        self.suppressed = false;
        let seen = std::mem::take(&mut self.seen);
        seen.into_iter()
            .filter(|(_, seen)| *seen > LINES)
            .map(|((forward, reason), seen)| (forward, reason, seen - LINES))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_errors_are_summed_up_by_kind() {
        let mut throttle = Throttle::new(true);
        let now = Instant::now();
        let written = |throttle: &mut Throttle, forward, reason, n, now| {
            (0..n).filter(|_| throttle.admit(forward, reason, now) == Verdict::Write).count()
        };
        assert_eq!(written(&mut throttle, "a", EndReason::Refused, 25, now), 10);
        assert_eq!(written(&mut throttle, "b", EndReason::Refused, 10, now), 10);
        assert_eq!(written(&mut throttle, "a", EndReason::Denied, 11, now), 10);
        assert_eq!(written(&mut throttle, "a", EndReason::Done, 1000, now), 1000);
        assert_eq!(throttle.take_summaries(now, false), []);
        let due = throttle.summary_due().unwrap();
        assert_eq!(due, now + WINDOW);
        let sums = [("a".to_owned(), EndReason::Refused, 15), ("a".to_owned(), EndReason::Denied, 1)];
        assert_eq!(throttle.take_summaries(due, false), sums);
        assert_eq!(throttle.summary_due(), None);
        assert_eq!(written(&mut throttle, "a", EndReason::Refused, 11, due), 10, "a new window");
        assert_eq!(throttle.take_summaries(due, true), [("a".to_owned(), EndReason::Refused, 1)]);
    }

    #[test]
    fn records_for_programs_are_complete() {
        let mut throttle = Throttle::new(false);
        let now = Instant::now();
        assert!((0..1000).all(|_| throttle.admit("a", EndReason::Refused, now) == Verdict::Write));
        assert_eq!(throttle.summary_due(), None);
    }
}
