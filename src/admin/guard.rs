//! Who may ask: whoever has the bearer token where one is configured, and no web page of somebody else's.
//!
//! Such a page may have its own name resolve to loopback (DNS rebinding): Host and Origin are then its name, and agree. So
//! without a token the API is asked by an address, by `localhost`, or by a name that the settings know.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::control::Router;

/// Lets a request through or answers it.
pub async fn check(State(router): State<Arc<Router>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if let Some(token) = &router.settings().admin.token
        && !bearer(headers).is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
    {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"tidings\"")];
        return (StatusCode::UNAUTHORIZED, challenge, "a bearer token is required\n").into_response();
    }
    if request.method() != Method::GET && from_elsewhere(headers) {
        return (StatusCode::FORBIDDEN, "asked by a page of another origin\n").into_response();
    }
    next.run(request).await
}

/// Lets a request to the API through, or answers it: without a token it must be asked by a name that nobody else can have.
pub async fn check_host(State(router): State<Arc<Router>>, request: Request, next: Next) -> Response {
    let admin = &router.settings().admin;
    if admin.token.is_none() && !is_own(request.headers(), &admin.hosts) {
        let text = "without a token the API is asked by an IP address, by localhost, or by a name of hosts in [admin]\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

/// Host is an address, `localhost` or one of these names. Without any it is no browser that asks, but HTTP wants one.
fn is_own(headers: &HeaderMap, hosts: &[String]) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A browser names the page that asks: a page elsewhere could otherwise post to loopback with its reader's rights.
fn from_elsewhere(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
    authority.is_none() || authority != host
}

/// Compares in a time that tells nothing of where they differ.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let mut difference = given.len() ^ expected.len();
    for (at, byte) in given.iter().enumerate() {
        difference |= usize::from(byte ^ expected.get(at % expected.len().max(1)).copied().unwrap_or(0));
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        assert!(same(b"secret", b"secret"));
        for wrong in [&b""[..], b"s", b"secre", b"secrets", b"secretsecret", b"Secret", b"secreT"] {
            assert!(!same(wrong, b"secret"), "{wrong:?}");
        }
        assert!(!same(b"x", b""));
    }

    #[test]
    fn a_name_that_anybody_may_have_is_not_ours() {
        let hosts = ["edge.example.com".to_owned()];
        let own = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a header value"));
            is_own(&headers, &hosts)
        };
        for host in ["127.0.0.1:9060", "127.0.0.1", "[::1]:9060", "LocalHost:9060", "Edge.example.com:80"] {
            assert!(own(host), "{host}");
        }
        for host in
            ["evil.example:9060", "localhost.evil.example", "127.0.0.1.evil.example", "", "::1", "x@y@z"]
        {
            assert!(!own(host), "{host}");
        }
        assert!(!is_own(&HeaderMap::new(), &hosts));
    }

    #[test]
    fn a_page_of_another_origin_is_elsewhere() {
        let headers = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:9060".parse().expect("a header value"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().expect("a header value"));
            }
            headers
        };
        assert!(!from_elsewhere(&headers(None)));
        assert!(!from_elsewhere(&headers(Some("http://127.0.0.1:9060"))));
        assert!(from_elsewhere(&headers(Some("http://example.com"))));
        assert!(from_elsewhere(&headers(Some("null"))));
    }
}
