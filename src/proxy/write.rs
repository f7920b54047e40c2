//! What is known of a client → a header.

use std::net::{IpAddr, SocketAddr};

use super::{FIXED_V2, Header, SIGNATURE_V2, Version, crc32c, tlv};

/// The header that says so. Version 1 has no room for TLVs; those of version 2 go behind the addresses, and a checksum
/// behind them where the header that brought them had one. Addresses of two families are both written as IPv6.
#[must_use]
pub fn encode(version: Version, header: &Header) -> Vec<u8> {
    match version {
        Version::V1 => encode_v1(header.addresses),
        Version::V2 => encode_v2(header),
    }
}

/// The header of a connection that is made for nobody, such as a health check.
#[must_use]
pub fn local(version: Version) -> &'static [u8] {
    match version {
        Version::V1 => b"PROXY UNKNOWN\r\n",
        Version::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

fn encode_v1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((source, destination)) = addresses else { return local(Version::V1).to_vec() };
    let (from, to) = match (source.ip(), destination.ip()) {
        (from @ IpAddr::V4(_), to @ IpAddr::V4(_)) => (from, to),
        (from, to) => (to_v6(from), to_v6(to)),
    };
    let protocol = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {protocol} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn encode_v2(header: &Header) -> Vec<u8> {
    let mut block = Vec::with_capacity(36 + header.tlvs.len() + 7);
    let family = match header.addresses {
        None => 0x00,
        Some((source, destination)) => {
            let family = match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    block.extend(from.octets().into_iter().chain(to.octets()));
                    0x11
                }
                (from, to) => {
                    block.extend([from, to].into_iter().flat_map(octets_v6));
                    0x21
                }
            };
            block.extend(source.port().to_be_bytes().into_iter().chain(destination.port().to_be_bytes()));
            family
        }
    };
    block.extend_from_slice(&header.tlvs);
    if header.has_checksum {
        block.extend_from_slice(&[tlv::CRC32C, 0, 4, 0, 0, 0, 0]);
    }
    let mut out = Vec::with_capacity(FIXED_V2 + block.len());
    out.extend_from_slice(SIGNATURE_V2);
    out.extend_from_slice(&[0x21, family]);
    // What was accepted fits by far.
    out.extend_from_slice(&u16::try_from(block.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(&block);
    if header.has_checksum {
        let (at, sum) = (out.len() - 4, crc32c(&out));
        out[at..].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

fn to_v6(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        ip @ IpAddr::V6(_) => ip,
    }
}

fn octets_v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}
