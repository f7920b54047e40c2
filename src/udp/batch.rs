//! Datagrams received with a few system calls and sent with a few.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use socket2::Socket;

use super::framing::Framing;
use super::{cause_of, socket};
use crate::stats::DropCause;

/// Room for one message: more than any datagram has, joined ones included (65,527 bytes with IPv6), and than one has with
/// its length in a stream.
pub const SLOT: usize = 65_536 + 64;
/// Messages in a batch.
pub const SLOTS: usize = 32;
/// Datagrams that may leave as one (`UDP_MAX_SEGMENTS` in include/linux/udp.h; 128 in newer kernels).
const MOST_SEGMENTS: usize = 64;
/// Bytes that may leave as one: what an IPv4 packet has room for.
const MOST_BYTES: usize = 65_507;

/// What one message brought, which may be several datagrams.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Who sent it.
    pub from: Option<SocketAddr>,
    /// The local address it was sent to, where the system was asked.
    pub local: Option<IpAddr>,
    /// Its place in the room it was received into.
    pub start: usize,
    /// Bytes.
    pub len: usize,
    /// Bytes of each of its datagrams, of which the last may have less; `None` where it is one.
    pub segment: Option<usize>,
    /// Datagrams the kernel had no room for in the socket's queue so far (it wraps round); 0 where the system does not tell.
    pub lost: u32,
}

/// One datagram on its way.
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    /// The flow it belongs to.
    pub flow: usize,
    /// The socket it leaves by, as the caller numbers them.
    pub way: usize,
    /// The local address it leaves from; `None` for the socket's own.
    pub from: Option<IpAddr>,
    /// Where it goes; `None` on a connected socket.
    pub to: Option<SocketAddr>,
    /// Whether it may leave joined to others.
    pub joins: bool,
    start: usize,
    len: usize,
}

impl Datagram {
    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.len
    }
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// The flow it belongs to.
    pub flow: usize,
    /// The socket it leaves by.
    pub way: usize,
    /// The local address it leaves from.
    pub from: Option<IpAddr>,
    /// Where it goes.
    pub to: Option<SocketAddr>,
    /// Whether it may leave joined to others.
    pub joins: bool,
}

/// Who keeps the books of what is sent.
pub trait Books {
    /// A datagram has gone.
    fn sent(&mut self, datagram: &Datagram, bytes: usize);
    /// A datagram was dropped.
    fn dropped(&mut self, datagram: &Datagram, cause: DropCause, error: &io::Error);
    /// A system call was made; so many datagrams left by it as one, 0 when each left alone.
    fn called(&mut self, first: &Datagram, segmented: usize);
    /// Datagrams of this flow cannot leave as one.
    fn cannot_join(&mut self, flow: usize);
}

/// Messages and the datagrams in them. Its memory is kept from batch to batch.
#[derive(Debug, Default)]
pub struct Batch {
    room: Vec<u8>,
    /// Slots of the room that are in use.
    used: usize,
    messages: Vec<Message>,
    datagrams: Vec<Datagram>,
    /// Where datagrams were found, kept for its memory.
    found: Vec<Range<usize>>,
}

impl Batch {
    /// Empties it.
    pub fn clear(&mut self) {
        self.used = 0;
        self.messages.clear();
        self.datagrams.clear();
    }

    /// Whether no further message fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used == SLOTS
    }

    /// Receives up to `most` messages behind those that are there; which they are, and whether there may be more.
    ///
    /// # Errors
    /// What the system call reports.
    pub fn receive(&mut self, from: &Socket, most: usize) -> io::Result<(Range<usize>, bool)> {
        self.make_room();
        let most = most.min(SLOTS - self.used);
        let (base, first) = (self.used * SLOT, self.messages.len());
        let more = socket::receive(from, &mut self.room[base..base + most * SLOT], &mut self.messages)?;
        for message in &mut self.messages[first..] {
            message.start += base;
        }
        let all = first..self.messages.len();
        self.used += all.len();
        Ok((all, more))
    }

    /// Reads from a stream once and adds the datagrams found; how many.
    ///
    /// # Errors
    /// What recv(2) reports.
    pub fn read(&mut self, framing: &mut Framing, stream: &Socket, course: Course) -> io::Result<usize> {
        self.make_room();
        let base = self.used * SLOT;
        self.found.clear();
        framing.read(stream, &mut self.room[base..base + SLOT], &mut self.found)?;
        let Course { flow, way, from, to, joins } = course;
        let datagram =
            |range: &Range<usize>| Datagram { flow, way, from, to, joins, start: base + range.start, len: range.len() };
        self.datagrams.extend(self.found.iter().map(datagram));
        self.used += 1;
        Ok(self.found.len())
    }

    /// Bytes of the datagrams that were added last.
    #[must_use]
    pub fn last_bytes(&self, count: usize) -> usize {
        self.datagrams[self.datagrams.len() - count..].iter().map(|datagram| datagram.len).sum()
    }

    /// Takes back the datagrams that were added last.
    pub fn forget_last(&mut self, count: usize) {
        self.datagrams.truncate(self.datagrams.len() - count);
    }

    fn make_room(&mut self) {
        if self.room.is_empty() {
            // Touched only as far as messages are long.
            self.room = vec![0; SLOTS * SLOT];
        }
    }

    /// How many datagrams the kernel had no room for since `before`, which becomes what the last of these messages says.
    /// The first message a worker sees of a socket says where to begin.
    pub fn lost(&self, messages: Range<usize>, before: &mut Option<u32>) -> u64 {
        let mut lost = 0;
        for message in &self.messages[messages] {
            let more = message.lost.wrapping_sub(before.unwrap_or(message.lost));
            // Messages that came by several cores need not stand in the order they were marked in: a count never goes back.
            if more < u32::MAX / 2 {
                lost += u64::from(more);
                *before = Some(message.lost);
            }
        }
        lost
    }

    /// One of the messages.
    #[must_use]
    pub fn message(&self, number: usize) -> Message {
        self.messages[number]
    }

    /// The bytes of a datagram that stands in this batch.
    #[must_use]
    pub fn bytes(&self, datagram: &Datagram) -> &[u8] {
        &self.room[datagram.start..datagram.start + datagram.len]
    }

    /// Takes the datagrams of a message apart for their way.
    pub fn add(&mut self, number: usize, course: Course) {
        let message = self.messages[number];
        let Course { flow, way, from, to, joins } = course;
        for (start, len) in message.datagrams() {
            self.datagrams.push(Datagram { flow, way, from, to, joins, start: message.start + start, len });
        }
    }

    /// What is to be sent, ordered by the socket it leaves by; what one flow sends stays in its order.
    pub fn ordered(&mut self) -> &[Datagram] {
        self.datagrams.sort_by_key(|datagram| datagram.way);
        &self.datagrams
    }

    /// What is to be sent.
    #[must_use]
    pub fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    /// Sends datagrams that leave by the same socket and from the same address.
    pub fn send(&self, by: &Socket, datagrams: &[Datagram], books: &mut impl Books) {
        let (mut sent, mut at) = (0, 0);
        while at < datagrams.len() {
            let end = at + run(&datagrams[at..]);
            if end - at > 1 && datagrams[at].joins {
                // Nothing may overtake what stands before it.
                self.send_each(by, &datagrams[sent..at], books);
                sent = at;
                if self.send_joined(by, &datagrams[at..end], books) {
                    sent = end;
                }
            }
            at = end;
        }
        self.send_each(by, &datagrams[sent..], books);
    }

    /// Sends a run as one message; false when its datagrams have to go one by one.
    fn send_joined(&self, by: &Socket, run: &[Datagram], books: &mut impl Books) -> bool {
        let first = &run[0];
        let mut parts: [IoSlice<'_>; MOST_SEGMENTS] = [IoSlice::new(&[]); MOST_SEGMENTS];
        for (part, datagram) in parts.iter_mut().zip(run) {
            *part = IoSlice::new(self.bytes(datagram));
        }
        let Ok(segment) = u16::try_from(first.len) else { return false };
        let result = loop {
            let result = socket::send_segments(by, first.to, first.from, &parts[..run.len()], segment);
            if !matches!(&result, Err(e) if e.kind() == io::ErrorKind::Interrupted) {
                break result;
            }
        };
        match result {
            Err(e) if socket::cannot_segment(&e) => {
                books.cannot_join(first.flow);
                return false;
            }
            Err(e) => run.iter().for_each(|datagram| books.dropped(datagram, cause_of(&e), &e)),
            Ok(()) => {
                books.called(first, run.len());
                run.iter().for_each(|datagram| books.sent(datagram, datagram.len));
            }
        }
        true
    }

    fn send_each(&self, by: &Socket, datagrams: &[Datagram], books: &mut impl Books) {
        let Some(first) = datagrams.first() else { return };
        let all: Vec<(Option<SocketAddr>, &[u8])> = datagrams.iter().map(|d| (d.to, self.bytes(d))).collect();
        let mut at = 0;
        while at < all.len() {
            match socket::send_each(by, first.from, &all[at..]) {
                Ok(count) => {
                    books.called(&datagrams[at], 0);
                    datagrams[at..].iter().take(count).for_each(|datagram| books.sent(datagram, datagram.len));
                    // A call that sends nothing and reports nothing must not be made for ever.
                    at += count.max(1);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let cause = cause_of(&e);
                    // Without room for this one there is none for the next either.
                    let lost = if cause == DropCause::NoRoom { all.len() - at } else { 1 };
                    datagrams[at..].iter().take(lost).for_each(|datagram| books.dropped(datagram, cause, &e));
                    at += lost;
                }
            }
        }
    }
}

impl Message {
    /// Start and length of each of its datagrams, counted from its own start.
    fn datagrams(self) -> impl Iterator<Item = (usize, usize)> {
        let step = self.segment.unwrap_or(self.len).max(1);
        // One without a byte is a datagram too.
        let count = self.len.div_ceil(step).max(1);
        (0..count).map(move |n| (n * step, step.min(self.len - n * step)))
    }

    /// How many datagrams it is.
    #[must_use]
    pub fn count(&self) -> usize {
        self.len.div_ceil(self.segment.unwrap_or(self.len).max(1)).max(1)
    }
}

/// How many datagrams, from the first on, may leave as one: of the same flow and length, but that the last may be shorter.
fn run(datagrams: &[Datagram]) -> usize {
    let Some(first) = datagrams.first() else { return 0 };
    if !socket::SEGMENTS || first.len == 0 {
        return 1;
    }
    let most = MOST_SEGMENTS.min(MOST_BYTES / first.len).max(1);
    let mut count = 1;
    for datagram in datagrams[1..].iter().take(most - 1) {
        if datagram.flow != first.flow || datagram.len > first.len || datagram.len == 0 {
            break;
        }
        count += 1;
        if datagram.len < first.len {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize, segment: Option<usize>) -> Vec<usize> {
        let message = Message { from: None, local: None, start: 0, len, segment, lost: 0 };
        let parts: Vec<(usize, usize)> = message.datagrams().collect();
        assert_eq!(parts.len(), message.count());
        assert!(parts.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0), "{parts:?}");
        parts.into_iter().map(|(_, len)| len).collect()
    }

    #[test]
    fn joined_datagrams_come_apart_as_they_were_sent() {
        assert_eq!(message(3000, Some(1200)), [1200, 1200, 600]);
        assert_eq!(message(2400, Some(1200)), [1200, 1200]);
        assert_eq!(message(1200, Some(1200)), [1200]);
        assert_eq!(message(700, Some(1200)), [700]);
        assert_eq!(message(65_507, None), [65_507]);
        assert_eq!(message(0, None), [0], "a datagram without a byte is one");
        assert_eq!(message(5, Some(0)), [1; 5], "nonsense ends too");
    }

    #[test]
    fn what_the_kernel_had_no_room_for_is_counted_from_one_message_to_the_next() {
        let mut batch = Batch::default();
        let mut count = |before: &mut Option<u32>, lost: &[u32]| {
            let message =
                |lost: &u32| Message { from: None, local: None, start: 0, len: 0, segment: None, lost: *lost };
            batch.messages = lost.iter().map(message).collect();
            batch.lost(0..lost.len(), before)
        };
        let mut before = None;
        assert_eq!(count(&mut before, &[7, 7]), 0, "what was before is somebody else's");
        assert_eq!((count(&mut before, &[7, 9, 12]), before), (5, Some(12)));
        assert_eq!((count(&mut before, &[9, 11, 0, 13]), before), (1, Some(13)), "none is counted twice");
        let mut before = Some(u32::MAX - 1);
        assert_eq!((count(&mut before, &[3]), before), (5, Some(3)), "it wraps round");
    }

    #[test]
    fn only_datagrams_of_one_flow_and_length_leave_as_one() {
        let datagrams = |parts: &[(usize, usize)]| -> Vec<Datagram> {
            let course = |(flow, len): &(usize, usize)| Datagram {
                flow: *flow,
                way: 0,
                from: None,
                to: None,
                joins: true,
                start: 0,
                len: *len,
            };
            parts.iter().map(course).collect()
        };
        let most = |parts: &[(usize, usize)]| run(&datagrams(parts));
        if !socket::SEGMENTS {
            assert_eq!(most(&[(0, 100), (0, 100)]), 1);
            return;
        }
        assert_eq!(most(&[]), 0);
        assert_eq!(most(&[(0, 100), (0, 100), (0, 50), (0, 50)]), 3);
        assert_eq!(most(&[(0, 100), (0, 101)]), 1);
        assert_eq!(most(&[(0, 100), (1, 100)]), 1);
        assert_eq!(most(&[(0, 0), (0, 0)]), 1);
        assert_eq!(most(&[(0, 100), (0, 0)]), 1);
        assert_eq!(most(&[(0, 1); 100]), MOST_SEGMENTS);
        assert_eq!(most(&[(0, 9000); 100]), 7, "no more than a packet holds");
        assert_eq!(most(&[(0, 65_507); 2]), 1);
    }
}
