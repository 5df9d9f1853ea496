//! Ports that the host's kernel gives no socket that asks for any (`net.ipv4.ip_local_reserved_ports`, for both families;
//! Documentation/networking/ip-sysctl.rst). A socket that names such a port gets it all the same.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The setting, below `/proc/sys/net`.
pub const SETTING: &str = "ipv4/ip_local_reserved_ports";

/// A set of ports as that setting writes it: `8080,9000-9100`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservedPorts(BTreeSet<u16>);

impl ReservedPorts {
    /// Reads the setting's text; what is no port is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut ports = BTreeSet::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
                ports.extend(first..=last);
            }
        }
        Self(ports)
    }

    /// The ports from `first` to `last`.
    #[must_use]
    pub fn range(first: u16, last: u16) -> Self {
        Self((first..=last).collect())
    }

    /// These ports and those of `other`.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// These ports without those of `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for ReservedPorts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        let mut ports = self.0.iter().copied().peekable();
        while let Some(first) = ports.next() {
            let mut last = first;
            while let Some(next) = ports.next_if(|next| Some(*next) == last.checked_add(1)) {
                last = next;
            }
            let separator = if text.is_empty() { "" } else { "," };
            let range = if first == last { String::new() } else { format!("-{last}") };
            write!(text, "{separator}{first}{range}")?;
        }
        formatter.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_the_kernel_does() {
        for text in ["", "8080", "8080,9000-9100", "1-2,65535", "49152-65535"] {
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
