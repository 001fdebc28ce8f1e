//! HTTP/1.1 as plain as it goes: one request, one connection, closed by the server.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// `GET path`: status and body.
#[track_caller]
pub fn get(server: SocketAddr, path: &str) -> (u16, String) {
    ask(server, "GET", path, "")
}

/// `PUT path` with a body: status and body.
#[track_caller]
pub fn put(server: SocketAddr, path: &str, body: &str) -> (u16, String) {
    ask(server, "PUT", path, body)
}

/// `POST path` with a body: status and body.
#[track_caller]
pub fn post(server: SocketAddr, path: &str, body: &str) -> (u16, String) {
    ask(server, "POST", path, body)
}

/// One request; panics on what is not HTTP, on a refused connection, and after 30 s without a byte.
#[track_caller]
pub fn ask(server: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))
        .unwrap_or_else(|error| panic!("cannot connect to {server}: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout above zero is accepted");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\nContent-Type: application/toml\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()))
        .expect("the server reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap_or_else(|error| panic!("{method} {path} at {server}: {error}"));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no HTTP status: {head:?}"));
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { unchunk(body) } else { body.to_owned() })
}

fn unchunk(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk begins with its size");
        if size == 0 {
            break;
        }
        whole.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    whole
}
