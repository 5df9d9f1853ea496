//! Copies of captured packets as they leave or drop.
//!
//! A packet is copied in the form that its port takes: behind the cut of a unit and the completion of checksums. Only where
//! the port's queue is another worker's, it is copied before its form is known.

use super::{Layout, Outlet, Transmit};
use crate::capture::Moment;
use crate::drop_reason::DropReason;
use crate::packet::{Packet, PortIndex};

impl Transmit {
    /// Says whether packets are captured.
    pub(crate) fn set_captured(&mut self, captured: bool) {
        self.captured = captured;
        self.watch();
    }

    /// Takes a packet for port `egress` while some are mirrored or captured.
    #[cold]
    pub(super) fn enqueue_watched(
        &mut self,
        outlet: &mut Outlet<'_>,
        egress: PortIndex,
        packet: Packet,
        layout: &Layout,
    ) {
        if !self.mirrors().is_empty() {
            self.mirror_egress(outlet, egress, &packet, layout);
        }
        let is_captured = outlet.ports.capture_mut().as_ref().is_some_and(|capture| capture.current().is_some());
        if !is_captured {
            return self.enqueue_as_is(outlet, egress, packet, layout);
        }
        if outlet.ports.lane(egress).is_some() {
            outlet.copy(&packet, Moment::Left(egress));
            return self.enqueue_as_is(outlet, egress, packet, layout);
        }
        let before = outlet.ports.pending_length(egress);
        self.enqueue_as_is(outlet, egress, packet, layout);
        let Some(mut capture) = outlet.ports.capture_mut().take() else { return };
        let now = outlet.ports.time();
        for left in outlet.ports.pending(egress).into_iter().flat_map(|pending| pending.iter().skip(before)) {
            capture.copy(outlet.memory, left, now, Moment::Left(egress));
        }
        *outlet.ports.capture_mut() = Some(capture);
    }
}

impl Outlet<'_> {
    fn copy(&mut self, packet: &Packet, moment: Moment) {
        let now = self.ports.time();
        if let Some(capture) = self.ports.capture_mut() {
            capture.copy(self.memory, packet, now, moment);
        }
    }

    /// Copies a packet that drops, if it is captured or the capture is of what drops like this.
    #[cold]
    pub(super) fn copy_dropped(&mut self, packet: &Packet, reason: DropReason) {
        let head = self.memory.head(packet);
        let headers = crate::packet::parse::parse(head, packet.length());
        let Some(capture) = self.ports.capture_mut() else { return };
        let filter = capture.filter();
        let flow_matches = || match &headers {
            Ok(headers) => filter.flow.matches(headers),
            Err(_) => filter.flow.is_empty(),
        };
        let is_wanted = capture.current().is_some()
            || filter.has_port(packet.ingress, std::iter::empty()) && filter.has_fate(Some(reason)) && flow_matches();
        if is_wanted {
            self.copy(packet, Moment::Dropped(reason));
        }
    }
}
