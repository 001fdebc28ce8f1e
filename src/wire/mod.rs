//! Bytes and their meaning: scan, header names, URIs, Via, Event, bodies, edits, replies, tokens.
//!
//! Nothing here knows a socket, a clock, a table or a configuration file. Everything borrows the received bytes;
//! nothing on the way of a message allocates.

pub mod addr;
mod base64url;
mod block;
pub mod body;
pub mod edit;
pub mod event;
pub mod frame;
pub mod inspect;
pub mod ip;
mod lex;
pub mod name;
pub mod proxy;
pub mod put;
pub mod reason;
pub mod reply;
pub mod scan;
pub mod stun;
pub mod token;
pub mod upgrade;
pub mod uri;
pub mod via;
mod view;
pub mod websocket;

pub use addr::NameAddr;
pub use block::same;
pub use edit::Edits;
pub use event::Event;
pub use frame::{Frame, Framer};
pub use inspect::{Essentials, Response, inspect, request_uri};
pub use lex::number;
pub use name::{HeaderId, Method, Transport};
pub use reason::Reason;
pub use scan::{Field, Index, Item, Limits, Refused, Span, Start, View};
pub use uri::{HostPort, Uri};
pub use via::Via;
