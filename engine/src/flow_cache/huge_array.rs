//! A fixed array of plain values on 2 MiB pages where the kernel gives them.
//!
//! The flow cache touches its arrays at random; on 4 KiB pages each touch beyond the reach of the TLB also walks
//! the page table (measured: 1.3 to 2.5 times the lookup cost at a million flows). The array is advised to use
//! transparent huge pages before it is written for the first time, and written at once, so that no page fault is
//! left for the packet path. Never grows.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

const HUGE_PAGE_BYTES: usize = 2 << 20;
const LINE_BYTES: usize = 64;

/// See the module. Derefs to a slice.
pub(super) struct HugeArray<T: Copy> {
    start: NonNull<T>,
    length: usize,
    layout: Layout,
    owns: PhantomData<T>,
}

// SAFETY: the array owns its memory alone, as a boxed slice does; only its elements decide whether it may move.
unsafe impl<T: Copy + Send> Send for HugeArray<T> {}

impl<T: Copy> HugeArray<T> {
    /// An array of `length` times `value`; `length` and the size of `T` are above zero.
    pub(super) fn filled(length: usize, value: T) -> Self {
        let bytes = length.checked_mul(size_of::<T>()).filter(|bytes| *bytes > 0).expect("array size");
        let huge = bytes >= HUGE_PAGE_BYTES;
        let bytes = if huge { bytes.next_multiple_of(HUGE_PAGE_BYTES) } else { bytes };
        let align = if huge { HUGE_PAGE_BYTES } else { LINE_BYTES };
        let layout = Layout::from_size_align(bytes, align.max(align_of::<T>())).expect("array layout");
        // SAFETY: the size was checked to be above zero.
        let memory = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(memory.cast::<T>()) else { handle_alloc_error(layout) };
        if huge {
            advise_huge(start.cast(), bytes);
        }
        for index in 0..length {
            // SAFETY: `index` is below the length that the allocation was sized for.
            let place = unsafe { start.add(index) };
            // SAFETY: the place is inside the allocation and aligned for `T`.
            unsafe { place.write(value) };
        }
        Self { start, length, layout, owns: PhantomData }
    }
}

/// A hint: without it, or refused, everything works on small pages.
#[cfg_attr(miri, allow(unused_variables))]
fn advise_huge(start: NonNull<u8>, bytes: usize) {
    // Miri knows no advice.
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        // SAFETY: the range is ours and page-aligned; this advice changes no content.
        let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxHugepage) };
    }
}

impl<T: Copy> Deref for HugeArray<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `filled` wrote all elements; they live as long as the array.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T: Copy> DerefMut for HugeArray<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the array is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T: Copy> Drop for HugeArray<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `filled` with this very layout; elements are `Copy` and need no drop.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_huge_arrays_hold_what_is_written() {
        for length in [1, 100, if cfg!(miri) { 2_000 } else { 3_000_000 }] {
            let mut array = HugeArray::filled(length, 7u16);
            assert!(array.len() == length && array.iter().all(|value| *value == 7));
            array[length - 1] = 9;
            assert_eq!((array[length - 1], array.as_ptr().addr() % LINE_BYTES), (9, 0));
        }
    }
}
