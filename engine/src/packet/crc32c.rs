//! CRC32c (Castagnoli), the checksum of SCTP (RFC 9260 appendix A).
//!
//! With SSE4.2 eight bytes an instruction, otherwise a table of 1 KiB, a byte at a time. Needed only where the switch
//! changes the ports of an SCTP packet or completes a partial one, so it is not among the vector kernels.
//! Runs on workers.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use crate::processor::{self, Feature};

const POLYNOMIAL_REFLECTED: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (POLYNOMIAL_REFLECTED & (value & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = value;
        byte += 1;
    }
    table
};

/// A CRC that is being computed over the parts of a packet, in order.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// The CRC of nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(u32::MAX)
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        if processor::has(Feature::Sse42) {
            // SAFETY: the processor has SSE4.2: it was asked in the line above.
            self.0 = unsafe { update_sse42(self.0, bytes) };
            return;
        }
        self.0 = update_table(self.0, bytes);
    }

    /// The CRC as a number.
    #[must_use]
    pub const fn value(self) -> u32 {
        !self.0
    }

    /// The CRC as SCTP's checksum field carries it: least significant byte first.
    #[must_use]
    pub const fn field(self) -> [u8; 4] {
        self.value().to_le_bytes()
    }
}

/// What the CRC of a packet changes by (exclusive or) when two of its bytes change by `difference` (exclusive or) and
/// `following` bytes stand behind them: the CRC is linear, so those bytes may be taken as zeros.
#[must_use]
pub fn change(difference: [u8; 2], mut following: usize) -> u32 {
    const ZEROS: [u8; 256] = [0; 256];
    let mut crc = Crc32c(0);
    crc.update(&difference);
    while following > 0 {
        let step = following.min(ZEROS.len());
        crc.update(&ZEROS[..step]);
        following -= step;
    }
    crc.0
}

fn update_table(state: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(state, |state, byte| TABLE[usize::from(state as u8 ^ byte)] ^ (state >> 8))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn update_sse42(state: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let wide = words.iter().fold(u64::from(state), |state, word| _mm_crc32_u64(state, u64::from_le_bytes(*word)));
    rest.iter().fold(wide as u32, |state, byte| _mm_crc32_u8(state, *byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_check_value_of_the_catalogue() {
        let mut crc = Crc32c::new();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!((crc.value(), !update_table(u32::MAX, b"123456789")), (0xe306_9283, 0xe306_9283));
        // RFC 3720 appendix B.4: 32 bytes of zero.
        let mut zeros = Crc32c::new();
        zeros.update(&[0; 32]);
        assert_eq!(zeros.field(), [0xaa, 0x36, 0x91, 0x8a]);
    }

    proptest! {
        #[test]
        fn a_change_is_the_difference_of_two(
            mut bytes in prop::collection::vec(any::<u8>(), 2..700),
            at: prop::sample::Index,
            new: [u8; 2],
        ) {
            let crc = |bytes: &[u8]| {
                let mut crc = Crc32c::new();
                crc.update(bytes);
                crc.value()
            };
            let (before, at) = (crc(&bytes), at.index(bytes.len() - 1));
            let difference = [bytes[at] ^ new[0], bytes[at + 1] ^ new[1]];
            bytes[at..at + 2].copy_from_slice(&new);
            prop_assert_eq!(before ^ change(difference, bytes.len() - at - 2), crc(&bytes));
        }

        #[test]
        fn instruction_and_table_agree(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let cut = cut.min(bytes.len());
            let mut crc = Crc32c::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            prop_assert_eq!(crc.0, update_table(u32::MAX, &bytes));
        }
    }
}
