//! The trust boundary: each clause of SPEC 1 and 3.4 to 3.6, and the refusals of 2.3 to 2.6, with a hostile phone that
//! tries it.
//!
//! Raw bytes over real sockets to the real binary. What a phone must not reach has a socket in the test, which must stay
//! silent; what is refused is answered with the code that the SPEC names.

#[path = "../rig/mod.rs"]
mod rig;

mod etags;
mod headers;
mod icmp;
mod loops;
mod neighbours;
mod refusals;
mod relay;
mod responses;
mod sides;
mod tokens;
