//! What the two ends of a stream tell each other: a greeting before the first byte, a receipt after the last one.

use std::io;

/// Bytes of a [`Hello`] on the wire.
pub const HELLO_LEN: usize = 40;
/// Bytes of a [`Receipt`] on the wire.
pub const RECEIPT_LEN: usize = 24;
/// Longest message of an echo connection, in bytes; the backend reserves that much for each.
pub const LONGEST_EXCHANGE: usize = 16 << 20;

const HELLO_MAGIC: &[u8; 8] = b"splAB/1\n";
const RECEIPT_MAGIC: &[u8; 8] = b"splOK/1\n";
const NO_MISMATCH: u64 = u64::MAX;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pattern bytes until the end of the stream; answered with a [`Receipt`].
    Bulk,
    /// Messages of a fixed length, each sent back whole; at most [`LONGEST_EXCHANGE`] bytes.
    Echo {
        /// Bytes of one message.
        size: u32,
    },
}

/// The first bytes of every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// What follows.
    pub kind: Kind,
    /// Tells apart measurements that use the same backend.
    pub run: u64,
    /// Number of the stream within the run.
    pub stream: u32,
    /// Seed of the pattern, see [`super::pattern::Pattern`].
    pub seed: u64,
}

/// What the backend says once it has read a bulk stream to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Pattern bytes received.
    pub received: u64,
    /// Offset of the first wrong byte.
    pub mismatch: Option<u64>,
}

impl Hello {
    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let (kind, size) = match self.kind {
            Kind::Bulk => (0u32, 0),
            Kind::Echo { size } => (1, size),
        };
        let mut bytes = [0; HELLO_LEN];
        bytes[..8].copy_from_slice(HELLO_MAGIC);
        bytes[8..12].copy_from_slice(&kind.to_le_bytes());
        bytes[12..16].copy_from_slice(&size.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.stream.to_le_bytes());
        bytes[20..24].copy_from_slice(&(!self.stream).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.run.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.seed.to_le_bytes());
        bytes
    }

    /// Reads what [`Hello::encode`] wrote.
    ///
    /// # Errors
    /// `InvalidData` when the bytes are no greeting or ask for something impossible.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> io::Result<Self> {
        let bad = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if &bytes[..8] != HELLO_MAGIC {
            return bad(format!("the connection began with {:02x?}, not with a greeting", &bytes[..8]));
        }
        let (kind, size, stream) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 16));
        let kind = match kind {
            0 => Kind::Bulk,
            1 if (1..=LONGEST_EXCHANGE as u32).contains(&size) => Kind::Echo { size },
            _ => return bad(format!("a greeting of kind {kind} with size {size}")),
        };
        if u32_at(bytes, 20) != !stream {
            return bad(format!("a greeting with a damaged stream number {stream}"));
        }
        Ok(Self { kind, stream, run: u64_at(bytes, 24), seed: u64_at(bytes, 32) })
    }
}

impl Receipt {
    /// As it goes over the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; RECEIPT_LEN] {
        let mut bytes = [0; RECEIPT_LEN];
        bytes[..8].copy_from_slice(RECEIPT_MAGIC);
        bytes[8..16].copy_from_slice(&self.received.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.mismatch.unwrap_or(NO_MISMATCH).to_le_bytes());
        bytes
    }

    /// Reads what [`Receipt::encode`] wrote.
    ///
    /// # Errors
    /// `InvalidData` when the bytes are no receipt.
    pub fn decode(bytes: &[u8; RECEIPT_LEN]) -> io::Result<Self> {
        if &bytes[..8] != RECEIPT_MAGIC {
            let what = format!("the answer began with {:02x?}, not with a receipt", &bytes[..8]);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mismatch = u64_at(bytes, 16);
        Ok(Self { received: u64_at(bytes, 8), mismatch: (mismatch != NO_MISMATCH).then_some(mismatch) })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_and_receipts_come_back_as_sent() {
        for kind in [Kind::Bulk, Kind::Echo { size: 1 }, Kind::Echo { size: LONGEST_EXCHANGE as u32 }] {
            let hello = Hello { kind, run: 1 << 40, stream: 5, seed: 0xdead_beef_0123 };
            assert_eq!(Hello::decode(&hello.encode()).expect("decodes"), hello);
        }
        for mismatch in [None, Some(0), Some(12)] {
            let receipt = Receipt { received: 77, mismatch };
            assert_eq!(Receipt::decode(&receipt.encode()).expect("decodes"), receipt);
        }
    }

    #[test]
    fn a_damaged_greeting_is_refused() {
        let good = Hello { kind: Kind::Echo { size: 64 }, run: 1, stream: 2, seed: 3 }.encode();
        for at in (0..12).chain(16..24) {
            let mut bytes = good;
            bytes[at] ^= 0x80;
            assert!(Hello::decode(&bytes).is_err(), "byte {at}");
        }
        let huge = Hello { kind: Kind::Echo { size: u32::MAX }, run: 1, stream: 2, seed: 3 }.encode();
        assert!(Hello::decode(&huge).is_err());
        assert!(Receipt::decode(&[0; RECEIPT_LEN]).is_err());
    }
}
