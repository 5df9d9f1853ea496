//! Copies of packets and of what was decided of them, for `millrace capture` and `millrace trace` of real packets.
//!
//! ```text
//!  worker:  arrives -> decided with its whole trail -> edited -> leaves or drops
//!               \____________ CaptureWriter ____________/
//!                        full ring |  ^ ring of free slots
//!  elsewhere:             CaptureReader
//! ```
//! A captured packet is decided by the stages themselves, never by the flow cache, and the decision that is copied is the
//! one that was carried out: the connection is as the packet found it, the tables are those it met. So nothing is
//! explained after the fact.
//!
//! Bounds: [`limits::CAPTURE_SLOTS`] slots of [`limits::CAPTURE_SLOT_BYTES`] a worker, taken when a capture begins and
//! freed off the worker when it ends; no slot free means the copy is lost and counted, the packet goes on. Nobody waits
//! for anybody. Cost: while no capture runs, one branch a vector and one a dropped packet; while one runs, every vector
//! asks of each packet whether it is concerned, decisions keep their whole trail, and what is captured takes the slow
//! path. The [writer](CaptureWriter) is on the worker, the [reader](CaptureReader) on a thread of the control plane.

mod filter;
mod ring;

use std::sync::Arc;

pub use filter::{CaptureFilter, FlowFilter};
pub use ring::{CaptureReader, CaptureWriter, capture};

use crate::clock::Time;
use crate::drop_reason::DropReason;
use crate::packet::{Gso, PortIndex};
use crate::slow_path::Decision;
use crate::tables::Snapshot;

/// A moment in a packet's life.
#[derive(Clone, Debug)]
pub enum Moment {
    /// It came in by its port, and this was decided of it; the bytes are as they came.
    Arrived(Box<Decided>),
    /// It, or what was made of it, leaves by this port; the bytes are as the port takes them.
    Left(PortIndex),
    /// It goes no further; the bytes are as they were then.
    Dropped(DropReason),
}

/// What was decided of a packet.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The tables it was decided by.
    pub tables: Arc<Snapshot>,
    /// The decision that was carried out.
    pub decision: Decision,
    /// Why it drops although the decision lets it go: its connection could not be opened.
    pub refused: Option<DropReason>,
}

/// One copy.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Tells the packet from others of its worker, and ties its moments together; 0 for one that was not captured when it
    /// came, and is now that it drops.
    pub packet: u32,
    /// When its worker saw it.
    pub time: Time,
    /// The port it came in by.
    pub ingress: PortIndex,
    /// Segment size, if it is a GSO unit.
    pub gso: Option<Gso>,
    /// What happened.
    pub moment: Moment,
    /// The frame, cut after [`limits::CAPTURE_SLOT_BYTES`].
    pub bytes: Vec<u8>,
    /// Bytes of the whole frame.
    pub length: usize,
}

#[cfg(doc)]
use crate::limits;
