//! The memory of the connection table: one mapping of a memfd, read and written as 64-bit words.
//!
//! ```text
//! [ entries: N x 128 B ][ header page: magic, version, bytes of an entry, N ]
//! ```
//! No pointer lies in it, so a successor process can map the same file and go on (docs/decisions/0008). Every word is
//! atomic: two workers that meet at one word read an old or a new value, never a torn one, and all other files of the
//! table are plain safe code. Taken and touched whole at start; never grows.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

use super::entry::ENTRY_WORDS;

const MAGIC: u64 = u64::from_le_bytes(*b"mr-conns");
/// Changes with every change of what an entry's words mean.
const VERSION: u64 = 1;
const PAGE_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct EntryMemory {
    base: NonNull<AtomicU64>,
    mapped_bytes: usize,
    words: usize,
    memfd: OwnedFd,
}

// SAFETY: the mapping is owned by this value alone, and its content is atomic words.
unsafe impl Send for EntryMemory {}
// SAFETY: as above: shared access is to atomic words only.
unsafe impl Sync for EntryMemory {}

impl EntryMemory {
    /// Memory for `entries` entries, all zero; on 2 MiB pages where the kernel has them free.
    ///
    /// # Errors
    /// What the kernel said to memfd_create, ftruncate or mmap.
    pub(super) fn new(entries: usize) -> io::Result<Self> {
        let words = entries * ENTRY_WORDS;
        let bytes = words * size_of::<AtomicU64>() + PAGE_BYTES;
        let huge = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // A table much smaller than a huge page is a test's; it need not take one.
        let on_huge_pages = if bytes >= HUGE_PAGE_BYTES { Self::map(MemfdFlags::HUGETLB, huge).ok() } else { None };
        let (memfd, base, mapped_bytes) = match on_huge_pages {
            Some((memfd, base)) => (memfd, base, huge),
            None => {
                let plain = bytes.next_multiple_of(PAGE_BYTES);
                let (memfd, base) = Self::map(MemfdFlags::empty(), plain)?;
                (memfd, base, plain)
            }
        };
        let memory = Self { base, mapped_bytes, words, memfd };
        let header = memory.all_words().len() - PAGE_BYTES / size_of::<AtomicU64>();
        let facts = [MAGIC, VERSION, (ENTRY_WORDS * size_of::<AtomicU64>()) as u64, entries as u64];
        for (word, fact) in memory.all_words()[header..].iter().zip(facts) {
            word.store(fact, Ordering::Relaxed);
        }
        Ok(memory)
    }

    fn map(flags: MemfdFlags, bytes: usize) -> io::Result<(OwnedFd, NonNull<AtomicU64>)> {
        let memfd = rustix::fs::memfd_create("millrace-connections", flags | MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memfd, bytes as u64)?;
        // SAFETY: a fresh shared mapping of a file we just made; no existing memory is touched.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &memfd,
                0,
            )
        }?;
        NonNull::new(address.cast()).map(|base| (memfd, base)).ok_or_else(|| io::Error::other("mapped at address zero"))
    }

    fn all_words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `mapped_bytes` bytes, is page-aligned, zeroed by the kernel (a valid AtomicU64), and
        // lives as long as `self`; nobody reads or writes it but through such atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.mapped_bytes / size_of::<AtomicU64>()) }
    }

    /// The words of all entries.
    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.all_words()[..self.words]
    }

    /// The memfd behind the mapping, for a successor process.
    pub(super) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for EntryMemory {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; no slice of it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_starts_zeroed_and_says_what_it_is() {
        for entries in [1, 40_000] {
            let memory = EntryMemory::new(entries).expect("memory");
            assert_eq!(memory.words().len(), entries * ENTRY_WORDS);
            assert!(memory.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
            let mut header = [0; 32];
            let at = (memory.mapped_bytes - PAGE_BYTES) as u64;
            assert_eq!(rustix::io::pread(memory.memfd(), &mut header, at), Ok(32));
            assert_eq!(&header[..9], b"mr-conns\x01");
            assert_eq!((header[16], u64::from_le_bytes(*header.last_chunk().expect("8"))), (128, entries as u64));
        }
    }
}
