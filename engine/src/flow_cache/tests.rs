//! The cache against a plain map ([`super::oracle`]): every operation in any order, on tables so small that flows collide.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::oracle::{MACS, Pair, Step, batch_of, cache, dependencies, forward, headers, peer};
use super::*;
use crate::edit::Rewrite;
use crate::packet::parse::{Network, flag};
use crate::tables::services::ServiceId;
use crate::tables::{Change, ChangeSet, SegmentIndex};

/// Looks up one flow and inserts it if it is not there; says what the insert did.
fn meet(cache: &mut FlowCache, number: u32, choice: u32, now_ms: u32) -> Option<Inserted> {
    let mut batch = batch_of(&[number]);
    cache.lookup(&mut batch);
    if cache.take_hit(&batch, 0, 100, now_ms).is_some() {
        return None;
    }
    Some(cache.insert(&batch, 0, &forward(choice), &dependencies(number, choice), now_ms))
}

fn change() -> impl Strategy<Value = Change> {
    let network = (any::<bool>(), any::<u8>(), 0u8..=17).prop_map(|(wide, byte, length)| {
        let mut octets = [0u8; 16];
        (octets[0], octets[1]) = (10, byte);
        let address = if wide { IpAddr::V6(Ipv6Addr::from(octets)) } else { IpAddr::V4(Ipv4Addr::new(10, byte, 0, 0)) };
        IpNet::new_assert(address, length.max(8)).trunc()
    });
    prop_oneof![
        2 => (0u16..40).prop_map(|port| Change::Port(PortIndex(port))),
        1 => (0u16..8).prop_map(|segment| Change::Segment(SegmentIndex(segment))),
        6 => (0u16..4, network).prop_map(|(segment, network)| Change::Prefix(SegmentIndex(segment), network)),
        2 => (0u32..6).prop_map(|number| Change::Peer(peer(number))),
        2 => (0u16..40, 0u32..6).prop_map(|(port, number)| Change::Neighbour(PortIndex(port), peer(number))),
        2 => (0u64..8).prop_map(|service| Change::Service(ServiceId(service << 32))),
        1 => Just(Change::Tunnels),
    ]
}

fn step(flows: u32) -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec((0..flows, 0u32..30), 1..64).prop_map(Step::Vector),
        2 => (0..flows, 0u32..30).prop_map(|(number, choice)| Step::Replace(number, choice)),
        4 => prop_oneof![0u32..50, 900u32..2000, 5_000u32..12_000].prop_map(Step::Pass),
        4 => (1usize..80).prop_map(Step::Age),
        1 => prop::collection::vec(change(), 0..4).prop_map(Step::Sweep),
        1 => prop::collection::vec(change(), 9..20).prop_map(Step::Sweep),
        4 => (1usize..40).prop_map(Step::SweepOn),
    ]
}

fn key(seed: u64, aes: bool) -> HashKey {
    let key = HashKey::from_seed(seed);
    if aes { key } else { key.without_aes() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 300 }))]

    #[test]
    fn agrees_with_a_map(
        steps in prop::collection::vec(step(120), 1..60), seed in any::<u64>(), aes in any::<bool>(),
    ) {
        let mut pair = Pair::new(32, key(seed, aes));
        steps.into_iter().for_each(|step| pair.run(step));
        pair.finish();
    }

    #[test]
    fn a_table_of_two_buckets_agrees_with_a_map(
        steps in prop::collection::vec(step(40), 1..40), seed in any::<u64>(), aes in any::<bool>(),
    ) {
        let mut pair = Pair::new(8, key(seed, aes));
        steps.into_iter().for_each(|step| pair.run(step));
        pair.finish();
    }

    #[test]
    fn an_indexed_plan_is_a_linear_filter(changes in prop::collection::vec(change(), 9..80)) {
        let plan = SweepPlan::new(&ChangeSet { generation: 1, changes: changes.clone() });
        for number in 0..300 {
            let dependencies = dependencies(number, number / 9);
            let linear = changes.iter().any(|change| dependencies.affected_by(change));
            prop_assert_eq!(plan.affects(&dependencies), linear, "{:?}", dependencies);
        }
    }
}

#[test]
fn prefixes_at_the_ends_of_the_address_space_are_covered() {
    let networks = [
        "0.0.0.0/0",
        "255.255.255.255/32",
        "::/0",
        "ffff::/16",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.3/32",
        "ffff::1/128",
    ];
    for network in networks {
        let network: IpNet = network.parse().expect("network");
        let mut changes = vec![Change::Prefix(SegmentIndex(1), network)];
        changes.extend((100..120).map(|port| Change::Port(PortIndex(port))));
        let plan = SweepPlan::new(&ChangeSet { generation: 1, changes });
        for address in
            ["0.0.0.0", "255.255.255.255", "::", "ffff::1", "10.1.2.3", "10.1.2.4", "11.0.0.0", "9.255.255.255"]
        {
            let destination: IpAddr = address.parse().expect("address");
            let flow =
                Dependencies { source: destination, destination, segment: SegmentIndex(1), ..dependencies(5, 0) };
            let flow = Dependencies { ingress_peer: None, egress_peer: None, ..flow };
            assert_eq!(plan.affects(&flow), network.contains(&destination), "{network} {destination}");
            assert!(!plan.affects(&Dependencies { segment: SegmentIndex(2), ..flow }));
        }
    }
}

#[test]
fn established_flows_survive_a_flood_and_return_no_rewrite_too_many() {
    let mut cache = cache(1024, HashKey::from_seed(3));
    let established: Vec<u32> = (0..600).map(|number| 2 * number).collect();
    for round in 0..3 {
        for number in &established {
            meet(&mut cache, *number, 1, round);
        }
    }
    let mut outcomes = HashMap::new();
    for number in 0..50_000u32 {
        let outcome = meet(&mut cache, 10_000 + 2 * number, 2, 100 + number / 100);
        *outcomes.entry(format!("{outcome:?}")).or_insert(0) += 1;
    }
    assert!(established.iter().all(|number| meet(&mut cache, *number, 1, 700).is_none()), "{outcomes:?}");
    assert_eq!(cache.len(), 1024);
    assert!(outcomes["Some(Evicting)"] > 40_000 && cache.rewrites() == 2, "{outcomes:?}");
}

#[test]
fn a_cache_full_of_flows_in_use_refuses_and_serves_and_opens_when_they_fall_silent() {
    let mut cache = cache(256, HashKey::from_seed(4));
    let numbers: Vec<u32> = (0..256).map(|number| 2 * number).collect();
    for now in 0..2 {
        numbers.iter().for_each(|number| {
            meet(&mut cache, *number, 1, now);
        });
    }
    assert_eq!(cache.ipv4.len(), 256);
    assert_eq!(meet(&mut cache, 9_000, 2, 500), Some(Inserted::Full));
    assert_eq!(numbers.iter().filter(|number| meet(&mut cache, **number, 1, 600).is_none()).count(), 256);
    assert_eq!(meet(&mut cache, 9_000, 2, 600 + limits::FLOW_RECENT_MS - 1), Some(Inserted::Full));
    assert_eq!(meet(&mut cache, 9_000, 2, 600 + limits::FLOW_RECENT_MS), Some(Inserted::Evicting));
    assert_eq!((cache.ipv4.len(), cache.rewrites()), (256, 2));
}

#[test]
fn equal_tags_in_one_bucket_are_told_apart() {
    let key = HashKey::from_seed(5);
    let mut cache = cache(8, key);
    let mut by_tag: HashMap<(u16, usize), Vec<u32>> = HashMap::new();
    for number in (0..12_000).step_by(2) {
        let hash = cache.flow_hash(&headers(number), &MACS, 1);
        by_tag.entry((bucket::tag(hash), cache.ipv4.home(hash))).or_default().push(number);
    }
    let twins: Vec<Vec<u32>> = by_tag.into_values().filter(|numbers| numbers.len() > 1).collect();
    assert!(twins.len() > 20);
    for pair in twins {
        cache = self::cache(8, key);
        for (choice, number) in pair.iter().enumerate() {
            assert_eq!(meet(&mut cache, *number, choice as u32, 0), Some(Inserted::New));
        }
        let mut batch = batch_of(&pair);
        cache.lookup(&mut batch);
        for choice in 0..pair.len() {
            let action = cache.take_hit(&batch, choice, 60, 0).expect("hit");
            assert_eq!(action.egress, PortIndex(choice as u16));
        }
    }
}

#[test]
fn the_second_packet_of_a_new_flow_in_one_vector_hits() {
    let mut cache = cache(64, HashKey::from_seed(6));
    let mut batch = batch_of(&[2, 2, 2]);
    cache.lookup(&mut batch);
    assert!(cache.take_hit(&batch, 0, 60, 0).is_none());
    assert_eq!(cache.insert(&batch, 0, &forward(1), &dependencies(2, 1), 0), Inserted::New);
    assert_eq!(cache.take_hit(&batch, 1, 60, 0).map(|action| action.egress), Some(PortIndex(1)));
    assert_eq!(cache.insert(&batch, 2, &forward(2), &dependencies(2, 2), 0), Inserted::Replaced);
    assert_eq!(cache.take_hit(&batch, 2, 60, 0).map(|action| action.egress), Some(PortIndex(2)));
    assert_eq!((cache.len(), cache.rewrites()), (1, 1));
}

#[test]
fn a_decision_whose_rewrite_finds_no_room_ends_the_one_before() {
    let mut cache = cache(16 * limits::REWRITES, HashKey::from_seed(10));
    let decide = |cache: &mut FlowCache, number: u32, mtu: u32| {
        let mut batch = batch_of(&[number]);
        cache.lookup(&mut batch);
        let rewrite = Rewrite { mtu, ..forward(1).rewrite };
        cache.insert(&batch, 0, &Forward { rewrite, ..forward(1) }, &dependencies(number, 1), 0)
    };
    for number in 0..limits::REWRITES as u32 {
        assert_eq!(decide(&mut cache, 4 * number, number), Inserted::New);
        assert_eq!(decide(&mut cache, 4 * number + 2, number), Inserted::New);
    }
    assert_eq!(decide(&mut cache, 1, u32::MAX), Inserted::Full);
    assert_eq!((cache.len(), cache.rewrites()), (2 * limits::REWRITES, limits::REWRITES));
    assert_eq!(decide(&mut cache, 8, u32::MAX), Inserted::Full);
    assert_eq!(decide(&mut cache, 8, 3), Inserted::New, "the entry before is gone");
    assert_eq!(decide(&mut cache, 10, 3), Inserted::Replaced, "and with it the last use of its rewrite");
    assert_eq!(decide(&mut cache, 8, u32::MAX), Inserted::Replaced);
}

#[test]
fn uncacheable_packets_have_their_flows_hash_and_nothing_else() {
    let mut cache = cache(64, HashKey::from_seed(7));
    assert_eq!(meet(&mut cache, 2, 1, 0), Some(Inserted::New));
    let syn = Headers { flags: flag::CONNECTION_CONTROL, ..headers(2) };
    let arp = Headers { network: Network::Arp, ..Headers::EMPTY };
    let mut batch = batch_of(&[2]);
    assert!(batch.push(1, &syn, &MACS, 1) && !batch.push(2, &arp, &MACS, 1));
    assert!(!batch.push(limits::VECTOR_PACKETS, &syn, &MACS, 1) && !batch.push(1, &syn, &MACS, 1));
    assert_eq!(cache.insert(&batch, 0, &forward(1), &dependencies(2, 1), 0), Inserted::Uncacheable, "not looked up");
    cache.lookup(&mut batch);
    assert_eq!((batch.found(0), batch.found(1), batch.found(2), batch.found(99)), (true, false, false, false));
    assert_eq!((batch.hash(1), batch.hash(2)), (batch.hash(0), 0));
    assert_eq!(batch.hash(0), cache.flow_hash(&headers(2), &MACS, 1));
    assert_eq!(cache.insert(&batch, 1, &forward(2), &dependencies(2, 2), 0), Inserted::Uncacheable);
    meet(&mut cache, 4, 1, 0);
    assert!(cache.take_hit(&batch, 1, 60, 0).is_none() && cache.take_hit(&batch, 2, 60, 0).is_none());
}

#[test]
fn ageing_removes_the_silent_ones_across_the_wrap_and_rests_between_revolutions() {
    let mut cache = cache(64, HashKey::from_seed(8));
    let start = u32::MAX - 5_000;
    (0..40).for_each(|number| {
        meet(&mut cache, number, 1, start);
    });
    let later = start.wrapping_add(limits::FLOW_IDLE_TCP_MS - 1);
    assert!((0..20).all(|number| meet(&mut cache, number, 1, later).is_none()));
    assert_eq!(cache.age_step(1_000, later, |_, _| {}), 0);
    assert_eq!(cache.age_step(1_000, later.wrapping_add(1), |_, _| {}), 0, "the hand rests");
    assert_eq!(cache.age_step(1_000, later.wrapping_add(limits::AGEING_REVOLUTION_MS), |_, _| {}), 20);
    assert_eq!(cache.len(), 20);
}

#[test]
fn more_sweeps_than_may_run_at_once_are_finished_at_once() {
    let mut cache = cache(64, HashKey::from_seed(9));
    (0..60).for_each(|number| {
        meet(&mut cache, number, 1, 0);
    });
    let plan = |port| {
        let changes = vec![Change::Port(PortIndex(port))];
        Arc::new(SweepPlan::new(&ChangeSet { generation: u64::from(port), changes }))
    };
    let mut removed = 0;
    for port in 1000..1000 + limits::SWEEPS as u16 {
        removed += cache.begin_sweep(plan(port));
    }
    assert_eq!(removed, 0);
    removed = cache.begin_sweep(plan(1));
    assert_eq!((removed, cache.sweeping()), (0, true));
    assert_eq!(cache.begin_sweep(Arc::new(SweepPlan::new(&ChangeSet::default()))), 0);
    assert_eq!(cache.sweep_step(usize::MAX), 60, "all leave by port 1");
    assert!(!cache.sweeping() && cache.is_empty());
}
