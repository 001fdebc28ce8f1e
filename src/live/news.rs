//! What cores tell control, seldom and in no hurry: answers to our own requests, and connections that ended with users on
//! them (SPEC 9.9).
//!
//! Two bounded rings; a full one refuses what is new, and its core counts that. `forward` puts, `control::own` takes each
//! 100 ms. Nothing is put here for a message that is forwarded.

use std::{collections::VecDeque, net::SocketAddr};

use parking_lot::Mutex;

use super::{Now, Outcome, User};
use crate::wire::token::FlowId;

/// What became of a request of ours: the hash part of its branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub branch: u64,
    pub outcome: Outcome,
}

/// A connection that ended while users were on it.
#[derive(Debug)]
pub struct Gone {
    pub id: FlowId,
    /// Index of its listener.
    pub listener: u8,
    pub peer: SocketAddr,
    /// `mono_ms`
    pub opened_ms: u64,
    /// When bytes last came (`mono_ms`).
    pub heard_ms: u64,
    pub at: Now,
    /// As `tidings_connections_closed_total` labels it.
    pub reason: &'static str,
    pub users: Vec<User>,
}

pub struct News {
    replies: Ring<Reply>,
    gone: Ring<Gone>,
}

struct Ring<T> {
    items: Mutex<VecDeque<T>>,
    most: usize,
}

impl<T> Ring<T> {
    fn new(most: usize) -> Ring<T> {
        Ring { items: Mutex::default(), most }
    }

    fn put(&self, item: T) -> bool {
        let mut items = self.items.lock();
        let room = items.len() < self.most;
        if room {
            items.push_back(item);
        }
        room
    }

    fn take(&self) -> VecDeque<T> {
        std::mem::take(&mut *self.items.lock())
    }
}

impl News {
    /// At most `most` of each kind wait.
    pub fn new(most: usize) -> News {
        News { replies: Ring::new(most), gone: Ring::new(most) }
    }

    /// False where there is no room.
    pub fn reply(&self, branch: u64, outcome: Outcome) -> bool {
        self.replies.put(Reply { branch, outcome })
    }

    /// False where there is no room.
    pub fn gone(&self, gone: Gone) -> bool {
        self.gone.put(gone)
    }

    pub fn take_replies(&self) -> VecDeque<Reply> {
        self.replies.take()
    }

    pub fn take_gone(&self) -> VecDeque<Gone> {
        self.gone.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_and_a_full_ring_refuses() {
        let news = News::new(100);
        for branch in 0..100 {
            assert!(news.reply(branch, Outcome::Timeout));
        }
        assert!(!news.reply(0, Outcome::Timeout));
        let taken = news.take_replies();
        assert!(taken.iter().zip(0..).all(|(reply, n)| reply.branch == n) && taken.len() == 100);
        assert!(news.reply(0, Outcome::Timeout) && news.take_gone().is_empty());
    }
}
