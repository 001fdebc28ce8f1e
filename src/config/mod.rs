//! What the user wrote, with spans, and what is valid, built. Nothing deeper sees the raw form (SPEC 5, 12, Appendix A).
//!
//! `settings` is tidings.toml, `table` the routing table, `diagnostic` how faults are told (all at once, with file, line
//! and column), `document` reads TOML for both, `headers` knows which header may be touched, `ere` translates POSIX
//! extended expressions, `names` answers "is this host us?".

pub mod diagnostic;
mod document;
pub mod ere;
pub(crate) mod headers;
pub mod names;
pub mod settings;
pub mod table;
pub mod tls;

pub use diagnostic::{Diagnostic, Severity};
pub use document::Place;
pub use names::Names;
pub use settings::{ListenSpec, Settings, Side};
pub use table::TableSpec;
