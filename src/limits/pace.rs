//! Byte rates: when a direction may take how many bytes.
//!
//! A direction that wants bytes asks the buckets of its source and of its forward before it fills. What they give at once
//! caps the length of the next fills, by either path, so splice stays splice. Where nothing is there it gets a portion
//! for later: the session's timer wakes it then, and nobody asks in between. Portions are given in the order they were
//! asked for, over all workers, so that every direction has its share. What a direction was given and did not use goes
//! back.

use std::sync::Arc;

use super::bucket::{BEGIN_NS, Bucket, Grant, Meter, Speed};
use super::sources::{Source, SourceKey};
use super::{ForwardLimits, clock_ns};
use crate::pump::Direction;

/// Part of a second that a portion is worth. Waiting directions have the rate one after the other, so a shorter portion
/// is a shorter turn for each, and a longer one fewer system calls.
const PORTIONS: u64 = 256;
/// Bytes of a portion, at the least and at the most.
const LEAST_PORTION: usize = 512;
const MOST_PORTION: usize = 1024 * 1024;

/// What a session holds of limits per source.
#[derive(Debug)]
pub struct Ticket {
    pub(super) key: SourceKey,
    /// Counted in the table of the process.
    pub(super) of_process: bool,
    /// Counted in the table of its forward: the buckets of its source there.
    pub(super) of_forward: Option<Arc<Source>>,
}

/// Bytes for later.
#[derive(Debug, Clone, Copy, Default)]
struct Booking {
    at_ns: u64,
    /// 0 for none.
    bytes: u32,
    /// The forward's bucket has given them too, not only the source's.
    is_whole: bool,
}

/// What one session holds.
#[derive(Debug, Default)]
pub(super) struct Pass {
    ticket: Option<Box<Ticket>>,
    up: Booking,
    down: Booking,
}

/// What the sessions of one worker hold, by slab key. It stays empty, and costs nothing, until a limit needs it.
#[derive(Debug, Default)]
pub struct Passes {
    passes: Vec<Pass>,
}

/// One session's pass for a turn.
#[derive(Debug)]
pub struct Pace<'a> {
    pass: &'a mut Pass,
    limits: &'a ForwardLimits,
    now_ns: u64,
    /// Times a direction has begun to wait.
    waits: u64,
}

impl Passes {
    /// A session begins.
    pub fn begin(&mut self, key: usize, ticket: Option<Box<Ticket>>) {
        if ticket.is_some() || key < self.passes.len() {
            *self.pass(key) = Pass { ticket, ..Pass::default() };
        }
    }

    /// A session has ended: what it had booked goes back to the others.
    pub fn end(&mut self, key: usize, limits: &ForwardLimits) -> Option<Box<Ticket>> {
        let mut pass = std::mem::take(self.passes.get_mut(key)?);
        for direction in [Direction::Up, Direction::Down] {
            let booking = std::mem::take(pass.booking(direction));
            Pace { pass: &mut pass, limits, now_ns: 0, waits: 0 }.give_back(direction, booking);
        }
        pass.ticket
    }

    /// What a session may do in this turn, where its forward has a byte rate.
    pub fn pace<'a>(&'a mut self, key: usize, limits: &'a ForwardLimits, now_us: u64) -> Option<Pace<'a>> {
        limits.has_byte_rate().then(|| Pace { pass: self.pass(key), limits, now_ns: clock_ns(now_us), waits: 0 })
    }

    /// When a session that waits for bytes of its rate goes on, in milliseconds of the worker's clock.
    #[must_use]
    pub fn wake_ms(&self, key: usize) -> Option<u64> {
        let pass = self.passes.get(key)?;
        let booked = [pass.up, pass.down].into_iter().filter(|booking| booking.bytes > 0);
        booked.map(|booking| booking.at_ns.saturating_sub(BEGIN_NS).div_ceil(1_000_000)).min()
    }

    /// Forgets every booking, because the rates they were made at have changed. The keys of the sessions that had one.
    pub fn forget_bookings(&mut self) -> Vec<usize> {
        let mut waited = Vec::new();
        for (key, pass) in self.passes.iter_mut().enumerate() {
            if pass.up.bytes > 0 || pass.down.bytes > 0 {
                (pass.up, pass.down) = (Booking::default(), Booking::default());
                waited.push(key);
            }
        }
        waited
    }

    fn pass(&mut self, key: usize) -> &mut Pass {
        if key >= self.passes.len() {
            self.passes.resize_with(key + 1, Pass::default);
        }
        &mut self.passes[key]
    }
}

impl ForwardLimits {
    /// Takes bytes that cannot wait, of a source and of the forward; false when one of them has none left.
    #[must_use]
    pub fn lets_pass(&self, ticket: Option<&Ticket>, direction: Direction, bytes: usize, now_us: u64) -> bool {
        if !self.has_byte_rate() {
            return true;
        }
        let now_ns = clock_ns(now_us);
        let (up, down) = (direction == Direction::Up, &self.down);
        let of_source = ticket.and_then(|ticket| ticket.of_forward.as_ref());
        let of_source = of_source.and_then(|s| limited(if up { &s.up } else { &s.down }, &self.sources.bytes));
        let of_forward = limited(if up { &self.up } else { down }, &self.bytes);
        if of_source.is_some_and(|(bucket, speed)| !bucket.take_all(speed, now_ns, bytes)) {
            return false;
        }
        let passes = of_forward.is_none_or(|(bucket, speed)| bucket.take_all(speed, now_ns, bytes));
        if let (false, Some((bucket, speed))) = (passes, of_source) {
            bucket.refund(speed, bytes);
        }
        passes
    }
}

impl Pass {
    fn booking(&mut self, direction: Direction) -> &mut Booking {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

/// A bucket that has a limit, and its limit.
type Limited<'a> = Option<(&'a Bucket, Speed)>;

fn limited<'a>(bucket: &'a Bucket, meter: &Meter) -> Limited<'a> {
    meter.speed().map(|speed| (bucket, speed))
}

fn portion(speed: Speed) -> usize {
    usize::try_from(speed.per_second() / PORTIONS).unwrap_or(MOST_PORTION).clamp(LEAST_PORTION, MOST_PORTION)
}

impl Pace<'_> {
    /// Bytes a direction may take now, up to `wanted`; 0 when it has to wait.
    pub fn allowance(&mut self, direction: Direction, wanted: usize) -> usize {
        let booking = *self.pass.booking(direction);
        if booking.bytes == 0 {
            return self.ask(direction, wanted);
        }
        if booking.at_ns > self.now_ns {
            return 0;
        }
        *self.pass.booking(direction) = Booking::default();
        match (booking.bytes as usize, booking.is_whole) {
            (bytes, true) => bytes,
            (bytes, false) => self.ask_forward(direction, bytes),
        }
    }

    /// A direction stops for this turn with `unused` bytes of its allowance. If it wants more than it had, it gets them
    /// now or books them; true when it may go on without waiting.
    pub fn settle(&mut self, direction: Direction, unused: usize, wanted: usize) -> bool {
        self.give_back(direction, Booking { at_ns: 0, bytes: unused.min(u32::MAX as usize) as u32, is_whole: true });
        if wanted == 0 {
            return false;
        }
        let more = self.ask(direction, wanted);
        if more > 0 {
            // At hand: the next turn begins with them.
            let bytes = more.min(u32::MAX as usize) as u32;
            *self.pass.booking(direction) = Booking { at_ns: self.now_ns, bytes, is_whole: true };
        }
        more > 0
    }

    /// Counts bytes that were moved without asking: those who ask later wait for them too.
    pub fn charge(&mut self, direction: Direction, bytes: usize) {
        for (bucket, speed) in [self.of_source(direction), self.of_forward(direction)].into_iter().flatten() {
            let _ = bucket.grant(speed, self.now_ns, bytes, bytes);
        }
    }

    /// Times a direction has begun to wait in this turn.
    #[must_use]
    pub fn waits(&self) -> u64 {
        self.waits
    }

    /// First the source's bucket: where that makes it wait, the forward's is left to others until then.
    fn ask(&mut self, direction: Direction, wanted: usize) -> usize {
        let wanted = wanted.min(u32::MAX as usize);
        let Some((bucket, speed)) = self.of_source(direction) else { return self.ask_forward(direction, wanted) };
        let grant = bucket.grant(speed, self.now_ns, wanted, portion(speed));
        if grant.at_ns > self.now_ns {
            return self.book(direction, grant, false);
        }
        self.ask_forward(direction, grant.tokens)
    }

    fn ask_forward(&mut self, direction: Direction, wanted: usize) -> usize {
        let Some((bucket, speed)) = self.of_forward(direction) else { return wanted };
        let grant = bucket.grant(speed, self.now_ns, wanted, portion(speed));
        if let Some((bucket, speed)) = self.of_source(direction) {
            bucket.refund(speed, wanted - grant.tokens);
        }
        if grant.at_ns <= self.now_ns {
            return grant.tokens;
        }
        self.book(direction, grant, true)
    }

    fn book(&mut self, direction: Direction, grant: Grant, is_whole: bool) -> usize {
        self.waits += 1;
        *self.pass.booking(direction) = Booking { at_ns: grant.at_ns, bytes: grant.tokens as u32, is_whole };
        0
    }

    fn give_back(&self, direction: Direction, booking: Booking) {
        if let Some((bucket, speed)) = self.of_source(direction) {
            bucket.refund(speed, booking.bytes as usize);
        }
        if let Some((bucket, speed)) = self.of_forward(direction)
            && booking.is_whole
        {
            bucket.refund(speed, booking.bytes as usize);
        }
    }

    fn of_source(&self, direction: Direction) -> Limited<'_> {
        let source = self.pass.ticket.as_ref()?.of_forward.as_ref()?;
        let bucket = match direction {
            Direction::Up => &source.up,
            Direction::Down => &source.down,
        };
        limited(bucket, &self.limits.sources.bytes)
    }

    fn of_forward(&self, direction: Direction) -> Limited<'_> {
        let bucket = match direction {
            Direction::Up => &self.limits.up,
            Direction::Down => &self.limits.down,
        };
        limited(bucket, &self.limits.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Limits, Rate};

    const MIB: u64 = 1 << 20;

    fn limits(rate: Option<u64>, per_source: Option<u64>) -> ForwardLimits {
        let of = |rate: Option<u64>| rate.map(|per_second| Rate { per_second, burst: per_second / 10 });
        let limits = Limits { rate: of(rate), rate_per_source: of(per_source), ..Limits::default() };
        ForwardLimits::new(None, &limits)
    }

    fn ticket(limits: &ForwardLimits, client: &str) -> Option<Box<Ticket>> {
        let key = SourceKey::of(client.parse().unwrap());
        let source = limits.sources.enter(key, BEGIN_NS).unwrap();
        Some(Box::new(Ticket { key, of_process: false, of_forward: Some(source) }))
    }

    /// Lets sessions take all they may for a time, in turns as a worker does, and wakes each only when it asked to be;
    /// bytes each got, and wakes.
    fn run(passes: &mut Passes, limits: &ForwardLimits, sessions: usize, ms: u64) -> (Vec<u64>, u64) {
        let (mut got, mut wakes, mut wake_at) = (vec![0; sessions], 0, vec![0; sessions]);
        for now_ms in 0..ms {
            let mut awake: Vec<usize> = (0..sessions).filter(|key| wake_at[*key] <= now_ms).collect();
            if now_ms / 32 % 2 == 0 {
                awake.reverse();
            }
            wakes += awake.len() as u64;
            while !awake.is_empty() {
                awake.retain(|key| {
                    let mut pace = passes.pace(*key, limits, now_ms * 1000).unwrap();
                    let allowed = pace.allowance(Direction::Up, 1 << 20);
                    got[*key] += allowed as u64;
                    let goes_on = allowed > 0 && pace.settle(Direction::Up, 0, 1 << 20);
                    // As the wheel does: no earlier, and up to a tick later.
                    wake_at[*key] = passes.wake_ms(*key).unwrap().div_ceil(32) * 32;
                    goes_on
                });
            }
        }
        (got, wakes)
    }

    fn within(what: &str, value: u64, expected: u64, percent: u64) {
        assert!(value.abs_diff(expected) * 100 <= expected * percent, "{what}: {value}, expected {expected}");
    }

    #[test]
    fn one_or_many_sessions_have_the_rate_in_equal_shares() {
        for (rate, sessions) in
            [(10 * MIB, 1), (10 * MIB, 2), (10 * MIB, 50), (1 << 30, 50), (64 << 10, 1), (64 << 10, 10)]
        {
            let (limits, mut passes) = (limits(Some(rate), None), Passes::default());
            let (got, wakes) = run(&mut passes, &limits, sessions, 10_000);
            within(&format!("{sessions} at {rate} B/s"), got.iter().sum(), 10 * rate, 3);
            for bytes in &got {
                // Whoever comes first has the burst for itself.
                let (share, burst) = (10 * rate / sessions as u64, rate / 10);
                let fair = share * 70 / 100..=share * 130 / 100 + burst;
                assert!(fair.contains(bytes), "{bytes} for one of {sessions} at {rate} B/s, allowed are {fair:?}");
            }
            assert!(wakes <= sessions as u64 * 10_000 / 32 + sessions as u64, "{wakes} wakes of {sessions}");
        }
    }

    #[test]
    fn the_tighter_of_two_limits_holds() {
        // Two sources with three and one sessions, each source with a quarter of the forward's rate.
        let (limits, mut passes) = (limits(Some(4 * MIB), Some(MIB)), Passes::default());
        for (key, client) in ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"].into_iter().enumerate() {
            passes.begin(key, ticket(&limits, client));
        }
        let (got, _) = run(&mut passes, &limits, 4, 10_000);
        within("the first source", got[..3].iter().sum(), 10 * MIB, 3);
        within("the second source", got[3], 10 * MIB, 3);
        // And where the forward is the tighter one.
        let (limits, mut passes) = (self::limits(Some(MIB), Some(4 * MIB)), Passes::default());
        for key in 0..4 {
            passes.begin(key, ticket(&limits, "192.0.2.1"));
        }
        let (got, _) = run(&mut passes, &limits, 4, 10_000);
        within("the forward", got.iter().sum(), 10 * MIB, 3);
    }

    #[test]
    fn what_is_not_used_goes_back() {
        let (limits, mut passes) = (limits(Some(MIB), Some(MIB)), Passes::default());
        passes.begin(0, ticket(&limits, "192.0.2.1"));
        for _ in 0..1000 {
            let mut pace = passes.pace(0, &limits, 0).unwrap();
            let allowed = pace.allowance(Direction::Down, 1 << 20);
            assert!(allowed > 64, "a session that takes little never waits");
            pace.settle(Direction::Down, allowed - 64, 0);
        }
        // A session that ends while it waits leaves its portion to others.
        let booked = |passes: &mut Passes| {
            let mut pace = passes.pace(0, &limits, 0).unwrap();
            while pace.allowance(Direction::Down, 1 << 20) > 0 {}
            passes.wake_ms(0).unwrap()
        };
        let first = booked(&mut passes);
        assert!(passes.end(0, &limits).is_some());
        assert_eq!(passes.wake_ms(0), None);
        passes.begin(0, ticket(&limits, "192.0.2.1"));
        assert_eq!(booked(&mut passes), first);
        assert_eq!(passes.forget_bookings(), [0]);
        assert_eq!(passes.wake_ms(0), None);
    }

    #[test]
    fn without_limits_nothing_is_kept() {
        let (limits, mut passes) = (limits(None, None), Passes::default());
        passes.begin(7, None);
        assert!(passes.pace(7, &limits, 0).is_none());
        assert!(passes.end(7, &limits).is_none());
        assert_eq!(passes.passes.capacity(), 0);
    }
}
