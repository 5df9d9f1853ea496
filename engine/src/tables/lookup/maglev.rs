//! Maglev hashing: which of several members a flow belongs to, the same on every node, nearly unmoved by changes.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: each member
//! has its own permutation of the slots and takes its next free one in turn, a member of weight two twice a round. The
//! table depends on the members' identities and weights alone, neither on their order nor on the node. A lookup is one
//! load. With a hundred slots a member, taking one of a hundred members away moves below 2 % of the other flows.

use std::sync::Arc;

/// Slots for each member at least; more make a change move fewer flows and shares more equal.
const SLOTS_PER_MEMBER: usize = 100;

/// Primes, so that every step visits every slot; each about twice the one before.
const SIZES: [usize; 12] = [251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287];

/// A table of slots, each with the number of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev(Arc<[u16]>);

/// One member: what tells it from others on every node, and its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The number a lookup gives.
    pub number: u16,
    /// A hash of what the member is, equal on all nodes.
    pub identity: u64,
    /// Its share; one of weight 0 gets no slot.
    pub weight: u16,
}

/// Where a member's permutation stands.
struct Walk {
    member: Member,
    offset: usize,
    step: usize,
    taken: usize,
}

impl Maglev {
    /// The table of these members; empty if none has a weight. Costs a few visits to each slot, off the workers.
    #[must_use]
    pub fn new(members: &[Member]) -> Self {
        let mut members: Vec<Member> = members.iter().filter(|member| member.weight > 0).copied().collect();
        // The turn goes in order of identity, so that the order they are listed in does not matter.
        members.sort_unstable_by_key(|member| (member.identity, member.number));
        if members.is_empty() {
            return Self(Arc::from([]));
        }
        let wanted = members.len() * SLOTS_PER_MEMBER;
        let size = SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1]);
        let least = members.iter().map(|member| member.weight).min().unwrap_or(1);
        let mut walks: Vec<Walk> = members.iter().map(|member| Walk::new(*member, size)).collect();
        let mut slots: Vec<Option<u16>> = vec![None; size];
        let mut free = size;
        for round in 1u64.. {
            for walk in &mut walks {
                // In round r a member has had r times its weight over the least one's, rounded down.
                let due = (round * u64::from(walk.member.weight) / u64::from(least)) as usize;
                while walk.taken < due && free > 0 {
                    let slot = walk.next_free(&slots);
                    slots[slot] = Some(walk.member.number);
                    free -= 1;
                }
            }
            if free == 0 {
                break;
            }
        }
        Self(slots.into_iter().flatten().collect())
    }

    /// The member that a flow with this hash belongs to; `None` without members.
    #[must_use]
    pub fn member(&self, hash: u64) -> Option<u16> {
        // The high half of the product spreads over any size without a division.
        let slot = (u128::from(hash) * self.0.len() as u128) >> 64;
        self.0.get(slot as usize).copied()
    }

    /// How many slots it has; 2 B each.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.0.len()
    }
}

impl Walk {
    fn new(member: Member, size: usize) -> Self {
        let second = mix(member.identity ^ 0x9e37_79b9_7f4a_7c15);
        Self {
            member,
            offset: (mix(member.identity) % size as u64) as usize,
            step: (second % (size as u64 - 1)) as usize + 1,
            taken: 0,
        }
    }

    /// Goes on to the next slot nobody has. There is one: the caller counts.
    fn next_free(&mut self, slots: &[Option<u16>]) -> usize {
        while slots[self.offset].is_some() {
            self.offset = (self.offset + self.step) % slots.len();
        }
        self.taken += 1;
        self.offset
    }
}

/// The finaliser of MurmurHash3: part of the contract between nodes, so it never changes.
#[must_use]
pub fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(numbers: impl IntoIterator<Item = u16>) -> Vec<Member> {
        let member = |number: u16| Member { number, identity: mix(u64::from(number) + 77), weight: 1 };
        numbers.into_iter().map(member).collect()
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        let forwards = Maglev::new(&members(0..20));
        assert_eq!(forwards, Maglev::new(&members((0..20).rev())));
        assert!(forwards.slots() >= 2_000);
        assert_eq!(Maglev::new(&[]).member(7), None);
    }

    /// Flows of other members that move when one of a hundred goes: figures printed, bound asserted.
    #[test]
    fn taking_one_of_a_hundred_away_moves_below_two_percent_of_the_others() {
        let before = Maglev::new(&members(0..100));
        let mut worst = 0;
        for gone in [0, 37, 99] {
            let after = Maglev::new(&members((0..100).filter(|number| *number != gone)));
            let flows = (0..100_000u64).map(mix).filter(|hash| before.member(*hash) != Some(gone));
            let moved = flows.filter(|hash| before.member(*hash) != after.member(*hash)).count();
            worst = worst.max(moved);
        }
        println!("of 99,000 flows at most {worst} moved");
        assert!(worst < 1_980, "{worst} flows moved");
    }

    #[test]
    fn shares_follow_the_weights() {
        let mut members = members(0..4);
        members[3].weight = 3;
        members[0].weight = 0;
        let table = Maglev::new(&members);
        let mut counts = [0u32; 4];
        (0..60_000u64).for_each(|flow| counts[usize::from(table.member(mix(flow)).expect("member"))] += 1);
        assert_eq!(counts[0], 0);
        for (found, expected) in counts[1..].iter().zip([12_000, 12_000, 36_000]) {
            assert!(found.abs_diff(expected) < 700, "{counts:?}");
        }
    }
}
