//! Sockets: listeners made once and for life, batches of datagrams, connections, the error queue, the clock.
//!
//! `udp`, `tcp` and `streams` are what the rest of the program uses; `sys` holds the system calls and the only unsafe code.
//! Nothing here knows a table or what a message means: a datagram comes in with its addresses, a datagram goes out; a
//! connection's bytes come in, whole messages go on. `worker` drives it.

pub mod inbox;
pub mod streams;
pub mod sys;
pub mod tcp;
pub mod udp;

use crate::live::Now;

/// The time, for those who own a loop; everything else gets it passed in.
pub fn now() -> Now {
    Now { mono_ms: sys::monotonic_ns() / 1_000_000, unix_s: sys::unix_ns() / 1_000_000_000 }
}
