//! Lists of networks in files of their own: one a line, `#` begins a comment.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::address::Lookup;
use super::error::{Fault, Mark, quoted};
use super::node::Node;
use super::{regular, value};
use crate::plan::{NetFile, NetSet};

/// Most bytes such a file may have: some millions of networks.
const MOST_BYTES: u64 = 64 << 20;
const LINE: &str = "an address or a network a line, such as 10.0.0.0/8, with comments after #";
const FILE: &str = "a file with an address or a network a line";

/// A path as written, and where.
pub(super) type Written = (Mark, PathBuf);

/// Reads each file once, however many forwards name it.
#[derive(Debug)]
pub(super) struct Lists<'a> {
    lookup: &'a Lookup,
    read: HashMap<PathBuf, Arc<NetSet>>,
}

/// The text of a list as it is on this host.
///
/// # Errors
/// What open(2) or read(2) reports, or a file that is none, too large or no text.
pub(super) fn text_of(path: &Path) -> io::Result<String> {
    text(regular::open(path)?, MOST_BYTES)
}

fn text(file: impl Read, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    // Before it is taken for text: the cut may be within a character.
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {}MiB", MOST_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

impl<'a> Lists<'a> {
    pub(super) fn new(lookup: &'a Lookup) -> Self {
        Self { lookup, read: HashMap::new() }
    }

    pub(super) fn load(&mut self, files: &[Written]) -> Result<Vec<NetFile>, Fault> {
        files.iter().map(|(mark, path)| self.one(*mark, path)).collect()
    }

    fn one(&mut self, mark: Mark, path: &Path) -> Result<NetFile, Fault> {
        let nets = match self.read.get(path) {
            Some(nets) => Arc::clone(nets),
            None => {
                let text = (self.lookup.lists)(path).map_err(|error| {
                    let name = quoted(&path.to_string_lossy());
                    Fault::new(mark, format!("found {name}, which cannot be read ({error}); allowed: {FILE}"))
                })?;
                let nets = Arc::new(parse(&text).map_err(|fault| fault.of_file(path))?);
                self.read.insert(path.to_owned(), Arc::clone(&nets));
                nets
            }
        };
        Ok(NetFile { path: path.to_owned(), nets })
    }
}

/// The networks of a list.
fn parse(text: &str) -> Result<NetSet, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut nets = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let said = line.split_once('#').map_or(line, |(said, _)| said);
        let word = said.trim();
        if word.is_empty() {
            continue;
        }
        let net = network(word).ok_or_else(|| {
            let column = said.chars().take_while(|c| c.is_whitespace()).count() + 1;
            Fault::new(Mark::At(number + 1, column), format!("found {}; allowed: {LINE}", quoted(word)))
        })?;
        nets.push(net);
    }
    Ok(nets.into_iter().collect())
}

/// Clients are matched in their IPv4 form, so networks of mapped addresses are IPv4 networks.
fn network(word: &str) -> Option<IpNet> {
    let net = word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(IpNet::from)).ok()?;
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        _ => None,
    };
    match mapped {
        Some((v4, len)) => Ipv4Net::new(v4, len).ok().map(|net| IpNet::V4(net.trunc())),
        None => Some(net.trunc()),
    }
}

/// One path or a list of them.
pub(super) fn paths(node: &Node) -> Result<Vec<Written>, Fault> {
    node.one_or_many().iter().map(|item| Ok((item.mark, item.text(value::path, FILE)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_cut_within_a_character_is_too_large() {
        let read = |bytes: &[u8], most| text(bytes, most).map_err(|error| error.kind());
        assert_eq!(read("# é\n".as_bytes(), 2), Err(io::ErrorKind::FileTooLarge));
        assert_eq!(read("# éé\n".as_bytes(), 4), Err(io::ErrorKind::FileTooLarge), "within the second one");
        assert_eq!(read("# é\n".as_bytes(), 5), Ok("# é\n".to_owned()));
        assert_eq!(read(b"# \xe9\n", 5), Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn a_list_and_its_mistakes() {
        let text = "\u{feff}# blocked\n10.0.0.0/8\r\n\n  192.0.2.1   # one\n2001:db8::/32\n::ffff:198.51.100.0/120\n";
        let nets = parse(text).unwrap();
        for (ip, is_in) in [
            ("10.9.9.9", true),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8:1::", true),
            ("198.51.100.7", true),
            ("198.51.101.7", false),
        ] {
            assert_eq!(nets.contains(ip.parse().unwrap()), is_in, "{ip}");
        }
        for (text, at) in
            [("10.0.0.0/33", (1, 1)), ("10.0.0.1\n\n é.1\n", (3, 2)), ("10.*\n", (1, 1)), ("10.0.0.1 10.0.0.2", (1, 1))]
        {
            let fault = parse(text).unwrap_err();
            assert_eq!(fault.at, Mark::At(at.0, at.1), "{text}");
            assert!(fault.message.contains("; allowed: an address or a network a line"), "{}", fault.message);
        }
    }
}
