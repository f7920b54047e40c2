//! What must hold for any input. The fuzz targets call this, and so does the test that runs every kept input.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use spliced::cli::{Cli, Command, one_line};
use spliced::config::{self, ConfigError, Format, Lookup, Overrides};
use spliced::plan::Plan;
use spliced::proxy::{self, How, Outcome, Reader, Source, Version};

type Target = (&'static str, fn(&[u8]));

/// The targets; each has its corpus in the directory of its name.
#[allow(dead_code, reason = "a fuzz target is one of them")]
pub(crate) const TARGETS: [Target; 8] = [
    ("yaml", yaml),
    ("lines", lines),
    ("toml", toml),
    ("any", any),
    ("value", value),
    ("request", request),
    ("dns", dns),
    ("header", header),
];

/// Longer than any answer takes.
const LONG: Duration = Duration::from_secs(30);

/// The parser of YAML.
pub(crate) fn yaml(input: &[u8]) {
    text(input, |text| format(Format::Yaml, text));
}

/// The parser of rinetd's and oi's lines.
pub(crate) fn lines(input: &[u8]) {
    text(input, |text| format(Format::Lines, text));
}

/// The parser of oi's TOML.
pub(crate) fn toml(input: &[u8]) {
    text(input, |text| format(Format::Toml, text));
}

/// Whatever format the text is taken for.
pub(crate) fn any(input: &[u8]) {
    text(input, |text| plan_or_error(text, config::parse("FILE", text, &Overrides::default(), &Lookup::fixed())));
}

fn text(input: &[u8], check: impl FnOnce(&str)) {
    if let Ok(text) = std::str::from_utf8(input) {
        check(text);
    }
}

fn format(format: Format, text: &str) {
    plan_or_error(text, config::parse_as(format, "FILE", text, &Overrides::default(), &Lookup::fixed()));
}

/// Any text is a plan that reads back from its own YAML, or one line of error with a place in the text.
fn plan_or_error(text: &str, result: Result<Plan, ConfigError>) {
    match result {
        Ok(plan) => reads_back(&plan),
        Err(error) => {
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
            assert!(error.message.contains("; allowed: "), "{error}");
            let (_, line, column) = error.place.expect("every error in a file has a place");
            assert!(column >= 1 && (1..=text.split('\n').count() + 1).contains(&line), "{line}:{column}");
        }
    }
}

fn reads_back(plan: &Plan) {
    let yaml = config::render(plan);
    let again = config::parse_as(Format::Yaml, "FILE", &yaml, &Overrides::default(), &Lookup::fixed());
    assert_eq!(again.as_ref(), Ok(plan), "{yaml}");
}

/// A single value, as every option of the command line and as an address in a file.
pub(crate) fn value(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let cli = Cli::command();
    let forward = cli.find_subcommand("forward").expect("a command");
    for option in forward.get_arguments().filter_map(|argument| argument.get_long()) {
        let words = ["spliced", "forward", "127.0.0.1:1", "127.0.0.1:2", &format!("--{option}={text}")];
        match Cli::try_parse_from(words) {
            Ok(Cli { command: Command::Forward(args), .. }) => {
                match config::from_args(&args.listen, &args.target, &args.options) {
                    Ok(plan) => reads_back(&plan),
                    Err(error) => assert_eq!(error.to_string().lines().count(), 1, "--{option}: {error}"),
                }
            }
            Ok(_) => {}
            Err(error) => assert_eq!(one_line(&error).lines().count(), 1, "--{option}: {error}"),
        }
    }
    // JSON is YAML.
    let quoted = serde_json::Value::from(text);
    for yaml in [
        format!("forwards: [{{ listen: {quoted}, to: \"127.0.0.1:2\" }}]"),
        format!("forwards: [{{ listen: \"127.0.0.1:1\", to: {quoted} }}]"),
        format!("forwards: [{{ listen: \"127.0.0.1:1\", to: \"127.0.0.1:2\", allow: [{quoted}] }}]"),
        format!("forwards: [{{ listen: \"127.0.0.1:1\", to: \"127.0.0.1:2\", timeouts: {{ idle: {quoted} }} }}]"),
    ] {
        format(Format::Yaml, &yaml);
    }
}

/// What a name server sends.
pub(crate) fn dns(input: &[u8]) {
    spliced::names::any_answer(input);
}

/// A stream whose bytes arrive in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    arrived: usize,
    taken: usize,
}

impl Source for Pieces<'_> {
    fn peek(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let there = &self.bytes[self.taken..self.arrived];
        if there.is_empty() && self.arrived < self.bytes.len() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = there.len().min(room.len());
        room[..n].copy_from_slice(&there[..n]);
        Ok(n)
    }

    fn take(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let n = self.peek(room)?;
        self.taken += n;
        Ok(n)
    }
}

/// The beginning of a stream with a PROXY header, in pieces of the size its first byte says: a header is taken to its
/// last byte and no further, says the same when it is passed on, and everything else is told apart.
pub(crate) fn header(input: &[u8]) {
    let Some((size, bytes)) = input.split_first() else { return };
    let step = usize::from(*size).max(1);
    for required in [false, true] {
        let (mut pieces, mut reader) = (Pieces { bytes, arrived: 0, taken: 0 }, Reader::default());
        let outcome = loop {
            let ended = pieces.arrived == bytes.len();
            match reader.advance(&mut pieces, How { required, ended }) {
                Outcome::Wait => {
                    assert!(!ended, "it waits for more than there is");
                    pieces.arrived = (pieces.arrived + step).min(bytes.len());
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Outcome::Header(header) => {
                assert_eq!(proxy::parse(&bytes[..pieces.taken]).as_ref(), Ok(&header));
                let passed_on = proxy::encode(Version::V2, &header);
                assert_eq!(proxy::parse(&passed_on), Ok(header));
            }
            Outcome::Other => assert!(required || pieces.taken == 0, "what is none was taken"),
            Outcome::Wait | Outcome::Ended | Outcome::Bad(_) | Outcome::Failed(_) => {}
        }
        assert!(pieces.taken <= proxy::MOST_V2);
    }
}

/// The control thread of a process that runs, with its socket and its metrics endpoint.
struct Running {
    control: PathBuf,
    metrics: SocketAddr,
}

/// Any request to the control socket and to the metrics endpoint: an answer or a closed connection, and it lives on.
pub(crate) fn request(input: &[u8]) {
    static RUNNING: OnceLock<Running> = OnceLock::new();
    let running = RUNNING.get_or_init(start);
    let unix = UnixStream::connect(&running.control).expect("the control socket takes connections");
    unix.set_read_timeout(Some(LONG)).expect("a deadline");
    let answer = ask(&unix, || unix.shutdown(std::net::Shutdown::Write), input);
    if input.iter().take(8000).any(|byte| *byte == b'\n') {
        assert!(answer.ends_with(b"\n"), "a whole line is answered: {:?}", String::from_utf8_lossy(&answer));
    }
    let tcp = TcpStream::connect(running.metrics).expect("the metrics endpoint takes connections");
    tcp.set_read_timeout(Some(LONG)).expect("a deadline");
    let answer = ask(&tcp, || tcp.shutdown(std::net::Shutdown::Write), input);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&answer));
}

/// Sends a request and its end; what comes back until the connection closes, which must be soon.
fn ask<S>(mut stream: S, finish: impl FnOnce() -> std::io::Result<()>, input: &[u8]) -> Vec<u8>
where
    S: Read + Write,
{
    // It may have answered and closed in the middle of the request.
    let _ = stream.write_all(input);
    let _ = finish();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(e) => assert!(!matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "no end of the answer"),
    }
    answer
}

fn start() -> Running {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a free port");
    let (listen, metrics) = (free(), free());
    let control = std::env::temp_dir().join(format!("spliced-request-{}.sock", std::process::id()));
    let yaml = format!(
        "sandbox: off\ncontrol: {}\nmetrics: {metrics}\nworkers: 1\nforwards: [{{ listen: \"{listen}\", to: \"127.0.0.1:1\" }}]\n",
        control.display()
    );
    let plan = config::parse("FILE", &yaml, &Overrides::default(), &Lookup::fixed()).expect("a sound plan");
    std::thread::spawn(move || {
        let ended = spliced::control::run(plan, None, None);
        panic!("the process has ended: {ended:?}");
    });
    for _ in 0..1000 {
        if UnixStream::connect(&control).is_ok() && TcpStream::connect(metrics).is_ok() {
            return Running { control, metrics };
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("nothing answers on {}", control.display());
}
