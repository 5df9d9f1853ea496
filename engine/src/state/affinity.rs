//! Which endpoint a client of a Service with session affinity was last given.
//!
//! By client address and port of a Service, as kube-proxy keeps it: other ports of the same Service are other keys.
//! Fixed capacity, one lock a shard. A full shard forgets what has timed out; if all is in force, a new client gets an
//! endpoint without being remembered. Written when a connection opens, read by the stage `service`.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;

use crate::clock::Time;
use crate::limits::{AFFINITIES, AFFINITY_SHARDS};
use crate::tables::lookup::mix;
use crate::tables::services::ServiceId;

/// What is remembered of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Affinity {
    endpoint: (IpAddr, u16),
    used: Time,
    timeout: Duration,
}

impl Affinity {
    fn holds(&self, now: Time) -> bool {
        now.since(self.used) < self.timeout
    }
}

type Shard = HashMap<(ServiceId, IpAddr), Affinity>;

/// The table.
#[derive(Debug)]
pub struct Affinities {
    shards: Box<[Mutex<Shard>]>,
}

impl Default for Affinities {
    fn default() -> Self {
        let shard = || Mutex::new(HashMap::with_capacity(AFFINITIES / AFFINITY_SHARDS));
        Self { shards: (0..AFFINITY_SHARDS).map(|_| shard()).collect() }
    }
}

impl Affinities {
    fn shard(&self, service: ServiceId, client: IpAddr) -> MutexGuard<'_, Shard> {
        let bits = match client {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64 ^ address.to_bits() as u64,
        };
        let shard = mix(service.0 ^ bits) as usize % self.shards.len();
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoint this client stays with, if its last new connection is not longer ago than the Service allows.
    #[must_use]
    pub fn find(&self, service: ServiceId, client: IpAddr, now: Time) -> Option<(IpAddr, u16)> {
        let shard = self.shard(service, client);
        shard.get(&(service, client)).filter(|affinity| affinity.holds(now)).map(|affinity| affinity.endpoint)
    }

    /// Notes that this client got a connection to this endpoint; false if there was no room.
    pub fn remember(
        &self,
        service: ServiceId,
        client: IpAddr,
        endpoint: (IpAddr, u16),
        timeout: Duration,
        now: Time,
    ) -> bool {
        let mut shard = self.shard(service, client);
        let affinity = Affinity { endpoint, used: now, timeout };
        if let Some(known) = shard.get_mut(&(service, client)) {
            *known = affinity;
            return true;
        }
        if shard.len() >= AFFINITIES / AFFINITY_SHARDS {
            shard.retain(|_, affinity| affinity.holds(now));
        }
        let room = shard.len() < AFFINITIES / AFFINITY_SHARDS;
        if room {
            shard.insert((service, client), affinity);
        }
        room
    }

    /// How many clients are remembered, timed out or not: for `show`, never on a worker.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_stays_until_it_has_been_silent_for_too_long() {
        let (table, service) = (Affinities::default(), ServiceId(7));
        let (client, timeout) = (IpAddr::from([10, 0, 0, 1]), Duration::from_secs(10));
        let (one, other) = ((IpAddr::from([10, 0, 0, 8]), 80), (IpAddr::from([10, 0, 0, 9]), 80));
        assert!(table.remember(service, client, one, timeout, Time::ZERO));
        let later = |seconds| Time::ZERO + Duration::from_secs(seconds);
        assert_eq!(table.find(service, client, later(9)), Some(one));
        assert_eq!(table.find(service, client, later(10)), None);
        assert_eq!(table.find(ServiceId(8), client, later(1)), None);
        assert!(table.remember(service, client, other, timeout, later(9)));
        assert_eq!(table.find(service, client, later(18)), Some(other));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_flood_of_clients_is_bounded_and_passes() {
        let (table, service) = (Affinities::default(), ServiceId(7));
        let endpoint = (IpAddr::from([10, 0, 0, 8]), 80);
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        let remember = |number, now| table.remember(service, client(number), endpoint, Duration::from_secs(1), now);
        let refused = (0..200_000).filter(|number| !remember(*number, Time::ZERO)).count();
        assert!(table.len() <= AFFINITIES && refused == 200_000 - table.len());
        assert!(remember(300_000, Time::ZERO + Duration::from_secs(2)), "what has timed out makes room");
    }
}
