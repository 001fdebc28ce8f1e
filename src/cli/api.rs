//! The running router, asked by its API: for the commands that talk to it (`reload`, `backends`, `connections`, `bans`).
//!
//! One request, one answer, over a connection of its own. Exit code 2 where there is nobody to ask.

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
const LARGEST_ANSWER: u64 = 64 << 20;

/// Which router.
#[derive(clap::Args)]
pub struct Which {
    /// Configuration of the router: says where its API is, and its token
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Address of its API, instead
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    admin: Option<SocketAddr>,
}

/// Status and body of the answer to `method path`; a `body` is JSON.
pub fn ask(
    which: &Which,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<(u16, serde_json::Value), Fault> {
    let admin = super::settings(which.config.as_deref())?.admin;
    let address = which.admin.or(admin.address).map(to_ask).ok_or_else(|| {
        Fault::new("the configuration has no admin address; the router cannot be asked").code(UNREACHED)
    })?;
    let (status, answer) =
        exchange(address, method, path, admin.token.as_deref(), body).map_err(|error| {
            Fault::new(format_args!("cannot reach a router at {address}: {error}")).code(UNREACHED)
        })?;
    if status == 401 {
        let text = "the router wants its token: name its configuration with --config";
        return Err(Fault::new(text).code(UNREACHED));
    }
    let answer = serde_json::from_slice(&answer)
        .unwrap_or_else(|_| serde_json::json!({ "text": String::from_utf8_lossy(&answer).trim_end() }));
    Ok((status, answer))
}

/// A name as one segment of a path.
pub fn segment(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte);
    let each = |byte: u8| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(each).collect()
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

fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&serde_json::Value>,
) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let body = body.map_or(String::new(), serde_json::Value::to_string);
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
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

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("pbx-1_a"), "pbx-1_a");
        assert_eq!(segment("a/b c.d%ü"), "a%2Fb%20c%2Ed%25%C3%BC");
    }
}
