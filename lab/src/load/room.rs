//! How sessions grow without taking this host down: in steps, none of which it has no room for.

use std::io;

use nix::sys::resource::{Resource, getrlimit};
use spliced::ab::child::Child;

use super::hold::{self, Held};
use super::{HoldKind, PATIENCE};
use crate::sample::memory::{KernelMemory, available, memory_of_host, tcp_most};

/// Of the memory of this host one part in so many is left alone, and at least [`LEAST`].
const RESERVE: u64 = 10;
/// Bytes that are left alone in any case.
const LEAST: u64 = 512 << 20;
/// Sessions to begin with, of which nothing is known yet.
const FIRST: u64 = 16;
/// What a stalled session may take in the worst case: buffers of four sockets at their largest, and a pipe.
const WORST: u64 = 80 << 20;
/// Percent of net.ipv4.tcp_mem that sessions may fill. At its end the kernel drops what arrives, and nobody comes to
/// rest.
const TCP_PERCENT: u64 = 90;
/// Descriptors of a program that are not sessions.
const OTHER_DESCRIPTORS: u64 = 64;

/// What this host has, at one moment.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Bytes of memory that can be used.
    available: u64,
    /// Bytes of memory there are.
    memory: u64,
    /// Bytes in TCP buffers.
    tcp: u64,
    /// Bytes there may be in them, where that is known.
    tcp_most: Option<u64>,
    /// Sessions that a program on the way has descriptors for.
    descriptors: u64,
}

impl Room {
    fn now(forwards: bool) -> Self {
        // One that cannot be read is taken for unlimited: then the kernel itself says so.
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard);
        let each = if forwards { 2 } else { 1 };
        Self {
            available: available().unwrap_or(u64::MAX),
            memory: memory_of_host().unwrap_or(0),
            tcp: KernelMemory::now().tcp,
            tcp_most: tcp_most(),
            descriptors: descriptors.saturating_sub(OTHER_DESCRIPTORS) / each,
        }
    }

    /// How many more sessions there is room for beside `open` ones, which have taken what is missing since `before`; and
    /// what is the limit.
    fn more(&self, before: &Self, open: u64, kind: HoldKind) -> (u64, String) {
        let reserve = (self.memory / RESERVE).max(LEAST).min(self.memory);
        let spare = self.available.saturating_sub(reserve);
        let each = match (open, kind) {
            (0, HoldKind::Stalled) => WORST,
            // A page at least, where other programs gave memory back meanwhile.
            (0, HoldKind::Idle) => 4096,
            _ => (before.available.saturating_sub(self.available) / open).max(4096),
        };
        let mib = |bytes: u64| bytes >> 20;
        let mut limits = vec![(
            spare / each,
            format!(
                "memory: {} MiB are available, of which {} MiB are left alone, and each session takes {} KiB",
                mib(self.available),
                mib(reserve),
                each >> 10
            ),
        )];
        if let Some(most) = self.tcp_most {
            let spare = (most / 100 * TCP_PERCENT).saturating_sub(self.tcp);
            let each = self.tcp.saturating_sub(before.tcp).checked_div(open).unwrap_or(0);
            // How far the kernel lets the first ones go is not known; from then on, what one has taken is.
            let fits = if spare == 0 { 0 } else { spare.checked_div(each).unwrap_or(FIRST) };
            let what = format!("{} of {} MiB are in TCP buffers (net.ipv4.tcp_mem)", mib(self.tcp), mib(most));
            limits.push((fits, format!("data in TCP buffers: {what}")));
        }
        limits.push((
            self.descriptors.saturating_sub(open),
            format!("descriptors (ulimit -Hn): a program on the way has them for {} sessions", self.descriptors),
        ));
        limits.into_iter().min_by_key(|(fits, _)| *fits).unwrap_or_default()
    }
}

/// The growth of one set of sessions.
#[derive(Debug)]
pub(super) struct Growth {
    kind: HoldKind,
    forwards: bool,
    before: Room,
    held: Held,
}

impl Growth {
    /// With none there yet; `forwards` says that a program takes part in between.
    pub(super) fn new(kind: HoldKind, forwards: bool) -> Self {
        Self { kind, forwards, before: Room::now(forwards), held: Held::default() }
    }

    pub(super) fn limit(&self) -> Option<&str> {
        self.held.limit.as_deref()
    }

    /// Has the client grow up to `total`, at most doubling at a time, and stops where there is no room.
    pub(super) fn grow(&mut self, client: &mut Child, total: usize) -> io::Result<Held> {
        let total = total as u64;
        loop {
            let open = self.held.open;
            let (room, what) = Room::now(self.forwards).more(&self.before, open, self.kind);
            let step = total.saturating_sub(open).min(open.max(FIRST)).min(room);
            if step == 0 && open < total {
                self.held.limit = Some(what);
                return Ok(self.held.clone());
            }
            let asked = open + step;
            self.held = client.ask(&format!("grow {asked}"), hold::PATIENCE + PATIENCE)?;
            if self.held.open < asked {
                self.held.limit = Some(self.held.why());
            } else if self.held.moving {
                let seconds = hold::PATIENCE.as_secs();
                self.held.limit = Some(format!("bytes still went after {seconds} s: sessions did not come to rest"));
            }
            if self.held.limit.is_some() || self.held.open >= total {
                return Ok(self.held.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(available: u64, tcp: u64) -> Room {
        Room { available: available * MIB, memory: 24_000 * MIB, tcp: tcp * MIB, tcp_most: None, descriptors: 10_000 }
    }

    #[test]
    fn memory_ends_growth_before_it_is_gone() {
        let before = room(20_000, 0);
        let (more, what) = room(10_000, 0).more(&before, 1000, HoldKind::Stalled);
        assert_eq!((more, what.starts_with("memory: 10000 MiB")), (760, true), "{what}");
        let (more, what) = room(2400, 0).more(&before, 1760, HoldKind::Stalled);
        assert_eq!(more, 0, "{what}");
        assert_eq!(room(3000, 0).more(&before, 0, HoldKind::Stalled).0, 7, "of the first the worst is thought");
        assert!(room(3000, 0).more(&before, 0, HoldKind::Idle).0 > 9000);
    }

    #[test]
    fn buffers_and_descriptors_are_limits_of_their_own() {
        let before = room(20_000, 0);
        let (more, what) = room(19_000, 1000).more(&before, 9990, HoldKind::Idle);
        assert_eq!((more, what.starts_with("descriptors")), (10, true), "{what}");
        let full = Room { tcp_most: Some(2000 * MIB), ..room(18_000, 1790) };
        let (more, what) = full.more(&before, 179, HoldKind::Stalled);
        assert_eq!((more, what.starts_with("data in TCP buffers: 1790 of 2000 MiB")), (1, true), "{what}");
        let full = Room { tcp_most: Some(2000 * MIB), ..room(18_000, 1900) };
        assert_eq!(full.more(&before, 190, HoldKind::Stalled).0, 0);
    }
}
