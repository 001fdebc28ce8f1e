//! From a valid `TableSpec` to an immutable `Table`. Off the workers; may take seconds for 10,000 rules, and says so.

use std::sync::Arc;

use super::{
    Table,
    pool::{Departed, Pools},
    rules::Rules,
};
use crate::{
    config::{Diagnostic, ListenSpec, TableSpec},
    live::Registry,
};

/// What compiling needs beside the table.
pub struct Context<'a> {
    pub listeners: &'a [ListenSpec],
    /// `[trust] strip`.
    pub strip: &'a [String],
    pub registry: &'a Registry,
    pub unix_s: u64,
    /// Gives the metric series of a rule, pool, backend or package by name.
    pub series: &'a crate::stats::SeriesRegistry,
    /// Departed backends to go on believing.
    pub departed: Departed,
    /// The address that the kernel would send from toward a backend (for wildcard listeners); passed in, since this room
    /// knows no sockets.
    pub source_for: &'a dyn Fn(std::net::SocketAddr) -> Option<std::net::IpAddr>,
    /// The table before: what it compiled from equal text is used again.
    pub previous: Option<&'a Table>,
}

/// Compiles. Errors: a pool with no listener for its transport, patterns too large, …
pub fn compile(
    _spec: &TableSpec,
    _context: &Context<'_>,
) -> Result<(Arc<Rules>, Arc<Pools>), Vec<Diagnostic>> {
    todo!()
}
