//! Faults as the user sees them: `table.toml:12:9: error: unknown pool "presance"` with the line and a caret below.

use std::fmt;

/// How bad it is: errors stop a table, warnings (lints of SPEC 5.5) do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

impl Severity {
    pub const fn label(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One fault, with its place (1-based; column in characters).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    pub file: String,
    pub line: usize,
    pub column: usize,
    /// What is wrong, and what to do.
    pub message: String,
    /// The line of the file where it is, for the caret. Of a very long line only what begins at the place, behind `…`.
    /// Empty: there is no line to show.
    pub text: String,
}

impl Diagnostic {
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    /// The place and the message, then the line and the caret; no newline at the end. Line 0 means the file as a whole.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.severity.label();
        if self.line == 0 {
            return write!(out, "{}: {label}: {}", self.file, self.message);
        }
        write!(out, "{}:{}:{}: {label}: {}", self.file, self.line, self.column, self.message)?;
        if self.text.is_empty() {
            return Ok(());
        }
        let caret = if self.text.starts_with('…') { 1 } else { self.column.saturating_sub(1) };
        let number = self.line.to_string();
        let width = number.len().max(4);
        write!(out, "\n {number:>width$} | {}\n {:>width$} | {:caret$}^", self.text, "", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str, column: usize) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            file: "t.toml".into(),
            line: 12,
            column,
            message: "no".into(),
            text: text.into(),
        }
    }

    #[test]
    fn the_caret_stands_below_the_column() {
        let shown = fault("route = \"x\"", 9).to_string();
        assert_eq!(shown, "t.toml:12:9: error: no\n   12 | route = \"x\"\n      |         ^");
    }

    #[test]
    fn a_cut_line_has_its_caret_behind_the_ellipsis() {
        let shown = fault("…cut", 900).to_string();
        assert_eq!(shown, "t.toml:12:900: error: no\n   12 | …cut\n      |  ^");
    }

    #[test]
    fn a_fault_without_a_place_names_the_file_only() {
        let whole = Diagnostic { line: 0, ..fault("", 0) };
        assert_eq!(whole.to_string(), "t.toml: error: no");
    }
}
