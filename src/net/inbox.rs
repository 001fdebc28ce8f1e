//! What one core hands to another: a message that must leave by a connection of that other core's (SPEC 4.2); and what
//! control has a core send: requests of our own, keep-alives.
//!
//! One bounded inbox per core, first in first out for each sender. Its lock is held for one copy; its core is woken only
//! when the inbox was empty. Full: the sender keeps the message and deals with it as undeliverable.

use std::{
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use mio::Waker;
use parking_lot::Mutex;

use crate::forward::Target;

/// Messages and bytes that an inbox holds.
const ITEMS: usize = 4096;
const BYTES: usize = 4 << 20;

/// Messages with their targets; kept between turns, so that it allocates while it grows only.
#[derive(Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    pub items: Vec<(Target, Range<usize>)>,
}

#[derive(Default)]
pub struct Inbox {
    batch: Mutex<Batch>,
    waker: OnceLock<Arc<Waker>>,
    /// Spares its core the lock while there is nothing.
    waiting: AtomicBool,
}

impl Inbox {
    /// Who is to be woken; set once, when the core starts.
    pub fn set_waker(&self, waker: Arc<Waker>) {
        let _ = self.waker.set(waker);
    }

    /// False where it is full.
    pub fn put(&self, target: Target, bytes: &[u8]) -> bool {
        let mut batch = self.batch.lock();
        let start = batch.bytes.len();
        if batch.items.len() >= ITEMS || start + bytes.len() > BYTES {
            return false;
        }
        batch.bytes.extend_from_slice(bytes);
        let end = batch.bytes.len();
        batch.items.push((target, start..end));
        let was_empty = batch.items.len() == 1;
        self.waiting.store(true, Ordering::Release);
        drop(batch);
        if was_empty && let Some(waker) = self.waker.get() {
            // An eventfd can only fail to count beyond 2^64 - 2 wakes.
            let _ = waker.wake();
        }
        true
    }

    /// Is there anything? One load, for each turn.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Exchanges what is there for `empty`.
    pub fn take(&self, empty: &mut Batch) {
        empty.bytes.clear();
        empty.items.clear();
        let mut batch = self.batch.lock();
        self.waiting.store(false, Ordering::Release);
        std::mem::swap(&mut *batch, empty);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(port: u16) -> Target {
        Target::Connect { listener: 0, from: None, to: ([192, 0, 2, 1], port).into() }
    }

    #[test]
    fn first_in_first_out_and_never_beyond_its_bounds() {
        let inbox = Inbox::default();
        for port in 0..ITEMS as u16 {
            assert!(inbox.put(target(port), b"x"));
        }
        assert!(!inbox.put(target(0), b"x"));
        let mut batch = Batch::default();
        assert!(inbox.is_waiting());
        inbox.take(&mut batch);
        assert!(!inbox.is_waiting());
        assert!(batch.items.iter().zip(0..).all(|((to, _), port)| *to == target(port)));
        let large = vec![0; BYTES];
        assert!(inbox.put(target(1), &large));
        assert!(!inbox.put(target(1), b"x"));
        inbox.take(&mut batch);
        assert_eq!((batch.items.len(), batch.bytes.len()), (1, BYTES));
    }
}
