//! What packets teach: shared by all workers, sharded, touched on the slow path only.

mod mac_table;
mod storms;

pub use mac_table::{Learned, LearningRules, MacTable, Station};
pub use storms::Storms;

/// All learned state of a switch.
#[derive(Debug, Default)]
pub struct State {
    /// Stations of bridged segments.
    pub stations: MacTable,
    /// What ports have flooded lately.
    pub storms: Storms,
}
