//! Finds sessions whose bytes wait for a side that takes none, and names them.
//!
//! A direction that holds bytes waits for its target: a source is only left unread for that reason. So nothing is
//! watched while bytes move: a session that holds some is looked at by its timer, every quarter of
//! [`Forward::stall_warning`], and has stalled once that time has passed with bytes held and none delivered.

use std::collections::HashMap;
use std::time::Duration;

use super::Worker;
use crate::address::Address;
use crate::plan::Forward;
use crate::session::{Session, millis};
use crate::stats::{ForwardStats, Side};

/// Lines a worker writes within [`WINDOW_MS`]; further stalls are summed up, for a backend that hangs stalls thousands.
const LINES: u64 = 10;
const WINDOW_MS: u64 = 10_000;

/// What a worker remembers of sessions that held bytes when they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    /// By slab key. Empty while nothing waits.
    watched: HashMap<usize, Watched>,
    /// When the present window of lines ends; 0 outside of one.
    window_ms: u64,
    lines: u64,
    more: u64,
}

/// A session.
#[derive(Debug, Default, Clone, Copy)]
struct Watched {
    /// Towards the backend, towards the client.
    ways: [Watch; 2],
    /// When it is looked at again; its timer may fire for another reason before.
    next_ms: u64,
}

/// One direction since it was first seen with bytes waiting.
#[derive(Debug, Default, Clone, Copy)]
struct Watch {
    /// Bytes delivered so far; any more is progress.
    delivered: u64,
    /// 0 while no bytes wait.
    since_ms: u64,
    reported: bool,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Nothing,
    /// Stalled, and not said before.
    Stalled {
        waited_ms: u64,
    },
}

impl Watch {
    fn look(&mut self, held: usize, delivered: u64, now_ms: u64, limit_ms: u64) -> Look {
        if held == 0 {
            *self = Self::default();
            return Look::Nothing;
        }
        if self.since_ms == 0 || self.delivered != delivered {
            *self = Self { delivered, since_ms: now_ms.max(1), reported: false };
        }
        let waited_ms = now_ms.saturating_sub(self.since_ms);
        if self.reported || waited_ms < limit_ms {
            return Look::Nothing;
        }
        self.reported = true;
        Look::Stalled { waited_ms }
    }
}

impl Stalls {
    /// When lines that were kept back are to be summed up; 0 while there are none.
    pub(super) fn summary_ms(&self) -> u64 {
        if self.more > 0 { self.window_ms } else { 0 }
    }

    /// Sums up what got no line of its own, once the window is over.
    pub(super) fn summarise(&mut self, now_ms: u64) {
        if self.window_ms == 0 || now_ms < self.window_ms {
            return;
        }
        if self.more > 0 {
            log::warn!("stalled: {} more within {} s", self.more, WINDOW_MS / 1000);
        }
        (self.window_ms, self.lines, self.more) = (0, 0, 0);
    }

    /// Whether one more line may be written.
    fn may_say(&mut self, now_ms: u64) -> bool {
        self.summarise(now_ms);
        if self.window_ms == 0 {
            self.window_ms = now_ms + WINDOW_MS;
        }
        self.lines += 1;
        self.more += u64::from(self.lines > LINES);
        self.lines <= LINES
    }

    /// A session has ended, or holds nothing any more.
    pub(super) fn forget(&mut self, key: usize, stats: &ForwardStats) {
        if self.watched.is_empty() {
            return;
        }
        for way in self.watched.remove(&key).unwrap_or_default().ways {
            stats.stalled.sub(u64::from(way.reported));
        }
    }
}

/// Between two looks: a quarter of the time, so that a stall is named at most that much late.
pub(super) fn period_ms(limit: Duration) -> u64 {
    (millis(limit) / 4).max(1)
}

impl Worker {
    /// Looks at a session whose timer has fired. It may end by that.
    pub(super) fn look_for_stall(&mut self, key: usize) {
        let now_ms = self.now_ms();
        let Some(session) = self.sessions.get_mut(key) else { return };
        let forward = session.origin().forward;
        let Some(limit) = self.parts.routes[forward].forward().stall_warning else { return };
        if self.stalls.watched.get(&key).is_some_and(|watched| now_ms < watched.next_ms) {
            return;
        }
        // The poller reports room only once a third of the send buffer is free (sk_stream_is_writeable in
        // include/net/sock.h), which takes a slow reader of a large buffer minutes. A send tells at once.
        if session.try_held() {
            self.drive(key);
        }
        let Some(session) = self.sessions.get(key) else { return };
        let (held, stats) = (session.held(), &self.parts.routes[forward].stats);
        if held == [0, 0] {
            return self.stalls.forget(key, stats);
        }
        let bytes = session.bytes();
        let delivered = [bytes.client_to_backend.total(), bytes.backend_to_client.total()];
        let Watched { ways: mut watches, .. } = self.stalls.watched.get(&key).copied().unwrap_or_default();
        for (i, side) in [Side::Backend, Side::Client].into_iter().enumerate() {
            let was = watches[i].reported;
            let look = watches[i].look(held[i], delivered[i], now_ms, millis(limit));
            if was && !watches[i].reported {
                stats.stalled.sub(1);
            }
            if let Look::Stalled { waited_ms } = look {
                stats.stalled.add(1);
                stats.stalls[side as usize].add(1);
                if self.stalls.may_say(now_ms) {
                    let plan = self.parts.routes[forward].forward();
                    let listener = plan.address(session.origin().listener);
                    say(session, plan, listener, (side, held[i]), waited_ms);
                }
            }
        }
        self.stalls.watched.insert(key, Watched { ways: watches, next_ms: now_ms + period_ms(limit) });
    }
}

fn say(session: &Session, plan: &Forward, listener: Option<Address>, (side, held): (Side, usize), waited_ms: u64) {
    let listener = listener.map_or("-".to_owned(), |listener| listener.to_string());
    let target = session.target().map_or("-".to_owned(), |target| target.to_string());
    let (direction, address) = match side {
        Side::Backend => ("up", target.clone()),
        Side::Client => ("down", session.origin().client.to_string()),
    };
    log::warn!(
        "stalled: forward={:?} client={} listener={listener} target={target} direction={direction} pending={held} \
         waited={:.1}s: the {} ({address}) takes no bytes",
        plan.name,
        session.origin().client,
        Duration::from_millis(waited_ms).as_secs_f64(),
        side.name(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_said_once_and_again_after_progress() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(10, 5, 1000, 400), Look::Nothing);
        assert_eq!(watch.look(10, 5, 1399, 400), Look::Nothing, "not early");
        assert_eq!(watch.look(10, 5, 1400, 400), Look::Stalled { waited_ms: 400 });
        assert_eq!(watch.look(10, 5, 9000, 400), Look::Nothing, "once");
        assert_eq!(watch.look(10, 6, 9100, 400), Look::Nothing, "it moved");
        assert!(!watch.reported);
        assert_eq!(watch.look(10, 6, 9500, 400), Look::Stalled { waited_ms: 400 });
        assert_eq!(watch.look(0, 16, 9600, 400), Look::Nothing);
        assert!(!watch.reported);
    }

    #[test]
    fn a_slow_target_is_no_stalled_one() {
        let mut watch = Watch::default();
        assert!((0..100).all(|i| watch.look(10, i, i * 399, 400) == Look::Nothing));
    }

    #[test]
    fn many_stalls_are_few_lines() {
        let mut stalls = Stalls::default();
        assert_eq!((0..50).filter(|i| stalls.may_say(1000 + i)).count(), 10);
        assert_eq!((stalls.more, stalls.summary_ms()), (40, 11_000));
        stalls.summarise(10_999);
        assert_eq!(stalls.more, 40);
        stalls.summarise(11_000);
        assert_eq!((stalls.more, stalls.summary_ms()), (0, 0));
        assert!(stalls.may_say(11_001));
    }

    #[test]
    fn what_is_forgotten_stalls_no_more() {
        let (mut stalls, stats) = (Stalls::default(), ForwardStats::default());
        let ways = [Watch { reported: true, ..Watch::default() }, Watch::default()];
        stalls.watched.insert(3, Watched { ways, next_ms: 0 });
        stats.stalled.add(1);
        stalls.forget(4, &stats);
        assert_eq!(stats.stalled.get(), 1);
        stalls.forget(3, &stats);
        assert_eq!((stats.stalled.get(), stalls.watched.len()), (0, 0));
    }
}
