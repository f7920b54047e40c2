//! The shapes of a session's line.
//!
//! Free text in a record is only what a configuration named (forwards, target hosts); it is quoted or replaced so that
//! no control character and no separator of the format gets into a line.

use std::fmt::{self, Display, Write};
use std::net::IpAddr;
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::errno::Errno;
use serde::Serialize;

use crate::address::Address;
use crate::plan::{Forward, Host, LogFormat, Ports, Transport};
use crate::stats::{Bytes, EndReason, SessionRecord};

/// Turns records into lines.
#[derive(Debug)]
pub(super) struct Formatter {
    format: LogFormat,
    with_time: bool,
    zone: TimeZone,
}

/// A record in JSON.
#[derive(Serialize)]
struct JsonLine<'a> {
    at: String,
    forward: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arm: Option<&'a str>,
    client: Address,
    /// Left out for TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<Address>,
    listener: Address,
    target: Option<Address>,
    bytes: Bytes,
    duration_seconds: f64,
    reason: &'static str,
    error: Option<String>,
}

impl Formatter {
    /// `with_time` puts the time before text lines; standard error has it from the program's own log. The local time
    /// zone is read once, here.
    pub(super) fn new(format: LogFormat, with_time: bool) -> Self {
        let zone = match format {
            LogFormat::Rinetd | LogFormat::Common => TimeZone::system(),
            LogFormat::Text | LogFormat::Json => TimeZone::UTC,
        };
        Self { format, with_time, zone }
    }

    /// Appends the record's line, line feed included.
    pub(super) fn line(&self, record: &SessionRecord, out: &mut String) {
        // Writing to a String fails only when a Display does; none of these do.
        let _ = match self.format {
            LogFormat::Text => self.text(record, out),
            LogFormat::Json => self.json(record, out),
            LogFormat::Rinetd => self.rinetd(record, out),
            LogFormat::Common => self.common(record, out),
        };
    }

    /// Appends a text line for sessions that got none of their own.
    pub(super) fn summary(&self, forward: &str, reason: EndReason, more: u64, out: &mut String) {
        let _ = self.prefix(SystemTime::now(), out);
        let (name, reason) = (Word(forward), reason.name());
        let _ = writeln!(out, "forward={name} reason={reason} … {more} more in the last second");
    }

    fn prefix(&self, at: SystemTime, out: &mut String) -> fmt::Result {
        if self.with_time { write!(out, "{:.3} ", timestamp(at)) } else { Ok(()) }
    }

    fn text(&self, record: &SessionRecord, out: &mut String) -> fmt::Result {
        self.prefix(record.at, out)?;
        let (up, down) = (record.bytes.client_to_backend, record.bytes.backend_to_client);
        write!(out, "forward={} ", Word(&record.forward.name))?;
        if let Some(arm) = arm(record) {
            write!(out, "arm={arm} ")?;
        }
        write!(out, "client={} ", record.client)?;
        if let Some(proxy) = record.proxy {
            write!(out, "proxy={proxy} ")?;
        }
        write!(out, "listener={}{} ", record.transport.scheme(), record.listener)?;
        match record.target {
            Some(target) => write!(out, "target={target} ")?,
            None => out.write_str("target=- ")?,
        }
        write!(out, "up={} down={} ", up.splice + up.copy, down.splice + down.copy)?;
        write!(out, "up_splice={} down_splice={} ", up.splice, down.splice)?;
        write!(out, "duration={:.3}s reason={}", record.duration.as_secs_f64(), record.reason.name())?;
        if let Some(error) = record.errno {
            write!(out, " error={}", errno_name(error))?;
        }
        out.write_char('\n')
    }

    fn json(&self, record: &SessionRecord, out: &mut String) -> fmt::Result {
        let line = JsonLine {
            at: format!("{:.3}", timestamp(record.at)),
            forward: &record.forward.name,
            arm: arm(record),
            client: record.client,
            protocol: Some(record.transport).filter(|t| *t == Transport::Udp).map(|t| t.to_string()),
            proxy: record.proxy,
            listener: record.listener,
            target: record.target,
            bytes: record.bytes,
            duration_seconds: record.duration.as_secs_f64(),
            reason: record.reason.name(),
            error: record.errno.map(errno_name),
        };
        let text = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        // JSON itself escapes only the first 32 characters. Outside of strings it has ASCII alone, so escaping more
        // changes nothing but the spelling.
        for c in text.chars() {
            if c.is_ascii_graphic() || c == ' ' {
                out.write_char(c)?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        out.write_char('\n')
    }

    /// rinetd's own shape. Its time ends with a space before the tab.
    fn rinetd(&self, record: &SessionRecord, out: &mut String) -> fmt::Result {
        let (up, down) = totals(record);
        write!(out, "{} \t{}\t", self.local_time(record.at, "%d/%b/%Y:%H:%M:%S"), client_address(record))?;
        let ((listen_host, listen_port), (target_host, target_port)) = ends(record);
        write!(out, "{listen_host}\t{listen_port}\t{target_host}\t{target_port}\t")?;
        writeln!(out, "{up}\t{down}\t{}", rinetd_result(record.reason))
    }

    /// The common log format as rinetd fakes it, two spaces before the zone included.
    fn common(&self, record: &SessionRecord, out: &mut String) -> fmt::Result {
        let (up, down) = totals(record);
        let time = self.local_time(record.at, "%d/%b/%Y:%H:%M:%S  %z");
        write!(out, "{} - - [{time}] \"GET /rinetd-services/", client_address(record))?;
        let ((listen_host, listen_port), (target_host, target_port)) = ends(record);
        write!(out, "{listen_host}/{listen_port}/{target_host}/{target_port}/{}", rinetd_result(record.reason))?;
        writeln!(out, " HTTP/1.0\" 200 {down} - - - {up}")
    }

    fn local_time(&self, at: SystemTime, format: &str) -> String {
        timestamp(at).to_zoned(self.zone.clone()).strftime(format).to_string()
    }
}

fn arm(record: &SessionRecord) -> Option<&str> {
    Some(&record.forward.arms.get(record.arm?)?.name)
}

/// Host and port of the listener and of the target, as the configuration has them: rinetd's log does.
fn ends(record: &SessionRecord) -> ((Token, u16), (Token, u16)) {
    let forward = &record.forward;
    let Some(address) = record.listener.socket() else {
        return (numeric(record.listener), target_end(forward, record.target, 0));
    };
    let (ip, port) = (address.ip().to_canonical(), address.port());
    let listens = if record.transport == Transport::Udp { &forward.udp.listen } else { &forward.listen };
    let candidates = || listens.iter().filter(|listen| contains(listen.ports, port));
    let listen = candidates()
        .find(|listen| listen.ip().is_some_and(|listen| same(listen, ip)))
        .or_else(|| candidates().find(|listen| listen.ip().is_some_and(|ip| ip.is_unspecified())));
    let listener = (Token(listen.and_then(|listen| listen.ip()).unwrap_or(ip).to_string()), port);
    let offset = listen.map_or(0, |listen| port - listen.ports.first);
    (listener, target_end(forward, record.target, offset))
}

/// The target that was tried, by the name it has in the configuration; the first one when none was.
fn target_end(forward: &Forward, tried: Option<Address>, offset: u16) -> (Token, u16) {
    let Some(address) = tried else {
        return forward.targets.first().map_or((Token("?".to_owned()), 0), |target| {
            let first = target.ports.first;
            let port = if target.ports.len() > 1 { first.saturating_add(offset) } else { first };
            (host(&target.host), port)
        });
    };
    let Address::Ip(address) = address else { return numeric(address) };
    let literal = forward.targets.iter().any(|target| matches!(target.host, Host::Ip(ip) if same(ip, address.ip())));
    let mut names = forward.targets.iter().filter(|target| match target.host {
        Host::Ip(_) | Host::Unix(_) => false,
        Host::Name(_) => contains(target.ports, address.port()),
        Host::Service(_) => true,
    });
    match (literal, names.next(), names.next()) {
        // With several names it cannot be told which one the address came from.
        (false, Some(target), None) => (host(&target.host), address.port()),
        _ => numeric(address.into()),
    }
}

fn host(host: &Host) -> Token {
    match host {
        Host::Ip(ip) => Token(ip.to_string()),
        Host::Name(_) | Host::Service(_) | Host::Unix(_) => Token(host.to_string()),
    }
}

fn numeric(address: Address) -> (Token, u16) {
    match address {
        Address::Ip(address) => (Token(address.ip().to_canonical().to_string()), address.port()),
        // A unix socket has no port; these formats have a place for one.
        name => (Token(name.to_string()), 0),
    }
}

fn same(a: IpAddr, b: IpAddr) -> bool {
    a.to_canonical() == b.to_canonical()
}

fn contains(ports: Ports, port: u16) -> bool {
    (ports.first..=ports.last).contains(&port)
}

fn client_address(record: &SessionRecord) -> Token {
    numeric(record.client).0
}

fn totals(record: &SessionRecord) -> (u64, u64) {
    let (up, down) = (record.bytes.client_to_backend, record.bytes.backend_to_client);
    (up.splice + up.copy, down.splice + down.copy)
}

fn timestamp(at: SystemTime) -> Timestamp {
    // Only a clock thousands of years off is out of range.
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => errno.to_string(),
        known => format!("{known:?}"),
    }
}

/// rinetd's word for an end. "local" is the backend's side there, "remote" the client's.
///
/// rinetd notes which side closed first; a record has that only for resets and vanished peers. A session that ended
/// well is put down to the client, who ends most of them; one that we ended (a timeout, a drain) to the local side.
/// Limits and circles have no word in rinetd: like a deny rule, they refuse a client by our own decision.
fn rinetd_result(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Done | EndReason::ResetByClient | EndReason::ClientVanished => "done-remote-closed",
        EndReason::ResetByBackend
        | EndReason::BackendVanished
        | EndReason::Idle
        | EndReason::HalfClosed
        | EndReason::Drain
        | EndReason::TargetDown
        | EndReason::WorkerPanic
        | EndReason::Error => "done-local-closed",
        EndReason::Refused
        | EndReason::ConnectFailed
        | EndReason::ConnectTimeout
        | EndReason::NoTarget
        | EndReason::Unresolved => "local-connect-failed",
        EndReason::NoDescriptors => "local-socket-failed",
        EndReason::NoPorts => "local-bind-failed",
        EndReason::Denied | EndReason::Limit | EndReason::Rate | EndReason::Loop => "denied",
        EndReason::NotAllowed
        | EndReason::ProxyTimeout
        | EndReason::ProxyTruncated
        | EndReason::ProxyTooLong
        | EndReason::ProxyInvalid
        | EndReason::ProxyChecksum
        | EndReason::ProxyUnlisted => "not-allowed",
    }
}

/// Free text in a `key=value` line: bare when it is plain, else quoted and escaped.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/+@[]".contains(c);
        if !self.0.is_empty() && self.0.chars().all(plain) { f.write_str(self.0) } else { write!(f, "{:?}", self.0) }
    }
}

/// A host in rinetd's formats, which have no quoting: anything but a host's own characters becomes `_`.
struct Token(String);

impl Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:%?".contains(c);
        self.0.chars().try_for_each(|c| f.write_char(if allowed(c) { c } else { '_' }))
    }
}

#[cfg(test)]
mod tests;
