use std::io::{self, ErrorKind};
use std::net::SocketAddr;

use ppp::PartialResult;
use proptest::prelude::*;

use super::*;

/// A stream that arrives in pieces. Bytes that were only looked at are still there.
struct Pieces {
    arrived: Vec<u8>,
    taken: usize,
    coming: Vec<Vec<u8>>,
    ended: bool,
}

impl Pieces {
    fn new(bytes: &[u8], cuts: &[usize]) -> Self {
        let mut coming = Vec::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            let cut = cut.clamp(from, bytes.len());
            coming.push(bytes[from..cut].to_vec());
            from = cut;
        }
        coming.reverse();
        Self { arrived: Vec::new(), taken: 0, coming, ended: false }
    }

    fn arrive(&mut self) {
        match self.coming.pop() {
            Some(piece) => self.arrived.extend(piece),
            None => self.ended = true,
        }
    }

    fn show(&self, room: &mut [u8]) -> io::Result<usize> {
        let there = &self.arrived[self.taken..];
        if there.is_empty() && !self.ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = room.len().min(there.len());
        room[..n].copy_from_slice(&there[..n]);
        Ok(n)
    }
}

impl Source for Pieces {
    fn peek(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.show(room)
    }

    fn take(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.show(room)?;
        self.taken += n;
        Ok(n)
    }
}

/// Reads until something comes of it; how, and how many bytes were taken.
fn read(bytes: &[u8], cuts: &[usize]) -> (Outcome, usize) {
    let (optional, taken) = read_as(false, bytes, cuts);
    let (required, taken_then) = read_as(true, bytes, cuts);
    assert_eq!(std::mem::discriminant(&optional), std::mem::discriminant(&required), "{optional:?} {required:?}");
    assert!(taken == taken_then || !matches!(optional, Outcome::Header(_)));
    (optional, taken)
}

fn read_as(required: bool, bytes: &[u8], cuts: &[usize]) -> (Outcome, usize) {
    let mut pieces = Pieces::new(bytes, cuts);
    let mut reader = Reader::default();
    loop {
        let how = How { required, ended: pieces.ended };
        match reader.advance(&mut pieces, how) {
            Outcome::Wait => pieces.arrive(),
            outcome => return (outcome, pieces.taken),
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn tcp4() -> Header {
    let addresses = Some((address("192.0.2.7:40000"), address("198.51.100.1:443")));
    Header { addresses, ..Header::default() }
}

fn with_fields() -> Header {
    let tlvs = [&[0x05, 0, 3][..], b"abc", &[0xe0, 1, 0], &[7; 256]].concat().into();
    Header { tlvs, has_checksum: true, addresses: Some((address("[2001:db8::1]:1"), address("[2001:db8::2]:2"))) }
}

#[test]
fn the_checksum_is_castagnolis() {
    // RFC 3720, B.4.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn whole_at_every_cut_and_not_one_byte_more() {
    let headers = [
        encode(Version::V1, &tcp4()),
        encode(Version::V2, &tcp4()),
        encode(Version::V2, &with_fields()),
        local(Version::V1).to_vec(),
        local(Version::V2).to_vec(),
        b"PROXY UNKNOWN anything that \xc3\xa9 says a b c d e f g\r\n".to_vec(),
        format!("PROXY UNKNOWN {}\r\n", "x".repeat(MOST_V1 - 16)).into_bytes(),
    ];
    for header in headers {
        let expected = parse(&header).expect("a header");
        let stream = [&header[..], b"payload\r\n\r\nPROXY TCP4"].concat();
        for cut in 0..stream.len() {
            for cuts in [vec![cut], vec![cut, cut + 1], (1..=cut).collect()] {
                let (outcome, taken) = read(&stream, &cuts);
                assert!(matches!(&outcome, Outcome::Header(found) if *found == expected), "{outcome:?} {cuts:?}");
                assert_eq!(taken, header.len(), "{cuts:?}");
            }
        }
    }
}

#[test]
fn what_is_cut_off_has_ended_and_what_is_none_is_told_apart() {
    for header in [encode(Version::V1, &tcp4()), encode(Version::V2, &with_fields())] {
        for len in 0..header.len() {
            let (outcome, _) = read(&header[..len], &[len / 2]);
            assert!(matches!(outcome, Outcome::Ended), "{len}: {outcome:?}");
        }
    }
    for other in [&b"GET / HTTP/1.1\r\n"[..], b"PROXX", b"PROXY\r\n", b"\r\n\r\n\0\r\nQUIX", b"\0", b"proxy TCP4 "] {
        let (outcome, taken) = read(other, &[1]);
        assert!(matches!(outcome, Outcome::Other), "{outcome:?}");
        assert_eq!(taken, 0, "it is all still there");
    }
}

#[test]
fn every_fault_has_its_cause() {
    let v1 = |line: &str| read(format!("{line}\r\n").as_bytes(), &[]).0;
    for line in [
        "PROXY TCP5 1.2.3.4 1.2.3.4 1 2",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3",
        "PROXY TCP4 1.2.3.4  1.2.3.4 1 2",
        "PROXY TCP4 1.2.3.256 1.2.3.4 1 2",
        "PROXY TCP4 ::1 ::1 1 2",
        "PROXY TCP6 1.2.3.4 1.2.3.4 1 2",
        "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2",
        "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2",
        "PROXY TCP4 1.2.3.4 1.2.3.4 01 2",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 ",
        "PROXY ",
        "PROXY  TCP4",
        "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r",
        "PROXY UNKNOWN a\n b",
    ] {
        assert!(matches!(v1(line), Outcome::Bad(Fault::Invalid)), "{line}");
    }
    assert!(matches!(v1(&format!("PROXY UNKNOWN {}", "x".repeat(92))), Outcome::Bad(Fault::TooLong)));
    assert!(matches!(read(&[&b"PROXY "[..], &[b'x'; 200]].concat(), &[50]).0, Outcome::Bad(Fault::TooLong)));
    let v2 = |command: u8, family: u8, block: &[u8]| {
        let len = u16::try_from(block.len()).expect("short").to_be_bytes();
        read(&[&SIGNATURE_V2[..], &[command, family], &len, block].concat(), &[20]).0
    };
    assert!(matches!(v2(0x21, 0x11, &[0; 4080]), Outcome::Header(_)));
    assert!(matches!(v2(0x21, 0x11, &[0; 4081]), Outcome::Bad(Fault::TooLong)));
    // LOCAL skips whatever comes.
    assert!(matches!(v2(0x20, 0x11, &[1]), Outcome::Header(Header { addresses: None, .. })));
    assert!(matches!(v2(0x21, 0x31, &[0; 216]), Outcome::Header(Header { addresses: None, .. })));
    for (command, family, block) in [
        (0x11, 0x11, &[0; 12][..]),
        (0x22, 0x11, &[0; 12]),
        (0x21, 0x41, &[0; 12]),
        (0x21, 0x13, &[0; 12]),
        (0x21, 0x10, &[0; 12]),
        (0x21, 0x11, &[0; 11]),
        (0x21, 0x21, &[0; 35]),
        (0x21, 0x31, &[0; 215]),
        // A field that is cut off, one that leads out of the header, a checksum of another size.
        (0x21, 0x11, &[1; 14]),
        (0x21, 0x11, &[1; 15]),
        (0x21, 0x00, &[3, 0, 3, 0, 0, 0]),
    ] {
        assert!(matches!(v2(command, family, block), Outcome::Bad(Fault::Invalid)), "{command:x} {family:x} {block:?}");
    }
    assert!(matches!(v2(0x21, 0x00, &[3, 0, 4, 1, 2, 3, 4]), Outcome::Bad(Fault::Checksum)));
    let twice = [3, 0, 4, 0, 0, 0, 0, 3, 0, 4, 0, 0, 0, 0];
    assert!(matches!(v2(0x21, 0x00, &twice), Outcome::Bad(Fault::Invalid)));
}

#[test]
fn one_bit_breaks_a_checksum() {
    let header = encode(Version::V2, &with_fields());
    assert_eq!(parse(&header), Ok(with_fields()));
    for at in FIXED_V2..header.len() {
        let mut broken = header.clone();
        broken[at] ^= 1;
        // Without its type the checksum is a field like any.
        assert!(parse(&broken).is_err() || at == header.len() - 7, "byte {at}");
    }
}

#[test]
fn addresses_of_two_families_are_both_ipv6() {
    let addresses = Some((address("192.0.2.7:1"), address("[2001:db8::1]:2")));
    let header = Header { addresses, ..Header::default() };
    let line = String::from_utf8(encode(Version::V1, &header)).expect("text");
    assert_eq!(line, "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n");
    assert_eq!(parse(line.as_bytes()).expect("a header").addresses, addresses, "and back");
    assert_eq!(parse(&encode(Version::V2, &header)).expect("a header").addresses, addresses);
}

fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = any::<([u8; 4], u16)>().prop_map(SocketAddr::from);
    let v6 = any::<([u8; 16], u16)>().prop_map(SocketAddr::from);
    prop_oneof![(v4.clone(), v4), (v6.clone(), v6)]
}

/// Bytes that get past the first checks.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let v1 = "PROXY (TCP4|TCP6|UNKNOWN|TCP)( |  )[0-9.:a-f]{1,15} [0-9.:a-f]{1,15} [0-9+]{0,6} [0-9]{0,6}\r?\n?";
    let v2 = (0x1fu8..=0x22, prop::sample::select(vec![0, 0x11, 0x12, 0x21, 0x31, 0x40]), 0u16..300, any::<Vec<u8>>());
    let v2 = v2.prop_map(|(command, family, len, mut block)| {
        block.resize(usize::from(len), 0);
        [&SIGNATURE_V2[..], &[command, family], &len.to_be_bytes(), &block].concat()
    });
    prop_oneof![any::<Vec<u8>>(), v1.prop_map(String::into_bytes), v2]
}

proptest! {
    #[test]
    fn every_header_is_read_back(addresses in addresses(), value in prop::collection::vec(any::<u8>(), 0..300),
                                 kind in 5u8.., has_checksum: bool, cuts in prop::collection::vec(0usize..500, 0..5)) {
        let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let expected = Some((canonical(addresses.0), canonical(addresses.1)));
        let len = u16::try_from(value.len()).expect("short").to_be_bytes();
        let tlvs: Box<[u8]> = [&[kind][..], &len, &value].concat().into();
        let header = Header { addresses: Some(addresses), tlvs: tlvs.clone(), has_checksum };
        let mut cuts = cuts;
        cuts.sort_unstable();
        for (version, tlvs) in [(Version::V1, Box::default()), (Version::V2, tlvs)] {
            let bytes = encode(version, &header);
            let (outcome, taken) = read(&[&bytes[..], b"more"].concat(), &cuts);
            let Outcome::Header(found) = outcome else { panic!("{outcome:?}") };
            prop_assert_eq!(taken, bytes.len());
            prop_assert_eq!((found.addresses, found.tlvs), (expected, tlvs));
        }
    }

    /// Another parser says the same, but for what is known to differ.
    #[test]
    fn another_parser_agrees(bytes in nearly()) {
        let ours = parse(&bytes);
        let (outcome, taken) = read(&bytes, &[bytes.len() / 2]);
        if let Ok(header) = &ours {
            prop_assert!(matches!(&outcome, Outcome::Header(found) if found == header));
            prop_assert_eq!(taken, bytes.len());
        }
        match ppp::HeaderResult::parse(&bytes) {
            ppp::HeaderResult::V1(Ok(theirs)) if theirs.header.len() == bytes.len() => {
                let differs = bytes.contains(&b'+') || !bytes.ends_with(b"\r\n");
                prop_assert!(ours.is_ok() || differs, "{ours:?} {theirs:?}");
            }
            ppp::HeaderResult::V2(Ok(theirs)) if theirs.as_bytes() == bytes => {
                let fields_hold = theirs.tlvs().all(|field| field.is_ok_and(|field| field.kind != 3));
                // It takes all of a block without addresses for addresses.
                let stream = matches!(bytes[13], 0x11 | 0x12 | 0x21 | 0x22 | 0x31 | 0x32);
                prop_assert!(ours.is_ok() || !fields_hold || !stream, "{ours:?} {theirs:?}");
                if let (Ok(ours), ppp::v2::Addresses::IPv4(ip), 0x2111) =
                    (&ours, theirs.addresses, u16::from_be_bytes([bytes[12], bytes[13]]))
                {
                    let source = SocketAddr::from((ip.source_address, ip.source_port));
                    let destination = SocketAddr::from((ip.destination_address, ip.destination_port));
                    prop_assert_eq!(ours.addresses, Some((source, destination)));
                }
            }
            other => {
                let text = bytes.starts_with(b"PROXY UNKNOWN");
                let local = bytes.get(12) == Some(&0x20);
                prop_assert!(ours.is_err() || text || local, "{ours:?} {}", other.is_incomplete());
            }
        }
    }

    #[test]
    fn nothing_panics_and_nothing_behind_is_taken(bytes in nearly(), cuts in prop::collection::vec(0usize..400, 0..6)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let (whole, taken) = read(&bytes, &[]);
        let (pieces, taken_in_pieces) = read(&bytes, &cuts);
        prop_assert_eq!(std::mem::discriminant(&whole), std::mem::discriminant(&pieces));
        if matches!(whole, Outcome::Header(_)) {
            prop_assert_eq!(taken, taken_in_pieces);
            prop_assert!(parse(&bytes[..taken]).is_ok());
        }
    }
}
