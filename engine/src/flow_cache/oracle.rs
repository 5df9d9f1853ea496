//! What a plain map would hold: the cache and a map that must agree after every step.
//!
//! For tests and fuzzing only. Flows, decisions and what those rest on are made from small numbers, so that flows of
//! few numbers meet in buckets, rewrites and changes. Every promise is an assertion.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::edit::{MacPair, Rewrite, Translation};
use crate::packet::Mac;
use crate::packet::parse::{Network, protocol};
use crate::tables::services::ServiceId;
use crate::tables::{Change, ChangeSet, SegmentIndex};

pub(super) const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

/// Flow number `number`: even ones IPv4, odd ones IPv6; every third UDP, the rest TCP.
pub(super) fn headers(number: u32) -> Headers {
    let mut headers = Headers {
        network: if number.is_multiple_of(2) { Network::Ipv4 } else { Network::Ipv6 },
        protocol: if number.is_multiple_of(3) { protocol::UDP } else { protocol::TCP },
        ports: [number as u16, (number >> 16) as u16],
        ..Headers::EMPTY
    };
    (headers.source[0], headers.destination[0]) = (10, 10);
    headers.destination[1] = number as u8;
    headers
}

fn number_of(view: &FlowView) -> u32 {
    u32::from(view.key.ports[0]) | u32::from(view.key.ports[1]) << 16
}

pub(super) fn forward(choice: u32) -> Forward {
    let macs = MacPair { destination: Mac([2, 0, 0, 0, 1, choice as u8]), source: Mac([2, 0, 0, 0, 2, 0]) };
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[192, 0, 2, choice as u8]);
    Forward {
        egress: PortIndex(choice as u16),
        rewrite: Rewrite {
            decapsulate: false,
            pop_tags: 0,
            route: Some(macs),
            push_tag: None,
            encapsulate: None,
            mtu: 1500 + choice % 3,
        },
        translation: match choice % 4 {
            0 => Translation::NONE,
            1 => Translation { source: Some((address, 1)), destination: None },
            2 => Translation { source: None, destination: Some((address, 2)) },
            _ => Translation { source: Some((address, 3)), destination: Some((address, 4)) },
        },
    }
}

pub(super) fn dependencies(number: u32, choice: u32) -> Dependencies {
    let headers = headers(number);
    Dependencies {
        ingress: PortIndex((number % 5) as u16),
        egress: PortIndex(choice as u16),
        segment: SegmentIndex((number % 3) as u16),
        source: headers.source_address(),
        destination: headers.destination_address(),
        ingress_peer: number.is_multiple_of(7).then_some(peer(number % 4)),
        egress_peer: (choice % 5 == 1).then_some(peer(choice % 4)),
        source_mac: Mac::ZERO,
        destination_mac: Mac::ZERO,
        service: ServiceId(u64::from(number % 6) << 32).tag(),
    }
}

pub(super) fn peer(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, number as u8))
}

pub(super) fn batch_of(numbers: &[u32]) -> LookupBatch {
    let mut batch = LookupBatch::new();
    for (at, number) in numbers.iter().enumerate() {
        assert!(batch.push(at, &headers(*number), &MACS, 1));
    }
    batch
}

pub(super) fn cache(capacity: usize, key: HashKey) -> FlowCache {
    FlowCache::new(FlowCacheLayout { ipv4: capacity, ipv6: capacity }, key)
}

fn flows(cache: &FlowCache, now_ms: u32) -> HashMap<u32, FlowView> {
    let mut found = HashMap::new();
    let mut from = Some(0);
    while let Some(at) = from {
        from = cache.for_each(at, 5, now_ms, |view| {
            assert!(found.insert(number_of(view), *view).is_none(), "shown twice");
        });
    }
    assert_eq!(found.len(), cache.len());
    found
}

/// What a plain map knows of a flow.
#[derive(Clone, Copy, Debug)]
struct Known {
    choice: u32,
    packets: u32,
    bytes: u64,
    seen_ms: u32,
    /// Sweeps begun when it was decided: only later ones have to find it.
    sweeps: usize,
}

/// The cache and a map that must agree.
#[derive(Debug)]
pub struct Pair {
    cache: FlowCache,
    known: HashMap<u32, Known>,
    now_ms: u32,
    /// Changes of the sweeps under way, each with its sweep's number.
    changes: Vec<(usize, Change)>,
    sweeps: usize,
}

/// What may happen to a cache.
#[derive(Clone, Debug)]
pub enum Step {
    /// Packets of these flows in one vector, 1 to `limits::VECTOR_PACKETS`: the flow's number, and what is decided if it is not there.
    Vector(Vec<(u32, u32)>),
    /// A flow is decided anew.
    Replace(u32, u32),
    /// So many milliseconds pass.
    Pass(u32),
    /// The ageing hand goes over so many entries.
    Age(usize),
    /// A publish changes this.
    Sweep(Vec<Change>),
    /// The sweep goes over so many entries.
    SweepOn(usize),
}

impl Pair {
    /// A cache for `capacity` flows of each family, at least eight, and an empty map.
    #[must_use]
    pub fn new(capacity: usize, key: HashKey) -> Self {
        // Close to the wrap of the 32-bit clock, so that many runs cross it.
        Self {
            cache: cache(capacity, key),
            known: HashMap::new(),
            now_ms: u32::MAX - 9_000,
            changes: Vec::new(),
            sweeps: 0,
        }
    }

    /// Does it to both.
    ///
    /// # Panics
    /// If they disagree.
    pub fn run(&mut self, step: Step) {
        match step {
            Step::Vector(packets) => self.vector(&packets),
            Step::Replace(number, choice) => {
                let mut batch = batch_of(&[number]);
                self.cache.lookup(&mut batch);
                assert_eq!(batch.found(0), self.known.contains_key(&number));
                self.insert(&batch, 0, number, choice);
            }
            Step::Pass(milliseconds) => self.now_ms = self.now_ms.wrapping_add(milliseconds),
            Step::Age(entries) => self.age(entries),
            Step::Sweep(changes) => {
                self.changes.extend(changes.iter().map(|change| (self.sweeps, *change)));
                self.sweeps += 1;
                let removed = self.cache.begin_sweep(Arc::new(SweepPlan::new(&ChangeSet { generation: 1, changes })));
                self.after_sweep(removed);
            }
            Step::SweepOn(entries) => {
                let removed = self.cache.sweep_step(entries);
                self.after_sweep(removed);
            }
        }
        assert_eq!(self.cache.len(), self.known.len());
        let rewrites: BTreeSet<_> = self.known.values().map(|known| forward_key(known.choice)).collect();
        assert_eq!(self.cache.rewrites(), rewrites.len());
    }

    /// As a worker does it: look up all, then serve or decide each in order.
    fn vector(&mut self, packets: &[(u32, u32)]) {
        let numbers: Vec<u32> = packets.iter().map(|(number, _)| *number).collect();
        let mut batch = batch_of(&numbers);
        self.cache.lookup(&mut batch);
        for (at, number) in numbers.iter().enumerate() {
            assert_eq!(batch.found(at), self.known.contains_key(number));
        }
        for (at, (number, choice)) in packets.iter().enumerate() {
            let action = self.cache.take_hit(&batch, at, 1000 + at, self.now_ms);
            let known = self.known.get_mut(number);
            assert_eq!(action.is_some(), known.is_some(), "flow {number}");
            if let (Some(action), Some(known)) = (action, known) {
                let expected = forward(known.choice);
                assert_eq!(action.egress, expected.egress);
                assert_eq!(action.rewrite.rewrite, expected.rewrite);
                assert_eq!(
                    translation_of(*number, action.ends.translation()),
                    translation_of(*number, expected.translation)
                );
                known.packets += 1;
                known.bytes += 1000 + at as u64;
                known.seen_ms = self.now_ms;
            } else {
                self.insert(&batch, at, *number, *choice);
            }
        }
    }

    fn insert(&mut self, batch: &LookupBatch, at: usize, number: u32, choice: u32) {
        let inserted = self.cache.insert(batch, at, &forward(choice), &dependencies(number, choice), self.now_ms);
        let fresh = Known { choice, packets: 0, bytes: 0, seen_ms: self.now_ms, sweeps: self.sweeps };
        match inserted {
            Inserted::Replaced => {
                let known = self.known.get_mut(&number).expect("replaced an entry that was not there");
                (known.choice, known.seen_ms, known.sweeps) = (choice, self.now_ms, self.sweeps);
            }
            Inserted::New => assert!(self.known.insert(number, fresh).is_none()),
            Inserted::Evicting => {
                assert!(self.known.insert(number, fresh).is_none());
                self.check_victim(number);
            }
            Inserted::Full => self.check_full(number),
            Inserted::Uncacheable => panic!("flow {number} is cacheable"),
        }
    }

    /// Exactly one flow of the same family went, and it was one that may give way.
    fn check_victim(&mut self, newcomer: u32) {
        let shown = flows(&self.cache, self.now_ms);
        let gone: Vec<u32> = self.known.keys().filter(|number| !shown.contains_key(number)).copied().collect();
        assert_eq!(gone.len(), 1, "{gone:?} went for {newcomer}");
        let victim = self.known.remove(&gone[0]).expect("known");
        assert_eq!(gone[0] % 2, newcomer % 2);
        assert!(victim.packets == 0 || self.now_ms.wrapping_sub(victim.seen_ms) >= limits::FLOW_RECENT_MS);
    }

    /// A refusal needs at least as many flows in use as one look examines.
    fn check_full(&self, number: u32) {
        let busy =
            |known: &&Known| known.packets > 0 && self.now_ms.wrapping_sub(known.seen_ms) < limits::FLOW_RECENT_MS;
        let family = self.known.iter().filter(|(other, _)| *other % 2 == number % 2).map(|(_, known)| known);
        assert!(family.filter(busy).count() >= 8, "refused beside few busy flows");
    }

    fn expired(&self, known: &Known) -> bool {
        self.now_ms.wrapping_sub(known.seen_ms) >= limits::FLOW_IDLE_TCP_MS
    }

    fn age(&mut self, entries: usize) {
        let before = self.known.clone();
        let removed = self.cache.age_step(entries, self.now_ms, |_, _| {});
        let shown = flows(&self.cache, self.now_ms);
        self.known.retain(|number, _| shown.contains_key(number));
        assert_eq!(before.len() - self.known.len(), removed);
        for (number, known) in &before {
            assert!(self.known.contains_key(number) || self.expired(known), "flow {number} aged out too early");
        }
    }

    fn after_sweep(&mut self, removed: usize) {
        let before = self.known.clone();
        let shown = flows(&self.cache, self.now_ms);
        self.known.retain(|number, _| shown.contains_key(number));
        assert_eq!(before.len() - self.known.len(), removed);
        for (number, known) in &before {
            let dependencies = dependencies(*number, known.choice);
            let affected = |from: usize| {
                self.changes.iter().any(|(sweep, change)| *sweep >= from && dependencies.affected_by(change))
            };
            let kept = self.known.contains_key(number);
            assert!(kept || affected(0), "flow {number} was swept for nothing");
            let stale = kept && affected(known.sweeps);
            assert!(!stale || self.cache.sweeping(), "flow {number} outlived its sweep");
        }
        if !self.cache.sweeping() {
            self.changes.clear();
        }
    }

    /// At the end: what is shown is what is known, and when all flows are gone no rewrite is left.
    ///
    /// # Panics
    /// If they disagree.
    pub fn finish(mut self) {
        let shown = flows(&self.cache, self.now_ms);
        for (number, known) in &self.known {
            let view = &shown[number];
            assert_eq!((view.packets, view.bytes), (known.packets, known.bytes));
            assert_eq!(view.idle_ms, self.now_ms.wrapping_sub(known.seen_ms));
            assert_eq!(view.key.protocol, headers(*number).protocol);
        }
        let changes = (0..3).map(|segment| Change::Segment(SegmentIndex(segment))).collect();
        self.run(Step::Sweep(changes));
        self.run(Step::SweepOn(usize::MAX));
        assert_eq!((self.cache.len(), self.cache.rewrites(), self.cache.sweeping()), (0, 0, false));
        assert!(self.cache.ipv4.buckets.iter().chain(&*self.cache.ipv6.buckets).all(|bucket| bucket.overflowed == 0));
    }
}

fn forward_key(choice: u32) -> (u8, u32) {
    (choice as u8, choice % 3)
}

/// What of a translation an entry of this flow's family keeps.
fn translation_of(number: u32, translation: Translation) -> Translation {
    let keep = |part: Option<([u8; 16], u16)>| {
        part.map(|(address, port)| {
            let mut kept = [0; 16];
            let bytes = if number.is_multiple_of(2) { 4 } else { 16 };
            kept[..bytes].copy_from_slice(&address[..bytes]);
            (kept, port)
        })
    };
    Translation { source: keep(translation.source), destination: keep(translation.destination) }
}
