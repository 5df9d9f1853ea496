//! What becomes of a packet once its flow's decision was applied to its bytes.

use super::{Layout, Outlet, Transmit};
use crate::drop_reason::DropReason;
use crate::edit::{self, CompiledRewrite, Subject, Translation};
use crate::packet::{FrameMemory, Packet, PortIndex};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The slow path has to decide.
    Undecided,
    /// It goes no further.
    Dropped(DropReason),
    /// It leaves by this port as it is.
    Leaves(PortIndex),
    /// It leaves by this port in the form that the port takes, which its layout is needed for.
    LeavesInForm(PortIndex),
}

const _: () = assert!(size_of::<Fate>() == 4, "returned in a register");

impl Fate {
    /// Edits the packet and says what becomes of it; writes `layout` where it is needed.
    #[inline]
    pub fn of_edit(
        memory: &FrameMemory,
        packet: &mut Packet,
        subject: &Subject<'_>,
        rewrite: &CompiledRewrite,
        translation: &Translation,
        egress: PortIndex,
        layout: &mut Layout,
    ) -> Fate {
        match edit::apply(memory, packet, subject, rewrite, translation) {
            Ok(found) => {
                *layout = found;
                Fate::LeavesInForm(egress)
            }
            Err(reason) => Fate::Dropped(reason),
        }
    }
}

impl Transmit {
    /// Lets the packet meet its fate; one that is still undecided is a programmer's mistake and drops.
    #[inline(always)]
    pub fn settle(&mut self, outlet: &mut Outlet<'_>, packet: Packet, fate: Fate, layout: &Layout) {
        match fate {
            Fate::Leaves(egress) => match outlet.ports.push(egress, packet) {
                Ok(first) => self.activate(first, egress),
                Err(packet) => self.enqueue(outlet, egress, packet, &Layout::default()),
            },
            Fate::LeavesInForm(egress) => self.enqueue(outlet, egress, packet, layout),
            Fate::Dropped(reason) => outlet.drop(packet, reason),
            Fate::Undecided => outlet.drop(packet, DropReason::PortUnknown),
        }
    }

    #[inline]
    pub(super) fn activate(&mut self, first: bool, egress: PortIndex) {
        if first {
            self.active.push(egress);
        }
    }
}
