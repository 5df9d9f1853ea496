//! What a publish removes from the cache: flows that rest on what changed, and only those.
//!
//! The control thread makes a [`SweepPlan`] of a change set once, for all workers. A worker begins the sweep when
//! it first uses the new generation, before any packet of that turn, and goes over its entries in bounded steps.
//! Until a step reaches it, an entry serves the decision of the generation before; at [`limits::SWEEP_STEP`] entries
//! a turn a full cache is done in fewer than 10 ms. A flow decided after the sweep began is right already; to sweep
//! it again is only waste.
//!
//! Several publishes may be under way at once. Each plan goes once round, from where the walk was when it began;
//! every entry is tested against all plans under way. With more than [`limits::SWEEPS`], the plans under way are
//! finished on the spot: a stall of a few milliseconds, rather than a stale decision.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use crate::limits;
use crate::packet::Mac;
use crate::slow_path::decision::Dependencies;
use crate::tables::{Change, ChangeSet, SegmentIndex, address_bits};

/// A change set made ready for testing many entries against it.
#[derive(Clone, Debug)]
pub struct SweepPlan {
    generation: u64,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    /// Few changes: one after the other.
    Linear(Vec<Change>),
    /// Many: one look for each kind.
    Indexed(Box<Index>),
}

impl SweepPlan {
    /// The plan for `changes`. Allocates; made by whoever publishes, off the packet threads.
    #[must_use]
    pub fn new(changes: &ChangeSet) -> Self {
        let test = if changes.changes.len() <= limits::CHANGES_LINEAR {
            Test::Linear(changes.changes.clone())
        } else {
            Test::Indexed(Box::new(Index::new(&changes.changes)))
        };
        Self { generation: changes.generation, test }
    }

    /// Generation that the changes lead to.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(&self.test, Test::Linear(changes) if changes.is_empty())
    }

    /// Whether a decision that rests on `dependencies` has to be made again.
    #[must_use]
    pub fn affects(&self, dependencies: &Dependencies) -> bool {
        match &self.test {
            Test::Linear(changes) => changes.iter().any(|change| dependencies.affected_by(change)),
            Test::Indexed(index) => index.affects(dependencies),
        }
    }
}

/// Many changes by kind.
#[derive(Clone, Debug)]
struct Index {
    ports: NumberSet,
    segments: NumberSet,
    prefixes: HashMap<(SegmentIndex, bool), Ranges>,
    peers: HashSet<IpAddr>,
    stations: HashSet<(SegmentIndex, Mac)>,
    tunnels: bool,
}

impl Index {
    fn new(changes: &[Change]) -> Self {
        let mut index = Self {
            ports: NumberSet::new(),
            segments: NumberSet::new(),
            prefixes: HashMap::new(),
            peers: HashSet::new(),
            stations: HashSet::new(),
            tunnels: false,
        };
        let mut ranges: HashMap<(SegmentIndex, bool), Vec<(u128, u128)>> = HashMap::new();
        for change in changes {
            match change {
                Change::Port(port) => index.ports.insert(port.0),
                Change::Segment(segment) => index.segments.insert(segment.0),
                Change::Prefix(segment, network) => {
                    ranges.entry((*segment, network.addr().is_ipv6())).or_default().push(range(network));
                }
                Change::Peer(peer) => {
                    index.peers.insert(*peer);
                }
                Change::Station(segment, mac) => {
                    index.stations.insert((*segment, *mac));
                }
                Change::Tunnels => index.tunnels = true,
            }
        }
        index.prefixes = ranges.into_iter().map(|(place, ranges)| (place, Ranges::new(ranges))).collect();
        index
    }

    fn affects(&self, dependencies: &Dependencies) -> bool {
        let Dependencies { ingress, egress, segment, source, destination, .. } = dependencies;
        let Dependencies { ingress_peer, egress_peer, source_mac, destination_mac, .. } = dependencies;
        self.ports.contains(ingress.0)
            || self.ports.contains(egress.0)
            || self.segments.contains(segment.0)
            || self.covers(*segment, *destination)
            || self.covers(*segment, *source)
            || [source_mac, destination_mac].into_iter().any(|mac| self.stations.contains(&(*segment, *mac)))
            || [ingress_peer, egress_peer].into_iter().flatten().any(|peer| self.tunnels || self.peers.contains(peer))
    }

    fn covers(&self, segment: SegmentIndex, address: IpAddr) -> bool {
        !self.prefixes.is_empty()
            && self
                .prefixes
                .get(&(segment, address.is_ipv6()))
                .is_some_and(|ranges| ranges.covers(address_bits(address)))
    }
}

/// A set of 16-bit numbers: 8 KiB of bits.
#[derive(Clone, Debug)]
struct NumberSet(Box<[u64]>);

impl NumberSet {
    fn new() -> Self {
        Self(vec![0; 1024].into_boxed_slice())
    }

    fn insert(&mut self, number: u16) {
        self.0[number as usize / 64] |= 1 << (number % 64);
    }

    fn contains(&self, number: u16) -> bool {
        self.0[number as usize / 64] >> (number % 64) & 1 != 0
    }
}

/// First and last address of a prefix, as [`address_bits`].
fn range(network: &IpNet) -> (u128, u128) {
    let first = address_bits(network.network());
    let length = u32::from(network.prefix_len());
    (first, first | u128::MAX.checked_shr(length).unwrap_or(0))
}

/// The union of many prefixes as ranges without overlap, in order: any of them covers an address if the last range
/// that starts at or before it does.
#[derive(Clone, Debug)]
struct Ranges {
    firsts: Vec<u128>,
    lasts: Vec<u128>,
}

impl Ranges {
    fn new(mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut union = Self { firsts: Vec::with_capacity(ranges.len()), lasts: Vec::with_capacity(ranges.len()) };
        for (first, last) in ranges {
            match union.lasts.last_mut() {
                Some(before) if first <= *before => *before = last.max(*before),
                Some(_) | None => {
                    union.firsts.push(first);
                    union.lasts.push(last);
                }
            }
        }
        union
    }

    fn covers(&self, address: u128) -> bool {
        let behind = self.firsts.partition_point(|first| *first <= address);
        behind.checked_sub(1).and_then(|at| self.lasts.get(at)).is_some_and(|last| address <= *last)
    }
}

/// One plan under way.
pub(super) struct Running {
    plan: Arc<SweepPlan>,
    /// Entries the walk has still to pass for this plan.
    remaining: usize,
}

/// The plans under way and where the walk is.
pub(super) struct Sweeps {
    running: Vec<Running>,
    /// Entry the walk comes to next, over both tables: IPv4 first.
    pub(super) position: usize,
}

impl Sweeps {
    /// None under way.
    pub(super) fn new() -> Self {
        Self { running: Vec::with_capacity(limits::SWEEPS), position: 0 }
    }

    /// Whether no plan can be added.
    pub(super) fn is_full(&self) -> bool {
        self.running.len() >= limits::SWEEPS
    }

    /// Adds a plan that goes over `entries`.
    pub(super) fn push(&mut self, plan: Arc<SweepPlan>, entries: usize) {
        self.running.push(Running { plan, remaining: entries });
    }

    /// Entries the walk has to pass until every plan is done.
    pub(super) fn remaining(&self) -> usize {
        self.running.iter().map(|running| running.remaining).max().unwrap_or(0)
    }

    /// Whether any plan under way affects a decision that rests on `dependencies`.
    pub(super) fn affect(&self, dependencies: &Dependencies) -> bool {
        self.running.iter().any(|running| running.plan.affects(dependencies))
    }

    /// Moves the walk on by `entries`, of `capacity` in all; forgets the plans that are done.
    pub(super) fn advance(&mut self, entries: usize, capacity: usize) {
        self.position = (self.position + entries) % capacity;
        for running in &mut self.running {
            running.remaining = running.remaining.saturating_sub(entries);
        }
        self.running.retain(|running| running.remaining > 0);
    }
}
