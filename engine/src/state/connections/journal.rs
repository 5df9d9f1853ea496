//! Which connections changed while another process takes the table over.
//!
//! The other process reads the whole table while this one goes on to forward, which may take as long as it likes, and then,
//! when this one has stopped, only what changed meanwhile: one bit for each entry, set wherever a connection opens, ends or
//! changes its state, after the change. When a packet was last seen is not a change: it is told again by the next one.
//!
//! Cost: one load of a flag for each such change while nobody takes over; 128 KiB for a million connections from the first
//! takeover on. What the reader may meet is a torn entry; the bit of that entry is set by the time it matters, and it is read
//! again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{ConnectionReference, Connections, Removed, Restored};
use crate::state::kept_memory::{Content, KeptMemory};

/// How the bits lie in memory.
pub(in crate::state) const CONTENT: Content =
    Content { name: "journal", magic: *b"mr-chang", version: 1, item_words: 1 };

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Journal {
    running: AtomicBool,
    bits: OnceLock<KeptMemory>,
}

impl Journal {
    /// Notes that this entry changed.
    #[inline]
    pub(super) fn note(&self, index: u32) {
        if self.running.load(Ordering::Relaxed)
            && let Some(word) = self.bits.get().and_then(|bits| bits.words().get(index as usize / 64))
        {
            word.fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
    }
}

/// What a successor knows of the connections of the former process: under which name each goes on here, by its place there.
#[derive(Debug)]
pub(in crate::state) struct Followed(pub(super) Vec<ConnectionReference>);

impl Connections {
    /// Begins to note which connections change, from none on; the file of the notes, for the other process.
    pub(in crate::state) fn begin_journal(&self) -> io::Result<OwnedFd> {
        self.end_journal();
        let bits = match self.journal.bits.get() {
            Some(bits) => bits,
            None => {
                let made = KeptMemory::anonymous(CONTENT, self.capacity().div_ceil(64))?;
                self.journal.bits.get_or_init(|| made)
            }
        };
        bits.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.journal.running.store(true, Ordering::SeqCst);
        bits.file().try_clone_to_owned()
    }

    /// Nobody takes over any more.
    pub(in crate::state) fn end_journal(&self) {
        self.journal.running.store(false, Ordering::SeqCst);
    }

    /// Takes in again what has changed since `followed` was read: nobody writes `former` any more. `counts` as for
    /// [`Connections::restore`]; `ended` is told of those that were taken in and are no more, or not as they were.
    pub(in crate::state) fn catch_up(
        &self,
        (former, journal): (&KeptMemory, &KeptMemory),
        followed: &mut Followed,
        mut counts: impl FnMut(u32, u32) -> bool,
        mut ended: impl FnMut(Removed),
    ) -> Restored {
        let changed = || journal.words().iter().enumerate().flat_map(|(number, word)| set_bits(number, word));
        for index in changed() {
            let known = followed.0.get_mut(index as usize);
            let known =
                known.map_or(ConnectionReference::NONE, |known| std::mem::replace(known, ConnectionReference::NONE));
            if known != ConnectionReference::NONE {
                self.remove(known).into_iter().for_each(&mut ended);
            }
        }
        let mut restored = Restored::default();
        for index in changed().filter(|index| (*index as usize) < followed.0.len()) {
            self.restore_into(former.words(), index, &mut restored, &mut counts);
        }
        restored
    }
}

/// The entries whose bits are set in word number `number`.
fn set_bits(number: usize, word: &AtomicU64) -> impl Iterator<Item = u32> + use<> {
    let mut rest = word.load(Ordering::Relaxed);
    std::iter::from_fn(move || {
        let bit = (rest != 0).then(|| rest.trailing_zeros())?;
        rest &= rest - 1;
        Some(number as u32 * 64 + bit)
    })
}
