//! Every configuration in a document is one: it passes `spliced check`, and every command line of `spliced forward` starts.
//!
//! A block of YAML begins with its name, such as `# web.yaml`, and is then a file of spliced. Files that are taken as
//! they are begin with `# rinetd.conf`, `# oi.conf` or `# oi.toml`. Blocks of other programs have other names.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failing step fails the test, in its helpers as well")]

use crate::common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::deadline::LONG;
use common::netns::{Netns, with_namespaces};
use common::spliced::Launcher;
use nix::sys::signal::Signal;

/// A block between fences.
struct Block {
    document: String,
    /// The word behind the fence.
    language: String,
    text: String,
}

impl Block {
    /// The name in its first line.
    fn name(&self) -> Option<&str> {
        self.text.lines().next()?.strip_prefix("# ")
    }

    fn place(&self) -> String {
        format!("{}, {:?}", self.document, self.text.lines().next().unwrap_or_default())
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of every document.
fn blocks() -> Vec<Block> {
    let documents = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut documents: Vec<PathBuf> = documents.filter(|path| path.extension().is_some_and(|is| is == "md")).collect();
    documents.push(root().join("README.md"));
    let mut blocks = Vec::new();
    for path in documents {
        let mut open: Option<Block> = None;
        for line in fs::read_to_string(&path).unwrap().lines() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(language)) => {
                    let document = path.file_name().unwrap().to_string_lossy().into_owned();
                    open = Some(Block { document, language: language.to_owned(), text: String::new() });
                }
                (Some(_), Some("")) => blocks.extend(open.take()),
                (Some(block), _) => block.text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block without an end", path.display());
    }
    blocks
}

/// The plan that `spliced check` makes of a block, as it prints it.
fn plan(block: &Block, name: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(name);
    fs::write(&file, &block.text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_spliced")).args(["check", "-c"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", block.place());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_file_passes_check() {
    let mut passed = Vec::new();
    for block in blocks() {
        let Some(name) = block.name().map(str::to_owned) else {
            assert_ne!(block.language, "yaml", "{} has no name", block.place());
            continue;
        };
        let is_ours = name.ends_with(".yaml") || matches!(name.as_str(), "rinetd.conf" | "oi.conf" | "oi.toml");
        assert!(is_ours || block.language != "yaml", "{}", block.place());
        if is_ours {
            plan(&block, &name);
            passed.push(name);
        }
    }
    for name in
        ["spliced.yaml", "host.yaml", "rinetd.conf", "oi.conf", "oi.toml", "from-haproxy.yaml", "from-nginx.yaml"]
    {
        assert!(passed.iter().any(|passed| passed == name), "{name} is missing in {passed:?}");
    }
}

/// What a recipe says becomes of a file is what becomes of it.
#[test]
fn files_taken_as_they_are_become_what_the_recipes_say() {
    let blocks = blocks();
    let plan_of = |name: &str| {
        let block = blocks.iter().find(|block| block.name() == Some(name)).unwrap_or_else(|| panic!("no {name}"));
        plan(block, name)
    };
    for (theirs, ours) in [("rinetd.conf", "from-rinetd.yaml"), ("oi.toml", "from-oi.yaml")] {
        assert_eq!(plan_of(theirs), plan_of(ours), "{theirs} and {ours}");
    }
}

#[test]
fn every_command_line_of_the_recipes_starts() {
    with_namespaces(|| {
        let shells = blocks().into_iter().filter(|block| block.document == "MIGRATION.md" && block.language == "sh");
        let lines: Vec<String> =
            shells.flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        let commands: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("spliced ")).collect();
        assert!(commands.iter().any(|command| command.starts_with("forward ")), "{lines:?}");
        for command in commands {
            let namespace = Netns::new();
            for address in ["10.0.0.1", "10.0.0.3"] {
                namespace.line(&format!("ip address add {address}/32 dev lo"));
            }
            Launcher::with_arguments(command.split(' ')).inside(&namespace).start().finish();
        }
    });
}

/// Each on a host that has the addresses its recipe names.
#[test]
fn every_recipe_starts() {
    with_namespaces(|| {
        let logs = tempfile::tempdir().unwrap();
        let recipes = blocks().into_iter().filter(|block| block.document == "MIGRATION.md" && block.language == "yaml");
        let mut started = 0;
        for block in recipes {
            let namespace = Netns::new();
            for last in 1..=5 {
                namespace.line(&format!("ip address add 10.0.0.{last}/32 dev lo"));
            }
            let text = block.text.replace("/var/log", &logs.path().to_string_lossy());
            let mut spliced = Launcher::config(&text).inside(&namespace).start();
            spliced.signal(Signal::SIGTERM);
            assert_eq!(spliced.wait(LONG).code(), Some(0), "{}: {}", block.place(), spliced.text());
            started += 1;
        }
        assert!(started >= 6, "{started} of them");
    });
}

/// Links between files of the project lead somewhere.
#[test]
fn links_lead_to_files() {
    for (directory, name) in [
        ("", "README.md"),
        ("", "CHANGELOG.md"),
        ("docs", "COMPARISON.md"),
        ("docs", "MIGRATION.md"),
        ("docs", "SCALE-OUT.md"),
    ] {
        let text = fs::read_to_string(root().join(directory).join(name)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") {
                continue;
            }
            let target = root().join(directory).join(file);
            assert!(file.is_empty() || target.exists(), "{name}: {link}");
            if !anchor.is_empty() {
                let there = if file.is_empty() { text.clone() } else { fs::read_to_string(target).unwrap() };
                assert!(there.lines().any(|line| anchor_of(line).as_deref() == Some(anchor)), "{name}: {link}");
            }
        }
    }
}

/// What a heading is called in links.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading.to_lowercase();
    Some(
        kept.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect(),
    )
}

/// The README's table of files has everything that is there, and nothing else.
#[test]
fn the_file_map_is_complete() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let table = readme.split("| file | what |").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let first_cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let listed: Vec<&str> =
        first_cells.flat_map(|cell| cell.split('`')).filter(|part| part.contains(['/', '.'])).collect();
    for path in &listed {
        assert_eq!(root().join(path).is_dir(), path.ends_with('/'), "{path}");
        assert!(root().join(path).exists(), "{path} is not there");
    }
    let names = |directory: &str| {
        let entries = fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap);
        let named = entries.map(|entry| {
            let end = if entry.file_type().unwrap().is_dir() { "/" } else { "" };
            format!("{directory}{}{end}", entry.file_name().to_str().unwrap())
        });
        named.filter(|name| !name.starts_with('.')).collect::<Vec<_>>()
    };
    // What is made by building and testing.
    let made = ["proptest-regressions/", "src/", "target/"];
    let directories = names("").into_iter().filter(|name| name.ends_with('/') && !made.contains(&name.as_str()));
    for path in directories.chain(names("src/")) {
        assert!(listed.contains(&path.as_str()), "{path} is missing in the README's table of files");
    }
}
