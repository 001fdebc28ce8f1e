//! The edits of SPEC 4.1: a short list over the received bytes, written once, in one copy.
//!
//! Edits may be pushed in any order; where two stand at one offset they keep the order of pushing. Cuts must not
//! overlap. Both vectors are kept between messages, so that nothing allocates.

use super::scan::Span;

#[derive(Clone, Copy, Debug)]
struct Edit {
    at: u32,
    cut: u32,
    from: u32,
    to: u32,
}

/// Edits of one message. `clear` before each.
#[derive(Default)]
pub struct Edits {
    list: Vec<Edit>,
    text: Vec<u8>,
}

impl Edits {
    pub fn clear(&mut self) {
        self.list.clear();
        self.text.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Puts `text` before the byte at `at`.
    pub fn insert(&mut self, at: u32, text: &[u8]) {
        self.replace(Span { start: at, end: at }, text);
    }

    /// Takes `span` out.
    pub fn cut(&mut self, span: Span) {
        self.replace(span, b"");
    }

    /// Puts `text` where `span` stands.
    pub fn replace(&mut self, span: Span, text: &[u8]) {
        let from = self.text.len() as u32;
        self.text.extend_from_slice(text);
        self.push(span, from);
    }

    /// As `replace`, with the text written by `write` straight into the edit's store.
    pub fn replace_with(&mut self, span: Span, write: impl FnOnce(&mut Vec<u8>)) {
        let from = self.text.len() as u32;
        write(&mut self.text);
        self.push(span, from);
    }

    fn push(&mut self, span: Span, from: u32) {
        let to = self.text.len() as u32;
        match self.list.last() {
            Some(last) if last.at > span.start => self.insert_before(span, from, to),
            _ => self.list.push(Edit { at: span.start, cut: span.end, from, to }),
        }
    }

    #[cold]
    fn insert_before(&mut self, span: Span, from: u32, to: u32) {
        let place = self.list.iter().rposition(|e| e.at <= span.start).map_or(0, |i| i + 1);
        self.list.insert(place, Edit { at: span.start, cut: span.end, from, to });
    }

    /// Appends `bytes` with the edits applied to `out`.
    pub fn write(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let done = self.write_list(&self.list, bytes, 0, out);
        out.extend_from_slice(&bytes[done..]);
    }

    /// The same, with what `between` writes put before the byte at `at` and all edits there.
    pub fn write_with(&self, bytes: &[u8], at: u32, out: &mut Vec<u8>, between: impl FnOnce(&mut Vec<u8>)) {
        // Nearly all edits stand behind it.
        let before = self.list.iter().take_while(|e| e.at < at).count();
        let done = self.write_list(&self.list[..before], bytes, 0, out);
        out.extend_from_slice(&bytes[done..at as usize]);
        between(out);
        let done = self.write_list(&self.list[before..], bytes, at as usize, out);
        out.extend_from_slice(&bytes[done..]);
    }

    /// Appends the bytes from `done` on with these edits, as far as they reach. Gives how far that was.
    fn write_list(&self, list: &[Edit], bytes: &[u8], mut done: usize, out: &mut Vec<u8>) -> usize {
        for e in list {
            let at = (e.at as usize).max(done);
            out.extend_from_slice(&bytes[done..at]);
            out.extend_from_slice(&self.text[e.from as usize..e.to as usize]);
            done = (e.cut as usize).max(at);
        }
        done
    }

    /// Appends the bytes of `span` with the edits that begin in it applied to `out`.
    pub fn write_range(&self, bytes: &[u8], span: Span, out: &mut Vec<u8>) {
        let (mut done, end) = (span.start as usize, span.end as usize);
        for e in self.list.iter().filter(|e| (span.start..=span.end).contains(&e.at)) {
            let at = (e.at as usize).max(done);
            out.extend_from_slice(&bytes[done..at]);
            out.extend_from_slice(&self.text[e.from as usize..e.to as usize]);
            done = (e.cut as usize).max(at);
        }
        if done < end {
            out.extend_from_slice(&bytes[done..end]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(edits: &Edits, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        edits.write(bytes, &mut out);
        String::from_utf8(out).expect("test text is ASCII")
    }

    #[test]
    fn edits_apply_in_order_of_place_then_of_pushing() {
        let mut e = Edits::default();
        e.cut(Span { start: 4, end: 6 });
        e.insert(0, b"<");
        e.replace(Span { start: 2, end: 3 }, b"XY");
        e.insert(0, b"-");
        e.insert(8, b">");
        assert_eq!(apply(&e, b"01234567"), "<-01XY367>");
    }

    #[test]
    fn what_stands_between_comes_before_the_edits_at_its_place() {
        let mut e = Edits::default();
        e.cut(Span { start: 4, end: 6 });
        e.insert(2, b"<");
        e.replace(Span { start: 0, end: 1 }, b"XY");
        for (at, expected) in [(0, "--XY1<2367"), (2, "XY1--<2367"), (3, "XY1<2--367"), (8, "XY1<2367--")] {
            let mut out = Vec::new();
            e.write_with(b"01234567", at, &mut out, |t| t.extend_from_slice(b"--"));
            assert_eq!(String::from_utf8(out).expect("ASCII"), expected, "{at}");
        }
    }

    #[test]
    fn nothing_to_edit_is_the_message_itself() {
        assert_eq!(apply(&Edits::default(), b"abc"), "abc");
    }
}
