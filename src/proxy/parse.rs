//! A whole header → what it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{FIXED_V2, Fault, Header, MOST_V1, MOST_V2, SIGNATURE_V1, SIGNATURE_V2, crc32c, tlv};

/// What exactly these bytes say as a header: nothing missing and nothing behind it.
///
/// # Errors
/// They are none.
pub fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    if bytes.starts_with(SIGNATURE_V2) {
        parse_v2(bytes)
    } else if bytes.starts_with(SIGNATURE_V1) {
        parse_v1(bytes)
    } else {
        Err(Fault::Invalid)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Header, Fault> {
    if bytes.len() > MOST_V1 {
        return Err(Fault::TooLong);
    }
    let line = bytes.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or(Fault::Invalid)?;
    if line.contains(['\r', '\n']) {
        return Err(Fault::Invalid);
    }
    let mut words = line.split(' ').skip(1);
    let protocol = words.next();
    let is_v4 = match protocol {
        // Whatever else the line says is to be ignored.
        Some("UNKNOWN") => return Ok(Header::default()),
        Some("TCP4") => true,
        Some("TCP6") => false,
        _ => return Err(Fault::Invalid),
    };
    let ip = |text: Option<&str>| {
        let ip: Option<IpAddr> = text.and_then(|text| text.parse().ok());
        ip.filter(|ip| ip.is_ipv4() == is_v4).ok_or(Fault::Invalid)
    };
    let (source, destination) = (ip(words.next())?, ip(words.next())?);
    let (source_port, destination_port) = (port(words.next())?, port(words.next())?);
    if words.next().is_some() {
        return Err(Fault::Invalid);
    }
    let addresses = (SocketAddr::new(source, source_port), SocketAddr::new(destination, destination_port));
    Ok(Header { addresses: Some(canonical(addresses)), ..Header::default() })
}

/// Digits alone, without a leading zero.
fn port(text: Option<&str>) -> Result<u16, Fault> {
    let text = text.filter(|text| text.bytes().all(|b| b.is_ascii_digit()) && (*text == "0" || !text.starts_with('0')));
    text.and_then(|text| text.parse().ok()).ok_or(Fault::Invalid)
}

/// Bytes a header of version 2 has altogether, once those in front of its addresses are there.
///
/// # Errors
/// A header that is longer than what is accepted, or of another version.
pub(super) fn whole_length(fixed: &[u8; FIXED_V2]) -> Result<usize, Fault> {
    if !matches!(fixed[12], 0x20 | 0x21) {
        return Err(Fault::Invalid);
    }
    let whole = FIXED_V2 + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if whole > MOST_V2 { Err(Fault::TooLong) } else { Ok(whole) }
}

fn parse_v2(bytes: &[u8]) -> Result<Header, Fault> {
    let (fixed, block) = bytes.split_first_chunk::<FIXED_V2>().ok_or(Fault::Invalid)?;
    if whole_length(fixed)? != bytes.len() {
        return Err(Fault::Invalid);
    }
    if fixed[12] == 0x20 {
        // LOCAL: the proxy speaks for itself. The block is to be skipped whatever its shape.
        return Ok(Header::default());
    }
    let (addresses, fields) = match fixed[13] {
        0x11 => inet(block).map(|(addresses, rest)| (Some(addresses), rest)),
        0x21 => inet6(block).map(|(addresses, rest)| (Some(addresses), rest)),
        // Datagrams, unix sockets: no TCP address, but of a known length.
        0x12 => Some(12).and_then(|len| Some((None, block.get(len..)?))),
        0x22 => Some(36).and_then(|len| Some((None, block.get(len..)?))),
        0x31 | 0x32 => Some(216).and_then(|len| Some((None, block.get(len..)?))),
        0x00 => Some((None, block)),
        _ => None,
    }
    .ok_or(Fault::Invalid)?;
    let (tlvs, checksum_at) = walk(fields)?;
    let fields_at = bytes.len() - fields.len();
    if let Some(at) = checksum_at {
        verify(bytes, fields_at + at)?;
    }
    Ok(Header { addresses: addresses.map(canonical), tlvs: tlvs.into(), has_checksum: checksum_at.is_some() })
}

type Split<'a> = Option<((SocketAddr, SocketAddr), &'a [u8])>;

fn inet(block: &[u8]) -> Split<'_> {
    let (source, rest) = block.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    let ((from, to), rest) = ports(rest)?;
    let address = |ip: &[u8; 4], port| SocketAddr::from((Ipv4Addr::from(*ip), port));
    Some(((address(source, from), address(destination, to)), rest))
}

fn inet6(block: &[u8]) -> Split<'_> {
    let (source, rest) = block.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let ((from, to), rest) = ports(rest)?;
    let address = |ip: &[u8; 16], port| SocketAddr::from((Ipv6Addr::from(*ip), port));
    Some(((address(source, from), address(destination, to)), rest))
}

fn ports(rest: &[u8]) -> Option<((u16, u16), &[u8])> {
    let ([a, b, c, d], rest) = rest.split_first_chunk::<4>()?;
    Some(((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])), rest))
}

/// IPv4 addresses written as IPv6 ones are those IPv4 addresses: access rules and limits must not depend on the form.
fn canonical((source, destination): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
    (canonical(source), canonical(destination))
}

/// Every field must lie within the header. Returns those to pass on, and where the value of a checksum is.
fn walk(mut fields: &[u8]) -> Result<(Vec<u8>, Option<usize>), Fault> {
    let whole = fields.len();
    let (mut kept, mut checksum_at) = (Vec::new(), None);
    while !fields.is_empty() {
        let ([kind, high, low], rest) = fields.split_first_chunk::<3>().ok_or(Fault::Invalid)?;
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..len).ok_or(Fault::Invalid)?;
        match *kind {
            tlv::NOOP => {}
            // One that is there twice can hold only once.
            tlv::CRC32C if len != 4 || checksum_at.is_some() => return Err(Fault::Invalid),
            tlv::CRC32C => checksum_at = Some(whole - rest.len()),
            _ => kept.extend_from_slice(&fields[..3 + value.len()]),
        }
        fields = &rest[len..];
    }
    Ok((kept, checksum_at))
}

fn verify(bytes: &[u8], at: usize) -> Result<(), Fault> {
    let mut zeroed = bytes.to_vec();
    let value = zeroed.get_mut(at..at + 4).ok_or(Fault::Invalid)?;
    let found = u32::from_be_bytes([value[0], value[1], value[2], value[3]]);
    value.fill(0);
    if crc32c(&zeroed) == found { Ok(()) } else { Err(Fault::Checksum) }
}
