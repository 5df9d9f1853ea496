//! The memory every packet of one worker lives in.
//!
//! One mapping, backed by a memfd and free of pointers, so that a successor process can take it over:
//! ```text
//! [ head frames: N x 2 KiB ][ big buffers: M x 64 KiB ][ header page: magic, version, N, M ]
//! ```
//! The head frames are the UMEM of the worker's AF_XDP sockets. Whoever holds a [`Frame`] owns its bytes; the
//! type can be neither copied nor cloned, so two owners cannot exist. Frames lent to the kernel live in its
//! rings as addresses and come back through [`FrameMemory::reclaim`], which only `port/` may call.
//!
//! Cost: two free lists of 4 B an entry and 12 B of chain link a frame. Used by one worker thread only; another
//! worker may read a packet of this memory while that packet travels its lane (see `transmit/lane.rs`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use crate::limits::{BIG_BUFFER_BYTES, HEAD_FRAME_BYTES};
use crate::prefetch::prefetch_address;

const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"millrace");
const HEADER_VERSION: u32 = 1;
const HEADER_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// How many frames of each kind to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameMemoryLayout {
    /// Head frames of [`HEAD_FRAME_BYTES`]; at least 64.
    pub head_frames: usize,
    /// Big buffers of [`BIG_BUFFER_BYTES`]; may be zero where no port delivers GSO units.
    pub big_buffers: usize,
}

impl Default for FrameMemoryLayout {
    fn default() -> Self {
        Self { head_frames: crate::limits::HEAD_FRAMES, big_buffers: crate::limits::BIG_BUFFERS }
    }
}

/// The right to one frame's bytes. Leaking one leaks its frame until the process ends.
#[derive(Debug, PartialEq, Eq)]
#[repr(C)]
#[must_use = "a frame that is dropped is lost; give it back with FrameMemory::release_frame"]
pub struct Frame {
    index: u32,
    region: u32,
}

impl Frame {
    /// The frame's number in its memory: head frames first, then big buffers.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
}

/// The mapping itself, shared only so that lanes can read a packet that is on its way.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    length: usize,
    layout: FrameMemoryLayout,
    number: u32,
    huge: bool,
    memfd: OwnedFd,
}

// SAFETY: the mapping is plain memory; every access goes through a Frame, which has one owner.
unsafe impl Send for Region {}
// SAFETY: as above: a shared Region gives no access to bytes without the Frame that owns them.
unsafe impl Sync for Region {}

impl Region {
    fn map(layout: FrameMemoryLayout) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let length = layout.head_frames * HEAD_FRAME_BYTES + layout.big_buffers * BIG_BUFFER_BYTES + HEADER_BYTES;
        let rounded = length.next_multiple_of(HUGE_PAGE_BYTES);
        let (memfd, base, huge) = match Self::map_with(MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB, rounded) {
            Ok((memfd, base)) => (memfd, base, true),
            Err(_) => {
                let (memfd, base) = Self::map_with(MemfdFlags::CLOEXEC, rounded)?;
                (memfd, base, collapse(base, rounded))
            }
        };
        let region =
            Region { base, length: rounded, layout, number: NEXT.fetch_add(1, Ordering::Relaxed), huge, memfd };
        region.write_header();
        Ok(region)
    }

    fn map_with(flags: MemfdFlags, length: usize) -> io::Result<(OwnedFd, NonNull<u8>)> {
        let is_huge = flags.contains(MemfdFlags::HUGETLB);
        let memfd = rustix::fs::memfd_create("millrace-frames", flags)?;
        rustix::fs::ftruncate(&memfd, length as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let shared = MapFlags::SHARED | MapFlags::POPULATE;
        let mapped = if is_huge {
            // SAFETY: a fresh shared mapping of a file we just made, where the kernel likes: at a huge page in any case.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, shared, &memfd, 0) }
        } else {
            let place = reserve(length)?;
            // A call that fails may have taken the reservation away, and another thread's memory may lie there already: it
            // is not unmapped.
            // SAFETY: a shared mapping of a file we just made, in the place of a reservation that nobody else knows.
            unsafe { rustix::mm::mmap(place, length, protection, shared | MapFlags::FIXED, &memfd, 0) }
        };
        let base = NonNull::new(mapped?.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok((memfd, base))
    }

    fn write_header(&self) {
        let mut header = [0u8; 24];
        header[..8].copy_from_slice(&HEADER_MAGIC.to_le_bytes());
        header[8..12].copy_from_slice(&HEADER_VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.layout.head_frames as u32).to_le_bytes());
        header[16..20].copy_from_slice(&(self.layout.big_buffers as u32).to_le_bytes());
        let offset = self.length - HEADER_BYTES;
        // SAFETY: `map` sized the region with HEADER_BYTES behind the last frame, so the offset is inside it.
        let page = unsafe { self.base.add(offset) };
        // SAFETY: source and target are valid for 24 bytes and cannot overlap: one is on the stack.
        unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), page.as_ptr(), header.len()) };
    }

    /// Bytes a frame of this number has.
    #[inline]
    fn frame_bytes(&self, index: u32) -> usize {
        if (index as usize) < self.layout.head_frames { HEAD_FRAME_BYTES } else { BIG_BUFFER_BYTES }
    }

    #[inline]
    fn frame_offset(&self, index: u32) -> usize {
        let index = index as usize;
        let heads = self.layout.head_frames;
        if index < heads {
            index * HEAD_FRAME_BYTES
        } else {
            heads * HEAD_FRAME_BYTES + (index - heads) * BIG_BUFFER_BYTES
        }
    }

    #[inline]
    fn check(&self, frame: &Frame) {
        if frame.region != self.number {
            foreign_frame();
        }
    }

    /// All bytes of a frame.
    #[inline]
    pub(crate) fn bytes(&self, frame: &Frame) -> &[u8] {
        self.check(frame);
        // SAFETY: a Frame's index was bounded when it was made, so its offset is inside the mapping.
        let start = unsafe { self.base.add(self.frame_offset(frame.index)) };
        // SAFETY: the frame's bytes are inside the mapping and initialised (the kernel zeroes a memfd); the only
        // way to write them is through the one Frame, which is borrowed here.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.frame_bytes(frame.index)) }
    }

    /// Bytes `start..start + length` of a head frame.
    #[inline]
    pub(super) fn head_bytes(&self, frame: &Frame, start: u16, length: u16) -> &[u8] {
        let offset = self.head_offset(frame, start, length);
        // SAFETY: `head_offset` made sure that the range lies inside a head frame, and those inside the mapping.
        let first = unsafe { self.base.add(offset) };
        // SAFETY: as above; initialised (the kernel zeroes a memfd); the one way to write these bytes is through the one
        // Frame, which is borrowed here.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), usize::from(length)) }
    }

    /// As [`Region::head_bytes`], to write.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the exclusive borrow is of the Frame, which stands for its bytes
    pub(super) fn head_bytes_mut<'a>(&'a self, frame: &'a mut Frame, start: u16, length: u16) -> &'a mut [u8] {
        let offset = self.head_offset(frame, start, length);
        // SAFETY: as in `head_bytes`.
        let first = unsafe { self.base.add(offset) };
        // SAFETY: as in `head_bytes`, and exclusive, since the one Frame is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), usize::from(length)) }
    }

    /// Where the range lies in the mapping. Head frames come first, so for them a shift is enough; this runs several
    /// times for every packet.
    #[inline]
    fn head_offset(&self, frame: &Frame, start: u16, length: u16) -> usize {
        let inside = usize::from(start) + usize::from(length) <= HEAD_FRAME_BYTES;
        if frame.region != self.number || frame.index as usize >= self.layout.head_frames || !inside {
            foreign_frame();
        }
        frame.index as usize * HEAD_FRAME_BYTES + usize::from(start)
    }

    /// Asks the processor for the line at `start` of a head frame. Of a frame that is none it asks for something else.
    #[inline]
    pub(super) fn prefetch_head(&self, frame: &Frame, start: u16) {
        let offset = frame.index as usize * HEAD_FRAME_BYTES + usize::from(start);
        prefetch_address(self.base.as_ptr().wrapping_add(offset));
    }

    /// The bytes of one link of `packet`'s chain, borrowed as long as the packet.
    #[inline]
    pub(super) fn linked_bytes<'a>(&'a self, _owner: &'a super::Packet, index: u32, link: Link) -> &'a [u8] {
        // SAFETY: the index came from a chain link, which `append` wrote from a Frame of this region.
        let start = unsafe { self.base.add(self.frame_offset(index) + link.offset as usize) };
        // SAFETY: `append` checked that the range lies inside its frame; the chain's owner is borrowed, so nobody
        // writes these bytes meanwhile.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), link.length as usize) }
    }

    /// All bytes of a frame, to write.
    #[inline]
    #[allow(clippy::mut_from_ref)] // the exclusive borrow is of the Frame, which stands for its bytes
    pub(crate) fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.check(frame);
        // SAFETY: a Frame's index was bounded when it was made, so its offset is inside the mapping.
        let start = unsafe { self.base.add(self.frame_offset(frame.index)) };
        // SAFETY: inside the mapping and initialised; exclusive, since the one Frame is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.frame_bytes(frame.index)) }
    }
}

/// Address space of `length` bytes, a multiple of a huge page, that begins at one.
fn reserve(length: usize) -> io::Result<*mut std::ffi::c_void> {
    let (flags, longer) = (MapFlags::PRIVATE | MapFlags::NORESERVE, length + HUGE_PAGE_BYTES);
    // SAFETY: a fresh mapping; no existing memory is touched.
    let whole = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), longer, ProtFlags::empty(), flags) }?;
    let before = whole.addr().wrapping_neg() % HUGE_PAGE_BYTES;
    let (start, after) = (whole.wrapping_byte_add(before), HUGE_PAGE_BYTES - before);
    if before > 0 {
        // SAFETY: the part of the new mapping before the first huge page; nothing points into it.
        unsafe { rustix::mm::munmap(whole, before) }?;
    }
    // SAFETY: the part behind the last one, of a page at least, since the mapping begins at a page and so does a huge page.
    unsafe { rustix::mm::munmap(start.wrapping_byte_add(length), after) }?;
    Ok(start)
}

/// Puts plain pages together to huge ones, whatever the machine's settings for shared memory are (Linux 6.1); false, and all
/// as before, where the kernel has none or does not know how. Packets lie 2 KiB apart, so on plain pages each second one
/// would be a miss of the TLB.
fn collapse(base: NonNull<u8>, length: usize) -> bool {
    /// `MADV_COLLAPSE` (include/uapi/asm-generic/mman-common.h).
    const COLLAPSE: libc::c_int = 25;
    // SAFETY: the mapping just made; the advice changes no content.
    unsafe { libc::madvise(base.as_ptr().cast(), length, COLLAPSE) == 0 }
}

#[cold]
#[inline(never)]
fn foreign_frame() -> ! {
    panic!("a frame was used with another worker's memory, or is no head frame");
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`, and no Frame outlives its Region's users.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Where the next part of a packet lies; kept for each frame, beside the frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Frame that follows, or [`Link::END`].
    pub(crate) next: u32,
    /// First byte of the packet's part in this frame.
    pub(crate) offset: u32,
    /// Bytes of the packet's part in this frame.
    pub(crate) length: u32,
}

impl Link {
    pub(crate) const END: u32 = u32::MAX;
}

/// The frames of one worker and the lists of those that are free.
#[derive(Debug)]
pub struct FrameMemory {
    region: Arc<Region>,
    free_heads: Vec<u32>,
    free_bigs: Vec<u32>,
    links: Box<[Link]>,
}

impl FrameMemory {
    /// Maps and faults in the memory; on 2 MiB pages where the kernel has them free or can put them together, plain pages
    /// otherwise.
    ///
    /// # Errors
    /// What the kernel said to memfd_create, ftruncate or mmap.
    pub fn new(layout: FrameMemoryLayout) -> io::Result<Self> {
        let region = Arc::new(Region::map(layout)?);
        let heads = u32::try_from(layout.head_frames).map_err(io::Error::other)?;
        let total = u32::try_from(layout.head_frames + layout.big_buffers).map_err(io::Error::other)?;
        Ok(Self {
            region,
            free_heads: (0..heads).rev().collect(),
            free_bigs: (heads..total).rev().collect(),
            links: vec![Link { next: Link::END, offset: 0, length: 0 }; total as usize].into_boxed_slice(),
        })
    }

    /// Bytes of a packet's head.
    #[inline]
    pub(super) fn head_bytes(&self, frame: &Frame, start: u16, length: u16) -> &[u8] {
        self.region.head_bytes(frame, start, length)
    }

    /// Bytes of a packet's head, to write.
    #[inline]
    pub(super) fn head_bytes_mut<'a>(&'a self, frame: &'a mut Frame, start: u16, length: u16) -> &'a mut [u8] {
        self.region.head_bytes_mut(frame, start, length)
    }

    /// See [`Region::prefetch_head`].
    #[inline]
    pub(super) fn prefetch_head(&self, frame: &Frame, start: u16) {
        self.region.prefetch_head(frame, start);
    }

    /// The mapping, for a lane or for registering it as UMEM.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Takes a free head frame.
    #[inline]
    pub fn allocate_head(&mut self) -> Option<Frame> {
        let index = self.free_heads.pop()?;
        Some(Frame { index, region: self.region.number })
    }

    /// Takes a free big buffer.
    #[inline]
    pub fn allocate_big(&mut self) -> Option<Frame> {
        let index = self.free_bigs.pop()?;
        Some(Frame { index, region: self.region.number })
    }

    /// Gives a frame back.
    #[inline]
    pub fn release_frame(&mut self, frame: Frame) {
        self.region.check(&frame);
        if (frame.index as usize) < self.region.layout.head_frames {
            self.free_heads.push(frame.index);
        } else {
            self.free_bigs.push(frame.index);
        }
    }

    /// Free head frames at this moment.
    #[must_use]
    pub fn free_heads(&self) -> usize {
        self.free_heads.len()
    }

    /// Free big buffers at this moment.
    #[must_use]
    pub fn free_bigs(&self) -> usize {
        self.free_bigs.len()
    }

    /// Frames of both kinds in all.
    pub(crate) fn frames(&self) -> usize {
        self.links.len()
    }

    /// Whether the frame is one of this memory.
    pub(super) fn is_own(&self, frame: &Frame) -> bool {
        frame.region == self.region.number
    }

    /// Makes every frame free that is not in `held`, whoever had it.
    pub(crate) fn reclaim_all_but(&mut self, held: &super::FrameSet) {
        let (heads, all) = (self.region.layout.head_frames as u32, self.links.len() as u32);
        self.free_heads.clear();
        self.free_heads.extend((0..heads).rev().filter(|index| !held.contains(*index)));
        self.free_bigs.clear();
        self.free_bigs.extend((heads..all).rev().filter(|index| !held.contains(*index)));
    }

    /// How many frames of each kind there are.
    #[must_use]
    pub fn layout(&self) -> FrameMemoryLayout {
        self.region.layout
    }

    /// Whether the mapping stands on 2 MiB pages.
    #[must_use]
    pub fn on_huge_pages(&self) -> bool {
        self.region.huge
    }

    /// Writes the bytes of `frame`.
    #[inline]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.region.bytes_mut(frame)
    }

    /// Reads the bytes of `frame`.
    #[inline]
    #[must_use]
    pub fn bytes<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.region.bytes(frame)
    }

    #[inline]
    pub(crate) fn link(&self, index: u32) -> Link {
        self.links[index as usize]
    }

    #[inline]
    pub(crate) fn set_link(&mut self, frame: &Frame, link: Link) {
        self.links[frame.index as usize] = link;
    }

    #[inline]
    pub(crate) fn set_next(&mut self, index: u32, next: u32) {
        self.links[index as usize].next = next;
    }

    /// A frame whose right is stored as a number in a chain link of this memory. Only the chain's owner calls it.
    #[inline]
    pub(super) fn linked(&self, index: u32) -> Frame {
        debug_assert!((index as usize) < self.links.len());
        Frame { index, region: self.region.number }
    }

    /// The memfd behind the mapping, for a successor process.
    #[must_use]
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.region.memfd.as_fd()
    }

    /// First byte and length of the head frames: what is registered as UMEM.
    pub(crate) fn umem(&self) -> (*mut u8, usize) {
        (self.region.base.as_ptr(), self.region.layout.head_frames * HEAD_FRAME_BYTES)
    }

    /// Turns a head frame into the UMEM address the kernel knows it by; the kernel owns it from here.
    #[inline]
    pub(crate) fn lend(&mut self, frame: Frame) -> u64 {
        self.region.check(&frame);
        debug_assert!((frame.index as usize) < self.region.layout.head_frames);
        u64::from(frame.index) * HEAD_FRAME_BYTES as u64
    }

    /// Takes back the head frame that holds UMEM address `address`, when the kernel returns it in a ring.
    /// `None` if the address lies outside the UMEM, which a sound kernel never returns.
    #[inline]
    pub(crate) fn reclaim(&mut self, address: u64) -> Option<Frame> {
        let index = u32::try_from(address / HEAD_FRAME_BYTES as u64).ok()?;
        ((index as usize) < self.region.layout.head_frames).then_some(Frame { index, region: self.region.number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> FrameMemory {
        FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 2 }).expect("memory")
    }

    #[test]
    fn frames_are_distinct_and_come_back() {
        let mut memory = small();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| memory.allocate_head()).collect();
        assert_eq!((frames.len(), memory.free_heads()), (64, 0));
        for (number, frame) in frames.iter_mut().enumerate() {
            memory.bytes_mut(frame).fill(number as u8);
        }
        for (number, frame) in frames.iter().enumerate() {
            assert!(memory.bytes(frame).iter().all(|byte| *byte == number as u8));
        }
        for frame in frames {
            memory.release_frame(frame);
        }
        assert_eq!(memory.free_heads(), 64);
    }

    #[test]
    #[should_panic(expected = "another worker's memory")]
    fn a_frame_of_another_memory_is_refused() {
        let mut first = small();
        let second = small();
        let frame = first.allocate_head().expect("frame");
        let _ = second.bytes(&frame);
    }
}
