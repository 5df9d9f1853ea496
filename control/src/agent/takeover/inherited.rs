//! Queues of the agent before, until the port that they belong to is taken up.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::handover::{HandedKind, HandedQueue};
use millrace_engine::port::packet_socket::PacketSocket;

/// A port's queues, worker by worker, and their packet sockets.
pub(in crate::agent) struct InheritedPort {
    pub(in crate::agent) queues: Vec<Option<Box<dyn PortQueue>>>,
    pub(in crate::agent) sockets: Vec<PacketSocket>,
    /// What the first of them is.
    pub(in crate::agent) kind: HandedKind,
}

type Later = Box<dyn FnOnce() + Send>;

/// What is there; nothing for an agent that takes over from nobody.
#[derive(Default)]
pub(in crate::agent) struct Inherited {
    ports: Mutex<BTreeMap<PortIndex, Vec<(usize, HandedQueue)>>>,
    later: Mutex<Vec<Later>>,
}

impl std::fmt::Debug for Inherited {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Inherited").finish_non_exhaustive()
    }
}

impl Inherited {
    fn ports<T>(&self, act: impl FnOnce(&mut BTreeMap<PortIndex, Vec<(usize, HandedQueue)>>) -> T) -> T {
        act(&mut self.ports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn put(&self, port: PortIndex, worker: usize, queue: HandedQueue) {
        self.ports(|ports| ports.entry(port).or_default().push((worker, queue)));
    }

    /// Ports that nobody has taken up.
    pub(super) fn left(&self) -> Vec<PortIndex> {
        self.ports(|ports| ports.keys().copied().collect())
    }

    /// The queues of `port`; once.
    ///
    /// # Errors
    /// What they were made of does not fit together.
    pub(in crate::agent) fn take(&self, port: PortIndex) -> std::io::Result<Option<InheritedPort>> {
        self.ports(|ports| ports.remove(&port)).map(|handed| made(handed, port)).transpose()
    }

    /// The queues of the uplink on `interface`, as those of `port`; once.
    ///
    /// # Errors
    /// As [`Inherited::take`].
    pub(in crate::agent) fn take_uplink(
        &self,
        interface: &str,
        port: PortIndex,
    ) -> std::io::Result<Option<InheritedPort>> {
        let is_on =
            |handed: &[(usize, HandedQueue)]| handed.iter().any(|(_, queue)| queue.kind.interface() == Some(interface));
        let handed = self.ports(|ports| {
            let below = ports.range(..super::super::FIRST_POD_PORT_INDEX);
            let found = below.filter(|(_, handed)| is_on(handed)).map(|(port, _)| *port).next()?;
            ports.remove(&found)
        });
        handed.map(|handed| made(handed, port)).transpose()
    }

    /// Does this when the agent before is gone.
    pub(in crate::agent) fn later(&self, act: impl FnOnce() + Send + 'static) {
        self.later.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(act));
    }

    pub(super) fn is_gone(&self) {
        let later = std::mem::take(&mut *self.later.lock().unwrap_or_else(PoisonError::into_inner));
        later.into_iter().for_each(|act| act());
    }
}

fn made(handed: Vec<(usize, HandedQueue)>, port: PortIndex) -> std::io::Result<InheritedPort> {
    let kind = handed.first().map(|(_, queue)| queue.kind.clone()).ok_or(std::io::ErrorKind::NotFound)?;
    let workers = handed.iter().map(|(worker, _)| worker + 1).max().unwrap_or(0);
    let mut made = InheritedPort { queues: (0..workers).map(|_| None).collect(), sockets: Vec::new(), kind };
    for (worker, queue) in handed {
        let (queue, socket) = queue.receive(port)?;
        made.queues[worker] = Some(queue);
        made.sockets.extend(socket);
    }
    Ok(made)
}
