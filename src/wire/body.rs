//! Fields of a JSON body for the table's `body.NAME` filters (SPEC 5.1): top level only, no allocation.
//!
//! The bodies are Asterisk's (`{"type":"devicestate","device":"PJSIP/1000",…}`) and anybody's: the walk knows no
//! recursion, nesting is counted and bounded, and a body that is no JSON object has no members at all, as for the
//! reader behind us.

use super::lex;

/// How deep arrays and objects may nest: one bit each in a word.
const DEPTH: u32 = 64;

/// The value of the top-level member `name` of a JSON object, decoded into `out` (cleared first; keeps its capacity).
///
/// Escapes in keys and values are decoded, the last duplicate wins, strings lose their quotes, numbers and literals are
/// given as written, objects and arrays as their raw text. `None`: no such member, or no JSON object.
pub fn json_member<'o>(body: &[u8], name: &str, out: &'o mut Vec<u8>) -> Option<&'o [u8]> {
    out.clear();
    let value = find(body, name)?;
    match value {
        [b'"', text @ .., b'"'] => {
            let mut chars = Chars(text);
            while let Some(c) = chars.next()? {
                out.extend_from_slice(c.bytes());
            }
        }
        _ => out.extend_from_slice(value),
    }
    Some(out)
}

/// The raw value of the last member of this name.
fn find<'b>(body: &'b [u8], name: &str) -> Option<&'b [u8]> {
    let mut walk = Walk { bytes: body, at: 0 };
    let mut found = None;
    walk.blanks();
    walk.eat(b'{')?;
    walk.blanks();
    if walk.eat(b'}').is_none() {
        loop {
            let key = walk.string()?;
            walk.blanks();
            walk.eat(b':')?;
            walk.blanks();
            let value = walk.value()?;
            if is_key(key, name)? {
                found = Some(value);
            }
            walk.blanks();
            if walk.eat(b',').is_none() {
                break walk.eat(b'}')?;
            }
            walk.blanks();
        }
    }
    walk.blanks();
    if walk.at < body.len() {
        return None;
    }
    found
}

/// Whether the text of a key, without its quotes, is `name`. `None`: a broken escape.
fn is_key(text: &[u8], name: &str) -> Option<bool> {
    let (mut chars, mut left) = (Chars(text), name.as_bytes());
    let mut same = true;
    while let Some(c) = chars.next()? {
        match left.strip_prefix(c.bytes()) {
            Some(rest) => left = rest,
            None => same = false,
        }
    }
    Some(same && left.is_empty())
}

struct Walk<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Walk<'b> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, b: u8) -> Option<()> {
        (self.peek()? == b).then(|| self.at += 1)
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// A string, sound in its escapes; gives what stands between its quotes.
    fn string(&mut self) -> Option<&'b [u8]> {
        self.eat(b'"')?;
        let from = self.at;
        let mut escaped = false;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    self.at += 2;
                    escaped = true;
                }
                0..=0x1f => return None,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let text = &self.bytes[from..self.at - 1];
        if escaped {
            let mut chars = Chars(text);
            while chars.next()?.is_some() {}
        }
        Some(text)
    }

    /// A number, `true`, `false` or `null`: what cannot be mistaken for anything else is taken as it stands.
    fn word(&mut self) -> Option<()> {
        let from = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')) {
            self.at += 1;
        }
        match &self.bytes[from..self.at] {
            b"true" | b"false" | b"null" => Some(()),
            [b'-', b'0'..=b'9', ..] | [b'0'..=b'9', ..] => Some(()),
            _ => None,
        }
    }

    /// Any value; gives its raw text. Arrays and objects are walked with a stack of bits: is this level an object?
    fn value(&mut self) -> Option<&'b [u8]> {
        let from = self.at;
        let (mut objects, mut depth) = (0u64, 0u32);
        loop {
            let opened = match self.peek()? {
                b'"' => self.string().map(|_| false)?,
                open @ (b'{' | b'[') => {
                    if depth == DEPTH {
                        return None;
                    }
                    self.at += 1;
                    depth += 1;
                    objects = objects << 1 | u64::from(open == b'{');
                    true
                }
                _ => self.word().map(|_| false)?,
            };
            // Up to the next value: closing what ends here, over a comma and a key.
            let mut first = opened;
            loop {
                if depth == 0 {
                    return Some(&self.bytes[from..self.at]);
                }
                self.blanks();
                let object = objects & 1 == 1;
                if self.eat(if object { b'}' } else { b']' }).is_some() {
                    depth -= 1;
                    objects >>= 1;
                    first = false;
                    continue;
                }
                if !first {
                    self.eat(b',')?;
                    self.blanks();
                }
                if object {
                    self.string()?;
                    self.blanks();
                    self.eat(b':')?;
                    self.blanks();
                }
                break;
            }
        }
    }
}

/// A character of a string, as UTF-8 (or as the raw byte that stood there).
struct Char {
    bytes: [u8; 4],
    len: u8,
}

impl Char {
    fn raw(b: u8) -> Char {
        Char { bytes: [b, 0, 0, 0], len: 1 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The characters of a string's text. `None` from `next`: a broken escape.
struct Chars<'b>(&'b [u8]);

impl Chars<'_> {
    fn next(&mut self) -> Option<Option<Char>> {
        let (b, rest) = match self.0 {
            [] => return Some(None),
            [b'\\', b'u', rest @ ..] => {
                self.0 = rest;
                return self.unicode().map(Some);
            }
            [b'\\', b, rest @ ..] => (escape(*b)?, rest),
            [b, rest @ ..] => (*b, rest),
        };
        self.0 = rest;
        Some(Some(Char::raw(b)))
    }

    /// The four digits behind `\u`, and the second half of a surrogate pair.
    fn unicode(&mut self) -> Option<Char> {
        let mut code = self.four()?;
        if (0xd800..0xdc00).contains(&code) {
            self.0 = self.0.strip_prefix(b"\\u")?;
            let low = self.four()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
            code = 0x10000 + ((code - 0xd800) << 10) + low;
        }
        let mut c = Char { bytes: [0; 4], len: 0 };
        c.len = char::from_u32(code)?.encode_utf8(&mut c.bytes).len() as u8;
        Some(c)
    }

    fn four(&mut self) -> Option<u32> {
        let digits = self.0.get(..4)?;
        self.0 = &self.0[4..];
        digits.iter().try_fold(0, |code, d| Some(code << 4 | u32::from(lex::hex(*d)?)))
    }
}

fn escape(b: u8) -> Option<u8> {
    Some(match b {
        b'"' | b'\\' | b'/' => b,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(body: &str, name: &str) -> Option<String> {
        let mut out = b"left over".to_vec();
        let value = json_member(body.as_bytes(), name, &mut out)?;
        Some(String::from_utf8(value.to_vec()).expect("UTF-8"))
    }

    #[test]
    fn spec_5_1_members_of_asterisk_bodies() {
        let body =
            r#"{"type":"devicestate","device":"PJSIP/1000","state":"INUSE","cachable":1,"eid":"00:11"}"#;
        assert_eq!(member(body, "device").as_deref(), Some("PJSIP/1000"));
        assert_eq!(member(body, "cachable").as_deref(), Some("1"));
        assert_eq!(member(body, "eid").as_deref(), Some("00:11"));
        assert_eq!(member(body, "uniqueid"), None);
        assert_eq!(member(body, "devic"), None);
        assert_eq!(member(body, "devices"), None);
    }

    #[test]
    fn escapes_are_decoded_in_keys_and_values() {
        let body = r#"{"d\u0065v\u0069ce":"PJ\u0053IP\/1\n\"\\\t\u00e9\ud83d\ude00é"}"#;
        assert_eq!(member(body, "device").as_deref(), Some("PJSIP/1\n\"\\\t\u{e9}\u{1f600}\u{e9}"));
        assert_eq!(member(r#"{"\ud83d\ude00":"x"}"#, "\u{1f600}").as_deref(), Some("x"));
        assert_eq!(member(r#"{"":""}"#, "").as_deref(), Some(""));
    }

    #[test]
    fn the_last_duplicate_wins_whatever_its_form() {
        assert_eq!(member(r#"{"a":"1","\u0061":"2"}"#, "a").as_deref(), Some("2"));
        assert_eq!(member(r#"{"a":"1","a":null}"#, "a").as_deref(), Some("null"));
    }

    #[test]
    fn only_the_top_level_counts_and_values_keep_their_text() {
        let body = " {\r\n\"in\": {\"a\": \"no\", \"x\": [1, {}, []]} , \"l\" : [ \"]\", {\"a\":2} ], \"a\": -1.5e+3 }\n";
        assert_eq!(member(body, "a").as_deref(), Some("-1.5e+3"));
        assert_eq!(member(body, "in").as_deref(), Some(r#"{"a": "no", "x": [1, {}, []]}"#));
        assert_eq!(member(body, "l").as_deref(), Some(r#"[ "]", {"a":2} ]"#));
        assert_eq!(member(r#"{"a":true}"#, "a").as_deref(), Some("true"));
        assert_eq!(member("{}", "a"), None);
        assert_eq!(member("{\"a\":{}}", "a").as_deref(), Some("{}"));
    }

    #[test]
    fn what_is_no_json_object_has_no_members() {
        for body in [
            "",
            "[]",
            "\"a\"",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{\"a\":1}x",
            "{\"a\":1]",
            "{\"a\":[1}",
            "{\"a\":[1 2]}",
            "{\"a\":{1:2}}",
            "{\"a\":1 \"b\":2}",
            "{a:1}",
            "{\"a\":nul}",
            "{\"a\":.5}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\\ud800\\u0041\"}",
            "{\"a\":\"\\udc00\"}",
            "{\"a\":\"\\",
            "{\"a\":\"\n\"}",
            "{\"a\":[,]}",
            "{\"a\":[1,]}",
            "{\"a\":{\"b\"}}",
            "{,\"a\":1}",
            "{\"a\":1}{\"a\":1}",
        ] {
            assert_eq!(member(body, "a"), None, "{body}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |n: usize| format!("{{\"a\":{}{},\"b\":1}}", "[".repeat(n), "]".repeat(n));
        assert_eq!(member(&deep(64), "b").as_deref(), Some("1"));
        assert_eq!(member(&deep(65), "b"), None);
        assert_eq!(member(&deep(30_000), "b"), None);
        assert_eq!(member(&format!("{{\"a\":{}", "[".repeat(60_000)), "b"), None);
    }
}
