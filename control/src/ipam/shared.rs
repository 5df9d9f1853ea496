//! The allocators of one node as several threads use them.
//!
//! They are used under one lock, and whoever has it may wait for a store that does not answer. Nothing that gives addresses
//! back waits with it: DEL must end whatever the store does. What is given back meanwhile is noted and done by whoever has
//! the lock next, before anything else; until then an address counts as held.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::{AddressAllocators, Holder};

/// The allocators, one caller at a time.
#[derive(Debug)]
pub struct SharedAllocators {
    allocators: Mutex<AddressAllocators>,
    /// Who has given back; at most one for each attachment that was here.
    released: Mutex<Vec<Holder>>,
}

impl SharedAllocators {
    /// Shares them.
    #[must_use]
    pub fn new(allocators: AddressAllocators) -> Self {
        Self { allocators: Mutex::new(allocators), released: Mutex::default() }
    }

    /// Runs `act` on them, when nobody else does, without what has been given back by then.
    pub fn with<T>(&self, act: impl FnOnce(&mut AddressAllocators) -> T) -> T {
        let mut allocators = self.allocators.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_in(&mut allocators);
        act(&mut allocators)
    }

    /// Gives back what the holder has, at once or as soon as whoever has the lock lets it go.
    pub fn release(&self, holder: Holder) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).push(holder);
        match self.allocators.try_lock() {
            Ok(mut allocators) => self.take_in(&mut allocators),
            Err(TryLockError::Poisoned(poisoned)) => self.take_in(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn take_in(&self, allocators: &mut MutexGuard<'_, AddressAllocators>) {
        let released = std::mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner));
        for holder in released {
            allocators.release(&holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeName;
    use crate::ipam::AddressSource;

    #[test]
    fn giving_back_does_not_wait_for_a_store_that_does_not_answer() {
        let node = NodeName::new("a").expect("a name");
        let shared = SharedAllocators::new(AddressAllocators::new(node, AddressSource::Blocks));
        let address = "10.1.0.1".parse().expect("address");
        shared.with(|allocators| allocators.restore(None, "one", address)).expect("free");
        let (inside, entered) = crossbeam::channel::bounded::<()>(0);
        let (answer, answered) = crossbeam::channel::bounded::<()>(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                shared.with(|allocators| {
                    inside.send(()).expect("heard");
                    answered.recv().expect("an answer");
                    // It worked on what it had when it began.
                    assert_eq!(allocators.holders(), ["one"]);
                });
            });
            entered.recv().expect("entered");
            shared.release("one".to_owned());
            answer.send(()).expect("heard");
        });
        assert!(shared.with(|allocators| allocators.holders()).is_empty());
        shared.with(|allocators| allocators.restore(None, "two", address)).expect("free again");
        shared.release("two".to_owned());
        assert!(shared.with(|allocators| allocators.holders()).is_empty());
    }
}
