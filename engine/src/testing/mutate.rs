//! Frames that are nearly valid: where parsers break.
//!
//! Each frame starts as one of [`valid_packets`] and is damaged in one to four places. Half of the frames get their
//! IPv4 header checksums repaired, the inner one of VXLAN too; without that nearly all would end at the checksum and
//! never reach the code behind. The same seed gives the same frames.

use super::checksum::internet_checksum;
use super::decode::VXLAN_PORTS;
use super::packets::valid_packets;

/// A source of damaged frames, and of the random numbers that a test of them needs.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
    packets: Vec<Vec<u8>>,
}

impl Mutator {
    /// The frames of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_packets(seed, Vec::new())
    }

    /// The same with further packets to start from.
    #[must_use]
    pub fn with_packets(seed: u64, more: Vec<Vec<u8>>) -> Self {
        let mut packets: Vec<Vec<u8>> = valid_packets().into_iter().map(|(_, bytes)| bytes).collect();
        packets.extend(more);
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, packets }
    }

    /// A number below `bound`, zero if that is zero (xorshift64*).
    pub fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let number = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        (number as usize).checked_rem(bound).unwrap_or(0)
    }

    /// The next frame.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let choice = self.below(self.packets.len());
        let mut frame = self.packets[choice].clone();
        for _ in 0..=self.below(4) {
            self.damage(&mut frame);
        }
        if self.below(2) == 0 {
            repair(&mut frame);
        }
        frame
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        // Headers end before byte 130 in nearly all packets; damage behind them teaches little.
        let near = frame.len().min(if self.below(8) == 0 { usize::MAX } else { 130 });
        let at = self.below(near);
        let other = self.below(self.packets.len());
        let Some(byte) = frame.get_mut(at) else { return };
        match self.below(9) {
            0 | 1 => *byte ^= 1 << self.below(8),
            2 => *byte = self.below(256) as u8,
            3 => *byte = [0, 1, 4, 5, 8, 17, 44, 0x7f, 0x80, 0xfe, 0xff][self.below(11)],
            4 => *byte = byte.wrapping_add(self.below(17) as u8).wrapping_sub(8),
            5 => frame.truncate(at),
            6 => frame.resize(frame.len() + self.below(64), 0xa5),
            7 if frame.len() > 12 => {
                let tag = [0x81, 0, 0, self.below(256) as u8];
                frame.splice(12..12, tag);
            }
            _ => {
                let tail = self.packets[other].get(at..).unwrap_or_default();
                frame.truncate(at);
                frame.extend_from_slice(tail);
            }
        }
    }
}

/// Makes the checksum of an IPv4 header right if there is one, and that of a frame inside VXLAN.
fn repair(frame: &mut [u8]) {
    let word = |frame: &[u8], at: usize| frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut at = 14;
    while matches!(word(frame, at - 2), Some(0x8100 | 0x88a8)) {
        at += 4;
    }
    if word(frame, at - 2) != Some(0x0800) || frame.len() < at + 20 {
        return;
    }
    let length = usize::from(frame[at] & 0xf) * 4;
    let Some(header) = frame.get_mut(at..at + length.max(20)) else { return };
    header[10..12].fill(0);
    let sum = internet_checksum(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let transport = at + length;
    if frame[at + 9] == 17 && word(frame, transport + 2).is_some_and(|port| VXLAN_PORTS.contains(&port)) {
        repair(frame.get_mut(transport + 16..).unwrap_or_default());
    }
}
