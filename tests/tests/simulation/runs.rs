//! The tests: many seeds, the same seed twice, and each mistake made on purpose.

use std::time::Instant;

use millrace_tests::random::seeds;

use crate::invariants::{Invariant, Violation};
use crate::mutation::Mutation;
use crate::report::Figures;
use crate::world::{Size, World};

/// Seeds without `MILLRACE_SEEDS`.
const SEEDS: u64 = 30;
/// Seeds in which a mistake must be found.
const MUTATED_SEEDS: u64 = 30;

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn size(seed: u64) -> Size {
    let (nodes, pods) = (number("MILLRACE_NODES"), number("MILLRACE_PODS"));
    let large = nodes.is_some() || pods.is_some();
    let default = 3 + (seed % 3) as usize;
    let nodes = nodes.unwrap_or(default);
    assert!((2..=250).contains(&nodes), "2 to 250 nodes");
    Size { nodes, pods: pods.unwrap_or(16), ticks: 250, large }
}

/// How to run a seed again.
fn again(seed: u64) -> String {
    let mut command = format!("MILLRACE_SEED={seed} ");
    for name in ["MILLRACE_NODES", "MILLRACE_PODS"] {
        if let Some(value) = number(name) {
            command += &format!("{name}={value} ");
        }
    }
    let release = if cfg!(debug_assertions) { "" } else { "--release " };
    command + &format!("cargo test {release}-p millrace-tests --test simulation many_seeds -- --nocapture")
}

fn run(seed: u64, size: Size, mutation: Mutation) -> (World, Result<(), Violation>) {
    let mut world = World::new(seed, size, mutation);
    let outcome = world.run();
    (world, outcome)
}

#[test]
fn many_seeds_keep_every_promise() {
    let begin = Instant::now();
    let count = number("MILLRACE_SEEDS").map_or(SEEDS, |count| count as u64);
    let mut figures = Figures::default();
    for seed in seeds(1..count + 1) {
        let (world, outcome) = run(seed, size(seed), Mutation::None);
        if let Err(Violation { invariant, what }) = outcome {
            panic!("seed {seed}: {invariant:?}: {what}\n{}run it again: {}", world.log, again(seed));
        }
        figures.add(&world.figures);
    }
    println!("{figures}\n{:.1} s", begin.elapsed().as_secs_f64());
    let alone = std::env::var_os("MILLRACE_SEED").is_some();
    assert!(alone || (figures.deliveries > 1_000 && figures.denials > 100 && figures.survived > 10), "{figures}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4] {
        let hash = |_| run(seed, size(seed), Mutation::None).0.log.hash();
        let [first, second] = [0, 1].map(hash);
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first, run(seed + 10, size(seed), Mutation::None).0.log.hash());
    }
}

/// Some seed finds the mistake, as what it is, and before that no seed finds anything else.
fn is_found(mutation: Mutation, expected: Invariant) {
    for seed in 1..=MUTATED_SEEDS {
        let (world, outcome) = run(seed, Size { nodes: 3, pods: 16, ticks: 250, large: false }, mutation);
        if let Err(violation) = outcome {
            assert_eq!(violation.invariant, expected, "seed {seed}: {}\n{}", violation.what, world.log);
            return;
        }
    }
    panic!("{mutation:?} was not found");
}

#[test]
fn frames_that_a_link_swallows_are_found() {
    is_found(Mutation::UncountedLoss, Invariant::FramesConserved);
}

#[test]
fn frames_that_vanish_before_a_switch_are_found() {
    is_found(Mutation::SwallowedArrival, Invariant::FramesConserved);
}

#[test]
fn nodes_without_policies_are_found() {
    is_found(Mutation::DeafToPolicies, Invariant::Policy);
}

#[test]
fn tenants_that_meet_are_found() {
    is_found(Mutation::SwappedTenants, Invariant::Tenants);
}

#[test]
fn addresses_given_twice_are_found() {
    is_found(Mutation::BlindStore, Invariant::Addresses);
}

#[test]
fn connections_that_do_not_outlive_the_agent_are_found() {
    is_found(Mutation::ForgottenConnections, Invariant::Connections);
}

#[test]
fn a_node_that_never_learns_is_found() {
    is_found(Mutation::DeafToBlocks, Invariant::Convergence);
}
