//! The time between "not ready" and the drain, in which balancers take this host out while nobody is refused.

use std::time::Instant;

use log::info;

use super::{EventLoop, Phase, limit};

impl EventLoop {
    /// Begins the delay before the drain, where the configuration has one; whether it has.
    pub(super) fn delays(&mut self, now: Instant) -> bool {
        let delay = self.process.fleet.plan().drain_delay;
        let Some(until) = now.checked_add(delay).filter(|_| !delay.is_zero()) else { return false };
        let limit = limit(Some(until), now);
        info!("not ready any more: accepting {limit} before it drains; a second signal cuts it short");
        self.notifier.stopping();
        self.abandon_upgrade();
        (self.process.draining, self.process.delaying) = (true, true);
        self.phase = Phase::Delaying { until };
        true
    }
}
