//! Tidings, a SIP event router.
//!
//! The life of a message, on the core that received it and nowhere else:
//!
//! 1. `net` receives a batch of datagrams into buffers that the worker owns;
//! 2. `wire::scan` and `wire::inspect` index and check it: ranges only; a refusal is a `wire::Reason`;
//! 3. `forward` decides whose it is (SPEC 1), then by token, pin or table (`route`) where it goes;
//! 4. `forward` writes it with its edits (`wire::Edits`) into the outbox, in one copy;
//! 5. `net` sends the batch.
//!
//! Rooms, each of which may use those before it (`tests/layers.rs` holds them to it):
//! `wire` → `config` → `live` → `route` → `forward` → `net` → `worker` → `control` → `admin` → `cli` → `main`;
//! `stats` may be used by all above `wire`.

#![deny(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod forward;
pub mod live;
pub mod net;
pub mod route;
pub mod stats;
pub mod wire;
pub mod worker;
