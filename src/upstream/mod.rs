//! Where a session goes: the targets of one forward as one worker sees them.
//!
//! In reading order: `endpoint` is one address of a target, shared by all workers; `targets` all of a forward; `balance`
//! the arithmetic of choosing; here is the choice itself, each worker's own, so that it takes no lock.
//!
//! The order of a choice: targets that work, then backups that work, then waiting for room where all of these are full,
//! and last, rather than turning a session away, those that are ejected or found down. A target that was drained or
//! disabled by command gets no session in any case.

mod balance;
mod check;
mod endpoint;
mod source;
mod targets;
mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::balance::{Candidate, Random};
pub use self::check::{Checked, Checker, News};
pub use self::endpoint::{Admin, Endpoint, Lease, State};
pub use self::source::SourcePool;
pub use self::targets::{Command, TargetView, Targets};
pub use self::trace::{Hop, Trace};
use crate::address::{Address, Place};
use crate::names::{self, Entry};
use crate::plan::{Balance, Forward, Health, Host, Target};

/// A weight of 1 in full, so that a slow start has steps.
const FULL: u64 = 1024;

/// Targets with their addresses. Every worker has its own.
#[derive(Debug)]
pub struct Upstreams {
    shared: Arc<Targets>,
    balance: Balance,
    health: Option<Health>,
    targets: Vec<Target>,
    members: Vec<Member>,
    /// Some name has addresses of both families.
    is_mixed: bool,
    /// Used anew for each choice.
    candidates: Vec<Candidate>,
    random: Random,
    turn: usize,
}

/// One address of a target.
#[derive(Debug)]
struct Member {
    endpoint: Arc<Endpoint>,
    /// Its target's place among those of the forward.
    target: usize,
    weight: u64,
    /// How many better priorities a service has; 0 is the best, and that of any other target.
    level: u16,
    backup: bool,
    most: Option<u64>,
    slow_start_ms: u64,
    /// Smooth weighted round robin: grows by the weight a pick, the largest wins and pays the sum of all weights.
    credit: i64,
}

/// Who asks for a target.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The client's address.
    pub client: Address,
    /// The listener's place in its range.
    pub port_offset: u16,
    /// Addresses that have been tried, by [`Endpoint::id`].
    pub tried: &'a [u32],
    /// Only addresses of the other family of the same name, which work.
    pub rival_of: Option<Rival>,
    /// The turn's clock reading, in milliseconds.
    pub now_ms: u64,
}

/// An address as far as its rivals are told by it: those of the other family of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    target: usize,
    is_ipv4: bool,
}

/// What a session is told.
#[derive(Debug)]
pub enum Pick {
    /// To connect there.
    To {
        /// Its hold of the address.
        lease: Lease,
        /// The address with the port.
        address: Address,
        /// How many others are left to try.
        left: u32,
        /// Its rivals, where it may have some.
        rival: Option<Rival>,
    },
    /// Every target that works has as many sessions as it may have.
    Full,
    /// No name has an address yet.
    Unresolved,
    /// All have been tried, or take no sessions.
    Nothing,
}

/// In the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Good,
    /// The other family of its name was faster.
    Slow,
    /// By the level its service gives it.
    Backup(u16),
    Full,
    Out,
    OutBackup(u16),
    Never,
}

impl Member {
    fn new(endpoint: Arc<Endpoint>, index: usize, target: &Target, entry: Option<Entry>) -> Self {
        let mut member = Self {
            endpoint,
            target: index,
            weight: 1,
            level: 0,
            backup: false,
            most: target.max_connections,
            slow_start_ms: target.slow_start.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            credit: 0,
        };
        member.set_entry(target, entry);
        member
    }

    /// Takes what the record of a service says, which goes before what the target says.
    fn set_entry(&mut self, target: &Target, entry: Option<Entry>) {
        self.weight = entry.map_or(target.weight, |entry| entry.weight).into();
        self.level = entry.map_or(0, |entry| entry.level);
        self.backup = target.backup || self.level > 0;
        entry.into_iter().for_each(|entry| self.endpoint.set_entry(entry));
    }

    fn is_at(&self, place: &names::Place) -> bool {
        self.endpoint.place() == Place::Ip(place.ip)
            && place.entry.is_none_or(|entry| self.endpoint.ports().first == entry.port)
    }

    fn rank(&self, ask: &Ask<'_>) -> Rank {
        let is_rival =
            |of: Rival| self.target == of.target && self.endpoint.is_ipv4().is_some_and(|ipv4| ipv4 != of.is_ipv4);
        if !ask.rival_of.is_none_or(is_rival) || ask.tried.contains(&self.endpoint.id()) {
            return Rank::Never;
        }
        let is_full = self.most.is_some_and(|most| self.endpoint.open() >= most);
        match (self.endpoint.state(ask.now_ms), self.backup) {
            (State::Drain | State::Disabled, _) => Rank::Never,
            (State::Up, _) if is_full => Rank::Full,
            (State::Down | State::Ejected, _) if is_full => Rank::Never,
            (State::Up, false) if self.endpoint.is_slow(ask.now_ms) => Rank::Slow,
            (State::Up, false) => Rank::Good,
            (State::Up, true) => Rank::Backup(self.level),
            (_, false) => Rank::Out,
            (_, true) => Rank::OutBackup(self.level),
        }
    }

    /// Its share now: all of its weight, or as much of it as its slow start has reached.
    fn share(&self, now_ms: u64) -> u64 {
        let full = self.endpoint.weight().map_or(self.weight, u64::from) * FULL;
        let back_ms = self.endpoint.back_ms();
        if self.slow_start_ms == 0 || back_ms == 0 {
            return full;
        }
        let elapsed_ms = now_ms.saturating_sub(back_ms).min(self.slow_start_ms);
        (u128::from(full) * u128::from(elapsed_ms) / u128::from(self.slow_start_ms)).max(1) as u64
    }
}

impl Upstreams {
    /// The targets of a forward; names have no address until [`resolved`](Self::resolved) says so.
    #[must_use]
    pub fn new(forward: &Forward, shared: &Arc<Targets>) -> Self {
        let literal = |(index, target): (usize, &Target)| {
            let place = match target.host {
                Host::Ip(ip) => Place::Ip(ip),
                Host::Unix(name) => Place::Unix(name),
                Host::Name(_) | Host::Service(_) => return None,
            };
            Some(Member::new(shared.endpoint(target, place, None, false), index, target, None))
        };
        Self {
            shared: Arc::clone(shared),
            balance: forward.balancing.balance,
            health: forward.balancing.health,
            targets: forward.targets.clone(),
            members: forward.targets.iter().enumerate().filter_map(literal).collect(),
            is_mixed: false,
            candidates: Vec::new(),
            random: Random::default(),
            turn: 0,
        }
    }

    /// What is shared with the other workers.
    #[must_use]
    pub fn shared(&self) -> &Arc<Targets> {
        &self.shared
    }

    /// Where a name leads, for every target that has it. Sessions that are connected keep their addresses.
    pub fn resolved(&mut self, host: &Host, places: &[names::Place]) {
        for (index, target) in self.targets.iter().enumerate().filter(|(_, target)| target.host == *host) {
            let is_late = self.members.iter().any(|member| member.target == index);
            self.members.retain(|member| {
                let stays = member.target != index || places.iter().any(|place| member.is_at(place));
                if !stays {
                    member.endpoint.current.store(false, Ordering::Relaxed);
                }
                stays
            });
            for place in places {
                match self.members.iter_mut().find(|member| member.target == index && member.is_at(place)) {
                    Some(member) => member.set_entry(target, place.entry),
                    None => {
                        let endpoint = self.shared.endpoint(target, Place::Ip(place.ip), place.entry, is_late);
                        self.members.push(Member::new(endpoint, index, target, place.entry));
                    }
                }
            }
        }
        // In the order of the configuration, and of the answer, which is sorted.
        self.members.sort_by_key(|member| (member.target, member.endpoint.place(), member.endpoint.ports().first));
        let other = |a: &Member, b: &Member| a.target == b.target && a.endpoint.is_ipv4() != b.endpoint.is_ipv4();
        self.is_mixed = self.members.windows(2).any(|pair| other(&pair[0], &pair[1]));
    }

    /// Where a session is to connect, or to connect next.
    pub fn choose(&mut self, ask: &Ask<'_>) -> Pick {
        if self.members.is_empty() {
            return Pick::Unresolved;
        }
        // Others take room at the same time: whoever finds none left looks again.
        for _ in 0..=self.members.len() {
            let mut best = Rank::Never;
            let mut left = 0;
            for member in &self.members {
                let rank = member.rank(ask);
                best = best.min(rank);
                left += u32::from(rank != Rank::Never);
            }
            match best {
                Rank::Never => return Pick::Nothing,
                _ if ask.rival_of.is_some() && best >= Rank::Full => return Pick::Nothing,
                Rank::Full => return Pick::Full,
                _ => {}
            }
            let Some(index) = self.pick(best, ask) else { continue };
            let member = &self.members[index];
            if let Some(lease) = member.endpoint.hold(member.most) {
                let address = member.endpoint.place().with_port(member.endpoint.port(ask.port_offset));
                let rival = || {
                    let is_ipv4 = member.endpoint.is_ipv4()?;
                    Some(Rival { target: member.target, is_ipv4 })
                };
                let rival = if self.is_mixed { rival() } else { None };
                return Pick::To { lease, address, left: left - 1, rival };
            }
        }
        Pick::Full
    }

    /// Whether that is one of the addresses sessions connect to.
    #[must_use]
    pub fn leads_to(&self, at: SocketAddr, port_offset: u16) -> bool {
        let ip = Place::Ip(at.ip().to_canonical());
        self.members.iter().any(|m| m.endpoint.port(port_offset) == at.port() && m.endpoint.place() == ip)
    }

    /// One of those with that rank. There may be none any more: a command, a check or another worker's session may have come
    /// between.
    fn pick(&mut self, rank: Rank, ask: &Ask<'_>) -> Option<usize> {
        self.candidates.clear();
        for (index, member) in self.members.iter().enumerate().filter(|(_, member)| member.rank(ask) == rank) {
            let (weight, open, key) = (member.share(ask.now_ms), member.endpoint.open(), member.endpoint.key());
            self.candidates.push(Candidate { index, weight, open, key });
        }
        let at = match (self.candidates.as_slice(), self.balance) {
            ([], _) => return None,
            ([only], _) => return Some(only.index),
            (_, Balance::RoundRobin) => self.next_in_turn(),
            (all, Balance::LeastConnections) => {
                self.turn = self.turn.wrapping_add(1);
                balance::least(all, self.turn)
            }
            (all, Balance::SourceHash) => balance::rendezvous(all, balance::hash_of_client(ask.client)),
            (all, Balance::RandomTwo) => balance::two(all, &mut self.random),
        };
        Some(self.candidates[at].index)
    }

    fn next_in_turn(&mut self) -> usize {
        let mut sum = 0;
        for candidate in &self.candidates {
            let weight = i64::try_from(candidate.weight).unwrap_or(i64::MAX / 2);
            self.members[candidate.index].credit += weight;
            sum += weight;
        }
        let credit = |at: &usize| (self.members[self.candidates[*at].index].credit, std::cmp::Reverse(*at));
        let best = (0..self.candidates.len()).max_by_key(credit).unwrap_or(0);
        self.members[self.candidates[best].index].credit -= sum;
        best
    }

    /// Connecting has failed for a reason that lies with the target: how long it is ejected for, if it is. The last
    /// target that works stays.
    pub fn failed(&self, lease: &Lease, now_ms: u64) -> Option<Ejected> {
        let endpoint = lease.endpoint();
        if !endpoint.fail(self.health.as_ref()) {
            return None;
        }
        let works =
            |member: &Member| member.endpoint.id() != endpoint.id() && member.endpoint.state(now_ms) == State::Up;
        if !self.members.iter().any(works) {
            return None;
        }
        self.health.as_ref().and_then(|health| endpoint.eject(health, now_ms)).map(Ejected)
    }
}

/// How long a target is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected(pub Duration);

#[cfg(test)]
mod tests;
