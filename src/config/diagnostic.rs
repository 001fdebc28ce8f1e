//! Faults as the user sees them: `table.toml:12:9: error: unknown pool "presance"` with the line and a caret below.

/// How bad it is: errors stop a table, warnings (lints of SPEC 5.5) do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
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
    /// The offending text (at most one line), for the caret.
    pub text: String,
}
