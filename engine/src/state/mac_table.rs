//! Where the stations of bridged segments live, learned from their frames.
//!
//! Fixed capacity, so that a flood of made-up addresses costs memory nothing: a full shard refuses new stations until
//! old ones age out, and frames to those are flooded as any unknown. A port has a share of its own. One lock a shard,
//! held for one lookup; forgotten stations leave by [`MacTable::age_step`], a shard at a time, and are not found from
//! the moment they are forgotten on.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;

use crate::clock::Time;
use crate::limits::{MAC_TABLE_ENTRIES, MAC_TABLE_SHARDS, PORTS, STATION_AGEING_STEP};
use crate::packet::{Mac, PortIndex};
use crate::tables::{BridgedSegment, Location, MoveLimit, SegmentIndex};

const SHARD_ENTRIES: usize = MAC_TABLE_ENTRIES / MAC_TABLE_SHARDS;

/// One station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// Where it lives.
    pub location: Location,
    /// When it last sent a frame.
    pub seen: Time,
    /// Time without a frame after which it is forgotten, as its segment had it with its last frame that was learned.
    pub ageing: Duration,
    /// Moves since `moves_since`.
    pub moves: u8,
    /// When the moves counted began.
    pub moves_since: Time,
    /// Until when it may not move.
    pub held_until: Time,
}

impl Station {
    fn is_forgotten(&self, now: Time) -> bool {
        now.since(self.seen) >= self.ageing
    }

    /// Whether it moved too often and stays where it is for now.
    #[must_use]
    pub fn is_held(&self, now: Time) -> bool {
        now < self.held_until
    }

    /// Notes a move; false if the station is held where it was instead.
    fn moved(&mut self, limit: &MoveLimit, now: Time) -> bool {
        if now.since(self.moves_since) >= limit.within {
            (self.moves, self.moves_since) = (0, now);
        }
        if self.moves >= limit.moves {
            self.held_until = now + limit.hold;
            return false;
        }
        self.moves += 1;
        true
    }
}

/// What the configuration says about learning a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearningRules {
    /// Time without a frame after which it is forgotten.
    pub ageing: Duration,
    /// How often it may move.
    pub moves: MoveLimit,
    /// Stations behind its port at most.
    pub station_limit: u32,
}

impl LearningRules {
    /// The rules of `segment` for a port that may have `station_limit` stations.
    #[must_use]
    pub fn of(segment: &BridgedSegment, station_limit: u32) -> Self {
        Self { ageing: segment.ageing, moves: segment.moves, station_limit }
    }
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
    /// It moves too often or is held already: it stays where it is, and the frame must be decided again.
    Held,
    /// Its port has as many stations as it may have: the frame must be decided again.
    PortFull,
    /// No room: it stays unknown.
    Full,
}

type Stations = HashMap<(SegmentIndex, Mac), Station>;

/// The table.
#[derive(Debug)]
pub struct MacTable {
    shards: Box<[Mutex<Stations>]>,
    /// Stations behind each port, forgotten ones that have not left yet among them.
    behind: Box<[AtomicU32]>,
    /// When the next shard is to be aged, and which: the number of steps since the clock's origin.
    steps: AtomicU64,
}

impl Default for MacTable {
    fn default() -> Self {
        let shard = || Mutex::new(HashMap::with_capacity(SHARD_ENTRIES));
        Self {
            shards: (0..MAC_TABLE_SHARDS).map(|_| shard()).collect(),
            behind: (0..PORTS).map(|_| AtomicU32::new(0)).collect(),
            steps: AtomicU64::new(0),
        }
    }
}

impl MacTable {
    fn with<T>(&self, segment: SegmentIndex, mac: Mac, act: impl FnOnce(&mut Stations) -> T) -> T {
        let [.., a, b] = mac.0;
        let shard = (usize::from(a) * 31 + usize::from(b) + usize::from(segment.0)) % self.shards.len();
        act(&mut self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The station, if it is not forgotten.
    #[must_use]
    pub fn find(&self, segment: SegmentIndex, mac: Mac, now: Time) -> Option<Station> {
        let station = self.with(segment, mac, |shard| shard.get(&(segment, mac)).copied())?;
        (!station.is_forgotten(now)).then_some(station)
    }

    /// Stations behind a port.
    #[must_use]
    pub fn behind(&self, port: PortIndex) -> u32 {
        self.behind.get(usize::from(port.0)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn count(&self, location: Location, more: bool) {
        let Location::Port(port) = location else { return };
        let Some(count) = self.behind.get(usize::from(port.0)) else { return };
        if more {
            count.fetch_add(1, Ordering::Relaxed)
        } else {
            count.fetch_sub(1, Ordering::Relaxed)
        };
    }

    fn is_full(&self, location: Location, limit: u32) -> bool {
        matches!(location, Location::Port(port) if self.behind(port) >= limit)
    }

    fn forget(&self, shard: &mut Stations, gone: impl Fn(&Station) -> bool) {
        shard.retain(|_, station| {
            let gone = gone(station);
            if gone {
                self.count(station.location, false);
            }
            !gone
        });
    }

    /// Notes that the station sent a frame from `location`.
    pub fn learn(
        &self,
        segment: SegmentIndex,
        mac: Mac,
        location: Location,
        rules: &LearningRules,
        now: Time,
    ) -> Learned {
        self.with(segment, mac, |shard| match shard.get_mut(&(segment, mac)) {
            Some(station) if !station.is_forgotten(now) => self.refresh(station, location, rules, now),
            _ => self.insert(shard, (segment, mac), location, rules, now),
        })
    }

    fn refresh(&self, station: &mut Station, location: Location, rules: &LearningRules, now: Time) -> Learned {
        if station.location != location {
            if station.is_held(now) {
                return Learned::Held;
            }
            if self.is_full(location, rules.station_limit) {
                return Learned::PortFull;
            }
            if !station.moved(&rules.moves, now) {
                return Learned::Held;
            }
            self.count(station.location, false);
            self.count(location, true);
        }
        let moved = std::mem::replace(&mut station.location, location) != location;
        (station.seen, station.ageing) = (now, rules.ageing);
        if moved { Learned::Moved } else { Learned::Known }
    }

    fn insert(
        &self,
        shard: &mut Stations,
        key: (SegmentIndex, Mac),
        location: Location,
        rules: &LearningRules,
        now: Time,
    ) -> Learned {
        let before = shard.remove(&key);
        before.iter().for_each(|station| self.count(station.location, false));
        if self.is_full(location, rules.station_limit) {
            return Learned::PortFull;
        }
        if shard.len() >= SHARD_ENTRIES {
            self.forget(shard, |station| station.is_forgotten(now));
        }
        if shard.len() >= SHARD_ENTRIES {
            return Learned::Full;
        }
        self.count(location, true);
        let ageing = rules.ageing;
        let station = Station { location, seen: now, ageing, moves: 0, moves_since: now, held_until: Time::ZERO };
        shard.insert(key, station);
        Learned::New
    }

    /// Notes that the station was heard of at `seen` where it is known to live: what the flow cache served of it.
    pub fn keep_alive(&self, segment: SegmentIndex, mac: Mac, location: Location, seen: Time) {
        self.with(segment, mac, |shard| {
            if let Some(station) = shard.get_mut(&(segment, mac)).filter(|station| station.location == location) {
                station.seen = station.seen.max(seen);
            }
        });
    }

    /// Frees one shard of forgotten stations if its time has come; whichever worker asks first does it.
    pub fn age_step(&self, now: Time) {
        let due = now.nanoseconds() / STATION_AGEING_STEP.as_nanos() as u64;
        let done = self.steps.load(Ordering::Relaxed);
        if done >= due {
            return;
        }
        // After a long sleep each shard is due once, not once for each step that was slept through.
        let next = (done + 1).max(due.saturating_sub(self.shards.len() as u64));
        if self.steps.compare_exchange(done, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let shard = &self.shards[next as usize % self.shards.len()];
            self.forget(&mut shard.lock().unwrap_or_else(PoisonError::into_inner), |station| station.is_forgotten(now));
        }
    }

    /// Forgets all stations behind a port that goes away, so that the next port with its number does not inherit them.
    pub fn forget_port(&self, port: PortIndex) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            self.forget(&mut shard, |station| station.location == Location::Port(port));
        }
    }

    /// All stations, in no order, forgotten ones that have not left yet among them: for `show fdb`, never on a worker.
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
    use crate::limits::{STATION_AGE, STATIONS_PER_PORT};

    const SEGMENT: SegmentIndex = SegmentIndex(3);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const FIRST: Location = Location::Port(PortIndex(1));
    const SECOND: Location = Location::Port(PortIndex(2));

    fn rules() -> LearningRules {
        LearningRules::of(&BridgedSegment::default(), STATIONS_PER_PORT)
    }

    fn numbered(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn place(table: &MacTable, now: Time) -> Option<Location> {
        table.find(SEGMENT, MAC, now).map(|station| station.location)
    }

    #[test]
    fn stations_are_learned_move_and_age() {
        let table = MacTable::default();
        let start = Time::from_nanoseconds(5);
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), start), Learned::New);
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), start), Learned::Known);
        assert_eq!(table.find(SegmentIndex(4), MAC, start), None);
        assert_eq!(table.learn(SEGMENT, MAC, SECOND, &rules(), start), Learned::Moved);
        assert_eq!(place(&table, start), Some(SECOND));
        assert_eq!(place(&table, start + STATION_AGE), None);
        table.keep_alive(SEGMENT, MAC, FIRST, start + Duration::from_secs(200));
        assert_eq!(place(&table, start + STATION_AGE), None, "heard of elsewhere");
        table.keep_alive(SEGMENT, MAC, SECOND, start + Duration::from_secs(200));
        assert_eq!(place(&table, start + STATION_AGE), Some(SECOND));
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), start + STATION_AGE * 2), Learned::New);
    }

    #[test]
    fn a_station_that_moves_too_often_is_held_for_a_time() {
        let table = MacTable::default();
        let mut now = Time::from_nanoseconds(5);
        table.learn(SEGMENT, MAC, FIRST, &rules(), now);
        for step in 0..5 {
            now = now + Duration::from_secs(1);
            let there = if step % 2 == 0 { SECOND } else { FIRST };
            assert_eq!(table.learn(SEGMENT, MAC, there, &rules(), now), Learned::Moved);
        }
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), now), Learned::Held);
        assert_eq!(table.learn(SEGMENT, MAC, SECOND, &rules(), now), Learned::Known);
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), now + Duration::from_secs(59)), Learned::Held);
        assert_eq!(place(&table, now), Some(SECOND));
        // Held again, as long as the moves counted are less than 180 s old.
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), now + Duration::from_secs(61)), Learned::Held);
        assert_eq!(table.learn(SEGMENT, MAC, FIRST, &rules(), now + Duration::from_secs(180)), Learned::Moved);
    }

    #[test]
    fn a_port_has_a_share_and_gets_it_back_by_age_and_when_it_goes() {
        let table = MacTable::default();
        let few = LearningRules { station_limit: 2, ..rules() };
        let learn = |number, location, now| table.learn(SEGMENT, numbered(number), location, &few, now);
        let start = Time::from_nanoseconds(5);
        assert_eq!([1, 2].map(|number| learn(number, FIRST, start)), [Learned::New; 2]);
        assert_eq!((learn(3, FIRST, start), learn(3, SECOND, start)), (Learned::PortFull, Learned::New));
        assert_eq!(learn(3, FIRST, start), Learned::PortFull, "a move counts, too");
        assert_eq!((table.behind(PortIndex(1)), table.behind(PortIndex(2))), (2, 1));
        let later = start + STATION_AGE;
        (0..MAC_TABLE_SHARDS).for_each(|_| table.age_step(later));
        assert_eq!(table.behind(PortIndex(1)), 0);
        assert_eq!(learn(3, FIRST, later), Learned::New);
        table.forget_port(PortIndex(1));
        assert_eq!((table.behind(PortIndex(1)), table.find(SEGMENT, numbered(3), later)), (0, None));
    }

    #[test]
    fn a_flood_of_made_up_addresses_is_refused_at_the_bound() {
        let table = MacTable::default();
        let unlimited = LearningRules { station_limit: u32::MAX, ..rules() };
        let refused = (0..200_000u32)
            .filter(|number| table.learn(SEGMENT, numbered(*number), FIRST, &unlimited, Time::ZERO) == Learned::Full)
            .count();
        let mut kept = 0;
        table.for_each(|_, _, _| kept += 1);
        assert!(refused > 0 && kept <= MAC_TABLE_ENTRIES && kept + refused == 200_000);
        assert_eq!(table.behind(PortIndex(1)) as usize, kept);
    }
}
