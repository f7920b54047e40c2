//! Name servers: a real one, and one that says what a test tells it to.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};
use tempfile::TempDir;

use super::cannot_run;
use super::deadline::{LONG, eventually};

/// A dnsmasq that knows nothing but what the test says. Names are below `example`.
#[derive(Debug)]
pub(crate) struct Dnsmasq {
    child: Option<Child>,
    address: SocketAddr,
    arguments: Vec<String>,
    directory: TempDir,
}

impl Dnsmasq {
    /// One on a free port of that address, or on that port of it. `None` where there is no dnsmasq, which is said.
    pub(crate) fn start(address: SocketAddr, hosts: &str, arguments: &[&str]) -> Option<Self> {
        if Command::new("dnsmasq").arg("--version").stdout(Stdio::null()).status().is_err() {
            cannot_run("dnsmasq is needed as a name server");
            return None;
        }
        let directory = TempDir::with_prefix("spliced-dns-").expect("a temporary directory");
        fs::write(directory.path().join("hosts"), hosts).expect("our own file");
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut server = Self { child: None, address, arguments, directory };
        loop {
            if address.port() == 0 {
                server.address = UdpSocket::bind(address).and_then(|socket| socket.local_addr()).expect("a free port");
            }
            if server.try_run() {
                return Some(server);
            }
            assert!(address.port() == 0, "dnsmasq cannot listen on {address}");
        }
    }

    fn hosts_file(&self) -> PathBuf {
        self.directory.path().join("hosts")
    }

    /// Starts it again where it was stopped; returns once it answers.
    pub(crate) fn run(&mut self) {
        assert!(self.try_run(), "dnsmasq cannot listen on {} again", self.address);
    }

    /// Starts it; whether it answers, or has ended because somebody else has the port.
    fn try_run(&mut self) -> bool {
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--local=/example/"]);
        command.args([
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
            "--local-ttl=1",
            "--log-facility=/dev/null",
        ]);
        command.arg(format!("--port={}", self.address.port())).arg(format!("--listen-address={}", self.address.ip()));
        command.arg(format!("--addn-hosts={}", self.hosts_file().display())).args(&self.arguments);
        self.child = Some(command.stdout(Stdio::null()).spawn().expect("dnsmasq starts"));
        eventually("dnsmasq answers", LONG, || {
            if self.child.as_mut().is_some_and(|child| child.try_wait().expect("our own child").is_some()) {
                return Ok(false);
            }
            let socket = UdpSocket::bind((self.address.ip(), 0)).map_err(|e| e.to_string())?;
            socket.set_read_timeout(Some(Duration::from_millis(200))).map_err(|e| e.to_string())?;
            socket.connect(self.address).map_err(|e| e.to_string())?;
            let mut query = Packet::new_query(1);
            let name = Name::new_unchecked("up.example");
            query.questions.push(simple_dns::Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
            socket.send(&query.build_bytes_vec().expect("a question")).map_err(|e| e.to_string())?;
            socket.recv(&mut [0; 512]).map(|_| true).map_err(|e| e.to_string())
        })
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives it other names. It reads them at once.
    pub(crate) fn set(&self, hosts: &str) {
        fs::write(self.hosts_file(), hosts).expect("our own file");
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).expect("our own child");
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How the scripted server answers.
#[derive(Debug, Clone)]
pub(crate) enum Says {
    /// These addresses, for so many seconds.
    Addresses(Vec<std::net::IpAddr>, u32),
    /// Nothing of the kind, with that code.
    Code(RCODE),
    /// These bytes, whatever was asked.
    Bytes(Vec<u8>),
    /// A good answer with another id, and one for another name.
    Forged(std::net::IpAddr),
    /// Nothing at all.
    Silence,
}

/// A name server that says the same to every question until it is told otherwise.
#[derive(Debug)]
pub(crate) struct Scripted {
    address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// On a free port of 127.0.0.1.
    pub(crate) fn start(says: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a deadline");
        let address = socket.local_addr().expect("bound");
        let (says, asked, stop) =
            (Arc::new(Mutex::new(says)), Arc::new(AtomicU16::new(0)), Arc::new(AtomicBool::new(false)));
        let (script, count, stopped) = (Arc::clone(&says), Arc::clone(&asked), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((read, client)) = socket.recv_from(&mut buffer) else { continue };
                let says = script.lock().expect("no panic").clone();
                for answer in answers(&buffer[..read], &says) {
                    socket.send_to(&answer, client).expect("an answer is sent");
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { address, says, asked, stop, thread: Some(thread) }
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives it something else to say; returns once it has said so to several questions.
    pub(crate) fn set(&self, says: Says) {
        *self.says.lock().expect("no panic") = says;
        let before = self.asked.load(Ordering::Relaxed);
        super::deadline::until("it is asked again", LONG, || {
            self.asked.load(Ordering::Relaxed).wrapping_sub(before) >= 4
        });
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answers(question: &[u8], says: &Says) -> Vec<Vec<u8>> {
    let query = Packet::parse(question).expect("spliced asks a question");
    assert!(!query.has_flags(PacketFlag::RESPONSE) && query.has_flags(PacketFlag::RECURSION_DESIRED));
    let asked = &query.questions[0];
    let reply = |id: u16, addresses: &[std::net::IpAddr], ttl: u32, code: RCODE| {
        let mut packet = Packet::new_reply(id);
        packet.questions.push(asked.clone());
        *packet.rcode_mut() = code;
        for ip in addresses {
            let data = match (ip, asked.qtype) {
                (std::net::IpAddr::V4(ip), QTYPE::TYPE(TYPE::A)) => RData::A(A { address: (*ip).into() }),
                (std::net::IpAddr::V6(ip), QTYPE::TYPE(TYPE::AAAA)) => RData::AAAA(AAAA { address: (*ip).into() }),
                _ => continue,
            };
            packet.answers.push(ResourceRecord::new(asked.qname.clone(), CLASS::IN, ttl, data));
        }
        packet.build_bytes_vec_compressed().expect("an answer")
    };
    match says {
        Says::Addresses(all, ttl) => vec![reply(query.id(), all, *ttl, RCODE::NoError)],
        Says::Code(code) => vec![reply(query.id(), &[], 0, *code)],
        Says::Bytes(bytes) => vec![bytes.clone()],
        Says::Forged(ip) => {
            let other_id = reply(query.id().wrapping_add(1), &[*ip], 60, RCODE::NoError);
            let mut other_name = reply(query.id(), &[*ip], 60, RCODE::NoError);
            // The first letter of the name that was asked for.
            other_name[13] ^= 1;
            vec![other_id, other_name]
        }
        Says::Silence => Vec::new(),
    }
}
