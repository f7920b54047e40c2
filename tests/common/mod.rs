//! What the tests of all promises share: the program under test, peers, patterns, deadlines, namespaces.

#![allow(dead_code, unused_imports, unused_macros, reason = "each test program has a copy and uses its part of it")]

pub(crate) mod deadline;
pub(crate) mod dns;
pub(crate) mod netns;
pub(crate) mod path;
pub(crate) mod pattern;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod shortage;
pub(crate) mod spliced;
pub(crate) mod stats;
pub(crate) mod strace;
pub(crate) mod target;
pub(crate) mod udp;
pub(crate) mod unix;
pub(crate) mod upgraded;

use std::io::Write;

/// Makes one test per engine from functions that take a [`path::Via`]; those under `also_direct` also run with
/// nothing in between, which proves that the scenario asks only what TCP itself gives.
macro_rules! scenarios {
    (also_direct: [$($direct:ident),* $(,)?], engines: [$($engine:ident),* $(,)?] $(,)?) => {
        $crate::common::scenarios!(@module direct DIRECT [$($direct),*]);
        $crate::common::scenarios!(@module auto AUTO [$($direct,)* $($engine),*]);
        $crate::common::scenarios!(@module copy COPY [$($direct,)* $($engine),*]);
        #[cfg(not(spliced_portable))]
        $crate::common::scenarios!(@module splice SPLICE [$($direct,)* $($engine),*]);
    };
    (@module $module:ident $via:ident [$($scenario:ident),* $(,)?]) => {
        mod $module {
            $(#[test] fn $scenario() { super::$scenario(crate::common::path::Via::$via) })*
        }
    };
}
pub(crate) use scenarios;

/// Says on standard error, past the test runner's capture, why a test cannot run here. Under `CI=true` that is a
/// failure: nothing may be skipped there.
pub(crate) fn cannot_run(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "nothing may be skipped under CI=true: {why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    writeln!(std::io::stderr(), "NOT RUN: {test}: {why}").expect("standard error takes a line");
}
