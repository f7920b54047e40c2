//! The real program: `check`, `convert`, wrong files, wrong command lines and exit codes.

#![cfg(unix)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn spliced(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spliced"));
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    spliced(args).output().expect("the program starts")
}

/// A file in a directory of its own.
fn file(name: &str, text: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    let path = directory.path().join(name);
    fs::write(&path, text).expect("a temporary file");
    (directory, path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are UTF-8")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("plans are UTF-8")
}

/// Exit code 2, nothing on standard output, and on standard error exactly this line's start and part.
#[track_caller]
fn refused(output: &Output, start: &str, part: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with(start) && said.contains(part), "{said:?} is not {start:?} … {part:?}");
    assert_eq!(stdout(output), "");
}

fn refused_file(path: &Path, place: &str, part: &str) {
    let name = path.to_str().expect("UTF-8");
    for command in ["check", "run"] {
        refused(&run(&[command, "--config", name]), &format!("{name}:{place}: found "), part);
    }
    refused(&run(&["convert", name]), &format!("{name}:{place}: found "), part);
}

#[test]
fn every_example_is_good_and_converts_to_the_same_plan() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for entry in fs::read_dir(examples).expect("the examples") {
        let path = entry.expect("an entry").path();
        if !path.extension().is_some_and(|end| ["yaml", "conf", "toml"].iter().any(|known| end == *known)) {
            continue;
        }
        let name = path.to_str().expect("UTF-8");
        let checked = run(&["check", "--config", name]);
        assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
        let converted = run(&["convert", name]);
        assert_eq!(converted.stdout, checked.stdout, "{name}");
        let (_directory, copy) = file("copy.yaml", &converted.stdout);
        let again = run(&["check", "-c", copy.to_str().expect("UTF-8")]);
        assert_eq!(again.stdout, checked.stdout, "{name}");
        seen += 1;
    }
    assert!(seen >= 5, "{seen} examples");
}

#[test]
fn the_content_tells_the_format_not_the_name() {
    let (_directory, path) = file("oi.yaml", "10.0.1.1 9000 10.0.0.2 9001");
    let output = run(&["check", "--config", path.to_str().expect("UTF-8")]);
    assert!(stdout(&output).contains("listen: \"10.0.1.1:9000\"\n    to: \"10.0.0.2:9001\""), "{output:?}");
    let (_directory, path) = file("rinetd.conf", "forwards: [{listen: \"127.0.0.1:1\", to: \"a:1\"}]");
    assert_eq!(run(&["check", "--config", path.to_str().expect("UTF-8")]).status.code(), Some(0));
}

#[test]
fn standard_input() {
    let mut child =
        spliced(&["check", "-c", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("a pipe").write_all(b"0 9000 10.0.0.2 9001\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("0.0.0.0:9000"));
    refused(&run(&["check", "-c", "-"]), "<stdin>:1:1: found ", "empty");
}

#[test]
fn the_command_line_goes_over_the_file() {
    let (_directory, path) =
        file("a.yaml", "workers: 7\nforwards: [{listen: \"127.0.0.1:1\", to: \"a:1\", engine: splice}]");
    let name = path.to_str().expect("UTF-8");
    let options =
        ["--engine", "copy", "--workers", "2", "--idle-timeout", "5m", "--pipe-size", "128K", "--deny", "10.*"];
    let output = run(&[&["check", "--conf-file", name][..], &options].concat());
    let text = stdout(&output);
    for line in ["engine: copy", "workers: 2", "idle_timeout: 5m", "pipe_size: 128KiB", "deny: [\"10.*\"]"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[test]
fn files_that_are_no_configuration() {
    let (_d, path) = file("empty.yaml", "");
    refused_file(&path, "1:1", "an empty configuration");
    let (_d, path) = file("binary", b"forwards:\n  \x7fELF\x01\x00\x00");
    refused_file(&path, "2:3", "control character U+007F");
    let (_d, path) = file("latin1.yaml", b"# caf\xc3\xa9\n# caf\xe9\nforwards: []\n");
    refused_file(&path, "2:6", "byte 0xe9");
    let bomb = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, i| {
        let before = i - 1;
        format!("{text}a{i}: &a{i} [*a{before}, *a{before}]\n")
    });
    let (_d, path) = file("bomb.yaml", bomb);
    refused_file(&path, "3:5", "aliases that expand");
    let (_d, path) = file("deep.yaml", "[".repeat(100_000));
    refused_file(&path, "1:129", "128 levels of nesting");
    let (directory, path) = file("x", "");
    refused_file(directory.path(), "1:1", "a directory");
    refused_file(&path.with_extension("missing"), "1:1", "No such file");
}

#[test]
fn a_huge_file_is_refused_without_reading_it() {
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    let path = directory.path().join("huge.yaml");
    File::create(&path).and_then(|file| file.set_len(100 << 20)).expect("a sparse file");
    refused_file(&path, "1:1", "more than 1048576 bytes; allowed: a file of at most 1MiB");
    File::create(&path).and_then(|file| file.set_len((1 << 20) + 1)).expect("a sparse file");
    refused_file(&path, "1:1", "more than 1048576 bytes");
    fs::write(&path, format!("0 1 10.0.0.2 1\n#{}", "x".repeat((1 << 20) - 16))).expect("a file");
    assert_eq!(run(&["check", "-c", path.to_str().expect("UTF-8")]).status.code(), Some(0), "exactly 1 MiB");
}

#[test]
fn a_file_this_user_may_not_read() {
    let (directory, path) = file("secret.yaml", "forwards: []");
    // The directory itself is open to all, only the file is not.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("own file");
    let name = path.to_str().expect("UTF-8");
    let mut command;
    if nix::unistd::geteuid().is_root() {
        // The program may be out of nobody's reach, so nobody runs a copy.
        let copy = directory.path().join("spliced");
        fs::copy(env!("CARGO_BIN_EXE_spliced"), &copy).expect("a copy of the program");
        command = Command::new(copy);
        command.args(["check", "-c", name]).uid(65534).gid(65534);
    } else {
        command = spliced(&["check", "-c", name]);
    }
    // Children that other tests are just starting may hold the copy open for writing until they run their program.
    let deadline = Instant::now() + Duration::from_secs(20);
    let output = loop {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {}
            output => break output.expect("it starts"),
        }
    };
    refused(&output, &format!("{name}:1:1: found "), "Permission denied");
}

#[test]
fn wrong_command_lines() {
    for (args, start, part) in [
        (&["forward", "127.0.0.1:0", "a:1"][..], "spliced: LISTEN: found port 0", "; allowed: "),
        (&["forward", "127.0.0.1:70000", "a:1"], "spliced: LISTEN: found port 70000", "; allowed: "),
        (&["forward", "127.0.0.1:1", "a"], "spliced: TARGET: found \"a\" without a port", "; allowed: "),
        (&["forward", "127.0.0.1:1", "127.0.0.1:1"], "spliced: TARGET: found a loop", "; allowed: "),
        (
            &["forward", "unix:x", "a:1"],
            "spliced: LISTEN: found",
            "neither an absolute path nor @ with a name; allowed: ",
        ),
        (&["forward", "0.0.0.0:1", "a:1", "--metrics", "127.0.0.1:1"], "spliced: LISTEN: found", "address of metrics"),
        (
            &["forward", "127.0.0.1:1", "a:1", "--engine", "ab:"],
            "spliced: --engine: found \"\" without a share in \"ab:\"; allowed: 2 to 16 different arms",
            "ab:splice=50,copy-64KiB=50",
        ),
        (&["forward", "127.0.0.1:1", "a:1", "--workers", "0"], "spliced: --workers: found \"0\"", "auto, or a number"),
        (&["forward", "127.0.0.1:1", "a:1", "--copy-buffer", "1GiB"], "spliced: --copy-buffer:", "1KiB to 16MiB"),
        (&["forward", "127.0.0.1:1", "a:1", "--allow", "x"], "spliced: --allow:", "a network"),
        (&["forward", "127.0.0.1:1", "a:1", "--engin", "copy"], "spliced: unexpected argument", "'--engine'"),
        (&["forward", "127.0.0.1:1"], "spliced: the following required arguments", "<TARGET>"),
        (&["run"], "spliced: the following required arguments", "--config <FILE>"),
        (&["runn"], "spliced: unrecognized subcommand", "run"),
        (&["check", "-c", "x", "-v", "-q"], "spliced: the argument", "cannot be used with"),
    ] {
        refused(&run(args), start, part);
    }
}

#[test]
fn help_and_version() {
    for args in [&["--help"][..], &["forward", "--help"], &["run", "-h"], &["check", "-h"], &["--version"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
    assert!(!stdout(&run(&["--help"])).contains("ab-role"), "an inner command");
    assert_eq!(run(&[]).status.code(), Some(2));
    let help = stdout(&run(&["run", "--help"]));
    for option in ["--engine", "--workers", "--pin", "--copy-buffer", "--pipe-size", "--max-connections", "--metrics"] {
        assert!(help.contains(option), "{option}");
    }
}

/// Every option has the same name in YAML, with `_`.
#[test]
fn every_option_is_a_key() {
    let help = stdout(&run(&["check", "--help"]));
    let (_directory, path) = file("a.yaml", "nonsense: 1\n");
    let message = stderr(&run(&["check", "-c", path.to_str().expect("UTF-8")]));
    let (_, keys) = message.split_once("; allowed: ").expect("the keys");
    let keys: Vec<&str> = keys.trim().split(", ").collect();
    let options: Vec<String> = help
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).replace('-', "_"))
        .filter(|word| !["config", "conf_file", "against", "help", "verbose", "quiet", ""].contains(&word.as_str()))
        .collect();
    assert!(options.len() >= 20, "{options:?}");
    for option in options {
        assert!(keys.contains(&option.as_str()), "{option} is no key: {keys:?}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_panic() {
    let mut text = String::from("forwards:\n");
    for port in 1..5000 {
        text.push_str(&format!("- {{listen: \"127.0.0.1:{port}\", to: \"a:1\"}}\n"));
    }
    let (_directory, path) = file("many.yaml", text);
    let name = path.to_str().expect("UTF-8");
    for args in [&["check", "-c", name][..], &["convert", name], &["--help"]] {
        let mut child = spliced(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("UTF-8");
        assert_eq!(child.wait().expect("it ends").code(), Some(0), "{args:?}: {said}");
        assert_eq!(said, "", "{args:?}");
    }
}
