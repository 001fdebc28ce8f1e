//! Plain data that cores share or keep: backend states, flows, pins. No sockets, no clocks (time is passed in), all bounded.

mod aged;
pub mod backend;
pub mod bans;
pub mod buckets;
pub mod calls;
pub mod connections;
pub mod dns;
pub mod flows;
pub mod moved;
pub mod news;
pub mod pins;
pub mod prefixes;
pub mod rate;
pub mod signs;
pub mod sources;
pub mod tags;
pub mod transactions;
pub mod unreachable;
pub mod users;

pub use backend::{BackendState, Health, Noticed, PROBES, Registry, State, Told};
pub use bans::{Ban, Bans, Cause};
pub use buckets::{Buckets, Verdict};
pub use calls::{Calls, Recorded};
pub use connections::{About, Alive, Connections, Listed};
pub use dns::{AddressState, Dns, Resolved};
pub use flows::{Confirmed, Flows, Noted, Registration};
pub use moved::Moved;
pub use news::{Gone, News, Reply};
pub use pins::{Pin, PinTarget, Pins};
pub use prefixes::Prefixes;
pub use rate::Rate;
pub use signs::{BackOff, Sign, Signs};
pub use sources::{SourceLimits, Sources, TooMany};
pub use tags::Tags;
pub use transactions::{Due, Outcome, Transactions};
pub use unreachable::Unreachable;
pub use users::{Seen, Stay, User, Users};

/// The time, read once per turn of a worker and passed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a monotonic clock with an arbitrary start.
    pub mono_ms: u64,
    /// Seconds since 1970.
    pub unix_s: u64,
}
