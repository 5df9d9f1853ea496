//! Memory of learned state: one mapping, read and written as 64-bit words, that may outlive the process.
//!
//! ```text
//! [ items: N x words ][ header page: magic, version, bytes of an item, N ]
//! ```
//! No pointer lies in it, so another process can read it (docs/decisions/0008). Every word is atomic: two workers that
//! meet at one word read an old or a new value, never a torn one, and all files above are plain safe code. Taken and
//! touched whole at start; never grows.
//!
//! In a **file** on a tmpfs it is still there when the process is gone, however it ended: the kernel writes nothing out
//! and copies nothing. On any other file system the kernel would write pages out, and stop workers while it does, so
//! such a place is refused. Whoever keeps memory in a file holds its lock; the kernel lets go of it with the process.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = size_of::<AtomicU64>();
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What statfs says of a tmpfs (include/uapi/linux/magic.h, `TMPFS_MAGIC`).
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// What memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// Name of its file.
    pub(super) name: &'static str,
    /// First word of the header.
    pub(super) magic: [u8; 8],
    /// Changes with every change of what the words mean.
    pub(super) version: u64,
    /// Words of an item.
    pub(super) item_words: usize,
}

impl Content {
    fn header(&self, items: usize) -> [u64; 4] {
        [u64::from_le_bytes(self.magic), self.version, (self.item_words * WORD_BYTES) as u64, items as u64]
    }

    fn bytes(&self, items: usize) -> usize {
        items * self.item_words * WORD_BYTES + PAGE_BYTES
    }

    fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.name)
    }

    fn new_path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.new", self.name))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct KeptMemory {
    base: NonNull<AtomicU64>,
    mapped_bytes: usize,
    words: usize,
    file: OwnedFd,
}

// SAFETY: the mapping is owned by this value alone, and its content is atomic words.
unsafe impl Send for KeptMemory {}
// SAFETY: as above: shared access is to atomic words only.
unsafe impl Sync for KeptMemory {}

impl KeptMemory {
    /// Memory for `items` items that ends with the process, all zero; on 2 MiB pages where the kernel has them free.
    ///
    /// # Errors
    /// What the kernel said to memfd_create, ftruncate or mmap.
    pub(super) fn anonymous(content: Content, items: usize) -> io::Result<Self> {
        let bytes = content.bytes(items);
        let huge = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // A table much smaller than a huge page is a test's; it need not take one.
        let on_huge_pages =
            if bytes >= HUGE_PAGE_BYTES { Self::memfd(MemfdFlags::HUGETLB, content, huge).ok() } else { None };
        let memory = match on_huge_pages {
            Some(memory) => memory,
            None => Self::memfd(MemfdFlags::empty(), content, bytes.next_multiple_of(PAGE_BYTES))?,
        };
        Ok(memory.describing(content, items))
    }

    fn memfd(flags: MemfdFlags, content: Content, bytes: usize) -> io::Result<Self> {
        let file = rustix::fs::memfd_create(format!("millrace-{}", content.name), flags | MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        Self::map(file, bytes, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// Memory for `items` items, all zero, in a new file of `directory` that is not in its place yet: what the former
    /// process kept stays until [`KeptMemory::take_place`].
    ///
    /// # Errors
    /// The directory is on no tmpfs, or has no room; or another process keeps its memory there.
    pub(super) fn in_file(directory: &Path, content: Content, items: usize) -> io::Result<Self> {
        let path = content.new_path(directory);
        unlink(&path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
        let filled = Self::fill(file, content, items);
        if filled.is_err() {
            let _ = rustix::fs::unlink(&path);
        }
        filled
    }

    fn fill(file: OwnedFd, content: Content, items: usize) -> io::Result<Self> {
        if rustix::fs::fstatfs(&file)?.f_type != TMPFS {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it is on no tmpfs"));
        }
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let bytes = content.bytes(items).next_multiple_of(PAGE_BYTES);
        // Without its pages taken now, a full tmpfs would end the process by a signal at the first touch.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
        Ok(Self::map(file, bytes, ProtFlags::READ | ProtFlags::WRITE)?.describing(content, items))
    }

    /// What a former process left in `directory`; `None` if it left nothing, or in another layout.
    ///
    /// # Errors
    /// A process that lives keeps its memory there; or what the kernel said to open, flock or mmap.
    pub(super) fn left_in(directory: &Path, content: Content) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(content.path(directory), flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::other("another process keeps its state there"));
            }
            Err(error) => return Err(error.into()),
        }
        let bytes = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if bytes < PAGE_BYTES || !bytes.is_multiple_of(PAGE_BYTES) {
            return Ok(None);
        }
        let mut memory = Self::map(file, bytes, ProtFlags::READ)?;
        let header: Vec<u64> = memory.header().iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let items = header.get(3).map_or(0, |items| usize::try_from(*items).unwrap_or(0));
        let fits = items <= bytes && content.bytes(items).next_multiple_of(PAGE_BYTES) == bytes;
        if !fits || header != content.header(items) {
            return Ok(None);
        }
        memory.words = items * content.item_words;
        Ok(Some(memory))
    }

    /// Puts memory made by [`KeptMemory::in_file`] into its place, for the next process to find.
    ///
    /// # Errors
    /// What the kernel said to rename.
    pub(super) fn take_place(directory: &Path, content: Content) -> io::Result<()> {
        Ok(rustix::fs::rename(content.new_path(directory), content.path(directory))?)
    }

    /// Removes the memory that is kept in `directory`, and what was to take its place; whether there was any.
    ///
    /// # Errors
    /// What the kernel said to unlink.
    pub(super) fn remove(directory: &Path, content: Content) -> io::Result<bool> {
        let kept = unlink(&content.path(directory))?;
        Ok(unlink(&content.new_path(directory))? | kept)
    }

    fn map(file: OwnedFd, bytes: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping of a file that is as long; no existing memory is touched.
        let address = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED | MapFlags::POPULATE, &file, 0)
        }?;
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, mapped_bytes: bytes, words: 0, file })
    }

    /// Writes the header.
    fn describing(mut self, content: Content, items: usize) -> Self {
        self.words = items * content.item_words;
        for (word, fact) in self.header().iter().zip(content.header(items)) {
            word.store(fact, Ordering::Relaxed);
        }
        self
    }

    fn header(&self) -> &[AtomicU64] {
        let all = self.all_words();
        &all[all.len() - PAGE_BYTES / WORD_BYTES..][..4]
    }

    fn all_words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `mapped_bytes` bytes, is page-aligned, zeroed or written by the kernel or by such atomics
        // (any bits are a valid AtomicU64), and lives as long as `self`; of what is mapped to be read, nobody stores.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.mapped_bytes / WORD_BYTES) }
    }

    /// The words of all items.
    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.all_words()[..self.words]
    }

    /// The file behind the mapping.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether there was such a file.
fn unlink(path: &Path) -> io::Result<bool> {
    match rustix::fs::unlink(path) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Drop for KeptMemory {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `map`; no slice of it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapped_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: Content = Content { name: "things", magic: *b"mr-thing", version: 1, item_words: 16 };

    /// A directory on a tmpfs that goes with it.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = PathBuf::from(format!("/dev/shm/millrace-test-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a directory on /dev/shm");
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn kept(place: &Place, items: usize) -> KeptMemory {
        let memory = KeptMemory::in_file(&place.0, CONTENT, items).expect("memory");
        KeptMemory::take_place(&place.0, CONTENT).expect("renamed");
        memory
    }

    #[test]
    fn memory_starts_zeroed_and_says_what_it_is() {
        for items in [1, 40_000] {
            let memory = KeptMemory::anonymous(CONTENT, items).expect("memory");
            assert_eq!(memory.words().len(), items * CONTENT.item_words);
            assert!(memory.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
            let mut header = [0; 32];
            let at = (memory.mapped_bytes - PAGE_BYTES) as u64;
            assert_eq!(rustix::io::pread(memory.file(), &mut header, at), Ok(32));
            assert_eq!(&header[..9], b"mr-thing\x01");
            assert_eq!((header[16], u64::from_le_bytes(*header.last_chunk().expect("8"))), (128, items as u64));
        }
    }

    #[test]
    fn a_file_is_found_again_as_it_was() {
        let place = Place::new("found");
        assert!(KeptMemory::left_in(&place.0, CONTENT).expect("looked").is_none());
        let memory = kept(&place, 1000);
        memory.words()[15_999].store(7, Ordering::Relaxed);
        drop(memory);
        let left = KeptMemory::left_in(&place.0, CONTENT).expect("looked").expect("found");
        assert_eq!((left.words().len(), left.words()[15_999].load(Ordering::Relaxed)), (16_000, 7));
        drop(left);
        let other = Content { version: 2, ..CONTENT };
        assert!(KeptMemory::left_in(&place.0, other).expect("looked").is_none(), "another layout");
        for text in ["", "short", &"x".repeat(8192)] {
            std::fs::write(CONTENT.path(&place.0), text).expect("written");
            assert!(KeptMemory::left_in(&place.0, CONTENT).expect("looked").is_none(), "{} bytes", text.len());
        }
    }

    #[test]
    fn the_former_memory_stays_until_the_new_one_takes_its_place() {
        let place = Place::new("former");
        kept(&place, 10).words()[0].store(1, Ordering::Relaxed);
        let new = KeptMemory::in_file(&place.0, CONTENT, 10).expect("memory");
        let left = KeptMemory::left_in(&place.0, CONTENT).expect("looked").expect("found");
        assert_eq!(left.words()[0].load(Ordering::Relaxed), 1);
        KeptMemory::take_place(&place.0, CONTENT).expect("renamed");
        drop(left);
        let refused = KeptMemory::left_in(&place.0, CONTENT).expect_err("its holder lives");
        assert_eq!(refused.to_string(), "another process keeps its state there");
        drop(new);
        let left = KeptMemory::left_in(&place.0, CONTENT).expect("looked").expect("found");
        assert_eq!(left.words()[0].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_other_file_system_and_no_full_one() {
        let error = KeptMemory::in_file(Path::new("/proc"), CONTENT, 10).expect_err("no place");
        assert!(error.raw_os_error().is_some(), "{error}");
        let place = Place::new("full");
        // More than any machine has, so that it is refused at once, not by the first touch.
        let error = KeptMemory::in_file(&place.0, CONTENT, 1 << 50).expect_err("no room");
        assert!(matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::StorageFull), "{error}");
        assert_eq!(std::fs::read_dir(&place.0).expect("read").count(), 0, "nothing stays behind");
    }
}
