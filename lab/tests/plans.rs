//! The plans that come with the lab are good.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{can_run, errors, network, output, plan, run};
use lab::experiment::file;

#[test]
fn every_plan_is_understood() {
    let mut count = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("plans")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let written = file::parse(&path.to_string_lossy(), &text, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert!(written.arms.len() + written.missing.len() >= 2, "{}", path.display());
        count += 1;
    }
    assert!(count >= 4, "{count} plans");
}

/// Without the routes no answer would come back, and no exchange be made.
#[test]
fn a_transparent_forwarder_gets_its_routes() {
    if !can_run() {
        return;
    }
    let (directory, before) = (tempfile::tempdir().unwrap(), network());
    let forwarders = "[{name: before, options: {transparent: on}}, {name: after, options: {transparent: on}}]";
    let out = directory.path().join("out");
    let ended = output(&mut run(&plan(directory.path(), forwarders), &out));
    assert!(ended.status.success(), "the second one finds the routes of the first taken back: {}", errors(&ended));
    for name in ["before", "after"] {
        assert!(out.join(name).join("transparent.nft").is_file());
    }
    assert_eq!(network(), before, "the host is as it was");
}
