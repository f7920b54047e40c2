//! Findings for people.

use std::fmt::Write;

use super::{Finding, Status};

/// One line a check; what mends it stands below, indented, so that it can be copied.
pub(super) fn text(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Finding { check, status, found, mend } in findings {
        let (word, paint) = match status {
            Status::Ok => ("ok  ", "\x1b[32m"),
            Status::Warn => ("warn", "\x1b[33m"),
            Status::Fail => ("fail", "\x1b[1;31m"),
        };
        let (paint, plain) = if colour { (paint, "\x1b[0m") } else { ("", "") };
        let _ = writeln!(out, "{paint}{word}{plain}  {check:width$}  {found}");
        if let Some(mend) = mend {
            let _ = writeln!(out, "{:1$}→ {mend}", "", width + 8);
        }
    }
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    let verdict = match (failures, warnings) {
        (0, 0) => "ready".to_owned(),
        (0, n) => format!("ready, with {n} warning{}", plural(n)),
        (n, _) => format!("not ready: {n} check{} failed", plural(n)),
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_and_how_to_mend_it() {
        let findings =
            [Finding::ok("kernel", "6.18"), Finding::warn("backlog", "128", "sysctl -w net.core.somaxconn=4096")];
        let plain = "ok    kernel   6.18\nwarn  backlog  128\n               → sysctl -w net.core.somaxconn=4096\n\n\
                     ready, with 1 warning\n";
        assert_eq!(text(&findings, false), plain);
        let coloured = text(&findings, true);
        assert!(coloured.starts_with("\x1b[32mok  \x1b[0m  kernel "), "{coloured:?}");
        let failed = text(&[Finding::fail("splice", "refused", "x")], false);
        assert!(failed.ends_with("\nnot ready: 1 check failed\n"), "{failed}");
    }
}
