//! Where a worker's time goes: cycles by kind of work and by port.
//!
//! One turn of [`SAMPLED_TURNS`] is measured; the others pay a test of one flag at each lap. Reading the time-stamp
//! counter takes some 25 cycles, so a measured turn costs about 250 cycles more and all turns together some eight each: a
//! third of a percent of a turn with one full vector in the cheapest case (2,500 cycles), less of any other. The number is
//! prime, so that it keeps no step with what happens every so many turns.
//!
//! Sums of single-writer counts, see `counters.rs`; dividing them is the reader's. On other processors than x86-64 the
//! unit is a nanosecond.
#![allow(unsafe_code)]

use crate::counters::Count;

/// One turn of so many is measured.
pub const SAMPLED_TURNS: u32 = 31;

/// What a worker spends cycles on, in the order of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Work {
    /// Taking packets from ports and lanes.
    Receive,
    /// Parsing them.
    Read,
    /// Looking their flows up.
    LookUp,
    /// Editing the packets that the flow cache serves.
    Edit,
    /// Moving them to the lists of their ports; cutting units.
    Send,
    /// Deciding the others and carrying the decisions out.
    Decide,
    /// Joining, and handing lists to ports.
    Transmit,
    /// Time, commands, tables, sweeps and ageing.
    Housekeeping,
}

impl Work {
    /// All of them, in order of their number.
    pub const ALL: [Work; 8] = [
        Work::Receive,
        Work::Read,
        Work::LookUp,
        Work::Edit,
        Work::Send,
        Work::Decide,
        Work::Transmit,
        Work::Housekeeping,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Work::Receive => "receive",
            Work::Read => "read",
            Work::LookUp => "look_up",
            Work::Edit => "edit",
            Work::Send => "send",
            Work::Decide => "decide",
            Work::Transmit => "transmit",
            Work::Housekeeping => "housekeeping",
        }
    }
}

/// What was measured of one worker. Turns without a packet are kept apart: they are waiting, not work.
#[derive(Debug, Default)]
pub struct CycleCounts {
    work: [Count; Work::ALL.len()],
    /// Cycles of measured turns that moved nothing.
    pub idle: Count,
    /// Measured turns that moved packets.
    pub turns: Count,
    /// Vectors of those turns.
    pub vectors: Count,
    /// Packets of those vectors.
    pub packets: Count,
}

impl CycleCounts {
    /// Cycles spent on one kind of work.
    #[inline]
    #[must_use]
    pub fn of(&self, work: Work) -> &Count {
        &self.work[work as usize]
    }
}

/// A worker's stopwatch: each lap goes to one kind of work.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    turn: u32,
    measuring: bool,
    last: u64,
    laps: [u64; Work::ALL.len()],
    vectors: u64,
    packets: u64,
}

impl Stopwatch {
    /// A turn begins.
    #[inline]
    pub(crate) fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.measuring = self.turn.is_multiple_of(SAMPLED_TURNS);
        if self.measuring {
            self.last = now();
        }
    }

    /// What was done since the last lap was this.
    #[inline]
    pub(crate) fn lap(&mut self, work: Work) {
        if self.measuring {
            let now = now();
            self.laps[work as usize] += now.wrapping_sub(self.last);
            self.last = now;
        }
    }

    /// Cycles of the laps of this turn so far; 0 if it is not measured.
    #[inline]
    pub(crate) fn so_far(&self) -> u64 {
        if self.measuring { self.laps.iter().sum() } else { 0 }
    }

    /// A vector of so many packets was forwarded. True if there were any and they were measured.
    #[inline]
    pub(crate) fn count_vector(&mut self, packets: usize) -> bool {
        if !self.measuring || packets == 0 {
            return false;
        }
        self.vectors += 1;
        self.packets += packets as u64;
        true
    }

    /// The turn is over.
    #[inline]
    pub(crate) fn end_turn(&mut self, counts: &CycleCounts) {
        if self.measuring {
            self.write(counts);
        }
    }

    #[cold]
    fn write(&mut self, counts: &CycleCounts) {
        if self.packets == 0 {
            counts.idle.add(self.laps.iter().sum());
        } else {
            counts.work.iter().zip(&self.laps).for_each(|(count, lap)| count.add(*lap));
            counts.turns.add(1);
            counts.vectors.add(self.vectors);
            counts.packets.add(self.packets);
        }
        (self.laps, self.vectors, self.packets) = Default::default();
    }
}

/// The time-stamp counter. Not fenced: what it tells is a sum over many turns.
#[inline]
fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the counter, and Linux lets user space read it.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_turn_of_thirty_one_is_measured_and_idle_ones_are_kept_apart() {
        let (mut watch, counts) = (Stopwatch::default(), CycleCounts::default());
        for turn in 1..=10 * SAMPLED_TURNS {
            watch.begin_turn();
            watch.lap(Work::Receive);
            let busy = turn > 5 * SAMPLED_TURNS;
            if busy {
                assert_eq!(watch.count_vector(7), turn.is_multiple_of(SAMPLED_TURNS));
                watch.lap(Work::Edit);
            }
            watch.end_turn(&counts);
        }
        assert_eq!((counts.turns.get(), counts.vectors.get(), counts.packets.get()), (5, 5, 35));
        assert!(counts.idle.get() > 0 && counts.of(Work::Edit).get() > 0);
        assert_eq!(counts.of(Work::Decide).get(), 0);
    }
}
