//! Lines of rinetd 0.73 (its `src/parse.peg`) and oi, whose lines are a part of rinetd's.
//!
//! `BIND PORT HOST PORT [options]`, `allow|deny PATTERN`, `logfile PATH`, `pidlogfile PATH`, `logcommon`, comments
//! with `#`. Neither program's leniency is kept: a line that is none of these is an error, never skipped.

use std::path::PathBuf;
use std::time::Duration;

use super::address::{self, Lookup, Services};
use super::draft::{Draft, DraftForward, nothing_to_forward, push_rule};
use super::error::{Fault, Mark, found, quoted};
use super::{source, value};
use crate::config::Sources;
use crate::plan::{Host, Listen, LogFormat, Ports, Target, Transport};

const LINE: &str =
    "BIND PORT HOST PORT [options], allow PATTERN, deny PATTERN, logfile PATH, pidlogfile PATH, logcommon, # comment";
const RULE: &str = "BIND PORT HOST PORT [timeout=SECONDS,src=ADDRESS]";
/// How long rinetd and oi keep a UDP association without a datagram where the rule does not say.
pub(super) const RINETD_TIMEOUT: Duration = Duration::from_secs(72);
const OPTION: &str = "timeout=SECONDS, src=ADDRESS";

/// Reads lines.
pub(super) fn read(text: &str, lookup: &Lookup) -> Result<Draft, Fault> {
    let mut reader = Reader { lookup, services: None, draft: Draft::default(), common: false };
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let mut cursor = Cursor { rest: line.trim_end_matches(['\n', '\r']), offset };
        reader.line(&mut cursor)?;
        offset += line.len();
    }
    let mut draft = reader.draft;
    if draft.forwards.is_empty() {
        return Err(nothing_to_forward(Mark::At(1, 1), "0.0.0.0 9000 10.0.0.2 9001"));
    }
    if reader.common {
        draft.process.log_format = Some(LogFormat::Common);
    } else if draft.process.log_file.is_some() {
        draft.process.log_format = Some(LogFormat::Rinetd);
    }
    Ok(draft)
}

struct Reader<'a> {
    lookup: &'a Lookup,
    /// Read once, at the first service name.
    services: Option<Services>,
    draft: Draft,
    common: bool,
}

/// What is left of a line, and where that is in the text.
struct Cursor<'a> {
    rest: &'a str,
    offset: usize,
}

/// A piece of a line and where it is.
#[derive(Clone, Copy)]
struct Word<'a> {
    text: &'a str,
    mark: Mark,
}

impl<'a> Cursor<'a> {
    fn skip(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
        self.offset += bytes;
    }

    fn skip_blanks(&mut self) {
        self.skip(self.rest.len() - self.rest.trim_start().len());
    }

    fn mark(&self) -> Mark {
        Mark::Offset(self.offset)
    }

    /// Up to the next blank or one of `ends`; empty at the end of the line.
    fn word(&mut self, ends: &[char]) -> Word<'a> {
        self.skip_blanks();
        let end = self.rest.find(|c: char| c.is_whitespace() || ends.contains(&c)).unwrap_or(self.rest.len());
        let word = Word { text: &self.rest[..end], mark: self.mark() };
        self.skip(end);
        word
    }

    /// Nothing more but a comment.
    fn end(&mut self, allowed: &str) -> Result<(), Fault> {
        self.skip_blanks();
        if self.rest.is_empty() || self.rest.starts_with('#') {
            return Ok(());
        }
        Err(Fault::new(self.mark(), source::no_rule(self.rest, &format!("nothing more after {allowed}"))))
    }
}

impl Reader<'_> {
    fn line(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        cursor.skip_blanks();
        let (start, whole) = (cursor.mark(), cursor.rest);
        let first = cursor.word(&['#']);
        match first.text.to_ascii_lowercase().as_str() {
            "" => cursor.end("a comment"),
            "allow" => self.access(cursor, true),
            "deny" => self.access(cursor, false),
            "logfile" => {
                let path = file_name(cursor, "logfile PATH")?;
                self.draft.process.log_file = Some(path);
                Ok(())
            }
            "pidlogfile" => {
                let path = file_name(cursor, "pidlogfile PATH")?;
                self.draft.process.pid_file = Some(path);
                Ok(())
            }
            "logcommon" => {
                self.common = true;
                cursor.end("logcommon")
            }
            _ => self.rule(first, cursor, start, whole),
        }
    }

    /// `allow|deny PATTERN`: for all before the first rule, for the last rule after it.
    fn access(&mut self, cursor: &mut Cursor<'_>, is_allow: bool) -> Result<(), Fault> {
        let word = cursor.word(&['#']);
        let pattern = address::pattern(word.text).map_err(|message| Fault::new(word.mark, message))?;
        cursor.end("a pattern")?;
        match self.draft.forwards.last_mut() {
            Some(rule) => push_rule(&mut rule.allow, &mut rule.deny, is_allow, pattern),
            None => push_rule(&mut self.draft.allow, &mut self.draft.deny, is_allow, pattern),
        }
        Ok(())
    }

    fn rule(&mut self, bind: Word<'_>, cursor: &mut Cursor<'_>, start: Mark, whole: &str) -> Result<(), Fault> {
        let bind_port = cursor.word(&['#']);
        let host = cursor.word(&['#']);
        let port = cursor.word(&['#', '[']);
        if port.text.is_empty() {
            return Err(Fault::new(start, source::no_rule(whole.trim_end(), LINE)));
        }
        let ips = self.bind_addresses(bind)?;
        let (transport, ports) = self.port(bind_port)?;
        let (to_transport, to_ports) = self.port(port)?;
        let target = Target::new(host_of(host)?, to_ports);
        let listens = ips.into_iter().map(|ip| Listen { ip, ports }).collect();
        let mut forward = DraftForward { listen: vec![(bind.mark, transport, listens)], ..DraftForward::default() };
        if transport == Transport::Udp {
            forward.options.udp_timeout = Some(RINETD_TIMEOUT);
        }
        forward.push_target(host.mark, Some(to_transport).filter(|to| *to != transport), target)?;
        cursor.skip_blanks();
        if cursor.rest.starts_with('[') {
            self.options(cursor, &mut forward)?;
        }
        cursor.end(RULE)?;
        self.draft.forwards.push(forward);
        Ok(())
    }

    fn bind_addresses(&self, word: Word<'_>) -> Result<Vec<std::net::IpAddr>, Fault> {
        address::addresses(host_of(word)?, self.lookup).map_err(|message| Fault::new(word.mark, message))
    }

    /// A number or a service name, with `/tcp`, `/udp` or nothing behind it.
    fn port(&mut self, word: Word<'_>) -> Result<(Transport, Ports), Fault> {
        let fault = |message: String| Fault::new(word.mark, message);
        let (text, transport) = match word.text.split_once('/') {
            None => (word.text, Transport::Tcp),
            Some((port, "tcp")) => (port, Transport::Tcp),
            Some((port, "udp")) => (port, Transport::Udp),
            Some(_) => return Err(fault(found(word.text, "PORT, PORT/tcp or PORT/udp"))),
        };
        if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return self.service(text, transport).map(|port| (transport, Ports::one(port))).map_err(fault);
        }
        if text.contains('-') {
            return Err(fault(found(text, "one port from 1 to 65535, or a service name")));
        }
        address::ports(text).map(|ports| (transport, ports)).map_err(fault)
    }

    fn service(&mut self, name: &str, transport: Transport) -> Result<u16, String> {
        if self.services.is_none() {
            let text = (self.lookup.services)().map_err(|error| {
                let name = quoted(name);
                format!("found service name {name}, but /etc/services cannot be read ({error}); allowed: a port from 1 to 65535")
            })?;
            self.services = Some(Services::parse(&text));
        }
        self.services.as_ref().and_then(|services| services.port(name, transport)).ok_or_else(|| {
            let name = quoted(name);
            format!(
                "found service name {name}, which is no {kind} service in /etc/services; allowed: a port from 1 to 65535",
                kind = transport.to_string().to_uppercase(),
            )
        })
    }

    /// `[timeout=SECONDS,src=ADDRESS]`, blanks allowed around every part.
    fn options(&self, cursor: &mut Cursor<'_>, forward: &mut DraftForward) -> Result<(), Fault> {
        cursor.skip(1);
        loop {
            let name = cursor.word(&['=', ',', ']', '#']);
            cursor.skip_blanks();
            if !cursor.rest.starts_with('=') {
                return Err(Fault::new(name.mark, found(name.text, OPTION)));
            }
            cursor.skip(1);
            let value = cursor.word(&[',', ']', '#']);
            match name.text {
                // rinetd ends idle UDP associations with it; a TCP rule may carry it, and rinetd ignores it there.
                "timeout" => {
                    let time = value::seconds(value.text).map_err(|message| Fault::new(value.mark, message))?;
                    forward.options.udp_timeout = forward.options.udp_timeout.and(Some(time));
                }
                "src" => {
                    let ip = self.bind_addresses(value)?.into_iter().next();
                    forward.options.source = Some(Sources(ip.filter(|ip| !ip.is_unspecified()).into_iter().collect()));
                }
                _ => return Err(Fault::new(name.mark, found(name.text, OPTION))),
            }
            cursor.skip_blanks();
            match cursor.rest.chars().next() {
                Some(',') => cursor.skip(1),
                Some(']') => {
                    cursor.skip(1);
                    return Ok(());
                }
                _ => {
                    return Err(Fault::new(
                        cursor.mark(),
                        source::no_rule(cursor.rest, "a comma or ] after an option"),
                    ));
                }
            }
        }
    }
}

/// An address, with rinetd's `0` for all of IPv4 and brackets where somebody wrote them.
fn host_of(word: Word<'_>) -> Result<Host, Fault> {
    if word.text == "0" {
        return Ok(Host::Ip(std::net::Ipv4Addr::UNSPECIFIED.into()));
    }
    let inner = word.text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let bare = inner.filter(|inner| inner.contains(':')).unwrap_or(word.text);
    address::host(bare).map_err(|message| Fault::new(word.mark, message))
}

/// A path, in quotes when it has blanks.
fn file_name(cursor: &mut Cursor<'_>, allowed: &str) -> Result<PathBuf, Fault> {
    cursor.skip_blanks();
    let mark = cursor.mark();
    let text = if let Some(rest) = cursor.rest.strip_prefix('"') {
        let Some((inner, _)) = rest.split_once('"') else {
            return Err(Fault::new(mark, source::no_rule(cursor.rest, "a closing quote")));
        };
        cursor.skip(inner.len() + 2);
        inner
    } else {
        cursor.word(&[]).text
    };
    let path = value::path(text).map_err(|_| Fault::new(mark, found(text, allowed)))?;
    cursor.end(allowed)?;
    Ok(path)
}
