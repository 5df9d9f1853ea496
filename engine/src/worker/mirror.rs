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
        for (number, (packet, frame)) in self.vector.iter().zip(&self.readings).enumerate() {
            // Of a plain packet the headers were not read, and there is nothing to cut or complete.
            let is_plain = self.plains[number].is_some();
            if packet.gso().is_some() && (frame.refused.is_some() || frame.inner_offset > 0) {
                continue;
            }
            let layout = if is_plain { Layout::default() } else { Layout::plain(&frame.headers) };
            self.transmit.mirror(&mut outlet!(self), target, packet, &layout);
        }
    }
}
