//! The TLS handshakes of one core (SPEC 9.3, 9.7): how many are under way, how many steps of them a turn may take, and what
//! is made before and after.
//!
//! A step is a hundred times the work of a message: a turn takes two, then the messages of others have theirs. Where too
//! many are under way the oldest goes, not the newest: who only opens handshakes pushes out himself, and an honest peer
//! needs no longer than two round trips.

use std::{collections::VecDeque, io, net::SocketAddr};

use mio::net::TcpStream;

use super::{HostOf, Now, Pipe, Reason, Session, Stage, Streams, name_of};
use crate::stats::{Counter, Gauge};

/// Steps of one turn.
pub const STEPS: usize = 2;

#[derive(Default)]
pub struct Handshakes {
    /// Of peers that called: the slots in which they began, the oldest first, with those that are over.
    began: VecDeque<(u32, u16)>,
    under_way: usize,
    /// Slots that may have a step to make; they are not in `Streams::ready`.
    pub ready: VecDeque<u32>,
}

impl Streams {
    /// What lies over the socket of a peer that called: TLS, where the listener has it.
    pub(super) fn session(&self, listener: u8) -> io::Result<Option<Session>> {
        if !self.is_secure(listener) {
            return Ok(None);
        }
        let credentials = self.ground.credentials.load();
        let config = credentials.server(listener).ok_or(io::ErrorKind::Unsupported)?;
        Session::server(config.clone()).map(Some).map_err(io::Error::other)
    }

    /// What lies over the socket of a backend that we call.
    pub(super) fn calling(
        &self,
        socket: TcpStream,
        listener: u8,
        to: SocketAddr,
        host: HostOf<'_>,
    ) -> io::Result<Pipe> {
        if !self.is_secure(listener) {
            return Ok(Pipe::plain(socket));
        }
        let credentials = self.ground.credentials.load();
        let config = credentials.client().ok_or(io::ErrorKind::Unsupported)?;
        let session = Session::client(config.clone(), name_of(host(to), to));
        session.map(|session| Pipe::secure(socket, session)).map_err(io::Error::other)
    }

    fn is_secure(&self, listener: u8) -> bool {
        self.ground.secure.get(usize::from(listener)).copied().unwrap_or(false)
    }

    /// A peer that called begins its handshake, where there is one.
    pub(super) fn greet(&mut self, slot: u32, now: Now) {
        let place = &self.slots[slot as usize];
        if place.held.as_ref().is_none_or(|connection| connection.stage != Stage::Handshake) {
            return;
        }
        self.handshakes.began.push_back((slot, place.generation));
        self.handshakes.under_way += 1;
        while let Some(&(oldest, generation)) = self.handshakes.began.front() {
            if self.is_greeting(oldest, generation) {
                if self.handshakes.under_way <= self.ground.limits.handshakes {
                    break;
                }
                self.close(oldest, Reason::Handshakes, now);
            }
            self.handshakes.began.pop_front();
        }
        self.note_handshakes();
    }

    fn is_greeting(&self, slot: u32, generation: u16) -> bool {
        let held = self.slots.get(slot as usize).and_then(|place| place.held.as_ref());
        held.is_some_and(|c| c.generation == generation && c.stage == Stage::Handshake)
    }

    /// After a read that may have made a step: messages can pass once it was the last.
    pub(super) fn after_greeting(&mut self, slot: u32, now: Now) {
        let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { return };
        if connection.stage != Stage::Handshake || !connection.pipe.is_open() {
            return;
        }
        let counter = if connection.dialed { Counter::HandshakesDialed } else { Counter::Handshakes };
        self.ground.stats.add(counter, 1);
        self.leave_greeting(slot);
        let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { return };
        connection.connected(now.mono_ms);
        self.flush(slot, now);
    }

    /// Its handshake is over, well or not.
    pub(super) fn leave_greeting(&mut self, slot: u32) {
        let Some(connection) = self.slots[slot as usize].held.as_deref() else { return };
        if connection.stage == Stage::Handshake && !connection.dialed {
            self.handshakes.under_way -= 1;
            self.note_handshakes();
        }
    }

    fn note_handshakes(&self) {
        self.ground.stats.set(Gauge::Handshakes, self.handshakes.under_way as u64);
    }
}
