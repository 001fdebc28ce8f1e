//! Flows that moved within a dialog (SPEC 7.2): (old flow, hash of From tag) -> new flow. Never followed in a chain.

use super::Now;
use crate::wire::token::Flow;

/// Shared by the cores; an atomic count lets the path skip the lock while it is empty. Bounded; drops its oldest.
pub struct Moved {}

impl Moved {
    pub fn new(_capacity: usize) -> Moved {
        todo!()
    }

    /// Records a move for `seconds`. True where an older record had to go.
    pub fn put(&self, _old: Flow, _tag: u32, _new: Flow, _seconds: u32, _now: Now) -> bool {
        todo!()
    }

    pub fn find(&self, _old: Flow, _tag: u32, _now: Now) -> Option<Flow> {
        todo!()
    }

    pub fn len(&self) -> usize {
        todo!()
    }

    pub fn sweep(&self, _now: Now) {
        todo!()
    }
}
