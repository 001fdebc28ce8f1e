//! Client flows that an ICMP error has closed, until they speak again (SPEC 3.5).

use super::Now;
use crate::wire::token::Flow;

/// Shared by the cores; an atomic count lets the path skip the lock while it is empty. Bounded; drops its oldest.
pub struct Unreachable {}

impl Unreachable {
    pub fn new(_capacity: usize) -> Unreachable {
        todo!()
    }

    /// Records the error. True where an older record had to go.
    pub fn put(&self, _flow: Flow, _now: Now) -> bool {
        todo!()
    }

    /// The flow spoke again.
    pub fn clear(&self, _flow: &Flow) {
        todo!()
    }

    /// When it was closed, in `mono_ms`.
    pub fn since(&self, _flow: &Flow) -> Option<u64> {
        todo!()
    }

    pub fn is_empty(&self) -> bool {
        todo!()
    }

    pub fn len(&self) -> usize {
        todo!()
    }
}
