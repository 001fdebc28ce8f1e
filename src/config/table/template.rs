//! The value of `set.HEADER`: text with `{source.backend}`, `{source.ip}` and `{rule}` (SPEC 5.2); `{{` and `}}` are
//! braces themselves.

use super::{
    super::{
        document::{Faults, Text, quoted, suggestion},
        headers,
    },
    Piece, Template,
};

const NAMES: [&str; 3] = ["source.backend", "source.ip", "rule"];

pub(super) fn template(faults: &mut Faults<'_>, text: &Text<'_>) -> Option<Template> {
    if !headers::is_value(text.value) {
        faults.error(
            text.span.clone(),
            "a header's value is one line of at most 1024 bytes without control characters",
        );
        return None;
    }
    match pieces(text.value) {
        Ok(pieces) => Some(Template(pieces)),
        Err((offset, message)) => {
            let at = faults.inside(text, offset);
            faults.error(at..at, message);
            None
        }
    }
}

/// The pieces, or the byte offset of the fault and what it is.
fn pieces(value: &str) -> Result<Vec<Piece>, (usize, String)> {
    let mut out = Vec::new();
    let mut plain = String::new();
    let mut rest = value;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let from = &rest[at..];
        let offset = value.len() - from.len();
        if from.starts_with("{{") || from.starts_with("}}") {
            plain.push_str(&from[..1]);
            rest = &from[2..];
            continue;
        }
        if from.starts_with('}') {
            return Err((offset, "\"}\" without \"{\": write \"}}\" for a brace itself".to_owned()));
        }
        let Some(end) = from.find('}') else {
            return Err((offset, "\"{\" is never closed: write \"{{\" for a brace itself".to_owned()));
        };
        let name = &from[1..end];
        let piece = match name {
            "source.backend" => Piece::SourceBackend,
            "source.ip" => Piece::SourceIp,
            "rule" => Piece::Rule,
            _ => {
                let near = suggestion(name, NAMES);
                let message = format!("unknown template {{{}}}{near}", quoted(name).trim_matches('"'));
                return Err((offset, message));
            }
        };
        if !plain.is_empty() {
            out.push(Piece::Text(std::mem::take(&mut plain).into()));
        }
        out.push(piece);
        rest = &from[end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        out.push(Piece::Text(plain.into()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_and_names() {
        let text = |text: &str| Piece::Text(text.into());
        assert_eq!(pieces("a{rule}b").unwrap(), [text("a"), Piece::Rule, text("b")]);
        assert_eq!(pieces("{source.backend}{source.ip}").unwrap(), [Piece::SourceBackend, Piece::SourceIp]);
        assert_eq!(pieces("{{x}}").unwrap(), [text("{x}")]);
        assert_eq!(pieces("").unwrap(), []);
        assert_eq!(pieces("ab{x}").unwrap_err().0, 2);
        assert_eq!(pieces("ab{").unwrap_err().0, 2);
        assert_eq!(pieces("ä}").unwrap_err().0, 2);
    }
}
