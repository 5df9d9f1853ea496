//! Which flow each packet of a bench belongs to, the same in every run.

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The flows of `packets` packets, Zipf with exponent 1; ranks are scattered, so that popular flows are no neighbours.
pub(crate) fn zipf(flows: u32, packets: usize, random: &mut Random) -> Vec<u32> {
    let mut sum = 0.0;
    let mut sums = Vec::with_capacity(flows as usize);
    sums.extend((1..=flows).map(|rank| {
        sum += 1.0 / f64::from(rank);
        sum
    }));
    let mut draw = || {
        let at = random.unit() * sum;
        (sums.partition_point(|sum| *sum < at) as u64 * 40_503 % u64::from(flows)) as u32
    };
    (0..packets).map(|_| draw()).collect()
}
