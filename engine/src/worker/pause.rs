//! A worker between two threads, or on its way to another process: it takes nothing more and finishes what it has.

use super::Worker;
use crate::clock::Time;
use crate::transmit::Outlet;

impl Worker {
    /// When the last turn before the pause ended.
    pub(crate) fn paused_at(&self) -> Time {
        self.paused_at
    }

    /// Forwards what was taken from the kernel, and what other workers sent, and hands what waits to the ports. True if
    /// anything moved or still waits. Fragments that wait for their first one stay.
    pub(crate) fn finish_turn(&mut self) -> bool {
        self.take_commands();
        let mut busy = self.receive_lanes();
        let ports: Vec<_> = self.ports.queues().map(|queue| queue.port()).collect();
        for port in ports {
            if self.ports.receive_held(port, &mut self.memory, &mut self.vector, &self.counters) > 0 {
                busy = true;
                self.forward_vector();
            }
        }
        busy | self.transmit.flush(&mut Outlet {
            ports: &mut self.ports,
            memory: &mut self.memory,
            counters: &self.counters,
        })
    }
}
