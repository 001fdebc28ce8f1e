//! Which client is reached by which flow, learnt from REGISTER: the index behind `route = "flow"` (SPEC 5.2).
//!
//! A client's REGISTER is noted under the branch with which it left, for 32 s; its 2xx confirms the note. Sharded, bounded,
//! shared by the cores; time comes in. A full index drops its oldest.

use super::Now;
use crate::wire::{Uri, token::Flow};

/// What a REGISTER said. `aor` is canonical `user@domain` (of To), `contacts` the URIs as written.
pub struct Registration<'a> {
    pub aor: &'a [u8],
    pub contacts: &'a [&'a [u8]],
    /// `Contact: *`
    pub all: bool,
    pub flow: Flow,
}

/// What became of a note: for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub noted: u32,
    /// Contacts held by a live flow of another AOR: not noted (SPEC 5.2).
    pub conflicts: u32,
    pub dropped_oldest: u32,
}

/// What became of a confirmation: for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    pub added: u32,
    pub refreshed: u32,
    pub removed: u32,
    pub dropped_oldest: u32,
}

/// The index.
pub struct Flows {}

impl Flows {
    /// At most `capacity` confirmed contacts, and as many notes.
    pub fn new(_capacity: usize) -> Flows {
        todo!()
    }

    /// Notes a client's REGISTER under its branch for 32 s.
    pub fn note(&self, _branch: u64, _now: Now, _registration: &Registration<'_>) -> Noted {
        todo!()
    }

    /// Confirms the note by its 2xx: `expires(contact)` gives the seconds that the 2xx grants to a noted contact URI
    /// (`None`: it is not in the 2xx, so it has ended). 0 ends it. For `*` all contacts of the AOR end.
    pub fn confirm(
        &self,
        _branch: u64,
        _now: Now,
        _expires: &mut dyn FnMut(&[u8]) -> Option<u32>,
    ) -> Confirmed {
        todo!()
    }

    /// The newest live flow whose Contact equals this URI (RFC 3261 19.1.4).
    pub fn by_contact(&self, _uri: &Uri<'_>, _now: Now) -> Option<Flow> {
        todo!()
    }

    /// The newest live flow whose Contact's or AOR's user is this one.
    pub fn by_user(&self, _user: &[u8], _now: Now) -> Option<Flow> {
        todo!()
    }

    /// Confirmed contacts that are held (gauge).
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Ends what has expired; called every second by control, not by the path.
    pub fn sweep(&self, _now: Now) {
        todo!()
    }
}
