//! What a rule may look at: borrowed facts of one message and where it came from.

use std::net::SocketAddr;

use super::pool::BackendRef;
use crate::wire::{Essentials, Method, Transport, Uri, View};

/// Who sent it (SPEC 1.1), decided before any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Client,
    /// `[trust] prefixes`, or a backend that left the table within a day.
    Trusted,
    /// A backend of this table (its first pool; `Pools::is_member` answers for others).
    Backend(BackendRef),
}

impl Source {
    /// `source = "backends"` of a table.
    pub fn is_backend(self) -> bool {
        !matches!(self, Source::Client)
    }
}

/// One request, as rules see it. `ruri` and `view` are as received (after strict-route repair: the repaired R-URI).
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub view: &'a View<'a>,
    pub essentials: &'a Essentials<'a>,
    /// CANCEL and ACK are decided as INVITE (SPEC 7.1): the caller says so here.
    pub method: Method,
    /// The method token's bytes (for unknown methods).
    pub method_token: &'a [u8],
    pub ruri: &'a [u8],
    pub uri: &'a Uri<'a>,
    pub source: Source,
    pub peer: SocketAddr,
    /// Index of the listener in the settings' order.
    pub listener: u8,
    pub transport: Transport,
}

/// What matching needs to write to: kept by each worker, never shared.
#[derive(Default)]
pub struct Scratch {
    pub text: Vec<u8>,
}
