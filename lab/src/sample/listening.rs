//! Which addresses processes listen on.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::descriptors;
use super::process::Tree;

/// A listening socket in `/proc/net/tcp`; see `include/net/tcp_states.h` of the kernel.
const LISTEN: &str = "0A";

/// Whether the processes of a tree hold a listening socket for each address, without connecting to it.
#[must_use]
pub fn listens(tree: &Tree, wanted: &[SocketAddr]) -> bool {
    let pids = tree.pids();
    let held: HashSet<String> = pids.iter().flat_map(|pid| descriptors::links(*pid)).collect();
    let tables: Vec<String> = tree
        .roots
        .iter()
        .flat_map(|pid| ["tcp", "tcp6"].map(|table| format!("/proc/{pid}/net/{table}")))
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let rows: Vec<(SocketAddr, String)> = tables.iter().flat_map(|table| listening(table)).collect();
    wanted.iter().all(|address| {
        rows.iter().any(|(row, inode)| covers(*row, *address) && held.contains(&format!("socket:[{inode}]")))
    })
}

fn covers(listening: SocketAddr, address: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified() || ip == IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
    listening.port() == address.port() && (any(listening.ip()) || listening.ip().to_canonical() == address.ip())
}

/// Addresses and inodes of the listening sockets of a table; see proc_net(5), `tcp`.
fn listening(table: &str) -> Vec<(SocketAddr, String)> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (*state == LISTEN).then_some((address(local)?, (*inode).to_owned()))
    };
    table.lines().filter_map(row).collect()
}

/// `0101000A:2328`: words of an address as the machine holds them in memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> = (0..ip.len())
        .step_by(8)
        .map(|at| ip.get(at..at + 8).and_then(|word| u32::from_str_radix(word, 16).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured on a little-endian machine.
    #[cfg(target_endian = "little")]
    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0101000A:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41234 1 0000000000000000 100 0 0 10 0
   1: 0101000A:2328 0201000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 41235 1 0000000000000000 20 4 30 10 -1
";

    #[cfg(target_endian = "little")]
    #[test]
    fn rows_of_listening_sockets_are_read() {
        assert_eq!(listening(TABLE), [("10.0.1.1:9000".parse().unwrap(), "41234".to_owned())]);
        assert_eq!(address("0000000000000000FFFF00000101000A:2328"), "[::ffff:10.0.1.1]:9000".parse().ok());
        for bad in ["", "0101000A", "01010:2328", "0101000A:zz", "é101000:0001"] {
            assert_eq!(address(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_wildcard_and_a_mapped_address_cover() {
        let address = "10.0.1.1:9000".parse().unwrap();
        for listening in ["10.0.1.1:9000", "0.0.0.0:9000", "[::]:9000", "[::ffff:10.0.1.1]:9000"] {
            assert!(covers(listening.parse().unwrap(), address), "{listening}");
        }
        for listening in ["10.0.1.1:9001", "10.0.1.2:9000", "[::1]:9000"] {
            assert!(!covers(listening.parse().unwrap(), address), "{listening}");
        }
    }

    #[test]
    fn a_listener_of_this_process_is_seen_and_another_is_not() {
        let here = Tree::new([std::process::id()]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(listens(&here, &[address]));
        drop(listener);
        assert!(!listens(&here, &[address]));
    }
}
