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
use crate::packet::{Mac, PortIndex};
use crate::slow_path::decision::Dependencies;
use crate::tables::{Change, ChangeSet, SegmentIndex};

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
    prefixes: HashMap<SegmentIndex, Prefixes>,
    /// Networks of policies, of any segment.
    networks: Prefixes,
    peers: HashSet<IpAddr>,
    neighbours: HashSet<(PortIndex, IpAddr)>,
    stations: HashSet<(SegmentIndex, Mac)>,
    services: HashSet<u32>,
    tunnels: bool,
}

impl Index {
    fn new(changes: &[Change]) -> Self {
        let mut index = Self {
            ports: NumberSet::new(),
            segments: NumberSet::new(),
            prefixes: HashMap::new(),
            networks: Prefixes::default(),
            peers: HashSet::new(),
            neighbours: HashSet::new(),
            stations: HashSet::new(),
            services: HashSet::new(),
            tunnels: false,
        };
        for change in changes {
            match change {
                Change::Port(port) | Change::PodPolicy(port) => index.ports.insert(port.0),
                Change::Segment(segment) => index.segments.insert(segment.0),
                Change::Prefix(segment, network) => {
                    index.prefixes.entry(*segment).or_default().insert(network);
                }
                Change::Identity(segment, address) => {
                    index.prefixes.entry(*segment).or_default().insert(&IpNet::from(*address));
                }
                Change::PolicyNetwork(network) => index.networks.insert(network),
                Change::Peer(peer) => {
                    index.peers.insert(*peer);
                }
                Change::Neighbour(port, address) => {
                    index.neighbours.insert((*port, *address));
                }
                Change::Station(segment, mac) => {
                    index.stations.insert((*segment, *mac));
                }
                Change::Service(service) => {
                    index.services.insert(service.tag());
                }
                Change::Tunnels => index.tunnels = true,
            }
        }
        index.prefixes.values_mut().for_each(Prefixes::finish);
        index.networks.finish();
        index
    }

    fn affects(&self, dependencies: &Dependencies) -> bool {
        let Dependencies { ingress, egress, segment, source, destination, .. } = dependencies;
        let Dependencies { ingress_peer, egress_peer, source_mac, destination_mac, service, .. } = dependencies;
        self.ports.contains(ingress.0)
            || self.ports.contains(egress.0)
            || self.segments.contains(segment.0)
            || self.prefixes.get(segment).is_some_and(|set| set.covers(*destination) || set.covers(*source))
            || (*service != 0 && self.services.contains(service))
            || self.networks.covers(*destination)
            || self.networks.covers(*source)
            || [source_mac, destination_mac].into_iter().any(|mac| self.stations.contains(&(*segment, *mac)))
            || egress_peer.is_some_and(|neighbour| self.neighbours.contains(&(*egress, neighbour)))
            || [ingress_peer, egress_peer].into_iter().flatten().any(|peer| self.tunnels || self.peers.contains(peer))
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

/// Changed prefixes of one segment.
#[derive(Clone, Debug, Default)]
struct Prefixes {
    ipv4: Ranges<u32>,
    ipv6: Ranges<u128>,
}

impl Prefixes {
    fn insert(&mut self, network: &IpNet) {
        match network {
            IpNet::V4(network) => self.ipv4.push(network.network().to_bits(), network.broadcast().to_bits()),
            IpNet::V6(network) => self.ipv6.push(network.network().to_bits(), network.broadcast().to_bits()),
        }
    }

    fn finish(&mut self) {
        self.ipv4.unite();
        self.ipv6.unite();
    }

    fn covers(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.ipv4.covers(address.to_bits()),
            IpAddr::V6(address) => self.ipv6.covers(address.to_bits()),
        }
    }
}

/// The union of many prefixes as ranges without overlap, in order: any of them covers an address if the last range
/// that starts at or before it does. Two flat arrays; a thousand IPv4 prefixes stay in the first-level cache.
#[derive(Clone, Debug, Default)]
struct Ranges<T> {
    firsts: Vec<T>,
    lasts: Vec<T>,
}

impl<T: Ord + Copy> Ranges<T> {
    /// Adds a range; `unite` follows after the last.
    fn push(&mut self, first: T, last: T) {
        self.firsts.push(first);
        self.lasts.push(last);
    }

    fn unite(&mut self) {
        let mut ranges: Vec<(T, T)> = self.firsts.drain(..).zip(self.lasts.drain(..)).collect();
        ranges.sort_unstable();
        for (first, last) in ranges {
            match self.lasts.last_mut() {
                Some(before) if first <= *before => *before = last.max(*before),
                Some(_) | None => self.push(first, last),
            }
        }
    }

    fn covers(&self, address: T) -> bool {
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
