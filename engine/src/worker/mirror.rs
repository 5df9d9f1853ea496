//! Copies of what comes in by a watched port. A vector comes from one port, so this is asked once a vector.

use super::Worker;
use crate::transmit::Layout;

impl Worker {
    /// Copies every packet of the vector if the port it came by is watched. A GSO unit that was refused, or that came
    /// through a tunnel, has no layout to cut it by, so only its original goes on.
    #[cold]
    pub(super) fn mirror_vector(&mut self) {
        let Some(port) = self.vector.first().map(|packet| packet.ingress) else { return };
        let Some(target) = self.transmit.mirrors().of_ingress(port) else { return };
        for (packet, frame) in self.vector.iter().zip(&self.readings) {
            if packet.gso().is_some() && (frame.refused.is_some() || frame.inner_offset > 0) {
                continue;
            }
            self.transmit.mirror(&mut outlet!(self), target, packet, &Layout::plain(&frame.headers));
        }
    }
}
