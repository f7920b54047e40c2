//! nginx's stream module: a worker and a listening socket for each core, 64 KiB buffers.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use super::{Definition, Running, Setup};
use crate::place::Place;
use crate::results::Kind;
use crate::sample::Accounting;
use crate::tools;

pub(super) const DEFINITION: Definition = Definition {
    name: "nginx",
    kind: Kind::Peer,
    program: Some("nginx"),
    version: &["-v"],
    how: "apt install nginx libnginx-mod-stream",
    accounting: Accounting::Waited,
    unusable,
    start,
};

/// File name of the stream module where it is not built in.
const MODULE: &str = "ngx_stream_module.so";
/// Where distributions put modules when `nginx -V` does not tell.
const MODULE_DIRECTORIES: [&str; 3] =
    ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"];

/// How this nginx comes to its stream module.
#[derive(Debug, PartialEq, Eq)]
enum Stream {
    BuiltIn,
    Module(PathBuf),
    None,
}

fn unusable(command: &[String]) -> Option<String> {
    (Stream::of(&Place::here(), command) == Stream::None).then(|| lacking(command))
}

fn lacking(command: &[String]) -> String {
    format!("{} has no stream module; apt install libnginx-mod-stream", command.join(" "))
}

impl Stream {
    /// As it says itself, asked in a place.
    fn of(place: &Place, command: &[String]) -> Self {
        let said = tools::output_in(place, command, &["-V"]).unwrap_or_default();
        Self::from_build(&said, |path| path.is_file())
    }

    /// From what `nginx -V` says it was built with.
    fn from_build(said: &str, exists: impl Fn(&Path) -> bool) -> Self {
        let words = || said.split_whitespace();
        if words().any(|word| word == "--with-stream") {
            return Self::BuiltIn;
        }
        let told = words().find_map(|word| word.strip_prefix("--modules-path="));
        let mut files = told.into_iter().chain(MODULE_DIRECTORIES).map(|directory| Path::new(directory).join(MODULE));
        files.find(|file| exists(file)).map_or(Self::None, Self::Module)
    }
}

fn start(setup: &Setup<'_>) -> io::Result<Running> {
    let stream = Stream::of(&setup.wiring.forwarder, setup.command);
    if stream == Stream::None {
        return Err(io::Error::other(lacking(setup.command)));
    }
    let file = setup.write("nginx.conf", &configuration(setup, &stream))?;
    let directory = setup.directory.to_string_lossy().into_owned();
    let mut running = Running::new(setup);
    // -e: else it opens the log of the installed service before it reads any configuration.
    let arguments = ["-p".into(), directory, "-c".into(), file, "-e".into(), "stderr".into()];
    running.start(setup.command, &arguments)?;
    running.ready()
}

fn configuration(setup: &Setup<'_>, stream: &Stream) -> String {
    let mut text = String::new();
    if let Stream::Module(path) = stream {
        // Infallible on a string, here and below.
        let _ = writeln!(text, "load_module {};", path.display());
    }
    if nix::unistd::geteuid().is_root() {
        // In a user namespace there may be no other user to become.
        text.push_str("user root;\n");
    }
    let _ = write!(
        text,
        "daemon off;\npid {}/nginx.pid;\nerror_log stderr warn;\nworker_processes {};\nworker_rlimit_nofile {};\n\n\
         events {{\n    worker_connections {};\n}}\n\nstream {{\n    access_log off;\n    proxy_buffer_size 64k;\n    \
         proxy_timeout 1h;\n    proxy_connect_timeout 10s;\n    tcp_nodelay on;\n",
        setup.directory.display(),
        setup.cores,
        descriptors(),
        descriptors() / 2,
    );
    for forward in &setup.forwards {
        let _ = write!(
            text,
            "\n    server {{\n        listen {} reuseport backlog=4096;\n        proxy_pass {};\n    }}\n",
            forward.listen, forward.to
        );
    }
    text + "}\n"
}

/// As many as this user may have, up to what a big test needs: nginx reserves memory for each connection at start.
fn descriptors() -> u64 {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    hard.min(40_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_module_is_found_as_nginx_was_built() {
        let debian = "nginx version: nginx/1.22.1\nconfigure arguments: --prefix=/usr/share/nginx \
                      --modules-path=/opt/modules --with-stream_ssl_module --with-stream=dynamic";
        let module = PathBuf::from("/opt/modules/ngx_stream_module.so");
        assert_eq!(Stream::from_build(debian, |path| path == module), Stream::Module(module));
        assert_eq!(Stream::from_build(debian, |_| false), Stream::None, "built for it, not installed");
        assert_eq!(Stream::from_build("configure arguments: --with-stream --with-threads", |_| false), Stream::BuiltIn);
    }
}
