//! Which notices are due, by a clock that the caller has: each once, so many a minute, none forgotten without a count.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use super::{A_MINUTE, NOTICES, Notice, REFRESHED, REMEMBERED};
use crate::observe::NODE;
use crate::store::StoreError;

/// How long to wait after a server that does not answer.
const AWAY: Duration = Duration::from_secs(30);

/// What became of Events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Written, or found written by another node.
    pub written: u64,
    /// Refused by the server.
    pub refused: u64,
    /// Never written: no room, or gone before the turn came.
    pub dropped: u64,
}

/// A notice whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The notice.
    pub notice: Notice,
    /// Of one that came back: how often it has come by now.
    pub count: Option<u32>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there; `ours` if this agent wrote it and may continue it.
    Written {
        /// Whether this agent wrote it.
        ours: bool,
    },
    /// The server does not want it.
    Refused,
    /// The server does not answer: once more, later.
    Away,
}

impl Outcome {
    /// By the answer of the server.
    pub(super) fn of(answer: Result<(), StoreError>, ours: bool) -> Self {
        match answer {
            Ok(()) => Self::Written { ours },
            // Overload is no judgement.
            Err(StoreError::Unreachable { .. } | StoreError::Refused { code: 429 | 500.., .. }) => Self::Away,
            Err(_) => Self::Refused,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its turn has not come, since this moment.
    Waiting(Instant),
    /// Its Event is there, told at this moment.
    Written(Instant),
    /// Its Event is not wanted.
    Refused,
}

#[derive(Debug)]
struct Entry {
    state: State,
    /// When it was gone; `None` while it is there.
    gone: Option<Instant>,
    /// How often an Event of ours told it; 0 if there is none that may be continued.
    count: u32,
    /// It is due whether or not it is there.
    once: bool,
}

/// What was told, and what is to be.
#[derive(Debug)]
pub struct Ledger {
    entries: BTreeMap<Notice, Entry>,
    /// Hashes of notices that found no room and are still there, so that each counts once.
    beyond: HashSet<u64>,
    counts: Counts,
    /// Writes that may be made now, in thousandths.
    budget: u64,
    filled: Instant,
    not_before: Instant,
    /// How long notices of objects wait, which other nodes see too.
    stagger: Duration,
}

impl Ledger {
    /// One that knows of nothing.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let (entries, beyond, counts) = (BTreeMap::new(), HashSet::new(), Counts::default());
        Self {
            entries,
            beyond,
            counts,
            budget: u64::from(A_MINUTE) * 1000,
            filled: now,
            not_before: now,
            stagger: Duration::ZERO,
        }
    }

    /// What became of Events so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Notices whose turn has not come.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.entries.values().filter(|entry| matches!(entry.state, State::Waiting(_))).count()
    }

    /// Lets notices of objects wait so long from now on, so that nodes do not write them all at once.
    pub fn stagger(&mut self, wait: Duration) {
        self.stagger = wait;
    }

    /// Tells of what happened, whether or not it is still to be seen.
    pub fn announce(&mut self, notice: Notice, now: Instant) {
        if self.entries.len() >= NOTICES && !self.entries.contains_key(&notice) {
            self.counts.dropped += 1;
            return;
        }
        let count = self.entries.get(&notice).map_or(0, |entry| entry.count);
        self.entries.insert(notice, Entry { state: State::Waiting(now), gone: None, count, once: true });
    }

    /// Takes in everything that is there now.
    pub fn observe(&mut self, present: &BTreeSet<Notice>, now: Instant) {
        self.leave(present, now);
        let mut beyond = HashSet::new();
        for notice in present {
            if let Some(entry) = self.entries.get_mut(notice) {
                let came_back = entry.gone.take().is_some();
                if let State::Written(at) = entry.state
                    && (came_back || now.duration_since(at) >= REFRESHED)
                {
                    entry.state = State::Waiting(now);
                }
                continue;
            }
            if self.entries.len() < NOTICES {
                let entry = Entry { state: State::Waiting(now), gone: None, count: 0, once: false };
                self.entries.insert(notice.clone(), entry);
                continue;
            }
            let mut hasher = DefaultHasher::new();
            notice.hash(&mut hasher);
            let hash = hasher.finish();
            if !self.beyond.contains(&hash) && beyond.insert(hash) {
                self.counts.dropped += 1;
            }
            beyond.insert(hash);
        }
        self.beyond = beyond;
    }

    /// Notices that are gone: what was never told never will be, what was is remembered for a while. Of the node it is told
    /// all the same: a node without its uplink does not reach the server before the uplink is back.
    fn leave(&mut self, present: &BTreeSet<Notice>, now: Instant) {
        let mut resolved = Vec::new();
        let counts = &mut self.counts;
        self.entries.retain(|notice, entry| {
            if entry.once || present.contains(notice) {
                return true;
            }
            match (entry.state, entry.gone) {
                (State::Refused, _) => false,
                (State::Waiting(_), _) if notice.regarding.kind == NODE => {
                    entry.once = true;
                    resolved.extend(notice.resolved());
                    true
                }
                (State::Waiting(_), _) => {
                    counts.dropped += 1;
                    (entry.state, entry.gone) = (State::Written(now), Some(now));
                    entry.count > 0
                }
                (State::Written(_), Some(gone)) => now.duration_since(gone) < REMEMBERED,
                (State::Written(_), None) => {
                    entry.gone = Some(now);
                    resolved.extend(notice.resolved());
                    true
                }
            }
        });
        resolved.into_iter().for_each(|notice| self.announce(notice, now));
    }

    /// The notice that waits for longest, if one may be told now. It counts as one write, whatever becomes of it.
    pub fn next(&mut self, now: Instant) -> Option<Due> {
        let full = u64::from(A_MINUTE) * 1000;
        let passed = now.duration_since(self.filled).as_millis() as u64;
        let gained = passed * u64::from(A_MINUTE) / 60;
        if gained > 0 {
            (self.budget, self.filled) = ((self.budget + gained).min(full), now);
        }
        if now < self.not_before || self.budget < 1000 {
            return None;
        }
        let waiting = self.entries.iter().filter_map(|(notice, entry)| match entry.state {
            State::Waiting(since) => {
                let due = if notice.regarding.kind == NODE { since } else { since + self.stagger };
                (due <= now).then_some((due, notice, entry.count))
            }
            State::Written(_) | State::Refused => None,
        });
        let (_, notice, count) = waiting.min_by_key(|(due, ..)| *due)?;
        self.budget -= 1000;
        Some(Due { notice: notice.clone(), count: (count > 0).then_some(count + 1) })
    }

    /// Takes in what became of it.
    pub fn done(&mut self, due: &Due, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(&due.notice) else { return };
        match outcome {
            Outcome::Written { ours } => {
                self.counts.written += 1;
                entry.state = State::Written(now);
                entry.count = if ours { due.count.unwrap_or(1) } else { 0 };
            }
            Outcome::Refused => {
                self.counts.refused += 1;
                entry.state = State::Refused;
            }
            Outcome::Away => {
                self.not_before = now + AWAY;
                return;
            }
        }
        if entry.once {
            // It is remembered like what is gone.
            (entry.once, entry.gone) = (false, Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Severity;
    use crate::observe::IP_POOL;
    use crate::store::{Kind, ObjectKey};

    fn notice_of(kind: Kind, number: usize) -> Notice {
        let regarding = ObjectKey::cluster_scoped(kind, "x");
        Notice { regarding, severity: Severity::Warning, reason: "Wrong".into(), note: format!("number {number}") }
    }

    fn notice(number: usize) -> Notice {
        notice_of(IP_POOL, number)
    }

    const OURS: Outcome = Outcome::Written { ours: true };

    #[test]
    fn each_is_told_once_until_it_goes_and_comes_back() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (mut ledger, present) = (Ledger::new(start), BTreeSet::from([notice(1)]));
        ledger.observe(&present, start);
        let due = ledger.next(start).expect("due");
        assert_eq!(due, Due { notice: notice(1), count: None });
        ledger.done(&due, OURS, start);
        for second in 1..100 {
            ledger.observe(&present, at(second));
            assert_eq!(ledger.next(at(second)), None);
        }
        ledger.observe(&BTreeSet::new(), at(100));
        ledger.observe(&present, at(101));
        let again = ledger.next(at(101)).expect("due");
        assert_eq!(again.count, Some(2));
        ledger.done(&again, OURS, at(101));
        // One that another node has told is not continued but tried anew, and one that was forgotten is new.
        ledger.observe(&BTreeSet::new(), at(110));
        ledger.observe(&BTreeSet::new(), at(110) + REMEMBERED);
        ledger.observe(&present, at(111) + REMEMBERED);
        let anew = ledger.next(at(111) + REMEMBERED).expect("due");
        assert_eq!(anew.count, None);
        ledger.done(&anew, Outcome::Written { ours: false }, at(111) + REMEMBERED);
        ledger.observe(&BTreeSet::new(), at(112) + REMEMBERED);
        ledger.observe(&present, at(113) + REMEMBERED);
        assert_eq!(ledger.next(at(113) + REMEMBERED).expect("due").count, None);
        assert_eq!(ledger.counts(), Counts { written: 3, refused: 0, dropped: 0 });
    }

    #[test]
    fn what_lasts_is_told_again_before_the_server_forgets_it() {
        let start = Instant::now();
        let (mut ledger, present) = (Ledger::new(start), BTreeSet::from([notice(1), notice(2)]));
        let tell = |ledger: &mut Ledger, now, outcomes: [Outcome; 2]| {
            ledger.observe(&present, now);
            outcomes.map(|outcome| {
                let due = ledger.next(now)?;
                ledger.done(&due, outcome, now);
                Some((due.notice, due.count))
            })
        };
        // The second one is written by another node, which may not be there any more when its Event ends.
        let both = [OURS, Outcome::Written { ours: false }];
        assert_eq!(tell(&mut ledger, start, both), [Some((notice(1), None)), Some((notice(2), None))]);
        let almost = start + REFRESHED - Duration::from_secs(1);
        assert_eq!(tell(&mut ledger, almost, both), [None, None]);
        let first = start + REFRESHED;
        assert_eq!(tell(&mut ledger, first, both), [Some((notice(1), Some(2))), Some((notice(2), None))]);
        let second = first + REFRESHED;
        assert_eq!(tell(&mut ledger, second, both), [Some((notice(1), Some(3))), Some((notice(2), None))]);
        // What has gone is told no more.
        ledger.observe(&BTreeSet::new(), second);
        ledger.observe(&BTreeSet::new(), second + REFRESHED);
        assert_eq!(ledger.next(second + REFRESHED), None);
    }

    #[test]
    fn a_flood_costs_so_many_a_minute_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let flood: BTreeSet<Notice> = (0..NOTICES + 500).map(notice).collect();
        let mut told = 0;
        for second in 0..180 {
            let now = start + Duration::from_secs(second);
            ledger.observe(&flood, now);
            while let Some(due) = ledger.next(now) {
                ledger.done(&due, OURS, now);
                told += 1;
            }
        }
        // The first minute's budget and what three minutes add.
        assert!((A_MINUTE * 3..=A_MINUTE * 4).contains(&told), "{told}");
        assert_eq!(ledger.counts(), Counts { written: u64::from(told), refused: 0, dropped: 500 });
        assert_eq!(ledger.waiting(), NOTICES - told as usize);
        ledger.observe(&BTreeSet::new(), start + Duration::from_secs(181));
        assert_eq!(ledger.counts().dropped, (NOTICES + 500 - told as usize) as u64, "gone before their turn");
        assert_eq!(ledger.waiting(), 0);
    }

    #[test]
    fn a_server_that_refuses_is_not_asked_again_and_one_that_is_away_is_later() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.announce(notice(0), start);
        let present = BTreeSet::from([notice(1)]);
        ledger.observe(&present, start + Duration::from_secs(1));
        let first = ledger.next(start + Duration::from_secs(1)).expect("due");
        assert_eq!(first.notice, notice(0), "the oldest");
        ledger.done(&first, Outcome::Away, start + Duration::from_secs(1));
        assert_eq!(ledger.next(start + Duration::from_secs(2)), None);
        let later = start + Duration::from_secs(1) + AWAY;
        let first = ledger.next(later).expect("due");
        ledger.done(&first, OURS, later);
        let second = ledger.next(later).expect("due");
        ledger.done(&second, Outcome::Refused, later);
        ledger.observe(&present, later);
        assert_eq!((ledger.next(later), ledger.counts()), (None, Counts { written: 1, refused: 1, dropped: 0 }));
    }

    #[test]
    fn what_all_nodes_see_is_written_one_after_the_other() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.stagger(Duration::from_secs(7));
        ledger.observe(&BTreeSet::from([notice(1), notice_of(NODE, 2)]), start);
        assert_eq!(ledger.next(start).map(|due| due.notice), Some(notice_of(NODE, 2)));
        ledger.done(&Due { notice: notice_of(NODE, 2), count: None }, OURS, start);
        assert_eq!(ledger.next(start + Duration::from_secs(6)), None);
        assert_eq!(ledger.next(start + Duration::from_secs(7)).map(|due| due.notice), Some(notice(1)));
    }

    #[test]
    fn of_a_node_it_is_told_that_a_problem_has_gone() {
        let start = Instant::now();
        let (mut ledger, problem) = (Ledger::new(start), notice_of(NODE, 1));
        ledger.observe(&BTreeSet::from([problem.clone()]), start);
        let due = ledger.next(start).expect("due");
        ledger.done(&due, OURS, start);
        ledger.observe(&BTreeSet::new(), start);
        let resolved = ledger.next(start).expect("due");
        assert_eq!(Some(resolved.notice.clone()), problem.resolved());
        ledger.done(&resolved, OURS, start);
        ledger.observe(&BTreeSet::new(), start);
        assert_eq!(ledger.next(start), None);
        // The second time it was gone before the server could be reached.
        let later = start + Duration::from_secs(60);
        ledger.observe(&BTreeSet::from([problem.clone()]), later);
        let due = ledger.next(later).expect("due");
        ledger.done(&due, Outcome::Away, later);
        ledger.observe(&BTreeSet::new(), later + Duration::from_secs(1));
        let back = later + AWAY;
        for notice in [problem.clone(), problem.resolved().expect("told")] {
            let due = ledger.next(back).expect("due");
            assert_eq!((&due.notice, due.count), (&notice, Some(2)));
            ledger.done(&due, OURS, back);
        }
        assert_eq!((ledger.next(back), ledger.counts().dropped), (None, 0));
    }
}
