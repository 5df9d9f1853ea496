//! Copies of a port's frames for whoever watches it.
//!
//! Which ports are watched is taken from the tables once a generation. Without mirrors the cost is one branch for each
//! vector that comes in and one for each packet that is brought into its port's form; with them, a copy of each frame of a watched port. A copy
//! is taken before the original is cut or completed for its port, and is brought into the form of the mirror's port
//! like any packet; it is never copied again. What comes in is copied as it came, refused frames among it.

use std::sync::Arc;

use super::{Layout, Outlet, Transmit};
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::packet::{Packet, PortIndex};
use crate::tables::Mirror;

/// The ports that are watched.
#[derive(Clone, Debug, Default)]
pub struct Mirrors(Arc<Vec<Mirror>>);

impl Mirrors {
    /// Those of new tables.
    #[must_use]
    pub fn new(mirrors: &Arc<Vec<Mirror>>) -> Self {
        Self(Arc::clone(mirrors))
    }

    /// Whether no port is watched.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, port: PortIndex) -> Option<&Mirror> {
        self.0.iter().find(|mirror| mirror.source == port)
    }

    /// Where copies of what comes in by `port` go.
    #[must_use]
    pub fn of_ingress(&self, port: PortIndex) -> Option<PortIndex> {
        self.of(port)?.ingress
    }

    fn of_egress(&self, port: PortIndex) -> Option<PortIndex> {
        self.of(port)?.egress
    }
}

impl Transmit {
    /// Takes the mirrors of new tables up.
    pub fn set_mirrors(&mut self, mirrors: Mirrors) {
        self.mirrors = mirrors;
        self.watch();
    }

    /// Notes whether somebody looks at what leaves.
    pub(super) fn watch(&mut self) {
        self.watched = self.captured || !self.mirrors.is_empty();
    }

    /// The mirrors in force.
    #[inline]
    #[must_use]
    pub fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }

    /// Copies a packet that is about to leave by `egress`, if that port is watched.
    #[cold]
    pub(super) fn mirror_egress(
        &mut self,
        outlet: &mut Outlet<'_>,
        egress: PortIndex,
        packet: &Packet,
        layout: &Layout,
    ) {
        if let Some(target) = self.mirrors.of_egress(egress) {
            self.mirror(outlet, target, packet, layout);
        }
    }

    /// Sends a copy of the packet to `target`.
    #[cold]
    pub fn mirror(&mut self, outlet: &mut Outlet<'_>, target: PortIndex, packet: &Packet, layout: &Layout) {
        outlet.counters.event(Event::FramesMade).add(1);
        match outlet.memory.duplicate(packet) {
            Some(copy) => {
                outlet.counters.event(Event::Mirrored).add(1);
                self.enqueue_as_is(outlet, target, copy, layout);
            }
            None => outlet.counters.drops(DropReason::FramesExhausted).add(1),
        }
    }
}
