//! Why a packet fares as it does: `millrace trace`, live and of a saved state, and the words of `millrace capture`.
//!
//! | packet | decided |
//! |---|---|
//! | imagined | by the stages, at this moment, changing nothing: [`imagined`] |
//! | of a file, as if it came in by a port | the same: [`frame`] |
//! | captured | by the worker that carried it out, with the connection as the packet found it: [`captured`] only puts it in words |
//!
//! All three are functions of tables, learned state, packet and time, and nothing of them runs on a worker.

mod imagined;
mod report;

use millrace_engine::capture::{Captured, Decided};
use millrace_engine::clock::Time;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout};
use millrace_engine::state::State;
use millrace_engine::tables::Snapshot;
use millrace_engine::testing::describe;
use millrace_engine::worker;

pub use imagined::imagined;

use crate::api::InspectFailure;
use crate::api::model::TraceReport;

/// Follows a frame that comes in by the port of this name.
///
/// # Errors
/// When there is no such port, or the frame is longer than any packet.
pub fn frame(
    tables: &Snapshot,
    state: &State,
    port: &str,
    bytes: &[u8],
    now: Time,
) -> Result<TraceReport, InspectFailure> {
    let known = tables.ports.iter().find(|known| *known.name == *port);
    let known = known.ok_or_else(|| InspectFailure::NotFound(format!("no port {port} at this node")))?;
    let memory = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 2 });
    let mut memory = memory.map_err(|error| InspectFailure::Unavailable(error.to_string()))?;
    let packet = memory.packet_from(bytes);
    let mut packet = packet.ok_or_else(|| InspectFailure::Invalid("the frame is longer than any packet".into()))?;
    packet.ingress = known.index;
    let explained = worker::explain(tables, state, &memory, &packet, now);
    memory.release(packet);
    Ok(match explained {
        Ok((_, decision)) => report::decided(tables, describe(bytes), &decision, None),
        Err(reason) => report::refused(tables, describe(bytes), reason),
    })
}

/// Tells what was decided of a captured packet.
#[must_use]
pub fn captured(captured: &Captured, decided: &Decided) -> TraceReport {
    report::decided(&decided.tables, describe(&captured.bytes), &decided.decision, decided.refused)
}
