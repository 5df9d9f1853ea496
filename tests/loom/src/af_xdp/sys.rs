//! Memory of a ring, made of loom's counters and slots instead of a mapping.

use std::alloc::{Layout, alloc, dealloc};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU32;

/// Slots of a ring in a model.
pub const SLOTS: usize = 2;

#[repr(C)]
pub struct Shared {
    pub producer: AtomicU32,
    pub consumer: AtomicU32,
    pub flags: AtomicU32,
    pub slots: [UnsafeCell<u64>; SLOTS],
}

/// Where what lies.
pub const OFFSETS: libc::xdp_ring_offset = libc::xdp_ring_offset {
    producer: std::mem::offset_of!(Shared, producer) as u64,
    consumer: std::mem::offset_of!(Shared, consumer) as u64,
    flags: std::mem::offset_of!(Shared, flags) as u64,
    desc: std::mem::offset_of!(Shared, slots) as u64,
};

/// The memory; both sides of a ring hold it.
#[derive(Clone)]
pub struct Mapping(std::sync::Arc<Memory>);

struct Memory(NonNull<Shared>);

unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Mapping {
    /// A ring whose counters stand at `start`.
    pub fn starting_at(start: u32) -> Self {
        let memory = unsafe { alloc(Layout::new::<Shared>()) }.cast::<Shared>();
        let shared = Shared {
            producer: AtomicU32::new(start),
            consumer: AtomicU32::new(start),
            flags: AtomicU32::new(0),
            slots: std::array::from_fn(|_| UnsafeCell::new(0)),
        };
        unsafe { memory.write(shared) };
        Self(std::sync::Arc::new(Memory(NonNull::new(memory).expect("memory"))))
    }

    pub fn ring(_: BorrowedFd<'_>, _: usize, _: libc::off_t) -> io::Result<Self> {
        unreachable!("no kernel in a model")
    }

    pub fn base(&self) -> NonNull<u8> {
        self.0.0.cast()
    }

    pub fn length(&self) -> usize {
        size_of::<Shared>()
    }

    /// As the kernel sees it.
    pub fn shared(&self) -> &Shared {
        unsafe { self.0.0.as_ref() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unsafe { self.0.drop_in_place() };
        unsafe { dealloc(self.0.as_ptr().cast(), Layout::new::<Shared>()) };
    }
}
