//! The PROXY protocol: who the client is, said in front of its bytes.
//!
//! Version 1 is a line of text, version 2 binary with further fields (TLVs); both as in HAProxy's `proxy-protocol.txt`.
//! [`Reader`] takes a header from a stream, byte for byte as long as it is: what comes behind it stays in the kernel.
//! [`encode`] writes one. A parser of our own, because no crate says how many bytes of an unfinished header may be
//! taken from the stream, and those there are refuse a LOCAL header with a block of another shape or an UNKNOWN line
//! with text, which the specification asks to accept. Tests compare it with one of them.

mod parse;
mod read;
mod write;

use std::net::SocketAddr;

pub use self::parse::parse;
pub use self::read::{How, Outcome, Reader, Source};
pub use self::write::{encode, local};

/// What every header of version 2 begins with.
pub const SIGNATURE_V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What every header of version 1 begins with.
pub const SIGNATURE_V1: &[u8; 6] = b"PROXY ";
/// Bytes of the longest header of version 1, its line end included.
pub const MOST_V1: usize = 107;
/// Bytes of the longest header of version 2 that is accepted. The format itself goes up to 64 KiB.
pub const MOST_V2: usize = 4096;
/// Bytes in front of the addresses of version 2.
const FIXED_V2: usize = 16;

/// TLV types that mean something to whoever passes a header on.
mod tlv {
    /// CRC-32C over the whole header, its own four bytes taken as zeroes.
    pub(super) const CRC32C: u8 = 0x03;
    /// Padding.
    pub(super) const NOOP: u8 = 0x04;
}

/// Which form a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The client, and where it connected to; `None` when the header leaves that to the connection it came by (LOCAL,
    /// UNKNOWN, or no TCP over IP).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    /// Further fields of version 2 as they came, without padding and checksum.
    pub tlvs: Box<[u8]>,
    /// It had a checksum, so one that is passed on gets one too.
    pub has_checksum: bool,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Neither version, or something in it that the version does not have.
    Invalid,
    /// Longer than [`MOST_V1`] or [`MOST_V2`].
    TooLong,
    /// Its checksum does not hold.
    Checksum,
}

/// CRC-32C (Castagnoli), bit by bit: a header is short, and few have a checksum.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

#[cfg(test)]
mod tests;
