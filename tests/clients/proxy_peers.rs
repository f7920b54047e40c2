//! HAProxy and nginx as peers of the PROXY protocol, in both directions: each side believes the other.

#![cfg(target_os = "linux")]

use crate::common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use common::deadline::{LONG, until};
use common::peer::{Echo, Reserved, backend, connect};
use common::spliced::{Launcher, Spliced};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Another forwarder. Dropping it ends it.
struct Other {
    child: Child,
    _directory: TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Other {
    /// Starts it with a file and waits until it listens. `None`, and a reason, where it is not installed.
    fn start(program: &str, config: &str, listen: SocketAddr) -> Option<Self> {
        let directory = TempDir::with_prefix("spliced-peer-").expect("a temporary directory");
        let file = directory.path().join("config");
        fs::write(&file, config.replace("DIRECTORY", &directory.path().to_string_lossy())).expect("our own directory");
        let mut command = Command::new(program);
        match program {
            "haproxy" => command.arg("-db").arg("-f").arg(&file),
            _ => command.arg("-p").arg(directory.path()).arg("-c").arg(&file),
        };
        let log = fs::File::create(directory.path().join("log")).expect("our own directory");
        match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn() {
            Ok(child) => {
                let mut other = Self { child, _directory: directory };
                until(&format!("{program} listens on {listen}"), LONG, || {
                    let ended = other.child.try_wait().expect("our own child");
                    let log = || fs::read_to_string(file.with_file_name("log")).unwrap_or_default();
                    assert!(ended.is_none(), "{program}: {ended:?}: {}", log());
                    TcpStream::connect(listen).is_ok()
                });
                Some(other)
            }
            Err(e) => {
                common::cannot_run(&format!("{program}: {e}; apt-get install haproxy nginx-light libnginx-mod-stream"));
                None
            }
        }
    }

    fn haproxy(listen: SocketAddr, bind: &str, rest: &str) -> Option<Self> {
        let config = format!(
            "global\n  nbthread 1\ndefaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
             frontend f\n  bind {listen} {bind}\n{rest}"
        );
        Self::start("haproxy", &config, listen)
    }

    fn nginx(listen: SocketAddr, options: &str, rest: &str) -> Option<Self> {
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\n\
             pid DIRECTORY/pid;\nerror_log stderr;\nevents {{}}\n\
             stream {{ server {{ listen {listen} reuseport {options}; {rest} }} }}\n"
        );
        Self::start("nginx", &config, listen)
    }
}

/// What `other` says of a client that came through spliced: its address.
fn told(spliced: &Spliced, listen: SocketAddr, request: &[u8]) {
    let mut client = connect(listen);
    client.write_all(request).expect("a request");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer and the end");
    let expected = client.local_addr().expect("connected").to_string();
    assert!(answer.contains(&expected), "{expected} is not in {answer:?}");
    drop(client);
    let stats = spliced.stats_until("it has ended", |stats| stats.open() == 0);
    assert_eq!(stats.number("/total/proxy_sent"), stats.number("/total/sessions_accepted"));
}

#[test]
fn haproxy_believes_us() {
    for version in ["v1", "v2"] {
        let (theirs, ours) = (Reserved::loopback(), Reserved::loopback());
        let answer =
            "  mode http\n  http-request return status 200 content-type text/plain lf-string %[src]:%[src_port]\n";
        let Some(_haproxy) = Other::haproxy(theirs.address(), "accept-proxy", answer) else { return };
        let spliced = Launcher::forward(ours.address(), theirs.address()).option("--send-proxy", version).start();
        for _ in 0..20 {
            told(&spliced, ours.address(), b"GET / HTTP/1.0\r\n\r\n");
        }
        spliced.finish();
    }
}

#[test]
fn nginx_believes_us() {
    for version in ["v1", "v2"] {
        let (theirs, ours) = (Reserved::loopback(), Reserved::loopback());
        let answer = "return \"$proxy_protocol_addr:$proxy_protocol_port\";";
        let Some(_nginx) = Other::nginx(theirs.address(), "proxy_protocol", answer) else { return };
        let spliced = Launcher::forward(ours.address(), theirs.address()).option("--send-proxy", version).start();
        for _ in 0..20 {
            told(&spliced, ours.address(), b"");
        }
        spliced.finish();
    }
}

/// A client that comes through `other` is logged with its own address, and its bytes are whole, both ways.
fn believed(spliced: Spliced, entrance: SocketAddr) {
    let before = spliced.stats().number("/total/sessions_accepted");
    for round in 0..5u8 {
        let client = connect(entrance);
        let payload: Vec<u8> = (0..MIB).map(|i| (i % 251) as u8 ^ round).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (&client).write_all(&payload).expect("all of it");
                client.shutdown(Shutdown::Write).expect("half-close");
            });
            let mut back = Vec::new();
            (&client).read_to_end(&mut back).expect("all of it, and the end");
            assert!(back == payload, "what came back differs");
        });
        let address = client.local_addr().expect("connected");
        until("it is in the log", LONG, || spliced.logged(&format!("client={address} proxy=127.0.0.1:")).len() == 1);
    }
    let stats = spliced.stats_until("all have ended", |stats| stats.open() == 0);
    // Whoever looked whether it listens has come without a header, or with one and nothing behind it.
    assert!(stats.number("/total/proxy_received") >= 5, "{}", stats.0);
    assert!(stats.number("/total/sessions_accepted") >= before + 5);
    assert_eq!(stats.up().all(), 5 * MIB as u64);
    spliced.finish();
}

/// Where spliced listens, and itself.
fn behind(echo: &Echo) -> (Reserved, Spliced) {
    let ours = Reserved::loopback();
    let spliced = Launcher::forward(ours.address(), echo.address()).option("--accept-proxy", "127.0.0.1").start();
    (ours, spliced)
}

#[test]
fn we_believe_haproxy() {
    for send in ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c,unique-id"] {
        let echo = Echo::start(backend());
        let (ours, spliced) = behind(&echo);
        let theirs = Reserved::loopback();
        let server =
            format!("  mode tcp\n  default_backend b\nbackend b\n  mode tcp\n  server s {} {send}\n", ours.address());
        let Some(_haproxy) = Other::haproxy(theirs.address(), "", &server) else { return };
        believed(spliced, theirs.address());
    }
}

#[test]
fn we_believe_nginx() {
    let echo = Echo::start(backend());
    let (ours, spliced) = behind(&echo);
    let theirs = Reserved::loopback();
    let server = format!("proxy_pass {}; proxy_protocol on; proxy_half_close on;", ours.address());
    let Some(_nginx) = Other::nginx(theirs.address(), "", &server) else { return };
    believed(spliced, theirs.address());
}

#[test]
fn haproxy_checks_us_by_a_local_header() {
    let echo = Echo::start(backend());
    let (ours, spliced) = behind(&echo);
    let theirs = Reserved::loopback();
    let server = format!(
        "  mode tcp\n  default_backend b\nbackend b\n  mode tcp\n  server s {} check inter 100ms send-proxy-v2 check-send-proxy\n",
        ours.address()
    );
    let Some(haproxy) = Other::haproxy(theirs.address(), "", &server) else { return };
    spliced.stats_until("it has checked", |stats| stats.number("/total/proxy_received") >= 3);
    drop(haproxy);
    spliced.finish();
}
