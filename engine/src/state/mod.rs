//! What packets teach: shared by all workers, sharded, touched on the slow path only; budgets of limited ports apart.

mod affinity;
mod bandwidth;
mod connections;
mod denials;
mod endpoint_loads;
mod fragments;
mod kept_memory;
mod mac_table;
mod restoring;
mod storms;
mod succession;
mod wanted;

use std::io;
use std::sync::Arc;

pub use affinity::Affinities;
pub use bandwidth::{BandwidthBudgets, Meter, Way};
pub use connections::{
    Advanced, CachePlace, Connection, ConnectionFlags, ConnectionReference, ConnectionState, ConnectionTimeouts,
    Connections, Direction, NewConnection, Opened, Removed, Restored, Tuple,
};
pub use denials::{Denials, DeniedPacket};
pub use endpoint_loads::{ANY_ENDPOINT, EndpointLoad, EndpointLoads};
pub use fragments::{Awaited, FragmentKey, Fragmented, Fragments, Remembered, WorkerSet};
pub use mac_table::{Learned, LearningRules, MacTable, Station};
pub use restoring::Kept;
pub(crate) use restoring::StateOptions;
pub use storms::Storms;
pub use succession::StateFiles;
pub(crate) use succession::Succession;
pub use wanted::WantedNeighbours;

use crate::flow_cache::HashKey;

/// All learned state of a switch.
#[derive(Debug)]
pub struct State {
    /// Stations of bridged segments.
    pub stations: MacTable,
    /// What ports have flooded lately.
    pub storms: Storms,
    /// What limited ports have sent and got lately; shared with the workers' ports.
    pub bandwidth: BandwidthBudgets,
    /// Connections of routed segments; shared with the flow caches, which write back to them.
    pub connections: Arc<Connections>,
    /// Endpoints that clients of Services stay with.
    pub affinities: Affinities,
    /// What endpoints of Services were given.
    pub endpoint_loads: EndpointLoads,
    /// Ports of packets that come in fragments.
    pub fragments: Fragments,
    /// Denied packets that wait to be logged.
    pub denials: Denials,
    /// Neighbours that packets to the outside wait for.
    pub wanted: WantedNeighbours,
}

impl State {
    /// Nothing learned yet, room for `connections` connections, written back to by `workers` flow caches.
    ///
    /// # Errors
    /// The kernel refused memory or a descriptor.
    pub fn new(connections: usize, workers: usize, hash_key: HashKey) -> io::Result<Self> {
        Self::around(Connections::new(connections, workers, hash_key)?, Affinities::new()?, hash_key)
    }

    /// Nothing learned yet but what these two have.
    fn around(connections: Connections, affinities: Affinities, hash_key: HashKey) -> io::Result<Self> {
        let connections = Arc::new(connections);
        Ok(Self {
            stations: MacTable::default(),
            storms: Storms::default(),
            bandwidth: BandwidthBudgets::default(),
            connections,
            affinities,
            endpoint_loads: EndpointLoads::default(),
            fragments: Fragments::new(hash_key),
            denials: Denials::default(),
            wanted: WantedNeighbours::new()?,
        })
    }
}
