//! One cache line that says where up to eight flows live: a 16-bit tag of each flow's hash and its slot.
//!
//! ```text
//!  [ tag x 8, 16 B | slot x 8, 32 B | overflowed, 1 B | unused, 15 B ]
//! ```
//! Tag 0 means free, and no flow has it. A flow whose home bucket is full lives in the bucket behind it; the home
//! counts those, so that a lookup reads the second line only when there is a reason to.
#![allow(unsafe_code)]

/// Places of a bucket.
pub(super) const PLACES: usize = 8;

/// A slot number that no entry has.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// See the module.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    tags: [u16; PLACES],
    slots: [u32; PLACES],
    /// Flows whose home this is and that live in the next bucket.
    pub(super) overflowed: u8,
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// The tag of a flow with this hash: never 0.
#[inline]
pub(super) fn tag(hash: u64) -> u16 {
    ((hash >> 48) as u16).max(1)
}

impl Bucket {
    /// A bucket without flows.
    pub(super) const EMPTY: Bucket = Bucket { tags: [0; PLACES], slots: [NO_SLOT; PLACES], overflowed: 0 };

    /// The places that hold `tag`, as bits.
    #[inline]
    pub(super) fn matches(&self, tag: u16) -> u8 {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { self.matches_sse2(tag) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        self.matches_portable(tag)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "sse2")]
    fn matches_sse2(&self, tag: u16) -> u8 {
        use std::arch::x86_64::{
            _mm_cmpeq_epi16, _mm_load_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16, _mm_setzero_si128,
        };
        // SAFETY: the tags are the first 16 bytes of a struct aligned to 64.
        let tags = unsafe { _mm_load_si128(self.tags.as_ptr().cast()) };
        let equal = _mm_cmpeq_epi16(tags, _mm_set1_epi16(tag as i16));
        _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u8
    }

    /// What `matches` does, one place at a time.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn matches_portable(&self, tag: u16) -> u8 {
        self.tags.iter().rev().fold(0, |mask, own| mask << 1 | u8::from(*own == tag))
    }

    /// The slot at `place`.
    #[inline]
    pub(super) fn slot(&self, place: usize) -> u32 {
        self.slots[place % PLACES]
    }

    /// The slots in use.
    pub(super) fn used(&self) -> impl Iterator<Item = u32> + '_ {
        self.tags.iter().zip(&self.slots).filter(|(tag, _)| **tag != 0).map(|(_, slot)| *slot)
    }

    /// Puts a flow into a free place; false if there is none.
    pub(super) fn put(&mut self, tag: u16, slot: u32) -> bool {
        let free = self.matches(0);
        if free == 0 {
            return false;
        }
        let place = free.trailing_zeros() as usize;
        (self.tags[place], self.slots[place]) = (tag, slot);
        true
    }

    /// Whether a place is free.
    pub(super) fn has_room(&self) -> bool {
        self.matches(0) != 0
    }

    /// Frees the place that holds `slot`; false if none does.
    pub(super) fn take(&mut self, slot: u32) -> bool {
        let Some(place) = self.slots.iter().position(|own| *own == slot) else { return false };
        (self.tags[place], self.slots[place]) = (0, NO_SLOT);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn matching_agrees_with_one_place_at_a_time(tags in prop::array::uniform8(0u16..4), tag in 0u16..4) {
            let spread = |tag: u16| tag.wrapping_mul(0x7fff);
            let bucket = Bucket { tags: tags.map(spread), ..Bucket::EMPTY };
            prop_assert_eq!(bucket.matches(spread(tag)), bucket.matches_portable(spread(tag)));
            let places = tags.iter().enumerate().filter(|(_, own)| **own == tag).map(|(place, _)| 1u8 << place);
            prop_assert_eq!(bucket.matches(spread(tag)), places.sum::<u8>());
        }
    }

    #[test]
    fn eight_flows_fit_and_leave() {
        let mut bucket = Bucket::EMPTY;
        assert!((0..8).all(|slot| bucket.put(5, slot)) && !bucket.put(5, 8) && !bucket.has_room());
        assert_eq!((bucket.matches(5), bucket.used().count()), (0xff, 8));
        assert!(bucket.take(3) && !bucket.take(3));
        assert_eq!((bucket.matches(5), bucket.matches(0), bucket.used().count()), (0xf7, 0x08, 7));
        assert!(bucket.put(9, 42));
        assert_eq!(bucket.slot(bucket.matches(9).trailing_zeros() as usize), 42);
    }

    #[test]
    fn no_hash_has_the_tag_of_a_free_place() {
        assert_eq!((tag(0), tag(0x0001 << 48), tag(u64::MAX)), (1, 1, 0xffff));
    }
}
