//! `tidings reload`: asks the running router, by its API, to read its table again.
//!
//! Exit code 0: the new table is in force; 1: it was refused, with all diagnostics on stderr; 2: there is nobody to ask.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use super::Fault;

/// Exit code where the router cannot be reached.
const UNREACHED: u8 = 2;
/// Compiling 10,000 rules takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LARGEST_ANSWER: u64 = 16 << 20;

#[derive(clap::Args)]
pub struct Args {
    /// Configuration of the router: says where its API is, and its token
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of its API, instead
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
}

pub fn run(args: &Args) -> Result<(), Fault> {
    let admin = super::settings(args.config.as_deref())?.admin;
    let address = args.admin.or(admin.address).map(to_ask).ok_or_else(|| {
        Fault::new("the configuration has no admin address; send the router a SIGHUP instead").code(UNREACHED)
    })?;
    let (status, body) = post(address, "/api/v1/reload", admin.token.as_deref()).map_err(|error| {
        Fault::new(format_args!("cannot reach a router at {address}: {error}")).code(UNREACHED)
    })?;
    let body: serde_json::Value = serde_json::from_slice(&body)
        .unwrap_or_else(|_| serde_json::json!({ "text": String::from_utf8_lossy(&body).trim_end() }));
    match status {
        200 => {
            let (version, rules) = (&body["version"], &body["rules"]);
            println!(
                "table {} is in force: version {version}, {rules} rules",
                body["source"].as_str().unwrap_or("?")
            );
            Ok(())
        }
        401 => {
            Err(Fault::new("the router wants its token: name its configuration with --config")
                .code(UNREACHED))
        }
        _ => {
            let text = body["text"].as_str().unwrap_or("no reason given");
            Err(Fault::new(format_args!("{text}; the table was not taken, the present one stays")))
        }
    }
}

/// A wildcard is asked on loopback.
fn to_ask(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// One request without a body; the status and the body of the answer.
fn post(address: SocketAddr, path: &str, token: Option<&str>) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LARGEST_ANSWER).read_to_end(&mut answer)?;
    parse_answer(&answer).ok_or_else(|| io::Error::other("what answers there is no Tidings"))
}

/// Status and body of an answer that ends with its connection and is not chunked (our own admin's are not).
fn parse_answer(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let head_end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let status_line = std::str::from_utf8(&answer[..head_end]).ok()?.lines().next()?;
    let mut words = status_line.split(' ');
    let status = words.next().filter(|version| version.starts_with("HTTP/1.")).and(words.next())?;
    Some((status.parse().ok()?, answer[head_end + 4..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart_and_rubbish_is_none() {
        let answer = b"HTTP/1.1 422 Unprocessable Entity\r\ncontent-type: application/json\r\n\r\n{}";
        assert_eq!(parse_answer(answer), Some((422, b"{}".to_vec())));
        for rubbish in [&b""[..], b"SIP/2.0 200 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
        {
            assert_eq!(parse_answer(rubbish), None, "{rubbish:?}");
        }
    }

    #[test]
    fn a_wildcard_is_asked_on_loopback() {
        let ask = |text: &str| to_ask(text.parse().expect("an address")).to_string();
        assert_eq!(ask("0.0.0.0:9060"), "127.0.0.1:9060");
        assert_eq!(ask("[::]:9060"), "[::1]:9060");
        assert_eq!(ask("10.0.0.1:9060"), "10.0.0.1:9060");
    }
}
