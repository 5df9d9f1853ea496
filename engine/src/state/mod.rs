//! What packets teach: shared by all workers, sharded, touched on the slow path only.

mod mac_table;

pub use mac_table::{Learned, MacTable, STATION_AGE, Station};

/// All learned state of a switch.
#[derive(Debug, Default)]
pub struct State {
    /// Stations of bridged segments.
    pub stations: MacTable,
}
