//! Ports that the host's kernel gives no socket that asks for any (`net.ipv4.ip_local_reserved_ports`, for both families;
//! Documentation/networking/ip-sysctl.rst). A socket that names such a port gets it all the same.

use std::fmt;

/// The setting, below `/proc/sys/net`.
pub const SETTING: &str = "ipv4/ip_local_reserved_ports";

/// Ports there are.
const PORTS: u32 = 1 << 16;
const WORD_BITS: u32 = u64::BITS;

/// A set of ports as that setting writes it: `8080,9000-9100`. A bit for each, since the setting is looked at every second and
/// the range of masquerade alone has 16,384.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedPorts(Box<[u64]>);

impl Default for ReservedPorts {
    fn default() -> Self {
        Self(vec![0; (PORTS / WORD_BITS) as usize].into())
    }
}

impl ReservedPorts {
    /// Reads the setting's text; what is no port is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut ports = Self::default();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse()) {
                ports.insert(first, last);
            }
        }
        ports
    }

    /// The ports from `first` to `last`.
    #[must_use]
    pub fn range(first: u16, last: u16) -> Self {
        let mut ports = Self::default();
        ports.insert(first, last);
        ports
    }

    fn insert(&mut self, first: u16, last: u16) {
        let (first, last) = (u32::from(first), u32::from(last));
        for (number, word) in (0..).zip(&mut self.0) {
            let (low, high) = (number * WORD_BITS, number * WORD_BITS + WORD_BITS - 1);
            if first <= high && low <= last {
                let (from, to) = (first.max(low) - low, last.min(high) - low);
                *word |= u64::MAX << from & u64::MAX >> (WORD_BITS - 1 - to);
            }
        }
    }

    /// These ports and those of `other`.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        self.combined(other, |own, other| own | other)
    }

    /// These ports without those of `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.combined(other, |own, other| own & !other)
    }

    fn combined(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(own, other)| combine(*own, *other)).collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first port from `from` on that is in the set, or is not.
    fn next(&self, from: u32, reserved: bool) -> Option<u32> {
        let mut mask = u64::MAX << (from % WORD_BITS);
        for (number, word) in (0..).zip(&self.0).skip((from / WORD_BITS) as usize) {
            let found = (if reserved { *word } else { !*word }) & mask;
            if found != 0 {
                return Some(number * WORD_BITS + found.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }
}

impl fmt::Display for ReservedPorts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut from, mut separator) = (0, "");
        while let Some(first) = self.next(from, true) {
            from = self.next(first, false).unwrap_or(PORTS);
            write!(formatter, "{separator}{first}")?;
            if from - first > 1 {
                write!(formatter, "-{}", from - 1)?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_the_kernel_does() {
        for text in ["", "8080", "8080,9000-9100", "1-2,65535", "49152-65535", "0-65535", "0,63-64,127"] {
            assert_eq!(ReservedPorts::parse(&format!("{text}\n")).to_string(), text);
        }
        assert_eq!(ReservedPorts::parse("x,7-y,9").to_string(), "9");
    }

    #[test]
    fn what_stood_there_stays() {
        let (before, own) = (ReservedPorts::parse("8080,49150-49160"), ReservedPorts::range(49_152, 65_535));
        let merged = before.with(&own);
        assert_eq!(merged.to_string(), "8080,49150-65535");
        assert_eq!(merged.without(&own.without(&before)), before);
    }
}
