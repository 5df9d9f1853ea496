//! Sums long payloads, and copies them while they are summed.
//!
//! Cutting a GSO unit copies every payload byte and needs its checksum. Done in one pass the checksum costs nothing
//! beside the copy; done in two it costs more than the copy (measured, see `benches/checksum.rs`). Three variants of
//! the same two functions exist, chosen once by asking the processor; the vector ones are one body, instantiated for
//! two widths, so what is proved of the one holds for the other but for eight intrinsics. Tests prove every variant
//! that the machine has equal to the plain code over lengths and alignments.
//!
//! How the vector body sums: in `all` it adds 64-bit lanes and may overflow, in `high` their upper halves. The lower
//! halves' sum is `all - (high << 32)` modulo 2^64 and, being far below 2^64, exact. Three instructions a vector.
//!
//! Runs on workers; no state.
#![allow(unsafe_code)]

use super::checksum::{add_with_carry, native_sum, native_to_wire};
#[cfg(target_arch = "x86_64")]
use crate::processor::{self, Feature};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The copy-and-checksum functions that suit this processor; chosen once and kept by whoever transmits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Variant);

impl Kernel {
    /// Plain code, right on every processor.
    pub const SCALAR: Kernel = Kernel(Variant::Scalar);

    /// The fastest one this processor can run, and may ([`processor`]).
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if processor::has(Feature::Avx512) {
                return Self(Variant::Avx512);
            }
            if processor::has(Feature::Avx2) {
                return Self(Variant::Avx2);
            }
        }
        Self::SCALAR
    }

    /// All that this processor can run, plain code first: for tests and benches.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut all = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            if processor::is_present(Feature::Avx2) {
                all.push(Self(Variant::Avx2));
            }
            if processor::is_present(Feature::Avx512) {
                all.push(Self(Variant::Avx512));
            }
        }
        all
    }

    /// What it is called in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Variant::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Variant::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Variant::Avx512 => "avx512",
        }
    }

    /// The one's-complement sum of `bytes`, as [`super::checksum::sum`].
    #[inline]
    #[must_use]
    pub fn sum(self, bytes: &[u8]) -> u32 {
        native_to_wire(match self.0 {
            Variant::Scalar => native_sum(bytes),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only after the processor said that it has AVX2.
            Variant::Avx2 => unsafe { avx2::sum(bytes) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only after the processor said that it has AVX-512 F.
            Variant::Avx512 => unsafe { avx512::sum(bytes) },
        })
    }

    /// Copies `source` to the front of `target` and returns its sum. If `target` is shorter, copies and sums what fits.
    #[inline]
    pub fn copy_and_sum(self, target: &mut [u8], source: &[u8]) -> u32 {
        let length = target.len().min(source.len());
        let (target, source) = (&mut target[..length], &source[..length]);
        native_to_wire(match self.0 {
            Variant::Scalar => {
                target.copy_from_slice(source);
                native_sum(source)
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only after the processor said that it has AVX2.
            Variant::Avx2 => unsafe { avx2::copy_and_sum(target, source) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this variant is made only after the processor said that it has AVX-512 F.
            Variant::Avx512 => unsafe { avx512::copy_and_sum(target, source) },
        })
    }
}

/// Copies and sums less than the widest vector. Pieces of falling size and no loop: out of a loop the compiler takes the
/// copy and makes it a call, which costs more than all of this.
#[inline]
fn copy_and_sum_tail(target: &mut [u8], source: &[u8]) -> u64 {
    let mut at = 0;
    let wide = add_with_carry(copy_piece::<32>(target, source, &mut at), copy_piece::<16>(target, source, &mut at));
    let word = copy_piece::<8>(target, source, &mut at);
    let short = copy_piece::<4>(target, source, &mut at)
        + copy_piece::<2>(target, source, &mut at)
        + copy_piece::<1>(target, source, &mut at);
    add_with_carry(add_with_carry(wide, word), short)
}

/// Copies and sums the `N` bytes from `at`, which moves behind them; nothing if there are fewer.
#[inline]
fn copy_piece<const N: usize>(target: &mut [u8], source: &[u8], at: &mut usize) -> u64 {
    let to = target.get_mut(*at..).and_then(<[u8]>::first_chunk_mut::<N>);
    let from = source.get(*at..).and_then(<[u8]>::first_chunk::<N>);
    let (Some(to), Some(from)) = (to, from) else { return 0 };
    *to = *from;
    *at += N;
    native_sum(from)
}

/// One width of the vector body. Both functions work on pieces of four vectors, then of one, then on a tail of less
/// than a vector in plain code; all pieces begin at even offsets, so their sums add up.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_kernel {
    ($name:ident, $feature:literal, $vector:ident, $bytes:literal,
     $zero:ident, $load:ident, $store:ident, $add:ident, $subtract:ident, $shift_right:ident, $shift_left:ident) => {
        mod $name {
            use std::arch::x86_64::{$add, $load, $shift_left, $shift_right, $store, $subtract, $vector, $zero};

            use super::copy_and_sum_tail;
            use crate::packet::checksum::{add_with_carry, native_sum};

            const WIDTH: usize = $bytes;
            const LANES: usize = WIDTH / 8;

            #[derive(Clone, Copy)]
            struct Sum {
                all: $vector,
                high: $vector,
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn read(piece: &[u8; WIDTH]) -> $vector {
                // SAFETY: the array is as long as the vector, and the instruction asks for no alignment.
                unsafe { $load(piece.as_ptr().cast()) }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn write(piece: &mut [u8; WIDTH], value: $vector) {
                // SAFETY: the array is as long as the vector, and the instruction asks for no alignment.
                unsafe { $store(piece.as_mut_ptr().cast(), value) }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn nothing() -> Sum {
                Sum { all: $zero(), high: $zero() }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn add(sum: &mut Sum, value: $vector) {
                sum.all = $add(sum.all, value);
                sum.high = $add(sum.high, $shift_right::<32>(value));
            }

            /// The sum of lower and upper halves in each lane, see the file's header. Far below 2^64: no carry is lost.
            #[inline]
            #[target_feature(enable = $feature)]
            fn halves(sum: Sum) -> $vector {
                $add($subtract(sum.all, $shift_left::<32>(sum.high)), sum.high)
            }

            /// The sum of all lanes. Taken before the tail is, so that no vector waits on the stack meanwhile.
            #[inline]
            #[target_feature(enable = $feature)]
            fn total(even: Sum, odd: Sum) -> u64 {
                let both = $add(halves(even), halves(odd));
                // SAFETY: a vector is as many 64-bit integers, and every bit pattern is one.
                let lanes: [u64; LANES] = unsafe { std::mem::transmute(both) };
                lanes.iter().sum()
            }

            #[target_feature(enable = $feature)]
            pub(super) fn sum(bytes: &[u8]) -> u64 {
                let (pieces, tail) = bytes.as_chunks::<WIDTH>();
                let (fours, ones) = pieces.as_chunks::<4>();
                let (mut even, mut odd) = (nothing(), nothing());
                for [first, second, third, fourth] in fours {
                    add(&mut even, read(first));
                    add(&mut odd, read(second));
                    add(&mut even, read(third));
                    add(&mut odd, read(fourth));
                }
                for piece in ones {
                    add(&mut even, read(piece));
                }
                let vectors = total(even, odd);
                add_with_carry(vectors, native_sum(tail))
            }

            /// Both slices have one length.
            #[target_feature(enable = $feature)]
            pub(super) fn copy_and_sum(target: &mut [u8], source: &[u8]) -> u64 {
                let (pieces, tail) = source.as_chunks::<WIDTH>();
                let (fours, ones) = pieces.as_chunks::<4>();
                let (target_pieces, target_tail) = target.as_chunks_mut::<WIDTH>();
                let (target_fours, target_ones) = target_pieces.as_chunks_mut::<4>();
                let (mut even, mut odd) = (nothing(), nothing());
                for (to, from) in target_fours.iter_mut().zip(fours) {
                    let values = [read(&from[0]), read(&from[1]), read(&from[2]), read(&from[3])];
                    add(&mut even, values[0]);
                    add(&mut odd, values[1]);
                    add(&mut even, values[2]);
                    add(&mut odd, values[3]);
                    for (to, value) in to.iter_mut().zip(values) {
                        write(to, value);
                    }
                }
                // At most three are left; a loop over a constant is unrolled, see `copy_and_sum_tail`.
                for number in [0, 1, 2] {
                    if let (Some(to), Some(from)) = (target_ones.get_mut(number), ones.get(number)) {
                        let value = read(from);
                        add(&mut even, value);
                        write(to, value);
                    }
                }
                let vectors = total(even, odd);
                add_with_carry(vectors, copy_and_sum_tail(target_tail, tail))
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
vector_kernel!(
    avx2,
    "avx2",
    __m256i,
    32,
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_add_epi64,
    _mm256_sub_epi64,
    _mm256_srli_epi64,
    _mm256_slli_epi64
);

#[cfg(target_arch = "x86_64")]
vector_kernel!(
    avx512,
    "avx512f",
    __m512i,
    64,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_add_epi64,
    _mm512_sub_epi64,
    _mm512_srli_epi64,
    _mm512_slli_epi64
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::checksum;

    fn prove(source: &[u8], from: usize, to: usize, length: usize) {
        let part = &source[from..from + length];
        let expected = checksum::sum(part);
        for kernel in Kernel::available() {
            assert_eq!(kernel.sum(part), expected, "{} sums {length} bytes from {from}", kernel.name());
            let mut target = vec![0xa5u8; to + length + 70];
            let sum = kernel.copy_and_sum(&mut target[to..to + length], part);
            assert_eq!(sum, expected, "{} copies {length} bytes from {from} to {to}", kernel.name());
            assert_eq!(&target[to..to + length], part, "{}", kernel.name());
            assert!(target[..to].iter().chain(&target[to + length..]).all(|byte| *byte == 0xa5), "{}", kernel.name());
        }
    }

    #[test]
    fn every_short_length_at_every_alignment() {
        let source: Vec<u8> = (0..700u32).map(|number| (number * 167 + 13) as u8).collect();
        for length in 0..600 {
            prove(&source, length % 64, (length * 7) % 64, length);
        }
        for alignment in 0..64 {
            prove(&source, alignment, 63 - alignment, 301);
        }
    }

    #[test]
    fn all_ones_overflow_the_lanes_and_still_sum_right() {
        let source = vec![0xffu8; 65_536];
        prove(&source, 0, 0, 65_536);
        prove(&source, 1, 3, 65_535);
    }

    proptest! {
        #[test]
        fn kernels_agree_on_random_bytes(
            source in prop::collection::vec(any::<u8>(), 0..4096),
            from in 0usize..64,
            to in 0usize..64,
        ) {
            let from = from.min(source.len());
            prove(&source, from, to, source.len() - from);
        }
    }

    #[test]
    fn a_short_target_takes_what_fits() {
        for kernel in Kernel::available() {
            let mut target = [0u8; 3];
            assert_eq!(kernel.copy_and_sum(&mut target, &[1, 2, 3, 4, 5]), checksum::sum(&[1, 2, 3]));
            assert_eq!(target, [1, 2, 3]);
        }
    }
}
