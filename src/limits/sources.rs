//! What each source of connections has: sessions, and tokens.
//!
//! The table is asked when a connection is accepted and when its session ends, under a lock that one part in sixteen of
//! the sources shares, and only where a limit per source is set. Moving bytes uses the source's own buckets, which a
//! session holds, without the table.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bucket::{Bucket, Meter};
use crate::address::Address;
use crate::plan::Rate;
use crate::stats::EndReason;

/// Parts with a lock of their own.
const SHARDS: usize = 16;
/// Stands for no limit.
const UNLIMITED: u64 = u64::MAX;
/// Entries a part keeps room for once it has shrunk.
const LEAST_ROOM: usize = 64;

/// Who a connection comes from: an IPv4 address or an IPv6 /64 network, which is what one customer or machine has at
/// its own disposal (RFC 6177, RFC 7421); or a user of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceKey {
    /// The address; also that of an IPv4-mapped one.
    V4(u32),
    /// The upper half of the address.
    V6(u64),
    /// A user of this host, connected to a unix socket.
    User(u32),
}

impl SourceKey {
    /// The source of a client.
    #[must_use]
    pub fn of(client: Address) -> Self {
        match client {
            Address::Ip(address) => address.ip().into(),
            Address::Caller(caller) => Self::User(caller.uid),
            // A named socket says nothing of who has it.
            Address::Unix(_) => Self::User(u32::MAX),
        }
    }
}

impl From<IpAddr> for SourceKey {
    fn from(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// Bytes of one source, shared by its sessions in all workers.
#[derive(Debug, Default)]
pub struct Source {
    pub(super) up: Bucket,
    pub(super) down: Bucket,
}

/// All sources that have a session or have lately had one, and what each may have.
#[derive(Debug)]
pub struct Sources {
    most: AtomicU64,
    /// New connections.
    pub(super) connections: Meter,
    /// Bytes, in each direction.
    pub(super) bytes: Meter,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<SourceKey, Entry>,
    /// Sources without a session, and when to look whether they can go: each at most once.
    leaving: VecDeque<(u64, SourceKey)>,
}

#[derive(Debug, Default)]
struct Entry {
    open: u64,
    connections: Bucket,
    bytes: Arc<Source>,
    is_leaving: bool,
}

impl Sources {
    /// So many sessions, connections and bytes per second for each source.
    #[must_use]
    pub fn new(most: Option<u64>, connections: Option<Rate>, bytes: Option<Rate>) -> Self {
        Self {
            most: AtomicU64::new(most.unwrap_or(UNLIMITED)),
            connections: Meter::new(connections),
            bytes: Meter::new(bytes),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Changes what each source may have. Sessions that began while there was no limit at all are not counted.
    pub fn update(&self, most: Option<u64>, connections: Option<Rate>, bytes: Option<Rate>) {
        self.most.store(most.unwrap_or(UNLIMITED), Ordering::Relaxed);
        let changed = [self.connections.update(connections), self.bytes.update(bytes)];
        if changed.contains(&true) {
            for shard in &self.shards {
                for entry in lock(shard).entries.values() {
                    entry.connections.reset();
                    entry.bytes.up.reset();
                    entry.bytes.down.reset();
                }
            }
        }
    }

    /// Whether any limit is set.
    #[must_use]
    pub fn are_limited(&self) -> bool {
        self.most.load(Ordering::Relaxed) != UNLIMITED || self.connections.is_set() || self.bytes.is_set()
    }

    /// Counts a new session of a source.
    ///
    /// # Errors
    /// Which limit it would break; nothing is counted then.
    pub fn enter(&self, key: SourceKey, now_ns: u64) -> Result<Arc<Source>, EndReason> {
        let mut shard = lock(self.shard(key));
        shard.sweep(self, now_ns);
        let entry = shard.entries.entry(key).or_default();
        if entry.open >= self.most.load(Ordering::Relaxed) {
            return Err(EndReason::Limit);
        }
        let speed = self.connections.speed();
        if speed.is_some_and(|speed| entry.connections.take(speed, now_ns).is_err()) {
            // Without a session it is on its way out already: it has got here by a session that has ended.
            return Err(EndReason::Rate);
        }
        entry.open += 1;
        Ok(Arc::clone(&entry.bytes))
    }

    /// A session of that source has ended.
    pub fn leave(&self, key: SourceKey, now_ns: u64) {
        let mut shard = lock(self.shard(key));
        shard.sweep(self, now_ns);
        let Some(entry) = shard.entries.get_mut(&key) else { return };
        entry.open = entry.open.saturating_sub(1);
        if entry.open > 0 || entry.is_leaving {
            return;
        }
        let full_ns = entry.full_at_ns(self);
        if full_ns <= now_ns {
            shard.remove(key);
        } else {
            entry.is_leaving = true;
            shard.leaving.push_back((full_ns, key));
        }
    }

    /// Sources that are known now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets sources that have no session and full buckets, also where no connection comes any more.
    pub fn sweep(&self, now_ns: u64) {
        for shard in &self.shards {
            lock(shard).sweep(self, now_ns);
        }
    }

    fn shard(&self, key: SourceKey) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

/// A panic while the lock is held is one of an allocation at most, and leaves whole entries.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    fn full_at_ns(&self, sources: &Sources) -> u64 {
        let bytes = [&self.bytes.up, &self.bytes.down].map(|bucket| bucket.full_at_ns(&sources.bytes));
        self.connections.full_at_ns(&sources.connections).max(bytes[0]).max(bytes[1])
    }
}

impl Shard {
    /// Forgets sources whose time has come. Each is looked at once for every session that was its last.
    fn sweep(&mut self, sources: &Sources, now_ns: u64) {
        while let Some((at_ns, key)) = self.leaving.front().copied() {
            if at_ns > now_ns {
                return;
            }
            self.leaving.pop_front();
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.is_leaving = false;
            if entry.open > 0 {
                continue;
            }
            let full_ns = entry.full_at_ns(sources);
            if full_ns <= now_ns {
                self.remove(key);
            } else {
                entry.is_leaving = true;
                self.leaving.push_back((full_ns, key));
            }
        }
    }

    fn remove(&mut self, key: SourceKey) {
        self.entries.remove(&key);
        if self.entries.capacity() > LEAST_ROOM && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(LEAST_ROOM.max(2 * self.entries.len()));
            self.leaving.shrink_to(LEAST_ROOM.max(2 * self.leaving.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket::BEGIN_NS;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn key(text: &str) -> SourceKey {
        SourceKey::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_address_or_a_network_is_one_source() {
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_ne!(key("0.0.0.0"), key("::"));
    }

    #[test]
    fn sessions_of_each_source_are_counted_apart() {
        let sources = Sources::new(Some(2), None, None);
        let (a, b) = (key("192.0.2.1"), key("192.0.2.2"));
        assert!(sources.are_limited() && !Sources::new(None, None, None).are_limited());
        for source in [a, b] {
            assert!(sources.enter(source, BEGIN_NS).is_ok());
            assert!(sources.enter(source, BEGIN_NS).is_ok());
            assert_eq!(sources.enter(source, BEGIN_NS).unwrap_err(), EndReason::Limit);
        }
        sources.leave(a, BEGIN_NS);
        assert!(sources.enter(a, BEGIN_NS).is_ok());
        assert_eq!(sources.len(), 2);
        for source in [a, a, b, b] {
            sources.leave(source, BEGIN_NS);
        }
        assert!(sources.is_empty(), "a source without a session or a bucket is forgotten at once");
    }

    #[test]
    fn a_source_is_remembered_until_its_bucket_is_full() {
        let rate = Rate { per_second: 2, burst: 2 };
        let sources = Sources::new(None, Some(rate), None);
        let source = key("192.0.2.1");
        for _ in 0..2 {
            assert!(sources.enter(source, BEGIN_NS).is_ok());
            sources.leave(source, BEGIN_NS);
        }
        assert_eq!(sources.enter(source, BEGIN_NS).unwrap_err(), EndReason::Rate);
        sources.sweep(BEGIN_NS + SECOND / 2);
        assert_eq!(sources.len(), 1, "forgotten now, it could come as if for the first time");
        assert!(sources.enter(source, BEGIN_NS + SECOND / 2).is_ok());
        sources.leave(source, BEGIN_NS + SECOND / 2);
        sources.sweep(BEGIN_NS + 2 * SECOND);
        assert!(sources.is_empty());
    }

    #[test]
    fn memory_follows_the_sources_that_are_there() {
        let rate = Rate { per_second: 10, burst: 10 };
        let sources = Sources::new(Some(5), Some(rate), Some(Rate { per_second: 1024, burst: 102 }));
        for n in 0..100_000u32 {
            let now = BEGIN_NS + u64::from(n) * 10_000_000;
            let source = SourceKey::V4(n);
            let bytes = sources.enter(source, now).unwrap();
            bytes.up.grant(sources.bytes.speed().unwrap(), now, 50, 50);
            sources.leave(source, now);
            // 100 come in a second, and each bucket is full again in a tenth of one.
            assert!(sources.len() <= 400, "{} at {n}", sources.len());
        }
        sources.sweep(BEGIN_NS + 2_000 * SECOND);
        assert!(sources.is_empty());
        let room: usize = sources.shards.iter().map(|shard| lock(shard).entries.capacity()).sum();
        assert!(room <= SHARDS * 8 * LEAST_ROOM, "{room}");
    }
}
