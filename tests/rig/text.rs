//! Messages as text, for tests: reading header fields of what came, and answering it. Reads only what the tests' own
//! peers write (no folding); it is no parser of the router's.

/// Values of all header fields of this name, in order, with its compact form where it has one; commas are not split.
pub fn headers<'a>(message: &'a str, name: &str) -> Vec<&'a str> {
    let head = message.split("\r\n\r\n").next().unwrap_or(message);
    let fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    let is = |field: &str| {
        field.eq_ignore_ascii_case(name) || compact(name).is_some_and(|c| field.eq_ignore_ascii_case(c))
    };
    fields.filter(|(field, _)| is(field.trim())).map(|(_, value)| value.trim()).collect()
}

/// The first header field of this name; panics where there is none.
#[track_caller]
pub fn header<'a>(message: &'a str, name: &str) -> &'a str {
    headers(message, name).first().copied().unwrap_or_else(|| panic!("no {name} in:\n{message}"))
}

fn compact(name: &str) -> Option<&'static str> {
    let known =
        [("via", "v"), ("from", "f"), ("to", "t"), ("call-id", "i"), ("contact", "m"), ("event", "o")];
    known.into_iter().find(|(long, _)| name.eq_ignore_ascii_case(long)).map(|(_, short)| short)
}

/// The `tag` parameter of a From or To value.
pub fn tag(value: &str) -> Option<&str> {
    let after = value.split(";tag=").nth(1)?;
    after.split([';', '>', ' ']).next()
}

/// The status code of a response.
pub fn status(message: &str) -> Option<u16> {
    message.strip_prefix("SIP/2.0 ")?.split(' ').next()?.parse().ok()
}

/// The Request-URI of a request.
pub fn request_uri(message: &str) -> &str {
    message.split(' ').nth(1).unwrap_or_default()
}

/// The URI between `<` and `>`, or the value up to its parameters.
pub fn uri(value: &str) -> &str {
    match value.split_once('<') {
        Some((_, rest)) => rest.split('>').next().unwrap_or(rest),
        None => value.split(';').next().unwrap_or(value),
    }
}

/// What follows the empty line.
pub fn body(message: &str) -> &str {
    message.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// A response to `request` (RFC 3261 8.2.6): Via, From, To, Call-ID, CSeq and Record-Route copied, `tag` added to a To
/// that has none (empty: left out), `more` are further header lines, each with its CRLF.
pub fn answer(request: &str, status: &str, tag: &str, more: &str) -> String {
    let mut response = format!("SIP/2.0 {status}\r\n");
    for via in headers(request, "Via") {
        response += &format!("Via: {via}\r\n");
    }
    for route in headers(request, "Record-Route") {
        response += &format!("Record-Route: {route}\r\n");
    }
    let to = header(request, "To");
    let to_tag = if tag.is_empty() || to.contains(";tag=") { String::new() } else { format!(";tag={tag}") };
    response += &format!(
        "From: {}\r\nTo: {to}{to_tag}\r\nCall-ID: {}\r\nCSeq: {}\r\n{more}Content-Length: 0\r\n\r\n",
        header(request, "From"),
        header(request, "Call-ID"),
        header(request, "CSeq"),
    );
    response
}
