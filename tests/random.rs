//! Numbers from a seed (xorshift64*): the same seed gives the same run, on every machine. Or numbers that a fuzzer chooses.

use std::sync::Arc;

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(Source);

#[derive(Clone, Debug)]
enum Source {
    Seed(u64),
    /// What is left of a fuzzer's input; each number takes as few bytes as its bound needs.
    Bytes(Arc<[u8]>, usize),
}

impl Random {
    /// The numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6d69_6c6c_7261_6365 | 1;
        for _ in 0..4 {
            xorshift(&mut state);
        }
        Self(Source::Seed(state))
    }

    /// The numbers that these bytes choose; zeros behind their end.
    #[must_use]
    pub fn chosen_by(bytes: &[u8]) -> Self {
        Self(Source::Bytes(bytes.into(), 0))
    }

    /// Whether bytes are left that choose.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(&self.0, Source::Bytes(bytes, at) if *at >= bytes.len())
    }

    /// A number below `bound`; zero if that is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        let number = match &mut self.0 {
            Source::Seed(state) => xorshift(state) as usize,
            Source::Bytes(bytes, at) => {
                let wanted = [1 << 8, 1 << 16, 1 << 32].iter().filter(|reach| bound > **reach).count();
                let (start, taken) = (*at, 1 << wanted);
                *at += taken;
                let chosen = bytes.get(start..).unwrap_or_default().iter().take(taken);
                chosen.fold(0, |number, byte| number << 8 | usize::from(*byte))
            }
        };
        number.checked_rem(bound).unwrap_or(0)
    }

    /// So many bytes; fewer where a fuzzer's input ends.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        match &mut self.0 {
            Source::Seed(_) => (0..count).map(|_| self.below(256) as u8).collect(),
            Source::Bytes(bytes, at) => {
                let left = bytes.get(*at..).unwrap_or_default();
                *at += count;
                left[..count.min(left.len())].to_vec()
            }
        }
    }

    /// True so many times in a thousand.
    pub fn per_mille(&mut self, times: usize) -> bool {
        self.below(1000) < times
    }

    /// One of several things.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

/// The seeds of a test: `default` of them, or the one that `MILLRACE_SEED` names.
///
/// # Panics
/// If the variable holds no number.
#[must_use]
pub fn seeds(default: std::ops::Range<u64>) -> Vec<u64> {
    match std::env::var("MILLRACE_SEED") {
        Ok(text) => vec![text.parse().expect("MILLRACE_SEED is a number")],
        Err(_) => default.collect(),
    }
}

/// Says how to run a failed seed again when the test panics.
#[derive(Debug)]
pub struct Rerun {
    /// Name of the test binary.
    pub test: &'static str,
    /// The seed of the run.
    pub seed: u64,
}

impl Drop for Rerun {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {} failed; run it again: MILLRACE_SEED={} cargo test -p millrace-tests --test {}",
                self.seed, self.seed, self.test
            );
        }
    }
}
