//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// A 48-bit Ethernet address, in transmission order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// 00:00:00:00:00:00, which no station has.
    pub const ZERO: Mac = Mac([0; 6]);

    /// The address in the first six bytes of `bytes`; zero if there are fewer.
    #[inline]
    #[must_use]
    pub fn read(bytes: &[u8]) -> Mac {
        bytes.first_chunk().copied().map_or(Mac::ZERO, Mac)
    }

    /// Whether the group bit is set (IEEE 802 section 8.2): multicast and broadcast.
    #[inline]
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// That a text is not six colon-separated hexadecimal bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address such as 02:00:5e:10:00:01")]
pub struct MacSyntax(String);

impl FromStr for Mac {
    type Err = MacSyntax;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || MacSyntax(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        if parts.next().is_some() { Err(refused()) } else { Ok(Mac(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        let mac: Mac = "02:00:5e:10:00:01".parse().expect("mac");
        assert_eq!(mac.to_string(), "02:00:5e:10:00:01");
        for wrong in ["", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "02:00:5e:10:00:0g", "2:0:5e:10:0:1"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
