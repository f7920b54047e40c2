//! What `README.md` shows is what the lab takes.
#![allow(clippy::unwrap_used)]

use lab::experiment::file;

#[test]
fn the_plan_in_the_readme_is_one() {
    let readme = include_str!("../README.md");
    let plan = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let written = file::parse("pipes.yaml", plan, &[]).unwrap();
    assert_eq!((written.rounds, written.cases.len()), (5, 3));
    assert_eq!(
        written.arms.len() + written.missing.len(),
        5,
        "each forwarder can be measured or is said to be missing"
    );
    assert!(!written.links.offloads && !written.passes.is_empty());
}
