//! What our own generators and servers tell each other, where the bytes are not all the same.
//!
//! Ends are said in band: some forwarders cannot pass on a half-closed stream, and are to be measured all the same.

use std::io;

/// Bytes of a [`Header`].
pub(super) const HEADER: usize = 16;
/// Bytes of a receipt.
pub(super) const RECEIPT: usize = 8;
/// Bytes of a [`Request`].
const REQUEST: usize = 16;
/// Bytes in front of a chunk's filling.
pub(super) const CHUNK_HEADER: usize = 16;
/// Longest message of a bulk stream in bytes.
pub(super) const LONGEST_MESSAGE: usize = 64 << 20;

/// In front of every message of a bulk stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes that follow.
    pub(super) len: usize,
    /// Nothing follows; the server answers with a receipt.
    pub(super) last: bool,
    /// Seed of the stream's pattern.
    pub(super) seed: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        // The length fits: it is at most 64 MiB.
        bytes[..4].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&u32::from(self.last).to_le_bytes());
        bytes[8..].copy_from_slice(&self.seed.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let (len, last) = (u32_at(bytes, 0) as usize, u32_at(bytes, 4));
        if len > LONGEST_MESSAGE || last > 1 {
            return Err(io::Error::other(format!("a damaged header: {bytes:02x?}")));
        }
        Ok(Self { len, last: last == 1, seed: u64_at(bytes, 8) })
    }
}

/// The server's account of a bulk stream: bytes received and found right.
pub(super) fn receipt(received: u64) -> [u8; RECEIPT] {
    received.to_le_bytes()
}

/// What a stream of chunks is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    /// Time from one chunk to the next.
    pub(super) interval_ns: u64,
    /// Bytes of a chunk.
    pub(super) chunk: usize,
    /// How many; 0 until the client leaves.
    pub(super) chunks: u32,
}

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST] {
        let mut bytes = [0; REQUEST];
        bytes[..8].copy_from_slice(&self.interval_ns.to_le_bytes());
        // The length fits: it is at most 64 KiB.
        bytes[8..12].copy_from_slice(&(self.chunk as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&self.chunks.to_le_bytes());
        bytes
    }

    /// `None` until all of it is there.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Option<Self>> {
        if bytes.len() < REQUEST {
            return Ok(None);
        }
        let request =
            Self { interval_ns: u64_at(bytes, 0), chunk: u32_at(bytes, 8) as usize, chunks: u32_at(bytes, 12) };
        let sound = bytes.len() == REQUEST && request.chunk <= 64 << 10 && request.interval_ns >= 10_000;
        if sound { Ok(Some(request)) } else { Err(io::Error::other(format!("a damaged request: {bytes:02x?}"))) }
    }
}

/// Puts a chunk into `buffer`: length, number, when it leaves, filling.
pub(super) fn chunk(sequence: u32, sent_ns: u64, len: usize, buffer: &mut Vec<u8>) {
    buffer.clear();
    // The length fits: it is at most 64 KiB.
    buffer.extend_from_slice(&(len as u32).to_le_bytes());
    buffer.extend_from_slice(&sequence.to_le_bytes());
    buffer.extend_from_slice(&sent_ns.to_le_bytes());
    // Different in every chunk, so that two that were swapped do not pass.
    buffer.resize(len, sequence.to_le_bytes()[0]);
}

/// Takes the first whole chunk of `bytes`: when it left, and its length. `None` until all of it is there.
pub(super) fn take_chunk(bytes: &[u8], sequence: u32) -> io::Result<Option<(u64, usize)>> {
    if bytes.len() < CHUNK_HEADER {
        return Ok(None);
    }
    let (len, found) = (u32_at(bytes, 0) as usize, u32_at(bytes, 4));
    let filling = sequence.to_le_bytes()[0];
    if found != sequence || !(CHUNK_HEADER..=64 << 10).contains(&len) {
        return Err(io::Error::other(format!("expected chunk {sequence}, found {found} of {len} bytes")));
    }
    let Some(rest) = bytes.get(CHUNK_HEADER..len) else { return Ok(None) };
    if rest.iter().any(|byte| *byte != filling) {
        return Err(io::Error::other(format!("chunk {sequence} arrived damaged")));
    }
    Ok(Some((u64_at(bytes, 8), len)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_requests_come_back_as_sent() {
        for last in [false, true] {
            let header = Header { len: 131_072, last, seed: 0xdead_beef_0000_0001 };
            assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }
        let request = Request { interval_ns: 50_000_000, chunk: 40, chunks: 7 };
        let bytes = request.encode();
        assert_eq!(Request::decode(&bytes).unwrap(), Some(request));
        assert_eq!(Request::decode(&bytes[..15]).unwrap(), None);
        assert!(Request::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
        assert!(Header::decode(&[0xff; HEADER]).is_err());
    }

    #[test]
    fn chunks_are_told_from_damaged_ones() {
        let mut bytes = Vec::new();
        chunk(300, 77, 40, &mut bytes);
        assert_eq!(bytes.len(), 40);
        assert_eq!(take_chunk(&bytes, 300).unwrap(), Some((77, 40)));
        for short in [0, 15, 16, 39] {
            assert_eq!(take_chunk(&bytes[..short], 300).unwrap(), None, "{short}");
        }
        assert!(take_chunk(&bytes, 301).is_err());
        bytes[39] ^= 1;
        assert!(take_chunk(&bytes, 300).is_err());
    }
}
