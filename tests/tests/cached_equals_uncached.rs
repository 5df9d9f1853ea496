//! Whatever changes, a warm cache forwards as a fresh node with the same tables and the same stations would.
//!
//! Random tables and flows from a seed; after each change (every sort of `Change`, additions too; of policies as well) and the end of its
//! sweep, every flow's packet is sent into the warm node and into a new one, and what comes out must be the same
//! bytes at the same ports.

use std::collections::BTreeMap;

use millrace_engine::port::memory::WireFrame;
use millrace_engine::tables::Change;
use millrace_tests::changing_world::{World, fresh, outputs};
use millrace_tests::random::{Random, Rerun, seeds};

const CHANGES: usize = 30;

#[test]
fn after_every_change_the_cache_forwards_as_a_fresh_node() {
    let mut seen: BTreeMap<&'static str, usize> = BTreeMap::new();
    let (mut hits, mut compared) = (0, 0);
    for seed in seeds(1..9) {
        let _rerun = Rerun { test: "cached_equals_uncached", seed };
        let mut random = Random::new(seed);
        let mut world = World::new(&mut random);
        let mut warm = fresh(world.tables());
        world.speak(&mut warm);
        for number in 0..CHANGES {
            // Twice: the second packet of a flow is the cache's.
            for (port, packet) in world.flows().into_iter().chain(world.flows()) {
                warm.inject(port, packet);
            }
            drop(outputs(&warm));
            let what = world.change(&mut random);
            let changes = warm.switch.publish(world.tables());
            changes.changes.iter().for_each(|change| *seen.entry(sort(change)).or_default() += 1);
            world.speak(&mut warm);
            warm.finish_sweeps();
            // ICMP errors have a budget a second.
            warm.clock.advance(std::time::Duration::from_secs(2));
            let mut cold = fresh(world.tables());
            world.speak(&mut cold);
            for (port, packet) in world.flows() {
                let before = warm.event(millrace_engine::counters::Event::FlowCacheHit);
                warm.inject(port, packet.clone());
                cold.inject(port, packet.clone());
                // Only the first packet of a flow may meet the fresh node: no cache serves it.
                let (found, right) = (outputs(&warm), outputs(&cold));
                let text = |list: &[(u16, WireFrame)]| -> Vec<String> {
                    let line = |(port, frame): &(u16, WireFrame)| {
                        format!("port {port}: {}", millrace_engine::testing::describe(&frame.bytes))
                    };
                    list.iter().map(line).collect()
                };
                assert!(
                    found == right,
                    "change {number} ({what}, {changes:?}): {} at port {port}\n cached {:#?}\n  fresh {:#?}\n trail {}",
                    millrace_engine::testing::describe(&packet.bytes),
                    text(&found),
                    text(&right),
                    cold.explain(port, &packet)
                );
                hits += warm.event(millrace_engine::counters::Event::FlowCacheHit) - before;
                compared += 1;
                cold.clock.advance(std::time::Duration::from_millis(20));
                warm.clock.advance(std::time::Duration::from_millis(20));
            }
            assert_eq!(warm.switch.lost_frames(), 0);
        }
    }
    println!("{compared} flows compared, {hits} served from the cache; changes {seen:?}");
    if std::env::var_os("MILLRACE_SEED").is_none() {
        assert!(hits > compared / 4, "the cache served {hits} of {compared}");
        // All but those of Services, which have a test of their own (`tests/services/changes.rs`).
        assert_eq!(seen.len(), 10, "every change a publish can bring: {seen:?}");
    }
}

fn sort(change: &Change) -> &'static str {
    match change {
        Change::Port(_) => "port",
        Change::Segment(_) => "segment",
        Change::Prefix(..) => "prefix",
        Change::Peer(_) => "peer",
        Change::Station(..) => "station",
        Change::Service(_) => "service",
        Change::Tunnels => "tunnels",
        Change::Neighbour(..) => "neighbour",
        Change::PodPolicy(_) => "pod's policy",
        Change::Identity(..) => "identity",
        Change::PolicyNetwork(_) => "network of rules",
    }
}
