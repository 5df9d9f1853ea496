//! The flow cache beside a map, on tables so small that flows collide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use millrace_engine::flow_cache::HashKey;
use millrace_engine::flow_cache::oracle::{Pair, Step};
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::services::ServiceId;
use millrace_engine::tables::{Change, SegmentIndex};

use crate::random::Random;

/// Flows that there are: few more than the cache holds.
const FLOWS: usize = 120;
/// Most steps of one input.
const STEPS: usize = 200;

/// Steps, each as long as it needs: what is done, then with what. The first two bytes choose capacity and hash key.
///
/// # Panics
/// If cache and map disagree.
pub fn run(input: &[u8]) {
    let mut random = Random::chosen_by(input);
    let capacity = [8, 16, 32][random.below(3)];
    let mut pair = Pair::new(capacity, HashKey::from_seed(random.below(256) as u64));
    for _ in 0..STEPS {
        if random.is_over() {
            break;
        }
        pair.run(step(&mut random));
    }
    pair.finish();
}

fn step(random: &mut Random) -> Step {
    match random.below(16) {
        0..=7 => {
            let packets = 1 + random.below(12);
            Step::Vector((0..packets).map(|_| flow(random)).collect())
        }
        8 => {
            let (number, choice) = flow(random);
            Step::Replace(number, choice)
        }
        9 | 10 => Step::Pass(
            [random.below(50), 900 + random.below(1_100), 5_000 + random.below(7_000)][random.below(3)] as u32,
        ),
        11 | 12 => Step::Age(1 + random.below(80)),
        13 => {
            let changes = random.below(20);
            Step::Sweep((0..changes).map(|_| change(random)).collect())
        }
        _ => Step::SweepOn(1 + random.below(40)),
    }
}

fn flow(random: &mut Random) -> (u32, u32) {
    (random.below(FLOWS) as u32, random.below(30) as u32)
}

fn change(random: &mut Random) -> Change {
    let peer = |random: &mut Random| IpAddr::V4(Ipv4Addr::new(203, 0, 113, random.below(6) as u8));
    let port = |random: &mut Random| PortIndex(random.below(40) as u16);
    match random.below(7) {
        0 => Change::Port(port(random)),
        1 => Change::Segment(SegmentIndex(random.below(8) as u16)),
        2 | 3 => Change::Prefix(SegmentIndex(random.below(4) as u16), network(random)),
        4 => Change::Peer(peer(random)),
        5 => Change::Neighbour(port(random), peer(random)),
        _ if random.below(4) == 0 => Change::Tunnels,
        _ => Change::Service(ServiceId((random.below(8) as u64) << 32)),
    }
}

fn network(random: &mut Random) -> IpNet {
    let (wide, byte, length) = (random.below(2) == 1, random.below(256) as u8, 8 + random.below(10) as u8);
    let mut octets = [0u8; 16];
    (octets[0], octets[1]) = (10, byte);
    let address = if wide { IpAddr::V6(Ipv6Addr::from(octets)) } else { IpAddr::V4(Ipv4Addr::new(10, byte, 0, 0)) };
    IpNet::new_assert(address, length).trunc()
}

/// Bytes that choose everything once, and of every sort a little.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |seed: u64| Random::new(seed).bytes(120 + 40 * seed as usize);
    (1..8).map(|seed| (format!("steps-{seed}"), of(seed))).collect()
}
