//! Every kept input of the fuzz targets goes through the same checks here, and so does what a file may do to whoever
//! reads it: be huge, be deep, or refer to itself.

use crate::common;

#[path = "../../fuzz/fuzz_targets/check.rs"]
#[allow(dead_code, unreachable_pub, reason = "each target is called by its name")]
mod check;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::spliced::Launcher;
use spliced::config::MOST_BYTES;
use tempfile::TempDir;

/// Far more than a hostile file may cost in a build without optimisation.
const AT_MOST: Duration = Duration::from_secs(10);

fn fuzz() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

#[test]
fn every_kept_input_holds() {
    for (name, check) in check::TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(fuzz().join("corpus").join(name))
            .unwrap_or_else(|e| panic!("the corpus of {name}: {e}"))
            .map(|entry| entry.expect("a directory entry").path())
            .collect();
        inputs.sort();
        assert!(inputs.len() >= 3, "the corpus of {name} has {} inputs", inputs.len());
        for path in inputs {
            let input = fs::read(&path).expect("a kept input");
            // A panic names the input that brought it about.
            let result = std::panic::catch_unwind(|| check(&input));
            assert!(result.is_ok(), "{} does not hold", path.display());
        }
    }
}

#[test]
fn every_target_is_built_and_has_its_corpus() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest");
    let mut built: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
        .collect();
    let mut known: Vec<&str> = check::TARGETS.iter().map(|(name, _)| *name).collect();
    built.sort_unstable();
    known.sort_unstable();
    assert_eq!(built, known, "targets in fuzz/Cargo.toml and in check.rs");
}

/// `spliced check` of a file with that text: refused, in one line, and soon.
fn refused(what: &str, text: &[u8]) -> String {
    let directory = TempDir::with_prefix("spliced-hostile-").expect("a temporary directory");
    let file = directory.path().join("file");
    fs::write(&file, text).expect("our own directory");
    let start = Instant::now();
    let outcome = Launcher::with_arguments(["check".as_ref(), "--config".as_ref(), file.as_os_str()]).outcome();
    let took = start.elapsed();
    assert_eq!(outcome.code, Some(2), "{what}: {}", outcome.text);
    assert_eq!(outcome.text.lines().count(), 1, "{what}: {}", outcome.text);
    assert!(took < AT_MOST, "{what} took {took:?}");
    outcome.text
}

/// Lists of ten aliases of the list before, nine times: a billion words when written out.
#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (before, name) in ('a'..='h').zip('b'..='i') {
        bomb += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(", "));
    }
    bomb += "forwards: *i\n";
    let text = refused("a bomb of aliases", bomb.as_bytes());
    assert!(text.contains("found"), "{text}");
    refused("a list that holds itself", b"forwards: &a [*a]\n");
    refused("a merge of itself", b"&a {<<: *a, forwards: []}\n");
}

#[test]
fn a_file_of_any_depth_is_refused() {
    let most = usize::try_from(MOST_BYTES).expect("a megabyte");
    for (what, one) in [
        ("lists", "["),
        ("mappings", "{a: "),
        ("lists in blocks", "- "),
        ("keys", "? "),
        ("tags", "!!a "),
        ("quotes", "\""),
        ("tables", "[a."),
        ("inline tables", "a={"),
        ("dotted keys", "a."),
        ("folded text", ">\n "),
    ] {
        for times in [200, 10_000, most / one.len() - 20] {
            let text = one.repeat(times);
            refused(what, text.as_bytes());
            refused(what, format!("forwards: {text}").as_bytes());
            refused(what, format!("forwarding_rules = {text}").as_bytes());
        }
    }
    // Deeper with every line.
    let lines: String = (0..1400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    refused("keys within keys", lines.as_bytes());
}

#[test]
fn a_file_above_the_largest_is_refused_unread() {
    let most = usize::try_from(MOST_BYTES).expect("a megabyte");
    let rule = "127.0.0.1 1000 127.0.0.1 2000\n";
    let comment = |len: usize| format!("{rule}#{}\n", "x".repeat(len - rule.len() - 2)).into_bytes();
    let text = refused("one byte too many", &comment(most + 1));
    assert!(text.contains("1MiB"), "{text}");
    // The largest is taken.
    let directory = TempDir::with_prefix("spliced-hostile-").expect("a temporary directory");
    let file = directory.path().join("file");
    fs::write(&file, comment(most)).expect("our own directory");
    let outcome = Launcher::with_arguments(["check".as_ref(), "--config".as_ref(), file.as_os_str()]).outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.text);
    // One without an end, too.
    let endless = Launcher::with_arguments(["check", "--config", "/dev/zero"]).outcome();
    assert_eq!(endless.code, Some(2), "{}", endless.text);
}
