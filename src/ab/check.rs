//! Whether everything that was sent arrived, and nothing else.

use std::io;

use super::pinger::PingReport;
use super::sink::StreamEnd;
use super::source::StreamSent;
use crate::config::Size;

/// Problems that are listed in a message; the others are only counted.
const LISTED: usize = 3;

/// Compares what was sent with what arrived, stream by stream. The bytes of all of them when nothing differs.
///
/// # Errors
/// Names the streams and what was seen.
pub fn check_bulk(run: u64, sent: &[StreamSent], ends: &[StreamEnd]) -> io::Result<u64> {
    let mut problems = broken_ends(ends);
    let mut bytes = 0;
    for StreamSent { stream, bytes: sent, error } in sent {
        bytes += sent;
        let end = ends.iter().find(|end| end.bulk && end.run == run && end.stream == *stream);
        match (end, error) {
            (Some(end), _) if end.mismatch.is_some() || end.error.is_some() => {}
            (Some(end), _) if end.bytes != *sent => {
                problems.push(format!("stream {stream}: {sent} bytes were sent, {} arrived", end.bytes));
            }
            (_, Some(error)) => problems.push(format!("stream {stream}: {error}")),
            (None, None) => problems.push(format!("stream {stream}: the sink never saw its end")),
            (Some(_), None) => {}
        }
    }
    verdict(problems).map(|()| bytes)
}

/// Compares what the pinger got with what was sent back to it, in messages of `size` bytes.
///
/// # Errors
/// Names the connections and what was seen.
pub fn check_ping(report: &PingReport, ends: &[StreamEnd], size: u32) -> io::Result<()> {
    let mut problems = broken_ends(ends);
    problems.extend(report.errors.iter().cloned());
    let echoed: u64 = ends.iter().filter(|end| !end.bulk).map(|end| end.bytes).sum();
    let received = report.exchanges * u64::from(size);
    if problems.is_empty() && echoed != received {
        problems.push(format!("{echoed} bytes were sent back, {received} arrived"));
    }
    if problems.is_empty() && report.times.count == 0 {
        let size = Size(size as usize).to_string();
        problems.push(format!("no exchange of {size} was completed in the measured time"));
    }
    verdict(problems)
}

/// Every connection whose end the sink found wrong.
fn broken_ends(ends: &[StreamEnd]) -> Vec<String> {
    let problem = |end: &StreamEnd| {
        let name = if end.run == 0 { "a connection".to_owned() } else { format!("stream {}", end.stream) };
        match (&end.mismatch, &end.error) {
            (Some(mismatch), _) => Some(format!("{name}: {mismatch}")),
            (None, Some(error)) => Some(format!("{name}: at the sink, after {} bytes: {error}", end.bytes)),
            (None, None) => None,
        }
    };
    ends.iter().filter_map(problem).collect()
}

fn verdict(problems: Vec<String>) -> io::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let mut what = problems[..problems.len().min(LISTED)].join("; ");
    if problems.len() > LISTED {
        what.push_str(&format!("; and {} more", problems.len() - LISTED));
    }
    Err(io::Error::other(what))
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Mismatch;
    use super::super::pinger::Latency;
    use super::*;

    fn sent(stream: u32, bytes: u64) -> StreamSent {
        StreamSent { stream, bytes, error: None }
    }

    fn end(stream: u32, bytes: u64) -> StreamEnd {
        StreamEnd { run: 5, stream, bulk: true, bytes, mismatch: None, error: None }
    }

    fn problem(sent: &[StreamSent], ends: &[StreamEnd]) -> String {
        check_bulk(5, sent, ends).expect_err("something is wrong").to_string()
    }

    #[test]
    fn equal_accounts_are_right() {
        let sum = check_bulk(5, &[sent(0, 10), sent(1, 20)], &[end(1, 20), end(0, 10)]).expect("all is right");
        assert_eq!(sum, 30);
    }

    #[test]
    fn every_difference_names_its_stream() {
        assert_eq!(problem(&[sent(2, 10)], &[end(2, 9)]), "stream 2: 10 bytes were sent, 9 arrived");
        assert_eq!(problem(&[sent(2, 10)], &[]), "stream 2: the sink never saw its end");
        let stale = StreamEnd { run: 4, ..end(2, 10) };
        assert_eq!(problem(&[sent(2, 10)], &[stale]), "stream 2: the sink never saw its end");
        let wrong = StreamEnd { mismatch: Some(Mismatch { offset: 7, expected: 1, found: 2 }), ..end(1, 10) };
        let also = StreamSent { error: Some("the sink saw a wrong byte at offset 7".into()), ..sent(1, 10) };
        assert_eq!(problem(&[also], &[wrong]), "stream 1: wrong byte at offset 7: expected 0x01, found 0x02");
        let unknown = StreamEnd { run: 0, bulk: false, error: Some("no greeting".into()), ..end(0, 0) };
        assert!(problem(&[], &[unknown]).starts_with("a connection: "));
    }

    #[test]
    fn a_flood_of_problems_is_counted() {
        let all: Vec<StreamSent> = (0..10).map(|stream| sent(stream, 1)).collect();
        assert!(problem(&all, &[]).ends_with("; and 7 more"));
    }

    #[test]
    fn exchanges_are_counted_on_both_sides() {
        let times = Latency { count: 3, ..Latency::default() };
        let report = PingReport { exchanges: 3, times, errors: Vec::new() };
        let echoed = |bytes| [StreamEnd { bulk: false, ..end(0, bytes) }];
        check_ping(&report, &echoed(192), 64).expect("all is right");
        let error = check_ping(&report, &echoed(256), 64).expect_err("one answer is missing").to_string();
        assert_eq!(error, "256 bytes were sent back, 192 arrived");
        let silent = PingReport { times: Latency::default(), ..report };
        assert!(check_ping(&silent, &echoed(192), 64).is_err(), "nothing was measured");
    }
}
