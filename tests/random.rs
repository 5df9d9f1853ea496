//! Numbers from a seed (xorshift64*): the same seed gives the same run, on every machine.

/// A source of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6d69_6c6c_7261_6365 | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `bound`; zero if that is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() as usize).checked_rem(bound).unwrap_or(0)
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
