//! One call for a container at a time, in the order the calls came.
//!
//! A runtime that gave up waiting for ADD sends DEL while ADD still runs: DEL has to wait for it and then undo it.
//! A queue is kept only while somebody is in it, so memory follows the calls in progress, not the containers.
//! All waiters share one condition variable; there are at most as many as the API lets in.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The queues of all containers.
#[derive(Debug, Default)]
pub(super) struct ContainerOrder {
    queues: Mutex<HashMap<String, Queue>>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Ticket of the next caller.
    next: u64,
    /// Ticket whose turn it is.
    serving: u64,
}

/// A caller's turn, until dropped.
#[derive(Debug)]
pub(super) struct Turn<'order> {
    order: &'order ContainerOrder,
    container_id: String,
}

impl ContainerOrder {
    /// Waits until no earlier call for this container is left.
    pub(super) fn enter(&self, container_id: &str) -> Turn<'_> {
        let mut queues = self.lock();
        let queue = queues.entry(container_id.to_owned()).or_default();
        let ticket = queue.next;
        queue.next += 1;
        let waits =
            |queues: &mut HashMap<String, Queue>| queues.get(container_id).is_some_and(|queue| queue.serving != ticket);
        drop(self.moved.wait_while(queues, waits).unwrap_or_else(PoisonError::into_inner));
        Turn { order: self, container_id: container_id.to_owned() }
    }

    /// Every change of the map is a single step, so a panic elsewhere cannot leave it half changed.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = self.order.lock();
        if let Some(queue) = queues.get_mut(&self.container_id) {
            queue.serving += 1;
            if queue.serving == queue.next {
                queues.remove(&self.container_id);
            }
        }
        drop(queues);
        self.order.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn callers_of_one_container_take_turns_in_order_and_others_do_not_wait() {
        let order = ContainerOrder::default();
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            let first = order.enter("a");
            for number in 0..8 {
                let (order, sender) = (&order, sender.clone());
                scope.spawn(move || {
                    let _turn = order.enter("a");
                    sender.send(number).expect("the test listens");
                });
                while order.lock().get("a").map(|queue| queue.next) != Some(number + 2) {
                    std::thread::yield_now();
                }
            }
            drop(order.enter("b"));
            assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err(), "nobody overtakes the first");
            drop(first);
        });
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert!(order.lock().is_empty(), "no queue is kept");
    }
}
