//! Which endpoint a client of a Service with session affinity was last given.
//!
//! By client address and port of a Service, as kube-proxy keeps it: other ports of the same Service are other keys.
//! Fixed capacity, one lock a shard. A full shard forgets what has timed out; if all is in force, a new client gets an
//! endpoint without being remembered. Written when a connection opens, read by the stage `service`.
//!
//! What is remembered lies in memory that may outlive the process, eight words each; the maps of this process only say
//! where. Words are written under the shard's lock, the timeout last: an item without one is free.
//!
//! ```text
//! 0 port of a Service   1..3 client   3..5 endpoint   5 its port, families   6 last used (ns)   7 timeout (ns)
//! ```

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use std::os::fd::BorrowedFd;

use hashbrown::HashMap;

use super::kept_memory::{Content, KeptMemory};
use crate::clock::Time;
use crate::limits::{AFFINITIES, AFFINITY_SHARDS};
use crate::tables::lookup::mix;
use crate::tables::services::ServiceId;

const WORDS: usize = 8;
const IN_SHARD: usize = AFFINITIES / AFFINITY_SHARDS;
const TIMEOUT: usize = 7;
const CLIENT_IS_IPV6: u64 = 1 << 16;
const ENDPOINT_IS_IPV6: u64 = 1 << 17;

/// How what is remembered lies in memory.
pub(super) const CONTENT: Content = Content { name: "affinities", magic: *b"mr-affin", version: 1, item_words: WORDS };

/// What is remembered of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Affinity {
    service: ServiceId,
    client: IpAddr,
    endpoint: (IpAddr, u16),
    used: Time,
    timeout: Duration,
}

impl Affinity {
    fn holds(&self, now: Time) -> bool {
        now.since(self.used) < self.timeout
    }

    fn key(&self) -> (ServiceId, IpAddr) {
        (self.service, self.client)
    }

    fn words(&self) -> [u64; WORDS] {
        let [client_low, client_high] = halves(self.client);
        let [endpoint_low, endpoint_high] = halves(self.endpoint.0);
        let families = if self.client.is_ipv6() { CLIENT_IS_IPV6 } else { 0 }
            | if self.endpoint.0.is_ipv6() { ENDPOINT_IS_IPV6 } else { 0 };
        let facts = u64::from(self.endpoint.1) | families;
        let timeout = u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX).max(1);
        let used = self.used.nanoseconds();
        [self.service.0, client_low, client_high, endpoint_low, endpoint_high, facts, used, timeout]
    }

    fn read(item: &[AtomicU64; WORDS]) -> Option<Affinity> {
        let [service, client_low, client_high, endpoint_low, endpoint_high, facts, used, timeout] =
            item.each_ref().map(|word| word.load(Ordering::Relaxed));
        (timeout != 0).then(|| Affinity {
            service: ServiceId(service),
            client: address([client_low, client_high], facts & CLIENT_IS_IPV6 != 0),
            endpoint: (address([endpoint_low, endpoint_high], facts & ENDPOINT_IS_IPV6 != 0), facts as u16),
            used: Time::from_nanoseconds(used),
            timeout: Duration::from_nanos(timeout),
        })
    }
}

fn halves(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [u64::from(address.to_bits()), 0],
        IpAddr::V6(address) => [address.to_bits() as u64, (address.to_bits() >> 64) as u64],
    }
}

fn address([low, high]: [u64; 2], ipv6: bool) -> IpAddr {
    match ipv6 {
        true => IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes()),
        false => IpAddr::from((low as u32).to_be_bytes()),
    }
}

/// Where what is remembered of a client stands, among the items of its shard.
#[derive(Debug)]
struct Shard {
    places: HashMap<(ServiceId, IpAddr), u32>,
    free: Vec<u32>,
}

impl Shard {
    fn new() -> Self {
        let free = (0..IN_SHARD as u32).rev().collect();
        Self { places: HashMap::with_capacity(IN_SHARD), free }
    }
}

/// The table.
#[derive(Debug)]
pub struct Affinities {
    memory: KeptMemory,
    shards: Box<[Mutex<Shard>]>,
}

impl Affinities {
    /// Nobody is remembered.
    ///
    /// # Errors
    /// The kernel refused memory.
    pub fn new() -> io::Result<Self> {
        Self::with_memory(|items| KeptMemory::anonymous(CONTENT, items))
    }

    /// The same in memory that `memory` gives for so many items.
    pub(super) fn with_memory(memory: impl FnOnce(usize) -> io::Result<KeptMemory>) -> io::Result<Self> {
        let shards = (0..AFFINITY_SHARDS).map(|_| Mutex::new(Shard::new())).collect();
        Ok(Self { memory: memory(IN_SHARD * AFFINITY_SHARDS)?, shards })
    }

    /// Takes in what a former process remembered and what still holds at `now`; says how many.
    pub(super) fn restore(&self, former: &KeptMemory, now: Time) -> usize {
        let items = former.words().as_chunks::<WORDS>().0.iter();
        let holding = items.filter_map(Affinity::read).filter(|affinity| affinity.holds(now));
        holding.filter(|affinity| self.write(affinity, now)).count()
    }

    /// As [`Affinities::restore`], of clients only of which nothing is known yet.
    pub(super) fn restore_unknown(&self, former: &KeptMemory, now: Time) -> usize {
        let items = former.words().as_chunks::<WORDS>().0.iter();
        let holding = items.filter_map(Affinity::read).filter(|affinity| affinity.holds(now));
        let unknown = holding.filter(|affinity| self.find(affinity.service, affinity.client, now).is_none());
        unknown.filter(|affinity| self.write(affinity, now)).count()
    }

    /// The file of the clients, for a successor process.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.memory.file()
    }

    /// Number and guard of the shard of a client.
    fn shard(&self, service: ServiceId, client: IpAddr) -> (usize, MutexGuard<'_, Shard>) {
        let bits = match client {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64 ^ address.to_bits() as u64,
        };
        let number = mix(service.0 ^ bits) as usize % self.shards.len();
        (number, self.shards[number].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn item(&self, shard: usize, place: u32) -> &[AtomicU64; WORDS] {
        &self.memory.words().as_chunks::<WORDS>().0[shard * IN_SHARD + place as usize]
    }

    /// The endpoint this client stays with, if its last new connection is not longer ago than the Service allows.
    #[must_use]
    pub fn find(&self, service: ServiceId, client: IpAddr, now: Time) -> Option<(IpAddr, u16)> {
        let (number, shard) = self.shard(service, client);
        let place = *shard.places.get(&(service, client))?;
        let affinity = Affinity::read(self.item(number, place)).filter(|affinity| affinity.holds(now));
        affinity.map(|affinity| affinity.endpoint)
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
        self.write(&Affinity { service, client, endpoint, used: now, timeout }, now)
    }

    fn write(&self, affinity: &Affinity, now: Time) -> bool {
        let (number, mut shard) = self.shard(affinity.service, affinity.client);
        let known = shard.places.get(&affinity.key()).copied();
        if known.is_none() && shard.free.is_empty() {
            self.forget_what_timed_out(number, &mut shard, now);
        }
        let Some(place) = known.or_else(|| shard.free.pop()) else { return false };
        let item = self.item(number, place);
        // Free while its words change, for who finds it after this process was killed in between.
        item[TIMEOUT].store(0, Ordering::SeqCst);
        for (word, value) in item.iter().zip(affinity.words()) {
            word.store(value, Ordering::Release);
        }
        if known.is_none() {
            shard.places.insert(affinity.key(), place);
        }
        true
    }

    fn forget_what_timed_out(&self, number: usize, shard: &mut Shard, now: Time) {
        let Shard { places, free } = shard;
        places.retain(|_, place| {
            let item = self.item(number, *place);
            let holds = Affinity::read(item).is_some_and(|affinity| affinity.holds(now));
            if !holds {
                item[TIMEOUT].store(0, Ordering::Relaxed);
                free.push(*place);
            }
            holds
        });
    }

    /// How many clients are remembered, timed out or not: for `show`, never on a worker.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).places.len()).sum()
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
        let (table, service) = (Affinities::new().expect("memory"), ServiceId(7));
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
        let (table, service) = (Affinities::new().expect("memory"), ServiceId(7));
        let endpoint = (IpAddr::from([10, 0, 0, 8]), 80);
        let client = |number: u32| IpAddr::from(number.to_be_bytes());
        let remember = |number, now| table.remember(service, client(number), endpoint, Duration::from_secs(1), now);
        let refused = (0..200_000).filter(|number| !remember(*number, Time::ZERO)).count();
        assert!(table.len() <= AFFINITIES && refused == 200_000 - table.len());
        assert!(remember(300_000, Time::ZERO + Duration::from_secs(2)), "what has timed out makes room");
    }

    #[test]
    fn what_holds_goes_on_in_the_next_process() {
        let table = Affinities::new().expect("memory");
        let clients: Vec<IpAddr> = vec![[10, 0, 0, 1].into(), "fd00::1:2".parse().expect("address")];
        let endpoints = [(IpAddr::from([10, 0, 0, 9]), 80), ("fd00:9::8".parse().expect("address"), 65_535)];
        let timeout = Duration::from_secs(10);
        for (client, endpoint) in clients.iter().zip(endpoints) {
            assert!(table.remember(ServiceId(u64::MAX), *client, endpoint, timeout, Time::ZERO));
        }
        assert!(table.remember(ServiceId(1), clients[0], endpoints[0], Duration::from_secs(1), Time::ZERO));
        let (next, later) = (Affinities::new().expect("memory"), Time::ZERO + Duration::from_secs(2));
        assert_eq!(next.restore(&table.memory, later), 2);
        for (client, endpoint) in clients.iter().zip(endpoints) {
            assert_eq!(next.find(ServiceId(u64::MAX), *client, later), Some(endpoint));
        }
        assert_eq!(next.find(ServiceId(1), clients[0], later), None);
        assert_eq!(next.len(), 2);
    }
}
