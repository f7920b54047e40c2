//! The plans that come with the lab are good.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use lab::experiment::file;

#[test]
fn every_plan_is_understood() {
    let mut count = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("plans")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let written = file::parse(&path.to_string_lossy(), &text, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert!(written.arms.len() + written.missing.len() > 2, "{}", path.display());
        count += 1;
    }
    assert!(count >= 4, "{count} plans");
}
