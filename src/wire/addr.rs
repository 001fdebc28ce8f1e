//! name-addr and addr-spec: From, To, Contact, Route, Record-Route, Path (RFC 3261 20.10, 20.34).
//!
//! One value of a list (`View::items` splits them). The URI is found and bounded here, its parts are `Uri`'s matter, so
//! that From and To may have schemes of which we know nothing (RFC 4475 3.3.4).

use super::lex::{self, Cursor};
use super::uri::split_scheme;

/// `"Display" <uri>;params` or `uri;params`. All parts borrow the header's value.
#[derive(Clone, Copy, Debug)]
pub struct NameAddr<'a> {
    pub display: &'a [u8],
    /// The bytes of the URI (parse with `Uri::parse`).
    pub uri: &'a [u8],
    /// Header parameters, without the leading `;`.
    pub params: &'a [u8],
    tag: Option<&'a [u8]>,
}

impl<'a> NameAddr<'a> {
    /// `None` for `*`, too.
    pub fn parse(value: &'a [u8]) -> Option<NameAddr<'a>> {
        match NameAddr::plain(value) {
            Some(plain) => Some(plain),
            None => NameAddr::general(value),
        }
    }

    #[inline(never)]
    fn general(value: &'a [u8]) -> Option<NameAddr<'a>> {
        let value = lex::trim(value);
        let mut cursor = Cursor::new(value);
        let display = if cursor.peek() == Some(b'"') {
            let display = cursor.quoted()?;
            cursor.skip_lws();
            display
        } else {
            let before = cursor;
            // Tokens and blanks, by the grammar; other characters are borne with where they can mislead nobody.
            let display = cursor.take_while(|b| {
                !matches!(b, b'"' | b',' | b';' | b':' | b'<' | b'>' | 0x7f) && (b >= b' ' || lex::is_lws(b))
            });
            if cursor.peek() != Some(b'<') {
                cursor = before;
                return NameAddr::addr_spec(value, cursor);
            }
            lex::trim(display)
        };
        cursor.eat(b'<')?;
        let uri = cursor.take_uri();
        cursor.eat(b'>')?;
        NameAddr::with_params(display, uri, cursor)
    }

    /// As nearly all write it: `<sip:…>` or `"Display" <sip:…>`, and no parameter but a tag. `None`: in another form, if in any.
    #[inline]
    fn plain(value: &'a [u8]) -> Option<NameAddr<'a>> {
        // By places in the value: a search within sixteen bytes of its end would have to copy them.
        let start = match value {
            [b'"', ..] => lex::quoted_end(value, 0).filter(|&end| value.get(end) == Some(&b' '))? + 1,
            _ => 0,
        };
        if !value.get(start..)?.starts_with(b"<sip:") {
            return None;
        }
        let end = lex::uri_end(value, start + 5);
        let (display, uri) = (&value[..start.saturating_sub(1)], value.get(start + 1..end)?);
        if value.get(end) != Some(&b'>') || uri.len() == 4 {
            return None;
        }
        let behind = &value[end + 1..];
        if behind.is_empty() {
            return Some(NameAddr { display, uri, params: behind, tag: None });
        }
        let tag = behind.strip_prefix(b";tag=")?;
        let sound = !tag.is_empty() && lex::plain_end(value, end + 6) == value.len();
        sound.then_some(NameAddr { display, uri, params: &behind[1..], tag: Some(tag) })
    }

    /// Without `<` and `>`: parameters belong to the header, and the URI may hold no `,` and no `?` (RFC 3261 20.10).
    fn addr_spec(value: &'a [u8], mut cursor: Cursor<'a>) -> Option<NameAddr<'a>> {
        let uri = cursor.take_while(|b| lex::is_uri_byte(b) && b != b';');
        if uri.iter().any(|b| matches!(b, b',' | b'?')) {
            return None;
        }
        NameAddr::with_params(&value[..0], uri, cursor)
    }

    fn with_params(display: &'a [u8], uri: &'a [u8], mut cursor: Cursor<'a>) -> Option<NameAddr<'a>> {
        let (_, behind) = split_scheme(uri)?;
        if behind.is_empty() {
            return None;
        }
        cursor.skip_lws();
        let mut list = cursor;
        list.eat(b';'); // anything else than parameters is seen below
        let params = list.rest();
        let mut tag = None;
        cursor.params(|param| {
            if param.is(b"tag") {
                // Two tags are two dialogs for two readers.
                let value = param.value.filter(|value| lex::is_token(value))?;
                return tag.replace(value).is_none().then_some(());
            }
            Some(())
        })?;
        Some(NameAddr { display, uri, params: lex::trim(params), tag })
    }

    /// The header parameter `name`, in any case; `Some(None)` where it has no value. A quoted value keeps its quotes.
    pub fn param(&self, name: &[u8]) -> Option<Option<&'a [u8]>> {
        lex::find_param(self.params, name)
    }

    pub fn tag(&self) -> Option<&'a [u8]> {
        self.tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(value: &str) -> Option<(&str, &str, &str)> {
        let text = |part| std::str::from_utf8(part).expect("UTF-8");
        NameAddr::parse(value.as_bytes()).map(|a| (text(a.display), text(a.uri), text(a.params)))
    }

    #[test]
    fn rfc_3261_20_10_name_addr_and_addr_spec() {
        for (value, expected) in [
            ("<sip:a@b>", ("", "sip:a@b", "")),
            ("Bob <sip:b@h;x=y?z=1>;tag=7;q", ("Bob", "sip:b@h;x=y?z=1", "tag=7;q")),
            ("sip:a@b;tag=1", ("", "sip:a@b", "tag=1")),
            ("sip:a@b\r\n ; tag = 1", ("", "sip:a@b", "tag = 1")),
            ("caller<sip:a@b>", ("caller", "sip:a@b", "")),
            ("\"Q \\\" , ; <x>\" <sip:a@b>", ("\"Q \\\" , ; <x>\"", "sip:a@b", "")),
            ("\"\"\r\n <sip:a@b> ;tag=\tx", ("\"\"", "sip:a@b", "tag=\tx")),
            ("two  words <sip:a@b>", ("two  words", "sip:a@b", "")),
            ("Jürgen (home) <sip:a@b>", ("Jürgen (home)", "sip:a@b", "")),
            ("<http://www.example.com>;tag=2", ("", "http://www.example.com", "tag=2")),
            ("isbn:2983792873", ("", "isbn:2983792873", "")),
            ("<sip:a,b@h>", ("", "sip:a,b@h", "")),
        ] {
            assert_eq!(parts(value), Some(expected), "{value}");
        }
    }

    #[test]
    fn rfc_4475_3_1_2_what_is_refused() {
        for bad in [
            "",
            "*",
            "<>",
            "<sip:>",
            "sip:",
            "\"Mr. X <sip:a@b>",
            "\"open\\\" <sip:a@b>",
            "\"a\" < sip:a@b >",
            "Bell, A <sip:a@b>",
            "sip:a@b?Route=%3Csip:c%3E",
            "sip:a@b,sip:c@d",
            "<sip:a@b>, <sip:c@d>",
            "<sip:a@b",
            "<sip:a@b>x",
            "<sip:a@b>;",
            "<sip:a@b>;;",
            "<sip:a@b>;tag=1;tag=2",
            "<sip:a@b>;tag=",
            "<sip:a@b>;tag",
            "sip:a@b c",
            "<sip:a@\"b>",
            "<sip:a@b>;x=\"open",
            "a:b <sip:a@b>;tag=x y",
            "<sip:<a@b>>",
        ] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }

    #[test]
    fn parameters_by_name() {
        let value = b"<sip:a@b> ; X=\"q;tag=no\" ;expires = 60; Tag=t-1;lr";
        let a = NameAddr::parse(value).expect("parses");
        assert_eq!(a.tag(), Some(&b"t-1"[..]));
        assert_eq!(a.param(b"x"), Some(Some(&b"\"q;tag=no\""[..])));
        assert_eq!(a.param(b"EXPIRES"), Some(Some(&b"60"[..])));
        assert_eq!(a.param(b"lr"), Some(None));
        assert_eq!(a.param(b"none"), None);
        assert_eq!(NameAddr::parse(b"<sip:a@b;tag=inside>").expect("parses").tag(), None);
    }
}
