//! What each endpoint of each Service was given through this node: connections picked for it, and those still alive.
//!
//! Round-robin reads the one, least-connections the other, `show services` both. By the numbers a connection keeps of
//! its Service and endpoint, so that its end is counted without a look at tables that may have changed. Fixed capacity,
//! one lock a shard. A full shard forgets endpoints without live connections, and what Services were given at last, since
//! round-robin goes on from there. A connection that finds no room is not counted, neither when it opens nor when it ends:
//! its pick is invisible and the turns are uneven, and nothing else.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::limits::{ENDPOINT_LOAD_SHARDS, ENDPOINT_LOADS};
use crate::tables::lookup::mix;

/// What one endpoint was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointLoad {
    /// Connections picked for it since the start.
    pub picks: u64,
    /// Those that have not ended.
    pub live: u32,
}

/// The endpoint's number under which all picks of a Service are counted: the turn of round-robin.
pub const ANY_ENDPOINT: u32 = 0;

type Shard = HashMap<(u32, u32), EndpointLoad>;

/// The table, by number of the Service and number of the endpoint.
#[derive(Debug)]
pub struct EndpointLoads {
    shards: Box<[Mutex<Shard>]>,
}

impl Default for EndpointLoads {
    fn default() -> Self {
        let shard = || Mutex::new(HashMap::with_capacity(ENDPOINT_LOADS / ENDPOINT_LOAD_SHARDS));
        Self { shards: (0..ENDPOINT_LOAD_SHARDS).map(|_| shard()).collect() }
    }
}

impl EndpointLoads {
    /// All endpoints of a Service lie in one shard, so that least-connections takes one lock.
    fn shard(&self, service: u32) -> MutexGuard<'_, Shard> {
        let shard = mix(u64::from(service)) as usize % self.shards.len();
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an endpoint was given.
    #[must_use]
    pub fn get(&self, service: u32, endpoint: u32) -> EndpointLoad {
        self.shard(service).get(&(service, endpoint)).copied().unwrap_or_default()
    }

    /// Of `endpoints` (a number and a weight each) the one with the fewest live connections for its weight; of equals
    /// the first. Looks at each once, under one lock.
    #[must_use]
    pub fn least_loaded(&self, service: u32, endpoints: impl Iterator<Item = (u32, u16)>) -> Option<u32> {
        let shard = self.shard(service);
        let live = |endpoint: u32| shard.get(&(service, endpoint)).map_or(0, |load| u64::from(load.live));
        // Fractions (live + 1) / weight are compared by cross multiplication.
        let mut best: Option<(u32, u64, u64)> = None;
        for (endpoint, weight) in endpoints {
            let (load, weight) = (live(endpoint) + 1, u64::from(weight.max(1)));
            if best.is_none_or(|(_, least, by)| load * by < least * weight) {
                best = Some((endpoint, load, weight));
            }
        }
        best.map(|(endpoint, ..)| endpoint)
    }

    /// Counts a connection that opens; false if there is no room to count it, neither now nor when it ends.
    pub fn opened(&self, service: u32, endpoint: u32) -> bool {
        let mut shard = self.shard(service);
        let keys = [(service, ANY_ENDPOINT), (service, endpoint)];
        if !make_room(&mut shard, &keys) {
            return false;
        }
        for key in keys {
            let load = shard.entry(key).or_default();
            load.picks += 1;
            load.live += 1;
        }
        true
    }

    /// Counts a connection that is alive since before the start, among the live ones only; false as of
    /// [`EndpointLoads::opened`].
    pub fn restored(&self, service: u32, endpoint: u32) -> bool {
        let mut shard = self.shard(service);
        let keys = [(service, ANY_ENDPOINT), (service, endpoint)];
        let room = make_room(&mut shard, &keys);
        if room {
            keys.into_iter().for_each(|key| shard.entry(key).or_default().live += 1);
        }
        room
    }

    /// Takes a count back, of a connection that did not open after all.
    pub fn not_opened(&self, service: u32, endpoint: u32) {
        let mut shard = self.shard(service);
        for number in [ANY_ENDPOINT, endpoint] {
            if let Some(load) = shard.get_mut(&(service, number)) {
                load.picks = load.picks.saturating_sub(1);
                load.live = load.live.saturating_sub(1);
            }
        }
    }

    /// Counts a connection that ended.
    pub fn ended(&self, service: u32, endpoint: u32) {
        let mut shard = self.shard(service);
        for number in [ANY_ENDPOINT, endpoint] {
            if let Some(load) = shard.get_mut(&(service, number)) {
                load.live = load.live.saturating_sub(1);
            }
        }
    }
}

/// Makes room for all of `keys` or says that there is none.
fn make_room(shard: &mut Shard, keys: &[(u32, u32)]) -> bool {
    const ROOM: usize = ENDPOINT_LOADS / ENDPOINT_LOAD_SHARDS;
    let fits = |shard: &Shard| shard.len() + keys.iter().filter(|key| !shard.contains_key(*key)).count() <= ROOM;
    if fits(shard) {
        return true;
    }
    shard.retain(|(_, endpoint), load| load.live > 0 || *endpoint == ANY_ENDPOINT);
    if !fits(shard) {
        shard.retain(|key, load| load.live > 0 || keys.contains(key));
    }
    fits(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_is_found_by_weight_and_ends_are_counted() {
        let loads = EndpointLoads::default();
        let least = |weights: [u16; 3]| loads.least_loaded(9, [1, 2, 3].into_iter().zip(weights));
        assert_eq!(least([1, 1, 1]), Some(1));
        loads.opened(9, 1);
        loads.opened(9, 1);
        loads.opened(9, 2);
        assert_eq!(least([1, 1, 1]), Some(3));
        assert_eq!(least([4, 1, 1]), Some(1), "three of four is less than one of one");
        assert_eq!(loads.get(9, 1), EndpointLoad { picks: 2, live: 2 });
        loads.ended(9, 1);
        loads.ended(9, 77);
        assert_eq!((loads.get(9, 1).live, loads.get(9, ANY_ENDPOINT).picks), (1, 3));
        assert_eq!(loads.least_loaded(9, std::iter::empty()), None);
    }

    #[test]
    fn endpoints_without_connections_make_room() {
        let loads = EndpointLoads::default();
        for endpoint in 1..200_000 {
            assert!(loads.opened(9, endpoint));
            loads.ended(9, endpoint);
        }
        assert_eq!(loads.get(9, ANY_ENDPOINT).picks, 199_999, "round-robin goes on where it was");
        assert!(loads.opened(9, 500_000));
        assert_eq!(loads.get(9, 500_000).live, 1);
        assert!(loads.shard(9).len() <= ENDPOINT_LOADS / ENDPOINT_LOAD_SHARDS);
    }

    /// What was not counted when it opened is not when it ends, so what is alive comes out right in the end.
    #[test]
    fn counts_come_back_to_zero_after_a_shard_was_full() {
        let loads = EndpointLoads::default();
        let counted: Vec<u32> = (1..20_000).filter(|endpoint| loads.opened(9, *endpoint)).collect();
        assert_eq!(counted.len(), ENDPOINT_LOADS / ENDPOINT_LOAD_SHARDS - 1);
        assert_eq!(loads.get(9, ANY_ENDPOINT).live as usize, counted.len());
        assert!(!loads.opened(9, 30_000) && loads.opened(9, 1), "one that is known finds room");
        loads.not_opened(9, 1);
        assert_eq!(
            (loads.get(9, 1), loads.get(9, ANY_ENDPOINT).picks as usize),
            (EndpointLoad { picks: 1, live: 1 }, counted.len())
        );
        counted.iter().for_each(|endpoint| loads.ended(9, *endpoint));
        assert_eq!(loads.get(9, ANY_ENDPOINT).live, 0);
        assert!(counted.iter().all(|endpoint| loads.get(9, *endpoint).live == 0));
    }
}
