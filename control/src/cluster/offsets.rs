//! A set of places in a block, counted from its first address, written as ranges: `3,16-63`.
//!
//! Blocks have at most 65,536 addresses, and what is told of them is mostly one range, so ranges cost a few bytes
//! where a list would cost kilobytes in every object.

use std::fmt;
use std::str::FromStr;

/// The set. Ranges are sorted, do not touch and are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets(Vec<(u16, u16)>);

/// A text is no such set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of places such as 3,16-63")]
pub struct OffsetsError(String);

impl Offsets {
    /// All places from `first` to `last`; none if `last` is less.
    #[must_use]
    pub fn range(first: u16, last: u16) -> Self {
        Self(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.iter().map(|(first, last)| usize::from(last - first) + 1).sum()
    }

    /// Whether this one is there.
    #[must_use]
    pub fn has(&self, offset: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&offset))
    }

    /// All of them, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u16> {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// Adds one; no change if it is there.
    pub fn insert(&mut self, offset: u16) {
        if self.has(offset) {
            return;
        }
        let at = self.0.partition_point(|(first, _)| *first < offset);
        self.0.insert(at, (offset, offset));
        let touching = |before: (u16, u16), after: (u16, u16)| before.1 + 1 == after.0;
        if at + 1 < self.0.len() && touching(self.0[at], self.0[at + 1]) {
            self.0[at].1 = self.0.remove(at + 1).1;
        }
        if at > 0 && touching(self.0[at - 1], self.0[at]) {
            self.0[at - 1].1 = self.0.remove(at).1;
        }
    }

    /// Takes one out; whether it was there.
    pub fn remove(&mut self, offset: u16) -> bool {
        let Some(at) = self.0.iter().position(|(first, last)| (*first..=*last).contains(&offset)) else { return false };
        let (first, last) = self.0.remove(at);
        if offset < last {
            self.0.insert(at, (offset + 1, last));
        }
        if first < offset {
            self.0.insert(at, (first, offset - 1));
        }
        true
    }
}

impl fmt::Display for Offsets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (first, last)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            if first == last {
                write!(formatter, "{comma}{first}")?;
            } else {
                write!(formatter, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Offsets {
    type Err = OffsetsError;

    fn from_str(text: &str) -> Result<Self, OffsetsError> {
        let refused = || OffsetsError(text.to_owned());
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u16>().map_err(|_| refused());
            let range = (number(first)?, number(last)?);
            let behind = ranges.last().is_none_or(|before| u32::from(before.1) + 1 < u32::from(range.0));
            if range.0 > range.1 || !behind {
                return Err(refused());
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_set_is_what_a_plain_set_is_and_reads_back_as_written() {
        let (mut offsets, mut plain, mut seed) = (Offsets::default(), BTreeSet::new(), 7u32);
        for _ in 0..5_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let offset = (seed >> 20) as u16 % 70;
            if seed & 0x8000 == 0 {
                offsets.insert(offset);
                plain.insert(offset);
            } else {
                assert_eq!(offsets.remove(offset), plain.remove(&offset));
            }
            assert_eq!(offsets.iter().collect::<Vec<_>>(), plain.iter().copied().collect::<Vec<_>>());
            assert_eq!((offsets.count(), offsets.is_empty()), (plain.len(), plain.is_empty()));
            assert_eq!(offsets.to_string().parse(), Ok(offsets.clone()));
        }
    }

    #[test]
    fn lists_that_are_not_sorted_or_not_numbers_are_refused() {
        for wrong in ["-", "5-3", "1,1", "1-4,4", "1,2", "65536", "a", "1,", "1 - 2"] {
            assert!(wrong.parse::<Offsets>().is_err(), "{wrong}");
        }
        assert_eq!("0,2-4,65535".parse::<Offsets>().map(|offsets| offsets.count()), Ok(5));
    }
}
