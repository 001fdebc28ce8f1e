//! Sockets: listeners made once and for life, batches of datagrams, the error queue, the clock.
//!
//! `udp` is what the rest of the program uses; `sys` holds the system calls and the only unsafe code. Nothing here knows
//! SIP or a table: a datagram comes in with its addresses, a datagram goes out. `worker` drives it.

pub mod sys;
pub mod udp;

use crate::live::Now;

/// The time, for those who own a loop; everything else gets it passed in.
pub fn now() -> Now {
    Now { mono_ms: sys::monotonic_ns() / 1_000_000, unix_s: sys::unix_ns() / 1_000_000_000 }
}
