//! Mappings where the program is interpreted: Miri knows no memfd and no shared mapping.
//!
//! Under it, memory that a successor could take over is anonymous and belongs to nobody else; all code above runs as it
//! is. Never part of a compiled program.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

/// Zeroed memory of `bytes` bytes, which is never given back, and a descriptor that stands for its memfd.
///
/// # Errors
/// The interpreter has no `/dev/null`.
pub(crate) fn mapping<T>(bytes: usize) -> io::Result<(OwnedFd, NonNull<T>)> {
    const PAGE_BYTES: usize = 4096;
    #[repr(align(4096))]
    #[derive(Clone)]
    struct Page(#[allow(dead_code)] [u8; PAGE_BYTES]);
    let pages = vec![Page([0; PAGE_BYTES]); bytes.div_ceil(PAGE_BYTES)].leak();
    let start = NonNull::from(pages).cast();
    Ok((File::open("/dev/null")?.into(), start))
}
