//! The four rings a socket shares with the kernel: single producer, single consumer, no lock.
//!
//! Each ring lives in one mapping laid out by the kernel (net/xdp/xsk_queue.h): a producer and a consumer counter,
//! flags, and a power of two of slots. We own one counter and keep a copy of both, so that a batch touches the
//! shared cache lines once: acquire when reading the kernel's counter, release when writing ours. Counters run free
//! and wrap at 2^32. Used by one worker thread; no call allocates or blocks.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

// This file is also part of the models in tests/loom/, where loom sees every access to a counter or a slot.
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};

use super::sys::Mapping;

#[cfg(not(loom))]
type Place<T> = T;
#[cfg(loom)]
type Place<T> = loom::cell::UnsafeCell<T>;

/// What a ring may carry: plain integers as the kernel lays them out.
pub(super) trait Slot: Copy + Send {}
impl Slot for u64 {}
impl Slot for libc::xdp_desc {}

/// A ring in its mapping.
struct Ring<T: Slot> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<Place<T>>,
    mask: u32,
    _mapping: Mapping,
}

// SAFETY: the pointers lead into the mapping this value owns; it is used by the thread that owns the value.
unsafe impl<T: Slot> Send for Ring<T> {}

impl<T: Slot> Ring<T> {
    /// Lays a ring of `size` slots over `mapping`.
    fn over(mapping: Mapping, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<Self> {
        let outside = || io::Error::other("the kernel reported a ring outside its mapping");
        let place = |offset: u64, bytes: usize, align: usize| -> io::Result<NonNull<u8>> {
            let offset = usize::try_from(offset).map_err(|_| outside())?;
            let end = offset.checked_add(bytes).ok_or_else(outside)?;
            if end > mapping.length() || !offset.is_multiple_of(align) {
                return Err(outside());
            }
            // SAFETY: just checked to lie inside the mapping.
            Ok(unsafe { mapping.base().add(offset) })
        };
        if !size.is_power_of_two() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        Ok(Self {
            producer: place(offsets.producer, size_of::<AtomicU32>(), align_of::<AtomicU32>())?.cast(),
            consumer: place(offsets.consumer, size_of::<AtomicU32>(), align_of::<AtomicU32>())?.cast(),
            flags: place(offsets.flags, size_of::<AtomicU32>(), align_of::<AtomicU32>())?.cast(),
            slots: place(offsets.desc, size as usize * size_of::<Place<T>>(), align_of::<Place<T>>())?.cast(),
            mask: size - 1,
            _mapping: mapping,
        })
    }

    fn map(socket: BorrowedFd<'_>, offsets: &libc::xdp_ring_offset, size: u32, page: libc::off_t) -> io::Result<Self> {
        let length = offsets.desc as usize + size as usize * size_of::<T>();
        Self::over(Mapping::ring(socket, length, page)?, offsets, size)
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping and aligned (checked in `over`); both sides access it atomically only.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    #[inline]
    fn slot(&self, counter: u32) -> NonNull<Place<T>> {
        // SAFETY: the masked counter is below the number of slots, which lie inside the mapping (checked in `over`).
        unsafe { self.slots.add((counter & self.mask) as usize) }
    }

    /// Writes a slot.
    ///
    /// # Safety
    /// The kernel has consumed it, and reads it only when it is published.
    #[inline]
    unsafe fn write(&self, counter: u32, value: T) {
        let slot = self.slot(counter);
        #[cfg(not(loom))]
        // SAFETY: the slot is inside the mapping; free by the caller's word.
        unsafe {
            slot.write(value);
        }
        #[cfg(loom)]
        // SAFETY: as above; that nobody else touches it is what loom checks.
        unsafe { slot.as_ref() }.with_mut(|place| unsafe { place.write(value) });
    }

    /// Reads a slot.
    ///
    /// # Safety
    /// It was published, and is not written before it is released.
    #[inline]
    unsafe fn read(&self, counter: u32) -> T {
        let slot = self.slot(counter);
        #[cfg(not(loom))]
        // SAFETY: the slot is inside the mapping; published by the caller's word; any bits are a value of a Slot.
        let value = unsafe { slot.read() };
        #[cfg(loom)]
        // SAFETY: as above; that nobody else writes it is what loom checks.
        let value = unsafe { slot.as_ref() }.with(|place| unsafe { place.read() });
        value
    }
}

/// A ring we fill and the kernel empties: fill and transmit.
pub(super) struct ProducerRing<T: Slot> {
    ring: Ring<T>,
    produced: u32,
    consumed: u32,
}

impl<T: Slot> ProducerRing<T> {
    /// Maps the ring of `socket` at page offset `page`.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        offsets: &libc::xdp_ring_offset,
        size: u32,
        page: libc::off_t,
    ) -> io::Result<Self> {
        Ok(Self::new(Ring::map(socket, offsets, size, page)?))
    }

    fn new(ring: Ring<T>) -> Self {
        let consumed = ring.consumer().load(Ordering::Acquire);
        let produced = ring.producer().load(Ordering::Relaxed);
        Self { ring, produced, consumed }
    }

    /// Free slots; looks at the kernel's counter only if fewer than `wanted` are known to be free.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        let known = self.size() - self.produced.wrapping_sub(self.consumed);
        if known >= wanted {
            return known;
        }
        self.size().saturating_sub(self.waiting())
    }

    /// Puts `value` in the next slot; the kernel sees it after [`Self::publish`]. False, and nothing put, if the
    /// ring is full.
    #[inline]
    #[must_use]
    pub(super) fn push(&mut self, value: T) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        // SAFETY: the slot is free: the kernel has consumed it and reads it only when published.
        unsafe { self.ring.write(self.produced, value) };
        self.produced = self.produced.wrapping_add(1);
        true
    }

    /// Shows the kernel everything that was pushed.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.ring.producer().store(self.produced, Ordering::Release);
    }

    /// Entries the kernel has not consumed; reads its counter.
    #[inline]
    pub(super) fn waiting(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Ordering::Acquire);
        self.produced.wrapping_sub(self.consumed)
    }

    /// Takes the newest entry back that the kernel has not consumed. Only for a kernel that does not read this ring
    /// meanwhile: in copy mode it reads the transmit ring in our own calls alone.
    pub(super) fn take_back(&mut self) -> Option<T> {
        if self.waiting() == 0 {
            return None;
        }
        self.produced = self.produced.wrapping_sub(1);
        self.publish();
        // SAFETY: written by `push`: it lay between the kernel's counter and ours.
        Some(unsafe { self.ring.read(self.produced) })
    }

    /// Whether the kernel asks to be called for this ring.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }

    /// Slots in all.
    #[inline]
    pub(super) fn size(&self) -> u32 {
        self.ring.mask + 1
    }
}

/// A ring the kernel fills and we empty: receive and completion.
pub(super) struct ConsumerRing<T: Slot> {
    ring: Ring<T>,
    produced: u32,
    consumed: u32,
}

impl<T: Slot> ConsumerRing<T> {
    /// Maps the ring of `socket` at page offset `page`.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        offsets: &libc::xdp_ring_offset,
        size: u32,
        page: libc::off_t,
    ) -> io::Result<Self> {
        Ok(Self::new(Ring::map(socket, offsets, size, page)?))
    }

    fn new(ring: Ring<T>) -> Self {
        let produced = ring.producer().load(Ordering::Acquire);
        let consumed = ring.consumer().load(Ordering::Relaxed);
        Self { ring, produced, consumed }
    }

    /// Entries that wait for us; reads the kernel's counter.
    #[inline]
    pub(super) fn available(&mut self) -> u32 {
        self.produced = self.ring.producer().load(Ordering::Acquire);
        self.produced.wrapping_sub(self.consumed).min(self.ring.mask + 1)
    }

    /// Takes the next of the entries that the last [`Self::available`] saw; the kernel may reuse the slot after
    /// [`Self::release`].
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.consumed == self.produced {
            return None;
        }
        // SAFETY: the kernel published the slot before its counter (acquire in `available`) and does not write it again
        // before we release it.
        let value = unsafe { self.ring.read(self.consumed) };
        self.consumed = self.consumed.wrapping_add(1);
        Some(value)
    }

    /// Gives the taken slots back to the kernel.
    #[inline]
    pub(super) fn release(&mut self) {
        self.ring.consumer().store(self.consumed, Ordering::Release);
    }
}

/// A ring of ours in a model, and the same below the other way round.
#[cfg(loom)]
pub(super) fn producer_over(mapping: Mapping, size: u32) -> ProducerRing<u64> {
    ProducerRing::new(Ring::over(mapping, &super::sys::OFFSETS, size).expect("a ring inside its memory"))
}

#[cfg(loom)]
pub(super) fn consumer_over(mapping: Mapping, size: u32) -> ConsumerRing<u64> {
    ConsumerRing::new(Ring::over(mapping, &super::sys::OFFSETS, size).expect("a ring inside its memory"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OFFSETS: libc::xdp_ring_offset = libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };

    fn ring(size: u32, start: u32) -> Ring<u64> {
        let mapping = Mapping::anonymous(4096).expect("mapping");
        let ring = Ring::over(mapping, &OFFSETS, size).expect("ring");
        ring.producer().store(start, Ordering::Relaxed);
        ring.consumer().store(start, Ordering::Relaxed);
        ring
    }

    /// The other side of a ring of ours, as the kernel sees it: the same memory.
    fn twin(ring: &Ring<u64>) -> Ring<u64> {
        Ring {
            producer: ring.producer,
            consumer: ring.consumer,
            flags: ring.flags,
            slots: ring.slots,
            mask: ring.mask,
            _mapping: Mapping::anonymous(4096).expect("mapping"),
        }
    }

    #[test]
    fn entries_pass_in_order_over_the_wrap_of_the_counters() {
        let ring = ring(8, u32::MAX - 3);
        let mut consumer = ConsumerRing::new(twin(&ring));
        let mut producer = ProducerRing::new(ring);
        let (mut next, mut expected) = (0u64, 0u64);
        for _ in 0..10 {
            while producer.push(next) {
                next += 1;
            }
            assert_eq!((producer.waiting(), consumer.available()), (8, 0), "nothing is seen before publish");
            producer.publish();
            assert_eq!(consumer.available(), 8);
            for _ in 0..5 {
                assert_eq!(consumer.pop(), Some(expected));
                expected += 1;
            }
            assert_eq!(producer.room(8), 0, "nothing is free before release");
            consumer.release();
            assert_eq!(producer.room(8), 5);
            while consumer.pop().is_some() {
                expected += 1;
            }
            consumer.release();
        }
        assert_eq!((next, expected), (80, 80));
    }

    #[test]
    fn what_was_not_consumed_is_taken_back() {
        let ring = ring(8, u32::MAX);
        let mut consumer = ConsumerRing::new(twin(&ring));
        let mut producer = ProducerRing::new(ring);
        assert!((0..4).all(|number| producer.push(number)));
        producer.publish();
        assert_eq!((consumer.available(), consumer.pop()), (4, Some(0)));
        consumer.release();
        let back: Vec<u64> = std::iter::from_fn(|| producer.take_back()).collect();
        assert_eq!(back, [3, 2, 1]);
        assert_eq!((consumer.available(), producer.waiting()), (0, 0));
    }

    #[test]
    fn a_ring_outside_its_mapping_is_refused() {
        let refused = |offsets: &libc::xdp_ring_offset, size| {
            Ring::<u64>::over(Mapping::anonymous(4096).expect("mapping"), offsets, size).is_err()
        };
        assert!(refused(&OFFSETS, 512), "slots end behind the mapping");
        assert!(refused(&OFFSETS, 24), "not a power of two");
        assert!(refused(&libc::xdp_ring_offset { producer: 4096, ..OFFSETS }, 8));
        assert!(refused(&libc::xdp_ring_offset { flags: u64::MAX, ..OFFSETS }, 8));
        assert!(refused(&libc::xdp_ring_offset { consumer: 2, ..OFFSETS }, 8));
    }
}
