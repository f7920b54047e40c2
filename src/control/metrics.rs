//! The metrics endpoint: `GET /metrics`, `/healthz` and `/readyz` over HTTP/1.1, one request a connection.

use httparse::{EMPTY_HEADER, Request, Status};

use super::service::{Answer, MAX_REQUEST};

/// Header lines one request may have.
const MAX_HEADERS: usize = 64;
const TEXT: &str = "text/plain; charset=utf-8";

/// What the endpoint shows.
pub(super) trait Facts {
    /// The counters as Prometheus text.
    fn metrics(&self) -> String;
    /// True while clients should come here.
    fn is_ready(&self) -> bool;
}

struct Response {
    status: &'static str,
    content_type: &'static str,
    allow: bool,
    body: String,
}

/// Answers an HTTP request as soon as its head is complete. A body is not read.
pub(super) fn answer(request: &[u8], facts: &dyn Facts) -> Answer {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if request.len() < MAX_REQUEST => return Answer::More,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            let body = format!("a request has at most {MAX_REQUEST} bytes and {MAX_HEADERS} header lines\n");
            return reply(&Response::text("431 Request Header Fields Too Large", body), true);
        }
        Err(error) => return reply(&Response::text("400 Bad Request", format!("{error}\n")), true),
    }
    let path = parsed.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    match parsed.method {
        Some("GET") => reply(&route(path, facts), true),
        Some("HEAD") => reply(&route(path, facts), false),
        _ => {
            let response = Response::text("405 Method Not Allowed", "only GET and HEAD\n".to_owned());
            reply(&Response { allow: true, ..response }, true)
        }
    }
}

fn route(path: &str, facts: &dyn Facts) -> Response {
    match path {
        "/metrics" => Response {
            status: "200 OK",
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            allow: false,
            body: facts.metrics(),
        },
        "/healthz" => Response::text("200 OK", "ok\n".to_owned()),
        "/readyz" if facts.is_ready() => Response::text("200 OK", "ready\n".to_owned()),
        "/readyz" => Response::text("503 Service Unavailable", "draining\n".to_owned()),
        _ => Response::text("404 Not Found", "known paths: /metrics /healthz /readyz\n".to_owned()),
    }
}

impl Response {
    fn text(status: &'static str, body: String) -> Self {
        Self { status, content_type: TEXT, allow: false, body }
    }
}

fn reply(response: &Response, with_body: bool) -> Answer {
    let Response { status, content_type, allow, body } = response;
    let allow = if *allow { "Allow: GET, HEAD\r\n" } else { "" };
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        text.push_str(body);
    }
    Answer::Reply(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(bool);

    impl Facts for Fixed {
        fn metrics(&self) -> String {
            "spliced_up 1\n".to_owned()
        }
        fn is_ready(&self) -> bool {
            self.0
        }
    }

    fn ask(request: &str) -> String {
        match answer(request.as_bytes(), &Fixed(true)) {
            Answer::Reply(reply) => String::from_utf8(reply).unwrap(),
            Answer::More | Answer::Later => "more".to_owned(),
        }
    }

    #[test]
    fn known_paths() {
        let reply = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{reply}");
        assert!(reply.contains("\r\nContent-Length: 13\r\n"), "{reply}");
        assert!(reply.ends_with("\r\n\r\nspliced_up 1\n"), "{reply}");
        assert!(ask("GET /metrics?x=1 HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(ask("GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(ask("GET /readyz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let reply = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(reply.contains("Content-Length: 13\r\n") && reply.ends_with("\r\n\r\n"), "{reply}");
    }

    #[test]
    fn draining_is_not_ready_but_alive() {
        let ask = |path: &str| match answer(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes(), &Fixed(false)) {
            Answer::Reply(reply) => String::from_utf8(reply).unwrap(),
            Answer::More | Answer::Later => panic!("no reply"),
        };
        assert!(ask("/readyz").starts_with("HTTP/1.1 503"));
        assert!(ask("/healthz").starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn bad_requests() {
        let reply = ask("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
        assert!(reply.starts_with("HTTP/1.1 405") && reply.contains("Allow: GET, HEAD\r\n"), "{reply}");
        assert!(ask("\x16\x03\x01 hello\r\n\r\n").starts_with("HTTP/1.1 400"));
        assert_eq!(ask("GET /metrics HTTP/1.1\r\nHost:"), "more");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert!(ask(&many).starts_with("HTTP/1.1 431"));
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_REQUEST));
        assert!(ask(&long[..MAX_REQUEST]).starts_with("HTTP/1.1 431"));
    }
}
