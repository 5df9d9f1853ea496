//! Where the stations of bridged segments live, learned from their frames.
//!
//! Fixed capacity, so that a flood of made-up addresses costs memory nothing: a full shard refuses new stations
//! until old ones age out (300 s without a frame, IEEE 802.1Q section 8.8.3), and frames to those are flooded as any
//! unknown. One lock a shard, held for one lookup.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;

use crate::clock::Time;
use crate::limits::{MAC_TABLE_ENTRIES, MAC_TABLE_SHARDS};
use crate::packet::Mac;
use crate::slow_path::Location;
use crate::tables::SegmentIndex;

/// Time without a frame after which a station is forgotten.
pub const STATION_AGE: Duration = Duration::from_secs(300);

/// One station, for `show fdb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// Where it lives.
    pub location: Location,
    /// When it last sent a frame.
    pub seen: Time,
}

/// What learning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Known and unmoved.
    Known,
    /// New.
    New,
    /// It lived elsewhere before: flows to it must be decided again.
    Moved,
    /// No room.
    Full,
}

type Shard = Mutex<HashMap<(SegmentIndex, Mac), Station>>;

/// The table.
#[derive(Debug)]
pub struct MacTable {
    shards: Box<[Shard]>,
}

impl Default for MacTable {
    fn default() -> Self {
        let shard = || Mutex::new(HashMap::with_capacity(MAC_TABLE_ENTRIES / MAC_TABLE_SHARDS));
        Self { shards: (0..MAC_TABLE_SHARDS).map(|_| shard()).collect() }
    }
}

impl MacTable {
    fn with<T>(
        &self,
        segment: SegmentIndex,
        mac: Mac,
        act: impl FnOnce(&mut HashMap<(SegmentIndex, Mac), Station>) -> T,
    ) -> T {
        let [.., a, b] = mac.0;
        let shard = (usize::from(a) * 31 + usize::from(b) + usize::from(segment.0)) % self.shards.len();
        act(&mut self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the station lives, if it was heard of within [`STATION_AGE`].
    #[must_use]
    pub fn find(&self, segment: SegmentIndex, mac: Mac, now: Time) -> Option<Location> {
        let station = self.with(segment, mac, |shard| shard.get(&(segment, mac)).copied())?;
        (now.since(station.seen) < STATION_AGE).then_some(station.location)
    }

    /// Notes that the station sent a frame from `location`.
    pub fn learn(&self, segment: SegmentIndex, mac: Mac, location: Location, now: Time) -> Learned {
        self.with(segment, mac, |shard| {
            if let Some(station) = shard.get_mut(&(segment, mac)) {
                let moved = station.location != location;
                *station = Station { location, seen: now };
                return if moved { Learned::Moved } else { Learned::Known };
            }
            if shard.len() >= MAC_TABLE_ENTRIES / MAC_TABLE_SHARDS {
                shard.retain(|_, station| now.since(station.seen) < STATION_AGE);
            }
            if shard.len() >= MAC_TABLE_ENTRIES / MAC_TABLE_SHARDS {
                return Learned::Full;
            }
            shard.insert((segment, mac), Station { location, seen: now });
            Learned::New
        })
    }

    /// All stations, in no order: for `show fdb`, never on a worker.
    pub fn for_each(&self, mut visit: impl FnMut(SegmentIndex, Mac, Station)) {
        for shard in &self.shards {
            for ((segment, mac), station) in shard.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                visit(*segment, *mac, *station);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PortIndex;

    #[test]
    fn stations_are_learned_move_and_age() {
        let table = MacTable::default();
        let (segment, mac) = (SegmentIndex(3), Mac([2, 0, 0, 0, 0, 1]));
        let (first, second) = (Location::Port(PortIndex(1)), Location::Port(PortIndex(2)));
        let start = Time::from_nanoseconds(5);
        assert_eq!(table.learn(segment, mac, first, start), Learned::New);
        assert_eq!(table.learn(segment, mac, first, start), Learned::Known);
        assert_eq!(table.find(SegmentIndex(4), mac, start), None);
        assert_eq!(table.learn(segment, mac, second, start), Learned::Moved);
        assert_eq!(table.find(segment, mac, start), Some(second));
        assert_eq!(table.find(segment, mac, start + STATION_AGE), None);
    }

    #[test]
    fn a_flood_of_made_up_addresses_is_refused_at_the_bound() {
        let table = MacTable::default();
        let mac = |number: u32| {
            let [a, b, c, d] = number.to_be_bytes();
            Mac([2, 0, a, b, c, d])
        };
        let location = Location::Port(PortIndex(1));
        let refused = (0..200_000u32)
            .filter(|number| table.learn(SegmentIndex(0), mac(*number), location, Time::ZERO) == Learned::Full)
            .count();
        let mut kept = 0;
        table.for_each(|_, _, _| kept += 1);
        assert!(refused > 0 && kept <= MAC_TABLE_ENTRIES && kept + refused == 200_000);
    }
}
