//! Who may connect.

use std::net::IpAddr;
use std::sync::Arc;

use super::NetFile;

/// Who may connect: rinetd's order. A client must match an allow rule where there are any, and no deny rule, first
/// of the process, then of the forward.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// Process-wide allow patterns, one list for all forwards.
    pub global_allow: Arc<[Pattern]>,
    /// Process-wide deny patterns, one list for all forwards.
    pub global_deny: Arc<[Pattern]>,
    /// Allow patterns of this forward.
    pub allow: Vec<Pattern>,
    /// Deny patterns of this forward.
    pub deny: Vec<Pattern>,
    /// Files with more of each.
    pub files: AccessFiles,
}

/// Files with networks, as they were when the configuration was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessFiles {
    /// Process-wide, to allow.
    pub global_allow: Arc<[NetFile]>,
    /// Process-wide, to deny.
    pub global_deny: Arc<[NetFile]>,
    /// Of this forward, to allow.
    pub allow: Vec<NetFile>,
    /// Of this forward, to deny.
    pub deny: Vec<NetFile>,
}

/// Matches client addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// An address or a network.
    Net(ipnet::IpNet),
    /// rinetd's text pattern over the numeric address: `*` any run, `?` one character. Lower case.
    Text(String),
}

/// Why [`Access::refuses`] a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are allow rules and none matched.
    NotAllowed,
    /// A deny rule matched.
    Denied,
}

impl Access {
    /// Why a client is refused, or `None` when it may connect.
    #[must_use]
    pub fn refuses(&self, client: IpAddr) -> Option<Refusal> {
        if self.is_open() {
            return None;
        }
        let client = client.to_canonical();
        let is_without_patterns = self.lists().iter().all(|list| list.is_empty());
        let text = if is_without_patterns { String::new() } else { client.to_string() };
        let any = |patterns: &[Pattern], files: &[NetFile]| {
            patterns.iter().any(|p| p.matches(client, &text)) || files.iter().any(|file| file.nets.contains(client))
        };
        let AccessFiles { global_allow, global_deny, allow, deny } = &self.files;
        for ((allow, allow_files), (deny, deny_files)) in [
            ((&*self.global_allow, &**global_allow), (&*self.global_deny, &**global_deny)),
            ((&*self.allow, &**allow), (&*self.deny, &**deny)),
        ] {
            let allows_all = allow.is_empty() && allow_files.is_empty();
            if !allows_all && !any(allow, allow_files) {
                return Some(Refusal::NotAllowed);
            }
            if any(deny, deny_files) {
                return Some(Refusal::Denied);
            }
        }
        None
    }

    /// True when no rule exists.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty()) && self.files.iter().next().is_none()
    }

    fn lists(&self) -> [&[Pattern]; 4] {
        [&self.global_allow, &self.global_deny, &self.allow, &self.deny]
    }
}

impl AccessFiles {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &NetFile> {
        self.global_allow.iter().chain(&*self.global_deny).chain(&self.allow).chain(&self.deny)
    }
}

impl Pattern {
    /// Whether the client matches; `text` is the numeric form of `client`.
    #[must_use]
    pub fn matches(&self, client: IpAddr, text: &str) -> bool {
        match self {
            Self::Net(net) => net.contains(&client),
            Self::Text(pattern) => wildcard(pattern.as_bytes(), text.as_bytes()),
        }
    }
}

/// Glob match with `*` and `?`, linear in time for one star, quadratic at worst; both texts are short.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}
