//! A turn's reads (SPEC 9.7): each connection that may have bytes once before any twice, handshakes apart from messages, and
//! what becomes of a connection by what it said.

use super::{
    Counter, Ends, Heard, Now, READ, READS, Reason, Stage, Streams, connection::Brought, handshakes,
};

/// What a read of one connection came to.
struct ReadSlot {
    /// What was heard of is to be dealt with first.
    enough: bool,
    /// It was a step of a handshake.
    stepped: bool,
}

impl Streams {
    /// Reads from those that may have bytes, each once before any twice, up to a turn's share or until `enough` (asked of
    /// what `hear` collects). Each message is told with the connection's listener, ends and id.
    pub fn read(&mut self, now: Now, hear: &mut dyn FnMut(&Ends, Heard<'_>) -> bool) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; READ];
        }
        let mut steps = handshakes::STEPS;
        for _ in 0..READS {
            if steps == 0 {
                break;
            }
            let Some(slot) = self.handshakes.ready.pop_front() else { break };
            let Some(read) = self.read_slot(slot, now, hear) else { continue };
            steps -= usize::from(read.stepped);
            if read.enough {
                return;
            }
        }
        for _ in 0..READS {
            let Some(slot) = self.ready.pop_front() else { return };
            if self.read_slot(slot, now, hear).is_some_and(|read| read.enough) {
                return;
            }
        }
    }

    /// Has it read in its turn.
    pub(super) fn queue(&mut self, slot: u32) {
        match self.held(slot).map(|connection| connection.stage) {
            Some(Stage::Handshake) => self.handshakes.ready.push_back(slot),
            _ => self.ready.push_back(slot),
        }
    }

    fn read_slot(
        &mut self,
        slot: u32,
        now: Now,
        hear: &mut dyn FnMut(&Ends, Heard<'_>) -> bool,
    ) -> Option<ReadSlot> {
        let id = self.id(slot);
        let connection = self.slots[slot as usize].held.as_deref_mut()?;
        let greeting = connection.stage == Stage::Handshake;
        let ends = Ends { listener: connection.listener, local: connection.local, peer: connection.peer, id };
        let mut enough = false;
        let (index, limits) = (&mut self.index, (&self.ground.wire, &self.ground.limits));
        let brought = connection.read(&mut self.buffer, index, limits, now.mono_ms, &mut |heard| {
            enough |= hear(&ends, heard);
        });
        self.ground.all.note_heard(id.core.into(), slot, connection.heard_ms);
        let ready = connection.ready;
        // A read that found nothing cost nothing.
        let stepped = greeting && ready;
        if greeting {
            self.after_greeting(slot, now);
        }
        self.after_read(slot, &brought, now);
        if ready && self.held(slot).is_some() {
            self.queue(slot);
        }
        Some(ReadSlot { enough, stepped })
    }

    fn after_read(&mut self, slot: u32, brought: &Brought, now: Now) {
        if let Some(counter) = brought.counter {
            self.ground.stats.add(counter, 1);
        }
        if let Some(said) = brought.introduced {
            self.introduce(slot, said, now);
        }
        let limits = self.ground.limits;
        let Some(connection) = self.held(slot) else { return };
        let says = !brought.say.is_empty();
        if says && let Err(reason) = connection.send(&brought.say, &limits, now.mono_ms) {
            return self.close(slot, reason, now);
        }
        match brought.end {
            // A WebSocket that says goodbye is answered, which may have to wait.
            Some(reason) if says || reason.is_told(connection.dialed) => self.farewell(slot, reason),
            // What it has asked before in this turn is answered yet. What is for a backend goes by another connection.
            Some(Reason::Peer) if connection.stage == Stage::Open && !connection.dialed => {
                self.farewell(slot, Reason::Peer);
            }
            Some(reason) => self.close(slot, reason, now),
            None if brought.pings > 0 => self.pong(slot, brought.pings, now),
            None => self.rearm(slot),
        }
    }

    /// It ends once what waits is sent.
    fn farewell(&mut self, slot: u32, reason: Reason) {
        self.leave_greeting(slot);
        let Some(connection) = self.held(slot) else { return };
        connection.stage = Stage::Ending(reason);
        let (dialed, listener, peer) = (connection.dialed, connection.listener, connection.peer);
        self.ending.push(slot);
        if dialed {
            self.call_no_more(slot, listener, peer);
        }
    }

    fn pong(&mut self, slot: u32, pings: usize, now: Now) {
        let Some(connection) = self.slots[slot as usize].held.as_deref_mut() else { return };
        // Who does not read what we say needs no pongs on top of it.
        if connection.queued() == 0 {
            self.ground.stats.add(Counter::Pongs, pings as u64);
            let pong = connection.framed(b"\r\n", &mut self.framed);
            for _ in 0..pings.min(16) {
                if let Err(reason) = connection.send(pong, &self.ground.limits, now.mono_ms) {
                    return self.close(slot, reason, now);
                }
            }
        }
        self.rearm(slot);
    }
}
