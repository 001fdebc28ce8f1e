//! Header names in tables and settings: compact forms, and which headers a user may set, remove or strip (SPEC 5.2).

use super::document::quoted;

/// Compact forms (RFC 3261 7.3.3 and the registry behind it), and the names that they stand for, in lower case.
const COMPACT: [(&str, &str); 20] = [
    ("a", "accept-contact"),
    ("b", "referred-by"),
    ("c", "content-type"),
    ("d", "request-disposition"),
    ("e", "content-encoding"),
    ("f", "from"),
    ("i", "call-id"),
    ("j", "reject-contact"),
    ("k", "supported"),
    ("l", "content-length"),
    ("m", "contact"),
    ("n", "identity-info"),
    ("o", "event"),
    ("r", "refer-to"),
    ("s", "subject"),
    ("t", "to"),
    ("u", "allow-events"),
    ("v", "via"),
    ("x", "session-expires"),
    ("y", "identity"),
];

/// Headers that make a message what it is: they are neither removed nor stripped.
const STRUCTURE: [&str; 12] = [
    "via",
    "route",
    "record-route",
    "path",
    "from",
    "to",
    "call-id",
    "cseq",
    "max-forwards",
    "content-length",
    "content-type",
    "contact",
];

/// Headers that a rule may not set, beside those that begin with `sip-` or `content-`.
const NOT_SET: [&str; 14] = [
    "via",
    "route",
    "record-route",
    "path",
    "from",
    "to",
    "contact",
    "call-id",
    "cseq",
    "max-forwards",
    "event",
    "expires",
    "supported",
    "authorization",
];

/// Headers of a reply that the router writes itself.
const NOT_REPLIED: [&str; 7] = ["via", "from", "to", "call-id", "cseq", "content-length", "record-route"];

/// Lower case, compact forms resolved: `s` is `subject`.
pub(crate) fn canonical(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    match COMPACT.iter().find(|(compact, _)| *compact == lower) {
        Some((_, long)) => (*long).to_owned(),
        None => lower,
    }
}

/// A header name is a token (RFC 3261 25.1).
pub(crate) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte))
}

/// The name as a user may mean it: `"f" (From)` for a compact form.
fn shown(name: &str) -> String {
    let long = canonical(name);
    if long == name.to_ascii_lowercase() { quoted(name) } else { format!("{} ({long})", quoted(name)) }
}

fn token(name: &str) -> Result<String, String> {
    if is_token(name) { Ok(canonical(name)) } else { Err(format!("{} is no header name", quoted(name))) }
}

/// May `set` write this header? `Err` says why not.
pub(super) fn settable(name: &str) -> Result<(), String> {
    let canonical = token(name)?;
    let refused = NOT_SET.contains(&canonical.as_str())
        || canonical.starts_with("sip-")
        || canonical.starts_with("content-")
        || canonical == "proxy-authorization";
    if refused {
        return Err(format!(
            "the header {} cannot be set: the message or the router depends on it",
            shown(name)
        ));
    }
    Ok(())
}

/// May `remove` take this header out?
pub(super) fn removable(name: &str) -> Result<(), String> {
    let canonical = token(name)?;
    if STRUCTURE.contains(&canonical.as_str()) {
        return Err(format!("the header {} cannot be removed: no SIP message goes without it", shown(name)));
    }
    Ok(())
}

/// May `[trust] strip` take this header from what is not from a backend?
pub(super) fn strippable(name: &str) -> Result<(), String> {
    let canonical = token(name)?;
    let needed = ["event", "expires", "authorization", "proxy-authorization", "require", "supported"];
    if STRUCTURE.contains(&canonical.as_str())
        || needed.contains(&canonical.as_str())
        || canonical.starts_with("sip-")
        || canonical.starts_with("content-")
    {
        return Err(format!("the header {} cannot be stripped: requests of clients need it", shown(name)));
    }
    Ok(())
}

/// May a `reply` carry this header?
pub(super) fn repliable(name: &str) -> Result<(), String> {
    let canonical = token(name)?;
    if NOT_REPLIED.contains(&canonical.as_str()) {
        return Err(format!("the header {} of a reply is written by the router", shown(name)));
    }
    Ok(())
}

/// A header value of one line: no CR, LF, NUL or other control character but the tab.
pub(super) fn is_value(value: &str) -> bool {
    value.len() <= 1024 && !value.chars().any(|c| c.is_control() && c != '\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_forms_are_refused_like_their_long_names() {
        for name in ["v", "F", "t", "m", "i", "l", "c", "e", "o", "k", "Sip-If-Match", "content-foo", "VIA"] {
            assert!(settable(name).is_err(), "{name}");
        }
        for name in ["v", "f", "T", "i", "L", "m", "Max-Forwards"] {
            assert!(removable(name).is_err(), "{name}");
        }
        assert!(
            settable("X-Node").is_ok() && settable("s").is_ok() && removable("P-Asserted-Identity").is_ok()
        );
        assert_eq!(canonical("S"), "subject");
    }

    #[test]
    fn what_is_no_token_is_no_header_name() {
        for name in ["", "X Node", "X:Node", "X\r\nVia", "Ä"] {
            assert!(settable(name).is_err(), "{name}");
        }
    }
}
