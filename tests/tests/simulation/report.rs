//! What a run tells of itself: a log with a hash, and the figures that are added up over seeds.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// Lines kept for who reads of a failure.
const LINES: usize = 60;

/// What happened, in order; all of it in the hash, the last lines in words.
#[derive(Clone, Debug)]
pub(crate) struct EventLog {
    hash: u64,
    lines: VecDeque<String>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: VecDeque::new() }
    }
}

impl EventLog {
    /// FNV-1a.
    pub(crate) fn hash_in(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn note(&mut self, now: usize, text: &str) {
        let line = format!("{now:>5} {text}");
        self.hash_in(line.as_bytes());
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Display for EventLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(formatter, "    {line}"))
    }
}

/// Figures of one seed, or of several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Changes and faults by kind.
    pub(crate) events: BTreeMap<&'static str, u64>,
    pub(crate) packets: u64,
    pub(crate) deliveries: u64,
    /// Packets that switches dropped since policies deny them.
    pub(crate) denials: u64,
    pub(crate) questions: u64,
    pub(crate) conversations_begun: u64,
    pub(crate) established: u64,
    pub(crate) survived: u64,
    /// Established ones that ended for a reason that the objects give.
    pub(crate) excused: u64,
    pub(crate) probes: u64,
    /// Virtual milliseconds from the end of the last fault, one for each seed.
    pub(crate) convergence: Vec<usize>,
}

impl Figures {
    pub(crate) fn count(&mut self, event: &'static str) {
        *self.events.entry(event).or_insert(0) += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (event, count) in &other.events {
            *self.events.entry(event).or_insert(0) += count;
        }
        self.packets += other.packets;
        self.deliveries += other.deliveries;
        self.denials += other.denials;
        self.questions += other.questions;
        self.conversations_begun += other.conversations_begun;
        self.established += other.established;
        self.survived += other.survived;
        self.excused += other.excused;
        self.probes += other.probes;
        self.convergence.extend(&other.convergence);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.convergence.clone();
        times.sort_unstable();
        let (median, longest) = (times.get(times.len() / 2).copied(), times.last().copied());
        writeln!(formatter, "| what | count |\n|---|---|\n| seeds | {} |", times.len())?;
        for (event, count) in &self.events {
            writeln!(formatter, "| {event} | {count} |")?;
        }
        let rows = [
            ("packets sent by pods", self.packets),
            ("packets delivered to pods", self.deliveries),
            ("packets denied by policies", self.denials),
            ("questions to the oracle", self.questions),
            ("probes after the faults", self.probes),
            ("conversations begun", self.conversations_begun),
            ("conversations established", self.established),
            ("conversations survived to the end", self.survived),
            ("conversations ended by objects, pods or clocks", self.excused),
        ];
        rows.iter().try_for_each(|(name, count)| writeln!(formatter, "| {name} | {count} |"))?;
        writeln!(formatter, "| convergence, median ms | {} |", median.unwrap_or_default())?;
        writeln!(formatter, "| convergence, longest ms | {} |", longest.unwrap_or_default())
    }
}
