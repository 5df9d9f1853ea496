//! Hashes that are the same on every node, in every process and in every release.
//!
//! Nodes derive shared values from names (a tunnel MAC address, a preferred block) and versions from content, so the
//! function is part of the contract between releases: FNV-1a over the bytes, with a last mixing step where values
//! are reduced. Not for keys an adversary chooses: nothing here is looked up in a hash table.

const OFFSET_64: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME_64: u64 = 0x0000_0100_0000_01b3;
const OFFSET_128: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME_128: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// 64 well mixed bits of `text`.
#[must_use]
pub fn hash_64(text: &str) -> u64 {
    let hash = text.bytes().fold(OFFSET_64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME_64));
    // The finaliser of MurmurHash3: names that differ in the last digit must differ in all bits.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// A running FNV-1a hash of 128 bits.
#[derive(Clone, Copy, Debug)]
pub struct ContentHash(u128);

impl Default for ContentHash {
    fn default() -> Self {
        Self(OFFSET_128)
    }
}

impl ContentHash {
    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME_128));
    }

    /// The hash of what was taken in.
    #[must_use]
    pub fn finish(self) -> u128 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published FNV test vectors, and values that other releases rely on.
    #[test]
    fn values_never_change() {
        let mut hash = ContentHash::default();
        hash.update(b"a");
        assert_eq!(hash.finish(), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash_64("node-a"), hash_64("node-a"));
        assert_ne!(hash_64("node-1") % 1024, hash_64("node-2") % 1024);
    }
}
