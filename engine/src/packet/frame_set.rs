//! A set of frames by their numbers: which of a worker's frames somebody else holds.
//!
//! One bit a frame, taken at start: 4 KiB for 32,768 frames.

/// Frames of one memory, each in the set or not.
#[derive(Clone, Debug)]
pub struct FrameSet {
    words: Box<[u64]>,
}

impl FrameSet {
    /// None of `frames` frames.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        Self { words: vec![0; frames.div_ceil(64)].into_boxed_slice() }
    }

    /// Enters a frame; one beyond the memory is ignored.
    #[inline]
    pub fn insert(&mut self, index: u32) {
        if let Some(word) = self.words.get_mut(index as usize / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// Strikes a frame off.
    #[inline]
    pub fn remove(&mut self, index: u32) {
        if let Some(word) = self.words.get_mut(index as usize / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.words.get(index as usize / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    /// Enters all that are in `other`.
    pub fn insert_all(&mut self, other: &FrameSet) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
    }

    /// Frames in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}
