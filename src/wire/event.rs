//! The Event header (RFC 6665 8.4): package with templates, and `id`.

use super::lex::{self, Cursor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// `presence`, `presence.winfo`: as received (event types are compared exactly, RFC 6665 8.4).
    pub package: &'a [u8],
    pub id: Option<&'a [u8]>,
}

impl<'a> Event<'a> {
    /// Other parameters (`dialog;sla`, `check-sync;reboot=false`) are passed over.
    pub fn parse(value: &'a [u8]) -> Option<Event<'a>> {
        // Nearly all: a package and nothing else.
        if !value.is_empty() && lex::plain_end(value, 0) == value.len() {
            return Some(Event { package: value, id: None });
        }
        Event::general(value)
    }

    #[inline(never)]
    fn general(value: &'a [u8]) -> Option<Event<'a>> {
        let mut cursor = Cursor::new(lex::trim(value));
        let mut event = Event { package: cursor.token()?, id: None };
        cursor.params(|param| {
            if param.is(b"id") {
                let id = param.value.filter(|id| lex::is_token(id))?;
                if event.id.replace(id).is_some() {
                    return None;
                }
            }
            Some(())
        })?;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(value: &str) -> Option<(&str, Option<&str>)> {
        let text = |part| std::str::from_utf8(part).expect("UTF-8");
        Event::parse(value.as_bytes()).map(|e| (text(e.package), e.id.map(text)))
    }

    #[test]
    fn rfc_6665_8_4_package_templates_and_id() {
        assert_eq!(event("presence"), Some(("presence", None)));
        assert_eq!(event(" presence.winfo ; id = 7"), Some(("presence.winfo", Some("7"))));
        assert_eq!(event("dialog;sla;ID=x"), Some(("dialog", Some("x"))));
        assert_eq!(event("check-sync;reboot=false"), Some(("check-sync", None)));
        assert_eq!(event("a;q=\"id=9;\""), Some(("a", None)));
    }

    #[test]
    fn malformed_events() {
        for bad in ["", ";id=1", "a b", "a;id", "a;id=", "a;id=1;id=2", "a,b", "a;", "\"a\""] {
            assert_eq!(event(bad), None, "{bad}");
        }
    }
}
