//! Which flow each packet of a bench belongs to, the same in every run.

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
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
fn zipf(flows: u32, packets: usize, random: &mut Random) -> Vec<u32> {
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

/// How many flows, met how often.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Spread {
    /// Each as often as any other.
    Uniform(u32),
    /// As Zipf has it.
    Zipf(u32),
}

impl Spread {
    /// How many there are.
    pub(crate) fn count(self) -> u32 {
        match self {
            Spread::Uniform(count) | Spread::Zipf(count) => count,
        }
    }

    /// As rows call it.
    pub(crate) fn name(self) -> String {
        match self {
            Spread::Uniform(1) => "1".to_owned(),
            Spread::Uniform(count) if count >= 1 << 20 => format!("{}M", count >> 20),
            Spread::Uniform(count) => format!("{}k", count >> 10),
            Spread::Zipf(count) => format!("{}k Zipf", count >> 10),
        }
    }

    /// The flows of `packets` packets.
    fn drawn(self, seed: u64, packets: usize) -> Vec<u32> {
        let mut random = Random::new(seed);
        match self {
            Spread::Uniform(count) => (0..packets).map(|_| (random.next() % u64::from(count)) as u32).collect(),
            Spread::Zipf(count) => zipf(count, packets, &mut random),
        }
    }

    /// First each flow once, which fills tables, then `packets` as they are met.
    pub(crate) fn order(self, seed: u64, packets: usize) -> Vec<u32> {
        (0..self.count()).chain(self.drawn(seed, packets)).collect()
    }
}
