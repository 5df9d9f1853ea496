//! The underlay: links between all nodes that lose, delay, reorder and repeat frames, and that may be cut either way.
//!
//! The ledger counts each frame that nodes gave to it: carried + repeated = arrived + lost + cut + under way.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::port::memory::WireFrame;
use millrace_tests::random::Random;

use crate::mutation::Mutation;

/// How links are at present.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Frames lost, in a thousand.
    pub(crate) loss: usize,
    /// Frames that come twice, in a thousand.
    pub(crate) repeats: usize,
    /// Longest delay in ticks; each frame has its own, so that they overtake each other.
    pub(crate) delay: usize,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss: 0, repeats: 0, delay: 1 };
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) carried: u64,
    pub(crate) repeated: u64,
    pub(crate) arrived: u64,
    pub(crate) lost: u64,
    pub(crate) cut: u64,
}

/// All links.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    pub(crate) ledger: Ledger,
    /// Ways that are cut: from, to.
    cut: BTreeSet<(usize, usize)>,
    under_way: BTreeMap<(usize, u64), (usize, WireFrame)>,
    next: u64,
    mutation: Mutation,
}

impl Network {
    pub(crate) fn new(mutation: Mutation) -> Self {
        let (cut, under_way) = (BTreeSet::new(), BTreeMap::new());
        Self { weather: Weather::FAIR, ledger: Ledger::default(), cut, under_way, next: 0, mutation }
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        self.cut.remove(&(from, to));
    }

    pub(crate) fn mend_all(&mut self) {
        self.cut.clear();
        self.weather = Weather::FAIR;
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Takes a frame from one node to another.
    pub(crate) fn carry(&mut self, random: &mut Random, now: usize, (from, to): (usize, usize), frame: WireFrame) {
        self.ledger.carried += 1;
        if self.mutation == Mutation::UncountedLoss && random.per_mille(20) {
            return;
        }
        if self.cut.contains(&(from, to)) {
            self.ledger.cut += 1;
            return;
        }
        if random.per_mille(self.weather.loss) {
            self.ledger.lost += 1;
            return;
        }
        if random.per_mille(self.weather.repeats) {
            self.ledger.repeated += 1;
            self.send(random, now, to, frame.clone());
        }
        self.send(random, now, to, frame);
    }

    fn send(&mut self, random: &mut Random, now: usize, to: usize, frame: WireFrame) {
        let at = now + 1 + random.below(self.weather.delay);
        self.next += 1;
        self.under_way.insert((at, self.next), (to, frame));
    }

    /// Frames that arrive now, with the node each arrives at.
    pub(crate) fn arrivals(&mut self, now: usize) -> Vec<(usize, WireFrame)> {
        let later = self.under_way.split_off(&(now + 1, 0));
        let arrived: Vec<_> = std::mem::replace(&mut self.under_way, later).into_values().collect();
        self.ledger.arrived += arrived.len() as u64;
        arrived
    }

    /// Frames that no entry of the ledger accounts for.
    pub(crate) fn unaccounted(&self) -> i64 {
        let Ledger { carried, repeated, arrived, lost, cut } = self.ledger;
        (carried + repeated) as i64 - (arrived + lost + cut) as i64 - self.under_way.len() as i64
    }
}
