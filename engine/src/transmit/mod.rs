//! From edited packets to queues: brings each packet into a form its port takes, and applies back-pressure.
//!
//! ```text
//! enqueue: cut | complete checksums -> pending list of the port ; or copy -> lane of the queue's owner
//! flush:   join (towards ports that profit) -> queue.transmit -> queue.flush
//! ```
//! Each list is bounded (`limits::TRANSMIT_QUEUE_PACKETS`); beyond it packets drop with `transmit_queue_full`. What goes
//! beyond a port's bandwidth drops before it is in the list, on the worker that has the queue. Runs
//! on the worker; nothing allocates after start.

mod fate;
pub(crate) mod field;
#[cfg(test)]
mod frames;
mod joinable;
pub mod joining;
mod lane;
mod mirror;
pub mod outer_checksum;
pub mod segmentation;

pub use fate::Fate;
pub use lane::{LaneReceiver, LaneSender, lane};
pub use mirror::Mirrors;
pub use segmentation::{Layout, OuterLayout};

use crate::counters::{Event, WorkerCounters};
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::{Checksum, FrameMemory, Packet, PortIndex, checksum};
use crate::port::Capabilities;
use crate::state::Way;
use crate::worker::Ports;
use joining::Joiner;
use segmentation::Segmenter;

/// The transmit side of one worker.
#[derive(Debug)]
pub struct Transmit {
    kernel: Kernel,
    segmenter: Segmenter,
    joiner: Joiner,
    cut: Vec<Packet>,
    /// Ports with pending packets or an unfinished flush, each once.
    active: Vec<PortIndex>,
    mirrors: Mirrors,
}

impl Default for Transmit {
    fn default() -> Self {
        let kernel = Kernel::detect();
        Self {
            kernel,
            segmenter: Segmenter::new(kernel),
            joiner: Joiner::new(kernel),
            cut: Segmenter::segment_list(),
            active: Vec::with_capacity(limits::PORTS),
            mirrors: Mirrors::default(),
        }
    }
}

/// What transmit works with: the worker's own parts.
pub struct Outlet<'a> {
    /// The worker's ports.
    pub ports: &'a mut Ports,
    /// The worker's frames.
    pub memory: &'a mut FrameMemory,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
}

impl Outlet<'_> {
    /// Counts and frees a packet that goes no further.
    pub fn drop(&mut self, packet: Packet, reason: DropReason) {
        self.counters.drops(reason).add(1);
        self.counters.port(packet.ingress.0 as usize).dropped_frames.add(1);
        self.memory.release(packet);
    }
}

impl Transmit {
    /// Takes an edited packet for port `egress`. `layout` says where its headers lie.
    #[inline]
    pub fn enqueue(&mut self, outlet: &mut Outlet<'_>, egress: PortIndex, packet: Packet, layout: &Layout) {
        if !self.mirrors.is_empty() {
            self.mirror_egress(outlet, egress, &packet, layout);
        }
        self.enqueue_as_is(outlet, egress, packet, layout);
    }

    /// As `enqueue`, without copies for a mirror.
    #[inline]
    fn enqueue_as_is(&mut self, outlet: &mut Outlet<'_>, egress: PortIndex, mut packet: Packet, layout: &Layout) {
        let Some(capabilities) = outlet.ports.capabilities(egress) else {
            return outlet.drop(packet, DropReason::PortDown);
        };
        if packet.gso().is_some() && (layout.outer.is_some() || !takes_whole(&packet, capabilities)) {
            return self.enqueue_cut(outlet, egress, packet, layout, capabilities);
        }
        if packet.gso().is_none() {
            if let Err(reason) = complete(self.kernel, outlet, &mut packet, layout, capabilities) {
                return outlet.drop(packet, reason);
            }
            if packet.length() > capabilities.frame_bytes {
                return outlet.drop(packet, DropReason::Oversized);
            }
        }
        self.append(outlet, egress, packet);
    }

    fn enqueue_cut(
        &mut self,
        outlet: &mut Outlet<'_>,
        egress: PortIndex,
        packet: Packet,
        layout: &Layout,
        capabilities: Capabilities,
    ) {
        let ingress = packet.ingress;
        let frame_bytes = capabilities.frame_bytes;
        match self.segmenter.cut(outlet.memory, packet, layout, frame_bytes, &mut self.cut) {
            Err(reason) => {
                outlet.counters.drops(reason).add(1);
                outlet.counters.port(ingress.0 as usize).dropped_frames.add(1);
            }
            Ok(segments) => {
                outlet.counters.event(Event::SegmentsCut).add(segments as u64);
                outlet.counters.event(Event::FramesMade).add(segments.saturating_sub(1) as u64);
                let mut cut = std::mem::take(&mut self.cut);
                for segment in cut.drain(..) {
                    self.append(outlet, egress, segment);
                }
                self.cut = cut;
            }
        }
    }

    #[inline]
    fn append(&mut self, outlet: &mut Outlet<'_>, egress: PortIndex, packet: Packet) {
        if let Some(lane) = outlet.ports.lane(egress) {
            return send_by_lane(outlet, lane, egress, packet);
        }
        let has_room = outlet.ports.has_room(egress);
        if has_room
            && outlet.ports.limits_bandwidth(egress, Way::ToPort)
            && !outlet.ports.take_bandwidth(egress, Way::ToPort, outlet.memory, &packet)
        {
            return outlet.drop(packet, DropReason::OverBandwidth);
        }
        let Some(pending) = outlet.ports.pending(egress) else {
            return outlet.drop(packet, DropReason::PortDown);
        };
        if !has_room {
            return outlet.drop(packet, DropReason::TransmitQueueFull);
        }
        pending.push(packet);
        let first = outlet.ports.activate(egress);
        self.activate(first, egress);
    }

    /// Takes a packet that came by a lane: it is in the form its port takes already.
    pub fn append_received(&mut self, outlet: &mut Outlet<'_>, egress: PortIndex, packet: Packet) {
        if outlet.ports.lane(egress).is_some() {
            // The queue moved to yet another worker while the packet was on its way.
            return outlet.drop(packet, DropReason::PortDown);
        }
        self.append(outlet, egress, packet);
    }

    /// The port has packets that wait, or perhaps an unfinished flush, from before: it is flushed.
    pub(crate) fn resume(&mut self, port: PortIndex) {
        self.active.push(port);
    }

    /// Whether no queue waits for another flush.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Hands what is pending to the queues and kicks them. True if some queue needs another call soon.
    pub fn flush(&mut self, outlet: &mut Outlet<'_>) -> bool {
        let mut at = 0;
        while at < self.active.len() {
            let port = self.active[at];
            if self.flush_port(outlet, port) {
                at += 1;
            } else {
                outlet.ports.deactivate(port);
                self.active.swap_remove(at);
            }
        }
        !self.active.is_empty()
    }

    /// True if the port must be flushed again.
    fn flush_port(&mut self, outlet: &mut Outlet<'_>, port: PortIndex) -> bool {
        let Some((queue, pending, capabilities)) = outlet.ports.output(port) else { return false };
        if capabilities.joins && pending.len() > 1 {
            let joined = self.joiner.join(outlet.memory, pending, capabilities.joins_datagrams);
            outlet.counters.event(Event::SegmentsJoined).add(joined.segments as u64);
            outlet.counters.event(Event::FramesMerged).add(joined.merged_frames() as u64);
        }
        queue.transmit(outlet.memory, pending, outlet.counters);
        let unfinished = queue.flush(outlet.memory);
        unfinished || !pending.is_empty()
    }

    /// Packets that wait for their port.
    #[must_use]
    pub fn held(&self, ports: &Ports) -> usize {
        self.active.iter().map(|port| ports.pending_length(*port)).sum()
    }
}

fn takes_whole(packet: &Packet, capabilities: Capabilities) -> bool {
    use crate::packet::GsoKind;
    packet.gso().is_some_and(|gso| match gso.kind {
        GsoKind::TcpIpv4 | GsoKind::TcpIpv6 => capabilities.tcp_segmentation,
        GsoKind::Udp => capabilities.udp_segmentation,
    })
}

/// Completes what the port cannot: the layer-4 checksum, always complete inside a tunnel, and the outer one that IPv6
/// demands (RFC 6935 section 5).
#[inline]
fn complete(
    kernel: Kernel,
    outlet: &mut Outlet<'_>,
    packet: &mut Packet,
    layout: &Layout,
    capabilities: Capabilities,
) -> Result<(), DropReason> {
    let partial = matches!(packet.checksum(), Checksum::Partial { .. });
    if partial && (!capabilities.partial_checksum || layout.outer.is_some()) {
        checksum::complete_with(kernel, outlet.memory, packet)?;
        outlet.counters.event(Event::ChecksumsCompleted).add(1);
    }
    match layout.outer {
        Some(outer) if outer.is_ipv6 && !capabilities.tunnels => {
            outer_checksum::write(kernel, outlet.memory, packet, &outer)
        }
        _ => Ok(()),
    }
}

fn send_by_lane(outlet: &mut Outlet<'_>, lane: usize, egress: PortIndex, packet: Packet) {
    let sent = outlet.ports.lane_sender(lane).is_some_and(|sender| sender.send(outlet.memory, egress, &packet));
    if sent {
        outlet.counters.event(Event::LaneSent).add(1);
        outlet.memory.release(packet);
    } else {
        outlet.drop(packet, DropReason::LaneFull);
    }
}
